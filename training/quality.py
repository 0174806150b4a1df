"""Class accuracy, precision, recall and memorization of samples, measured in the features of one network.

Real test images are measured in the same way for comparison (`real_samples`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparsegen.common.progress import ProgressBar, no_progress_bar
from sparsegen.pictures import images as pixels
from sparsegen.training.data import Images
from sparsegen.training.evaluation import Samples
from sparsegen.training.neighbors import K, coverage
from sparsegen.training.reference import Reference

NEAR = 0.05  # quantile of the test images' distances; a sample below it counts as memorized
LEAST = K + 1  # minimum number of real and of generated images for precision and recall
ROWS, COLUMNS = 16, 8  # of `neighbor_picture`: samples, and nearest training images per sample


@dataclass(frozen=True)
class Quality:
    """The results of `measure_quality`; None: not measured.

    Args:
        measured_by: The metric whose features were used.
        class_accuracy: Share of the samples that a linear classifier, trained on the features of the training images,
            assigns to the requested class.
        class_accuracy_real: The same share of the test images.
        precision: Share of the samples within the real images (`coverage`).
        recall: Share of the real images within the samples.
        compared: Number of generated images, and of training images, used for precision and recall.
        memorized: Share of the samples that are nearer to a training image than 95 % of the test images are; about
            0.05 for unseen images.
    """

    measured_by: str
    class_accuracy: float | None
    class_accuracy_real: float | None
    precision: float
    recall: float
    compared: int
    memorized: float | None


def measure_quality(
    samples: Samples, real: Reference, bar: ProgressBar = no_progress_bar
) -> tuple[Quality, list[str]]:
    """Measures samples in the features of the network of `real`.

    Returns: The results, and one sentence per expected result that is missing.

    Raises:
        ValueError: If there are fewer than `LEAST` samples or training images, or features hold NaN or
            infinity.
    """
    features = samples.features[real.network.metric]
    generated, training = equal_counts(features, real.train_features)
    with bar(f"{real.network.metric}: precision", 2 * len(generated)) as show:
        precision = coverage(generated, training, progress=show)
    with bar(f"{real.network.metric}: recall", 2 * len(generated)) as show:
        recall = coverage(training, generated, progress=show)
    accuracy, missing = class_accuracy(samples, real)
    remarks = [f"class accuracy is not measured: {missing}"] if missing else []
    memorized, accuracy_real = None, None
    if real.test is None:
        remarks.append(
            f"memorization and the class accuracy of real images are not measured: {real.train.name} has no test "
            f"images besides its training images (give test images)"
        )
    else:
        accuracy_real, missing_real = class_accuracy(real_samples([real]), real)
        if missing_real and not missing:
            remarks.append(f"class accuracy of real images is not measured: {missing_real}")
        nearest, _ = real.nearest_train(features)
        memorized = float((nearest[:, 0] < np.quantile(real.test_distances, NEAR)).mean())
    quality = Quality(
        measured_by=real.network.metric,
        class_accuracy=accuracy,
        class_accuracy_real=accuracy_real,
        precision=precision,
        recall=recall,
        compared=len(generated),
        memorized=memorized,
    )
    return quality, remarks


def class_accuracy(samples: Samples, real: Reference) -> tuple[float | None, str]:
    """Computes the share of samples that the linear classifier of the training images assigns to their class.

    Returns: The share and an empty string; or None and the reason, which is empty if the samples have no labels.
    """
    if samples.labels is None:
        return None, ""
    if real.train.labels is None:
        return None, f"{real.train.name} has no labels{real.train.unlabeled and f' ({real.train.unlabeled})'}"
    if real.probe is None:
        return None, f"{real.train.name} has images of one class only"
    labels, lacking = _labels_in(real.train, samples.labels, samples.class_names)
    if lacking:
        return (
            None,
            f"{real.train.name} has no images of {', '.join(lacking)}, which the samples include",
        )
    found = real.probe(samples.features[real.network.metric])
    return float((found == labels).mean()), ""


def _labels_in(images: Images, given: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Converts the labels of samples to those of the images: by the class names if both have names.

    Returns: The labels, and the names of the classes without images.
    """
    present = set(images.require_labels().unique().tolist())
    labels, lacking = given.copy(), []
    for label in np.unique(given).tolist():
        number, called = label, f"class {label}"
        if names and images.classes:
            called = names[label]
            number = images.classes.index(called) if called in images.classes else None
        if number in present:
            labels[given == label] = number
        else:
            lacking.append(called)
    return labels, lacking


def equal_counts(generated: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns equal numbers of features: the first generated ones, and real ones drawn with a fixed seed."""
    count = min(len(generated), len(real))
    return generated[:count], real[_draw_rows(len(real), count)]


def real_samples(references: Sequence[Reference], count: int | None = None) -> Samples:
    """Returns real test images in the form of samples.

    Args:
        references: The real images in each feature network.
        count: Number of images, drawn with a fixed seed; None, or more than there are: all.

    Raises:
        ValueError: Without test images.
    """
    test = references[0].require_test()
    rows = _draw_rows(len(test), min(count or len(test), len(test)))
    return Samples(
        images=test.numpy()[rows],
        features={real.network.metric: real.test_features[rows] for real in references},
        labels=None if test.labels is None else test.labels.numpy()[rows],
        class_names=test.classes,
    )


def neighbor_picture(samples: Samples, real: Reference) -> np.ndarray:
    """Returns a picture of the first samples, one per row, with their nearest training images by features.

    Shape: uint8 (H, W, 3).
    """
    features = samples.features[real.network.metric][:ROWS]
    _, nearest = real.nearest_train(features, min(COLUMNS, len(real.train)))
    rows = []
    for image, found in zip(samples.images[:ROWS], nearest, strict=True):
        rows += [image, np.full_like(image, 255), *real.train.numpy()[found]]
    return pixels.grid(np.stack(rows), columns=2 + nearest.shape[1])


def _draw_rows(total: int, count: int) -> np.ndarray:
    """Draws `count` of `total` rows with a fixed seed, in ascending order."""
    return np.sort(np.random.default_rng(0).permutation(total)[:count])
