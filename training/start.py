"""Creates a checked run from a configuration: its images, recipe and evaluator."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sparsegen.common.checks import check_integer
from sparsegen.common.progress import OnProgress, ProgressBar, no_progress_bar
from sparsegen.training import features as networks
from sparsegen.training.data import Images, check_share, open_images
from sparsegen.training.evaluation import draw, evaluate_samples
from sparsegen.training.loop import TrainingStep
from sparsegen.training.plan import (
    RunPlan,
    Schedule,
    Start,
    StartingModel,
    check_start,
    check_warm_up,
    read_plan,
)
from sparsegen.training.processes import first_process_first, is_first_process, process_count
from sparsegen.training.projected import find_frozen, frozen_for
from sparsegen.training.recipes import Recipe, recipe_of
from sparsegen.training.reference import Reference
from sparsegen.training.run import Evaluator, Run
from sparsegen.training.trackers import check_trackers, open_trackers
from sparsegen.zoo.blocks import IMAGE_SIZES
from sparsegen.zoo.checkpoint import read_config
from sparsegen.zoo.generator import Generator
from sparsegen.zoo.k_range import resolve
from sparsegen.zoo.noise import MAX_COUNT, check_seed
from sparsegen.zoo.spec import ModelSpec

logger = logging.getLogger(__name__)

WARM_UP, EVAL_EVERY = 500, 2_000
FEW = 5_000  # images; a tenth of CIFAR-10, for which Zhao et al. (2020) use DiffAugment

Callback = Callable[[Run, TrainingStep], object]


@dataclass(frozen=True)
class TrainConfig:
    """Model, data, folder and settings of a training run. None: the recipe's value.

    Attributes:
        model: architecture[-atoms].regularizer[.recipe].
        data: A Hub dataset id, a parquet file, or a folder of images.
        out: Folder of the run.
        image_size: Side of the square images in pixels, 32, 64 or 128; None: that of the model's name, else 32.
        classes: Labels of a conditional model, 0 for none; None: those of `start_from`, or of the data.
        k: Non-zeros kept: one number, or one per projected level; None: those of `start_from`, if it has the same
            regularizer, or of the regularizer's density.
        start_from: A model to fine-tune: a bundled one, a checkpoint's folder, or owner/name on the Hub.
        warm_up: Steps that a new discriminator is trained alone, if `start_from` has none; None: 500, at most a
            quarter of the run.
        batch_size: Images per step, of all processes together; None: the recipe's, or all images if there are fewer.
        augment: DiffAugment (Zhao et al., 2020) for the inputs of the discriminator, where the recipe has no
            augmentation; None: if there are fewer than 5,000 images.
        resume: Resume the run in the folder.
        precision: "no", which is float32, or "bf16".
        limit: Maximum number of images read.
        share: Share of the images used for training, in (0, 1], the same number of each class.
        rate: Factor of the recipe's learning rates.
        features: Frozen network of the projected recipe; "auto": chosen by the images.
        eval_every, save_every: Steps between evaluations of the Fréchet distance, and between checkpoints. Evaluations
            by default every 2,000 steps, and at least five times in a run.
        eval_count: Images drawn for an evaluation, at least 2; 0: no evaluation.
        device: auto, cpu, cuda, cuda:N, mps or xpu; "auto" or None: an accelerator if there is one, with several
            processes that of the process.
        trackers: "tensorboard", "wandb" or both: where measurements and sample grids are sent, besides the folder.
        deterministic: Use deterministic algorithms only, so that a run on a GPU can be repeated bit for bit; slower.
        compiled: Compile the generator by torch.compile, in the first step.
    """

    model: str
    data: str | Path
    out: str | Path
    steps: int | None = None
    image_size: int | None = None
    classes: int | None = None
    k: int | list[int] | None = None
    seed: int = 0
    batch_size: int | None = None
    start_from: str | None = None
    warm_up: int | None = None
    augment: bool | None = None
    resume: bool = False
    precision: str = "no"
    limit: int | None = None
    share: float = 1.0
    rate: float = 1.0
    features: str = "auto"
    eval_every: int | None = None
    eval_count: int = 2_000
    save_every: int = 500
    device: str | torch.device | None = None
    deterministic: bool = False
    compiled: bool = False
    trackers: Sequence[str] = ()


def start(
    config: TrainConfig,
    bar: ProgressBar = no_progress_bar,
    on_evaluation: Callable[[int, int], object] | None = None,
) -> Run:
    """Creates a run. Iterating over it trains.

    Args:
        bar: Progress bar of decoding images and computing their features; shown by the first process.
        on_evaluation: Called during an evaluation with the images measured so far and their total.

    Raises:
        TypeError, ValueError, OSError: Before any work if possible.
    """
    spec = _sized(ModelSpec.parse(config.model), config.image_size)
    if config.k is not None:
        spec = replace(spec, k=tuple(resolve(config.k, spec.k_ranges)))
    check_share(config.share)
    check_trackers(config.trackers)
    found = find_frozen(spec, config.features)  # before the images are decoded, which may take long
    check_seed(config.seed)
    place = check_start(config.out, spec, config.start_from, config.resume, config.device)
    if config.resume and not place.goes_on:
        raise ValueError(f"{config.out} holds no run to resume: give the folder of a run, or do not resume")
    recorded = read_plan(place.folder / "run.json") if place.goes_on else {}
    warm_up = config.warm_up
    if (
        warm_up is not None
        and config.steps
        and place.origin
        and not StartingModel.of(place.origin).discriminator
    ):
        check_warm_up(warm_up, config.steps)
    if config.eval_count:
        check_integer("eval_count", config.eval_count, 2, MAX_COUNT, "0, or the number of images drawn")
    if not is_first_process():
        bar = no_progress_bar
    with first_process_first():  # the others read the images from the cache
        images = open_with_bar(str(config.data), bar, size=spec.image_size, limit=config.limit)
    spec = spec.with_classes(_classes(spec, config.classes, place, images))
    part = images.part(config.share)
    frozen = frozen_for(found, images.fingerprint)
    recipe = recipe_of(spec, config.share, frozen)
    steps = config.steps or recipe.steps
    if warm_up is None:
        warm_up = recorded.get("warm_up", min(WARM_UP, steps // 4))
    run_plan = RunPlan(
        model=spec.name,
        k=spec.k,
        data=part.name,
        fingerprint=part.fingerprint,
        seed=config.seed,
        batch_size=config.batch_size
        or recorded.get("batch_size")
        or _batch_size(recipe.batch_size, part, process_count()),
        precision=config.precision,
        share=config.share,
        rate=config.rate,
        start_from=config.start_from,
        warm_up=warm_up if config.start_from else 0,
        augment=_augment(config.augment, recorded, part, recipe),
        features=frozen.name if frozen else None,
        classes=spec.classes,
        deterministic=config.deterministic,
        compiled=config.compiled,
    )
    eval_every = config.eval_every or min(EVAL_EVERY, max(1, steps // 5))
    schedule = Schedule(steps, save_every=config.save_every, eval_every=eval_every)
    run = Run(place, run_plan, part, schedule, frozen)
    if is_first_process():
        run.trackers = open_trackers(config.trackers, run.folder, asdict(run.plan))
    if config.eval_count and is_first_process():
        # With all images, so that distances of models trained on shares are comparable.
        run.evaluator = make_evaluator(
            images, config.eval_count, place.device, run_plan.features, bar, on_evaluation
        )
    return run


def train(config: TrainConfig, callbacks: Sequence[Callback] = ()) -> Run:
    """Trains or fine-tunes a model and returns the finished run.

    Args:
        config: Model, data, folder and settings.
        callbacks: Each is called after every step with the run and its progress; if one returns True, the run saves
            and stops. `Run.stopped` is then True, and the same config with `resume=True` continues.

    Raises:
        TypeError, ValueError, OSError: As `start`.
        FloatingPointError: If training diverges.

    >>> import sparsegen, tempfile, numpy as np, pathlib
    >>> from PIL import Image
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> for number in range(8):
    ...     pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
    ...     Image.fromarray(pixels).save(folder / f"{number}.png")
    >>> config = sparsegen.TrainConfig(
    ...     "dcgan-8.ml", data=str(folder), out=folder / "run", steps=2, batch_size=4, eval_count=0
    ... )
    >>> run = sparsegen.train(config)
    >>> run.step, run.generator.sample(2).shape
    (2, (2, 32, 32, 3))
    """
    run = start(config)
    stops: list[bool] = []
    for progress in run.until(lambda: any(stops)):
        stops[:] = [bool(callback(run, progress)) for callback in callbacks]
    return run


def _sized(spec: ModelSpec, image_size: int | None) -> ModelSpec:
    """Returns the model at an image size.

    Raises:
        ValueError: On an invalid size, or if the name has another one.
    """
    if image_size in (None, spec.image_size):
        return spec
    if spec.image_size != IMAGE_SIZES[0]:
        raise ValueError(
            f"{spec.name} has images of {spec.image_size} pixels, and image_size is {image_size}: give one of them"
        )
    return ModelSpec.of(spec.architecture, spec.regularizer, spec.atoms, None, spec.recipe, image_size)


def _batch_size(wanted: int, images: Images, processes: int) -> int:
    """Returns the recipe's batch size, or the largest below it for these images and processes, with a notice."""
    size = min(wanted, len(images)) // processes * processes
    if size == wanted or size < 2:  # the loader explains the second
        return wanted
    given = (
        f"{images.name} has {len(images)} images"
        if len(images) < wanted
        else f"there are {processes} processes"
    )
    logger.warning("%s, so a batch has %d, not %d", given, size, wanted)
    return size


