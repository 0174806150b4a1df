"""Creates a checked run from a configuration: its images, recipe and evaluator."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sparsegen.common.checks import check_integer
from sparsegen.common.files import check_utf8
from sparsegen.common.progress import OnProgress, ProgressBar, no_progress_bar
from sparsegen.training import features as networks
from sparsegen.training import few
from sparsegen.training.data import Images, check_share, open_images
from sparsegen.training.evaluation import draw, evaluate_samples
from sparsegen.training.loop import TrainingStep
from sparsegen.training.metrics import kernel_distance
from sparsegen.training.plan import (
    RunPlan,
    Schedule,
    StartingModel,
    check_start,
    check_warm_up,
    checkpoints,
    read_plan,
)
from sparsegen.training.processes import first_process_first, is_first_process, process_count
from sparsegen.training.projected import find_frozen, frozen_for
from sparsegen.training.recipes import recipe_of
from sparsegen.training.reference import Reference
from sparsegen.training.run import Evaluator, Run
from sparsegen.training.trackers import check_trackers, open_trackers
from sparsegen.zoo.blocks import IMAGE_SIZES
from sparsegen.zoo.checkpoint import find_checkpoint, read_config
from sparsegen.zoo.generator import Generator
from sparsegen.zoo.k_range import resolve
from sparsegen.zoo.noise import MAX_COUNT, check_seed
from sparsegen.zoo.spec import ModelSpec

WARM_UP, EVAL_EVERY = 500, 2_000

Callback = Callable[[Run, TrainingStep], object]


@dataclass(frozen=True)
class TrainConfig:
    """Model, data, folder and settings of a training run. None: the recipe's value.

    Attributes:
        model: architecture[-atoms].regularizer[.recipe]; None: that of `start_from`. Without a recipe in the name, it
            is the projected recipe for fewer than 5,000 images, else that of the paper.
        data: A Hub dataset id, a parquet file, or a folder of images.
        out: Folder of the run.
        image_size: Side of the square images in pixels, 32, 64 or 128; None: that of the model's name, else 32.
        classes: Labels of a conditional model, 0 for none; None: those of the data. Data without labels are one class
            if `start_from` is conditional.
        k: Non-zeros kept: one number, or one per projected level; None: those of `start_from`, if it has the same
            regularizer, or of the regularizer's density.
        start_from: A model to fine-tune: a bundled one, a checkpoint's folder, or owner/name on the Hub.
        warm_up: Steps that a new discriminator is trained alone, if `start_from` has none; None: 500 (100 for fewer
            than 5,000 images), at most a quarter of the run.
        batch_size: Images per step, of all processes together; None: the recipe's, or all images if there are fewer.
        augment: DiffAugment (Zhao et al., 2020) for the inputs of the discriminator, where the recipe has no
            augmentation; None: if there are fewer than 5,000 images.
        resume: Resume the run in the folder.
        precision: "no", which is float32, or "bf16".
        limit: Maximum number of images read.
        share: Share of the images used for training, in (0, 1], the same number of each class.
        rate: Factor of the recipe's learning rates.
        features: Frozen network of the projected recipe; "auto": that of the heads of `start_from` if it has some,
            else chosen by the images.
        eval_every, save_every: Steps between evaluations of the Fréchet distance, and between checkpoints. Evaluations
            by default every 2,000 steps, and at least five times in a run; twenty times for fewer than 5,000 images.
        eval_count: Images drawn for an evaluation, at least 2; 0: no evaluation.
        patience: Evaluations in a row without a smaller distance after which the run ends, 0: never; None: 5 for fewer
            than 5,000 images, else never.
        device: auto, cpu, cuda, cuda:N, mps or xpu; "auto" or None: an accelerator if there is one, with several
            processes that of the process.
        trackers: "tensorboard", "wandb" or both: where measurements and sample grids are sent, besides the folder.
        deterministic: Use deterministic algorithms only, so that a run on a GPU can be repeated bit for bit; slower.
        compiled: Compile the generator by torch.compile, in the first step.
    """

    model: str | None
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
    patience: int | None = None
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
    check_utf8(config.out)
    recorded = read_plan(Path(config.out) / "run.json") if checkpoints(Path(config.out)) else {}
    spec, recipe_given = _requested(config, recorded)
    if config.k is not None:
        spec = replace(spec, k=tuple(resolve(config.k, spec.k_ranges)))
    check_share(config.share)
    check_trackers(config.trackers)
    if config.patience is not None:
        check_integer("patience", config.patience, 0, MAX_COUNT, "evaluations without a smaller distance")
    check_seed(config.seed)
    place = check_start(config.out, spec, config.start_from, config.resume, config.device)
    if config.resume and not place.goes_on:
        raise ValueError(f"{config.out} holds no run to resume: give the folder of a run, or do not resume")
    source = StartingModel.of(place.origin) if place.origin else None
    heads = (recorded.get("features") if recorded else source and source.heads) or "auto"
    features = heads if config.features == "auto" and spec.recipe == few.PROJECTED else config.features
    found = find_frozen(spec, features)  # before the images are decoded, which may take long
    warm_up = config.warm_up
    if warm_up is not None and config.steps and source and not source.discriminator:
        check_warm_up(warm_up, config.steps)
    if config.eval_count:
        check_integer("eval_count", config.eval_count, 2, MAX_COUNT, "0, or the number of images drawn")
    if not is_first_process():
        bar = no_progress_bar
    with first_process_first():  # the others read the images from the cache
        images = open_with_bar(str(config.data), bar, size=spec.image_size, limit=config.limit)
    known = recorded.get("classes") if recorded else source and source.classes
    if images.labels is None and config.start_from and config.classes is None and known:
        images = few.with_one_class(images, Path(config.data).resolve().name)
    part = images.part(config.share)
    few_images = few.are_few(part)
    if few_images and not recipe_given:
        spec = few.with_recipe(spec, part)
        found = find_frozen(spec, heads)
    spec = spec.with_classes(_classes(spec, config, recorded, source, images))
    frozen = frozen_for(found, images.fingerprint)
    recipe = recipe_of(spec, config.share, frozen)
    steps = config.steps or (few.STEPS if few_images else recipe.steps)
    if warm_up is None:
        warm_up = recorded.get("warm_up", min(few.WARM_UP if few_images else WARM_UP, steps // 4))
    augment = recorded.get("augment", False) if recorded and config.augment is None else config.augment
    run_plan = RunPlan(
        model=spec.name,
        k=spec.k,
        data=part.name,
        fingerprint=part.fingerprint,
        seed=config.seed,
        batch_size=config.batch_size
        or recorded.get("batch_size")
        or few.batch_size(recipe.batch_size, part, process_count()),
        precision=config.precision,
        share=config.share,
        rate=config.rate,
        start_from=config.start_from,
        warm_up=warm_up if config.start_from else 0,
        augment=few.augments(part, recipe) if augment is None else augment,
        features=frozen.name if frozen else None,
        classes=spec.classes,
        deterministic=config.deterministic,
        compiled=config.compiled,
    )
    schedule = Schedule(
        steps,
        save_every=config.save_every,
        eval_every=config.eval_every
        or (
            max(few.LEAST_STEPS, steps // few.EVALUATIONS)
            if few_images
            else min(EVAL_EVERY, max(1, steps // 5))
        ),
        patience=few_images * few.PATIENCE if config.patience is None else config.patience,
    )
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


def _requested(config: TrainConfig, recorded: Mapping[str, Any]) -> tuple[ModelSpec, bool]:
    """Returns the model to train, and whether its recipe is given, by its name or by the run that is resumed.

    Raises:
        ValueError: On an unknown model, or if there is none.
    """
    if config.model is not None:
        spec = ModelSpec.parse(config.model)
        recipe_given = config.model.endswith(f".{spec.recipe}")
    elif recorded:
        spec, recipe_given = ModelSpec.parse(recorded["model"]), True
    elif config.start_from is not None:
        spec = ModelSpec.from_config(read_config(find_checkpoint(config.start_from, auxiliary=True)))
        spec, recipe_given = replace(spec, k=None, classes=None), spec.recipe == few.PROJECTED
    else:
        raise ValueError("there is no model to train: give one, or a model to start from")
    if recorded and not recipe_given:
        spec, recipe_given = replace(spec, recipe=ModelSpec.parse(recorded["model"]).recipe), True
    return _sized(spec, config.image_size), recipe_given


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


def _classes(
    spec: ModelSpec,
    config: TrainConfig,
    recorded: Mapping[str, Any],
    source: StartingModel | None,
    images: Images,
) -> int | None:
    """Returns the number of labels: as requested, as in the run, or as in the images; None: the architecture's."""
    if config.classes is not None or not spec.labels:
        return config.classes
    if recorded:
        return recorded.get("classes")
    if source and not source.classes:
        return 0
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
    """Returns a function that measures the distance of fixed samples to the images, to select the best checkpoint.

    With few images this is the kernel distance, because the Fréchet distance to few images is mostly bias: while 180
    cats were learned, it fell from 957 to 949 as the distance to 4,800 other cats rose from 459 to 494. The kernel
    distance to the 180 ordered all checkpoints as that to the others did, also better than that to 20 left out.
    The feature network is not that of the discriminator if another one applies to these images; else the record is
    marked as not independent.

    Args:
        discriminator: The feature network of the discriminator, if any.
    """
    names = networks.named_networks("auto") + networks.second_networks(images.fingerprint)
    (name, *_), independent = networks.headline_first(names, discriminator)
    network = networks.open_features(name, device=device)
    reference = Reference(network, images, bar=bar)
    real = {network.metric: reference.statistics}

    def measure(generator: Generator) -> dict[str, Any]:
        samples = draw(generator, [network], count, progress=progress)
        record = {**asdict(evaluate_samples(samples, real)), "independent": independent}
        if few.are_few(images):
            features = samples.features[network.metric]
            record["kernel_distance"] = kernel_distance(features, reference.train_features)
        return record

    return measure
