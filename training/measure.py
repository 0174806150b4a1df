"""Measures a model against real images: distances, class accuracy, precision and recall, memorization."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from sparsegen.common.checks import check_integer
from sparsegen.common.devices import find_device
from sparsegen.common.progress import ProgressBar, no_progress_bar
from sparsegen.training import features as networks
from sparsegen.training import few
from sparsegen.training.data import Images
from sparsegen.training.evaluation import Samples, draw, evaluate_samples
from sparsegen.training.metrics import kernel_distance
from sparsegen.training.quality import LEAST, measure_quality, real_samples
from sparsegen.training.reference import Reference
from sparsegen.training.sources import NoSplitError
from sparsegen.training.start import open_with_bar
from sparsegen.zoo.blocks import IMAGE_SIZES
from sparsegen.zoo.generator import Generator
from sparsegen.zoo.noise import MAX_COUNT, check_seed

COMPARED = 10_000  # of the samples, for the kernel distance, whose time grows with the square
REAL = "real"  # for a model: the test images


@dataclass(frozen=True)
class MeasureConfig:
    """Data and settings of a measurement.

    Attributes:
        data: Real training images: a Hub dataset id, a parquet file, or a folder of images.
        test: Real test images; None: the split `test` of `data`.
        count: Number of images measured; compare only figures of equal counts.
        features: Feature networks, separated by commas; "auto": the available ones that apply to these images.
        weights: File of Inception's weights.
        image_size: Side in pixels of the real images if no generator is measured; else that of the generator.
        quick: Measure distances only.
        device: Device of the feature networks; None: that of the generator, "auto" if none is measured.

    Raises:
        TypeError, ValueError: If a number is out of range.
    """

    data: str
    test: str | None = None
    count: int = 10_000
    seed: int = 0
    features: str = "auto"
    weights: Path | None = None
    image_size: int = IMAGE_SIZES[0]
    quick: bool = False
    device: str | torch.device | None = None

    def __post_init__(self) -> None:
        least = 2 if self.quick else LEAST
        check_integer("count", self.count, least, MAX_COUNT, "the number of images to measure")
        check_seed(self.seed)


@dataclass(frozen=True, eq=False)
class Measurement:
    """The results of a measurement.

    Attributes:
        figures: By name, in the form of the entry "evaluation" of a checkpoint's config.json.
        remarks: Notes on the figures, one sentence each.
        samples: The measured images.
        reference: The real images, in the first feature network.
    """

    figures: dict[str, Any]
    remarks: Sequence[str]
    samples: Samples = field(repr=False)
    reference: Reference = field(repr=False)


def evaluate(
    generator: Generator,
    data: str | Path,
    features: str = "auto",
    count: int = 10_000,
    quick: bool = False,
    test: str | None = None,
    device: str | torch.device | None = None,
) -> Measurement:
    """Measures a generator against real images: Fréchet distances, class accuracy of conditional samples, precision
    and recall, memorization.

    Args:
        data: Real training images, decoded at the generator's image size.
        features: Feature networks, separated by commas; "auto": the available ones that apply to these images.
        count: Number of images drawn; compare only figures of equal counts.
        quick: Measure distances only.
        test: Real test images; None: the split `test` of `data`.
        device: Device of the feature networks; None: that of the generator, which also runs where it is.

    Raises:
        TypeError, ValueError: If a number is out of range, or the data or a feature network does not exist.

    >>> import sparsegen
    >>> measured = sparsegen.evaluate(sparsegen.from_pretrained("dcgan.ml"), "cifar10")  # doctest: +SKIP
    >>> measured.figures["distance"]  # doctest: +SKIP
    """
    config = MeasureConfig(str(data), test, count, features=features, quick=quick, device=device)
    return measure(generator, config, generator.spec.name)


def measure(
    generator: Generator | None, config: MeasureConfig, name: str = REAL, bar: ProgressBar = no_progress_bar
) -> Measurement:
    """Measures a generator, or real test images for comparison.

    Args:
        generator: None: the test images are measured.
        name: Its name in progress bars and remarks.
        bar: Progress bar of long computations.

    Raises:
        ValueError: If test images are to be measured and there are none; as `open_images`, `open_features`.
    """
    device = find_device(config.device or (generator.device if generator else None))
    opened = {  # before the images are decoded, which may take long
        network: networks.open_features(network, config.weights if network == "inception" else None, device)
        for network in networks.named_networks(config.features, config.weights)
    }
    size = config.image_size if generator is None else generator.image_size
    images = open_with_bar(config.data, bar, size=size)
    test_images = _open_test(config, images, bar, needed=generator is None)
    if config.features == "auto":
        more = networks.second_networks(images.fingerprint)
        opened |= {network: networks.open_features(network, device=device) for network in more}
    discriminator = None if generator is None else generator.config.get("training", {}).get("features")
    order, independent = networks.headline_first(opened, discriminator)
    references = [Reference(opened[network], images, test_images, bar) for network in order]
    statistics = {real.network.metric: real.statistics for real in references}
    if generator is None:
        samples = real_samples(references, config.count)
    else:
        with bar(f"{name}: {', '.join(statistics)}", config.count) as show:
            samples = draw(
                generator,
                list(opened.values()),
                config.count,
                config.seed,
                progress=lambda done, _: show(done),
            )
    result = evaluate_samples(samples, statistics)
    figures = {
        "k": [k_range.k for k_range in generator.k_ranges] if generator else [],
        "data": Path(images.name).name,
        **asdict(result),
        "independent": independent,
    }
    if few.are_few(images):
        generated = samples.features[result.metric][:COMPARED]
        figures["kernel_distance"] = kernel_distance(generated, references[0].train_features)
    remarks: list[str] = []
    if not config.quick:
        quality, remarks = measure_quality(samples, references[0], bar)
        figures |= asdict(quality)
    if not independent:
        remarks = [
            *remarks,
            f"{name} was trained against the features of {result.metric}, so its distance is biased in its favor; no "
            f"other network was used",
        ]
    return Measurement(figures, remarks, samples, references[0])


def _open_test(config: MeasureConfig, images: Images, bar: ProgressBar, needed: bool) -> Images | None:
    """Opens the test images; None if the data has no test images that differ from its training images.

    Raises:
        ValueError: If there are none and they are needed.
    """
    try:
        found = open_with_bar(
            config.test or config.data, bar, "train" if config.test else "test", images.size
        )
        if found.fingerprint != images.fingerprint:
            return found
        why = f"those of {config.data} are its training images"
    except NoSplitError as error:
        why = str(error)
    if needed:
        raise ValueError(
            f"{REAL} measures test images, and there are none ({why}): give test images (--test FOLDER), or data with "
            f"a subfolder test"
        )
    return None