def _augment(asked: bool | None, recorded: dict[str, Any], images: Images, recipe: Recipe) -> bool:
    """Returns whether the discriminator's inputs are augmented: as requested, as in the run, or if images are few."""
    if asked is not None or recorded:
        return recorded.get("augment", False) if asked is None else asked
    if len(images) >= FEW or recipe == recipe.augmented():
        return False
    logger.warning(
        "%s has %d images, fewer than %s: the discriminator sees them augmented (DiffAugment)",
        images.name,
        len(images),
        f"{FEW:,}",
    )
    return True


def _classes(spec: ModelSpec, asked: int | None, place: Start, images: Images) -> int | None:
    """Returns the number of labels: as requested, as in the starting model or run, or as in the images."""
    if asked is not None or not spec.labels:
        return asked
    if place.goes_on:
        return read_plan(place.folder / "run.json").get("classes")
    if place.origin:
        return ModelSpec.from_config(read_config(place.origin)).labels
    return images.class_count or None  # without labels: the default, which `Run` refuses with a remedy


def open_with_bar(
    data: str, bar: ProgressBar, split: str = "train", size: int = IMAGE_SIZES[0], limit: int | None = None
) -> Images:
    """Opens images as `open_images`, with a progress bar."""
    with bar(f"decoding {data}", None) as show:
        return open_images(data, split, size, limit, lambda done, total: show(done, total=total))


def make_evaluator(
    images: Images,
    count: int,
    device: torch.device,
    discriminator: str | None,
    bar: ProgressBar = no_progress_bar,
    progress: OnProgress | None = None,
) -> Evaluator:
    """Returns a function that measures the Fréchet distance of fixed samples, to select the best checkpoint.

    The feature network is not that of the discriminator if another one applies to these images; else the record is
    marked as not independent.

    Args:
        discriminator: The feature network of the discriminator, if any.
    """
    names = networks.named_networks("auto") + networks.second_networks(images.fingerprint)
    (name, *_), independent = networks.headline_first(names, discriminator)
    network = networks.open_features(name, device=device)
    real = {network.metric: Reference(network, images, bar=bar).statistics}

    def measure(generator: Generator) -> dict[str, Any]:
        evaluation = evaluate_samples(draw(generator, [network], count, progress=progress), real)
        return {**asdict(evaluation), "independent": independent}

    return measure
