"""Class accuracy, precision and recall, memorization, of images with simple features."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from sparsegen.training.data import Images, fingerprint
from sparsegen.training.evaluation import Samples
from sparsegen.training.features import FeatureNetwork
from sparsegen.training.neighbors import coverage
from sparsegen.training.quality import equal_counts, measure_quality, neighbor_picture, real_samples
from sparsegen.training.reference import Reference

COLORS = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200]])
NAMES = ("red", "green", "blue")
NETWORK = FeatureNetwork("fd-mean", 3, lambda x: x.float().mean((2, 3)) / 255)


def colored(labels: Sequence[int], seed: int) -> np.ndarray:
    """Returns images of the color of their class, each of another shade."""
    shades = np.random.default_rng(seed).normal(0, 12, (len(labels), 1, 1, 3))
    return (
        np.broadcast_to(COLORS[labels][:, None, None] + shades, (len(labels), 8, 8, 3))
        .round()
        .astype(np.uint8)
    )


def images(count: int, seed: int, names: Sequence[str] = NAMES, labeled: bool = True) -> Images:
    labels = [row % 3 for row in range(count)]
    pixels = torch.from_numpy(colored(labels, seed)).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor(labels) if labeled else None
    return Images(pixels, labels, f"colors {seed}", fingerprint(pixels, labels), classes=tuple(names))


def samples(pixels: np.ndarray, labels: Sequence[int] | None = None, names: Sequence[str] = NAMES) -> Samples:
    labels = None if labels is None else np.array(labels)
    return Samples(pixels, {"fd-mean": NETWORK(pixels)}, labels, names)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEGEN_CACHE", str(tmp_path))


@pytest.fixture
def real() -> Reference:
    return Reference(NETWORK, images(300, seed=0), images(100, seed=1))


def test_class_accuracy_is_the_share_of_samples_of_the_requested_class(real: Reference) -> None:
    asked = [0, 1, 2, 0] * 10
    made = [0, 1, 2, 1] * 10  # each fourth shows another class
    quality, remarks = measure_quality(samples(colored(made, seed=2), asked), real)
    assert quality.class_accuracy == 0.75
    assert quality.class_accuracy_real == 1
    assert quality.measured_by == "fd-mean" and not remarks


def test_classes_are_matched_by_name_if_both_have_names(real: Reference) -> None:
    made, asked = [0, 1, 2] * 10, [1, 2, 0] * 10
    renamed = samples(colored(made, seed=2), asked, names=("blue", "red", "green"))
    assert measure_quality(renamed, real)[0].class_accuracy == 1
    nameless = replace(renamed, class_names=())
    assert measure_quality(nameless, real)[0].class_accuracy == 0
    numbered = Reference(NETWORK, images(300, seed=0, names=()), None)
    assert measure_quality(renamed, numbered)[0].class_accuracy == 0


@pytest.mark.parametrize(
    ("labels", "names", "lacking"),
    [
        ([0, 1, 3] * 10, (), "class 3"),
        ([0, 1, 2] * 10, ("red", "white", "black"), "white, black"),
    ],
)
def test_classes_beyond_those_of_the_data_are_named(
    real: Reference, labels: list[int], names: Sequence[str], lacking: str
) -> None:
    quality, remarks = measure_quality(samples(colored([0, 1, 2] * 10, 2), labels, names), real)
    assert quality.class_accuracy is None and quality.precision > 0.5
    assert remarks == [
        f"class accuracy is not measured: colors 0 has no images of {lacking}, which the samples include"
    ]


def test_an_unconditional_model_has_no_class_accuracy_and_no_remark(real: Reference) -> None:
    quality, remarks = measure_quality(samples(colored([0, 1, 2] * 10, seed=2)), real)
    assert quality.class_accuracy is None and quality.class_accuracy_real == 1 and not remarks


@pytest.mark.parametrize("labeled", [True, False])
def test_data_without_labels_of_two_classes_are_named_in_a_remark(labeled: bool) -> None:
    train = images(300, seed=0, labeled=False)
    if labeled:
        train = replace(train, labels=torch.ones(300, dtype=torch.int64))
    else:
        train = replace(train, unlabeled="a/b.png lies outside a class folder")
    quality, remarks = measure_quality(
        samples(colored([0, 1, 2] * 10, 2), [0, 1, 2] * 10), Reference(NETWORK, train, images(100, 1))
    )
    assert quality.class_accuracy is quality.class_accuracy_real is None
    assert quality.memorized is not None
    why = "has images of one class only" if labeled else "has no labels (a/b.png lies outside a class folder)"
    assert remarks == [f"class accuracy is not measured: colors 0 {why}"]


def test_test_images_of_another_class_than_the_training_images_are_named() -> None:
    test = replace(images(100, seed=1), classes=("red", "green", "pink"))
    quality, remarks = measure_quality(
        samples(colored([0, 1] * 10, 2), [0, 1] * 10), Reference(NETWORK, images(300, 0), test)
    )
    assert quality.class_accuracy == 1 and quality.class_accuracy_real is None
    assert (
        len(remarks) == 1 and "of real images is not measured: colors 0 has no images of pink" in remarks[0]
    )


def test_precision_and_recall_compare_equal_counts(real: Reference) -> None:
    made = samples(colored([0] * 60, seed=2))
    quality, _ = measure_quality(made, real)
    generated, training = equal_counts(made.features["fd-mean"], real.train_features)
    assert quality.compared == len(generated) == len(training) == 60
    assert quality.precision == coverage(generated, training) > 0.5
    assert quality.recall == coverage(training, generated) < 0.5  # one class of three
    again = equal_counts(made.features["fd-mean"], real.train_features)[1]
    assert np.array_equal(training, again) and not np.array_equal(training, real.train_features[:60])
    many, few = equal_counts(real.train_features, made.features["fd-mean"])
    assert len(many) == len(few) == 60 and np.array_equal(few, made.features["fd-mean"])


def test_memorized_is_the_share_of_samples_nearer_than_test_images(real: Reference) -> None:
    copies = real.train.numpy()[:20]
    fresh = colored([0, 1, 2] * 27, seed=5)
    far = np.zeros_like(copies)
    features = real.train_features
    gaps = np.linalg.norm(real.test_features[:, None] - features, axis=2).min(axis=1)

    def share(pixels: np.ndarray) -> float:
        return measure_quality(samples(pixels), real)[0].memorized

    assert share(copies) == 1 and share(far) == 0
    assert share(np.concatenate([copies, far])) == 0.5
    nearest = np.linalg.norm(NETWORK(fresh)[:, None] - features, axis=2).min(axis=1)
    assert share(fresh) == (nearest < np.quantile(gaps, 0.05)).mean() < 0.2
    assert share(real.test.numpy()) == pytest.approx(0.05, abs=0.011)


def test_without_test_images_only_the_measures_that_need_them_are_missing() -> None:
    quality, remarks = measure_quality(
        samples(colored([0, 1, 2] * 10, 2), [0, 1, 2] * 10), Reference(NETWORK, images(300, 0))
    )
    assert quality.memorized is quality.class_accuracy_real is None
    assert quality.class_accuracy == 1 and quality.precision > 0.5
    assert (
        len(remarks) == 1 and "colors 0 has no test images" in remarks[0] and "give test images" in remarks[0]
    )


@pytest.mark.parametrize(("made", "known"), [(3, 300), (40, 3)])
def test_too_few_images_are_refused(made: int, known: int) -> None:
    with pytest.raises(ValueError, match="at least 4 real and 4 generated images are needed; got 3"):
        measure_quality(samples(colored([0] * made, 2)), Reference(NETWORK, images(known, 0)))


def test_features_that_hold_nan_are_refused(real: Reference) -> None:
    made = samples(colored([0, 1, 2] * 10, seed=2))
    made.features["fd-mean"][4] = np.nan
    with pytest.raises(ValueError, match="1 of 30 features hold NaN"):
        measure_quality(made, real)


def test_real_test_images_are_measured_like_samples(real: Reference) -> None:
    everything, some = real_samples([real]), real_samples([real], 30)
    assert np.array_equal(everything.images, real.test.numpy()) and len(real_samples([real], 10_000)) == 100
    assert len(some) == 30 and np.array_equal(some.features["fd-mean"], NETWORK(some.images))
    rows = [np.flatnonzero((everything.images == image).all((1, 2, 3)))[0] for image in some.images]
    assert rows != list(range(30)) and np.array_equal(some.labels, everything.labels[rows])
    quality, remarks = measure_quality(everything, real)
    assert quality.class_accuracy == quality.class_accuracy_real == 1 and not remarks
    assert quality.precision > 0.8 and quality.recall > 0.8


def test_the_picture_shows_the_first_samples_beside_their_nearest_training_images(real: Reference) -> None:
    made = samples(colored([0, 1, 2] * 10, seed=2))
    picture = neighbor_picture(made, real)
    assert picture.shape == (16 * 10 + 2, 10 * 10 + 2, 3)
    for row in range(16):
        tiles = [picture[2 + 10 * row :][:8, 2 + 10 * column :][:, :8] for column in range(10)]
        assert np.array_equal(tiles[0], made.images[row]) and (tiles[1] == 255).all()
        gaps = np.linalg.norm(real.train_features - made.features["fd-mean"][row], axis=1)
        shown = [np.linalg.norm(NETWORK(tile[None])[0] - made.features["fd-mean"][row]) for tile in tiles[2:]]
        np.testing.assert_allclose(shown, np.sort(gaps)[:8], rtol=1e-3, atol=1e-5)
    small = Reference(NETWORK, images(5, seed=0))
    assert neighbor_picture(samples(colored([0, 1], 2)), small).shape == (2 * 10 + 2, 7 * 10 + 2, 3)
