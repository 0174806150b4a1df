"""Measures a model against real images in full: distances, class accuracy, precision and recall, memorization."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparsegen.common.checks import check_integer
from sparsegen.common.progress import ProgressBar, no_progress_bar
from sparsegen.training import features as networks
from sparsegen.training.data import Images
from sparsegen.training.evaluation import Samples, draw, evaluate_samples
from sparsegen.training.quality import LEAST, measure_quality, real_samples
from sparsegen.training.reference import Reference
from sparsegen.training.sources import NoSplitError
from sparsegen.training.start import open_with_bar
from sparsegen.zoo.blocks import IMAGE_SIZES
from sparsegen.zoo.generator import Generator
from sparsegen.zoo.noise import MAX_COUNT, check_seed

REAL = "real"  # for a model: the test images


@dataclass(frozen=True)
class MeasureConfig:
    """What a model is measured by.

    Attributes:
        data: Real images to train on: a Hub dataset id, a parquet file, or a folder of images.
        test: Real test images; None: the split `test` of `data`.
        count: Images measured; compare figures over equal counts only.
        features: Feature networks, separated by commas; "auto": those that are there, and of use on these images.
        weights: Of inception, as a file.
        image_size: Side in pixels of the real images where there is no generator, whose size is taken else.
        quick: Distances only.

    Raises: TypeError, ValueError if a number is out of range.
    """

    data: str
    test: str | None = None
    count: int = 10_000
    seed: int = 0
    features: str = "auto"
    weights: Path | None = None
    image_size: int = IMAGE_SIZES[0]
    quick: bool = False

    def __post_init__(self) -> None:
        least = 2 if self.quick else LEAST
        check_integer("count", self.count, least, MAX_COUNT, "the number of images to measure")
        check_seed(self.seed)


@dataclass(frozen=True, eq=False)
class Measurement:
    """What was measured.

    Attributes:
        figures: By name, as a checkpoint's config.json records them.
        remarks: What people should know of these, a sentence each.
        samples, reference: What was measured, and the images as the first feature network sees them.
    """

    figures: dict[str, Any]
    remarks: Sequence[str]
    samples: Samples
    reference: Reference


def evaluate(
    generator: Generator,
    data: str | Path,
    features: str = "auto",
    count: int = 10_000,
    quick: bool = False,
    test: str | None = None,
) -> Measurement:
    """Measures a generator against real images: Fréchet distances, class accuracy of conditional samples, precision
    and recall, memorization.

    Args:
        data: Real training images, of the generator's image size once they are decoded; test: as in `MeasureConfig`.
        features: Feature networks, separated by commas; "auto": those that are there, and of use on these images.
        count: Images drawn; compare figures over equal counts only.
        quick: Distances only.

    Raises: TypeError, ValueError if a number is out of range, or there is no such data or feature network.

    >>> import sparsegen
    >>> measured = sparsegen.evaluate(sparsegen.from_pretrained("dcgan.ml"), "cifar10")  # doctest: +SKIP
    >>> measured.figures["distance"]  # doctest: +SKIP
    """
    config = MeasureConfig(str(data), test, count, features=features, quick=quick)
    return measure(generator, config, generator.spec.name)


def measure(
    generator: Generator | None, config: MeasureConfig, name: str = REAL, bar: ProgressBar = no_progress_bar
) -> Measurement:
    """Measures a generator, or the real test images, as the yardstick.

    Args:
        generator: None for the test images.
        name: What bars and remarks call it.
        bar: Shows what takes long.

    Raises: ValueError if there are no test images, and they are to be measured; as `open_images`, `open_features`.
    """
    opened = {  # before the images are decoded, which may take long
        network: networks.open_features(network, config.weights if network == "inception" else None)
        for network in networks.named_networks(config.features, config.weights)
    }
    size = config.image_size if generator is None else generator.image_size
    images = open_with_bar(config.data, bar, size=size)
    test_images = _open_test(config, images, bar, needed=generator is None)
    if config.features == "auto":
        more = networks.second_networks(images.fingerprint)
        opened |= {network: networks.open_features(network) for network in more}
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
    remarks: list[str] = []
    if not config.quick:
        quality, remarks = measure_quality(samples, references[0], bar)
        figures |= asdict(quality)
    if not independent:
        remarks = [
            *remarks,
            f"{result.metric} was in the discriminator of {name}, so it flatters it: no other is given",
        ]
    return Measurement(figures, remarks, samples, references[0])


def _open_test(config: MeasureConfig, images: Images, bar: ProgressBar, needed: bool) -> Images | None:
    """The test images; None if the data has none besides its training images.

    Raises: ValueError if there are none and they are needed.
    """
    try:
        found = open_with_bar(
            config.test or config.data, bar, "train" if config.test else "test", images.size
        )
        if found.fingerprint != images.fingerprint:
            return found
        why = f"those of {config.data} are its training images"
    except NoSplitError as error:
        why = f"there are none: {error}"
    if needed:
        raise ValueError(f"{REAL} measures test images, and {why}; give test images")
    return None
