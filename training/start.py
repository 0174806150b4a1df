"""From what somebody wants trained to a run: checked, with its images, its recipe and what judges it."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sparsegen.common.checks import check_integer
from sparsegen.training import features as networks
from sparsegen.training.data import Images, check_share, open_images
from sparsegen.training.evaluation import draw, evaluate
from sparsegen.training.loop import Progress
from sparsegen.training.plan import Plan, Schedule, Start, check_start, read_plan
from sparsegen.training.projected import find_frozen, frozen_for
from sparsegen.training.recipes import recipe_of
from sparsegen.training.reference import Bar, Reference, silent
from sparsegen.training.run import Judge, Run
from sparsegen.zoo.blocks import IMAGE_SIZES
from sparsegen.zoo.checkpoint import read_config
from sparsegen.zoo.dial import resolve
from sparsegen.zoo.noise import MAX_COUNT, check_seed
from sparsegen.zoo.spec import ModelSpec

Callback = Callable[[Run, Progress], object]


@dataclass(frozen=True)
class TrainConfig:
    """What is trained, on what, where and for how long; None takes the recipe's.

    Attributes:
        model: architecture[-atoms].regularizer[.recipe].
        data: A Hub dataset id, a parquet file, or a folder of images.
        out: Folder of the run.
        image_size: Side of the square images in pixels, 32, 64 or 128; None: that of the model's name, else 32.
        classes: Labels of a conditional model, 0 for none; None: those of `start_from`, or of the data.
        k: Non-zeros kept: one number, or one per projected level; None: those of `start_from`, if it has the same
            regularizer, or of the regularizer's density.
        start_from: A model to fine-tune: a bundled one, a checkpoint's folder, or owner/name on the Hub.
        warm_up: Steps that a new discriminator gets to catch up, if `start_from` has none.
        resume: Go on with the run in the folder.
        precision: "no", which is float32, or "bf16".
        limit: The first images only.
        share: Of the images that are trained on, classes taken in turn.
        rate: Learning rates, as a multiple of the recipe's.
        features: Frozen network of the projected recipe; "auto" chooses by the images.
        judge_every, save_every: Steps between Fréchet distances, and between checkpoints.
        judge_count: Images drawn for a distance, 2 at least; 0 for no distances.
        device: cpu, cuda, cuda:N or mps; None: a GPU where there is one.
    """

    model: str
    data: str
    out: str | Path
    steps: int | None = None
    image_size: int | None = None
    classes: int | None = None
    k: int | list[int] | None = None
    seed: int = 0
    batch_size: int | None = None
    start_from: str | None = None
    warm_up: int = 500
    resume: bool = False
    precision: str = "no"
    limit: int | None = None
    share: float = 1.0
    rate: float = 1.0
    features: str = "auto"
    judge_every: int = 2_000
    judge_count: int = 2_000
    save_every: int = 500
    device: str | None = None


def start(config: TrainConfig, bar: Bar = silent, judged: Callable[[int, int], object] | None = None) -> Run:
    """Makes a run, which iterating over it trains.

    Args:
        bar: Shows what takes long: decoding images, computing their features.
        judged: Called while the run is judged, with the images measured, and all that are to be.

    Raises: TypeError, ValueError, OSError, before any work wherever it can be found out then.
    """
    spec = _sized(ModelSpec.parse(config.model), config.image_size)
    if config.k is not None:
        spec = replace(spec, k=tuple(resolve(config.k, spec.dials)))
    check_share(config.share)
    frozen = find_frozen(spec, config.features)  # before the images are decoded, which may take long
    check_seed(config.seed)
    place = check_start(config.out, spec, config.start_from, config.resume, config.device)
    if config.resume and not place.goes_on:
        raise ValueError(
            f"{config.out} holds no run to go on with: give the folder of a run, or do not resume"
        )
    if config.judge_count:
        check_integer("judge_count", config.judge_count, 2, MAX_COUNT, "0, or the images drawn")
    images = open_with_bar(config.data, bar, size=spec.image_size, limit=config.limit)
    spec = spec.with_classes(_classes(spec, config.classes, place, images))
    part = images.part(config.share)
    if frozen is None and spec.recipe == "projected":
        frozen = frozen_for(images.fingerprint)
    recipe = recipe_of(spec, config.share, frozen).faster(config.rate)
    run_plan = Plan(
        model=spec.name,
        k=spec.k,
        data=part.name,
        fingerprint=part.fingerprint,
        seed=config.seed,
        batch_size=config.batch_size or recipe.batch_size,
        precision=config.precision,
        share=config.share,
        rate=config.rate,
        start_from=config.start_from,
        warm_up=config.warm_up if config.start_from else 0,
        features=frozen and frozen.name,
        classes=spec.classes,
    )
    schedule = Schedule(
        config.steps or recipe.steps, save_every=config.save_every, judge_every=config.judge_every
    )
    run = Run(place, run_plan, part, schedule)
    if config.judge_count:  # by all images, so that distances of models trained on shares of them compare
        run.judge = make_judge(images, config.judge_count, str(place.device), run_plan.features, bar, judged)
    return run


def train(config: TrainConfig, callbacks: Sequence[Callback] = ()) -> Run:
    """Trains a model, or fine-tunes one, and returns the finished run.

    Args:
        config: What is trained, on what, where and for how long.
        callbacks: Each is called after every step with the run and its progress; if one returns True, the run saves
            and stops. `Run.stopped` is then True, and the same config with `resume=True` continues.

    Raises: As `start`; FloatingPointError if training diverges.

    >>> import sparsegen, tempfile, numpy as np, pathlib
    >>> from PIL import Image
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> for number in range(8):
    ...     pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
    ...     Image.fromarray(pixels).save(folder / f"{number}.png")
    >>> config = sparsegen.TrainConfig(
    ...     "dcgan-8.ml", data=str(folder), out=folder / "run", steps=2, batch_size=4, judge_count=0
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
    """The model at an image size; its name may say another one only if that is none.

    Raises: ValueError if there is no such size, or the name says another one.
    """
    if image_size in (None, spec.image_size):
        return spec
    if spec.image_size != IMAGE_SIZES[0]:
        raise ValueError(
            f"{spec.name} has images of {spec.image_size} pixels; the image size asked is {image_size}"
        )
    return ModelSpec.of(spec.architecture, spec.regularizer, spec.atoms, None, spec.recipe, image_size)


def _classes(spec: ModelSpec, asked: int | None, place: Start, images: Images) -> int | None:
    """The labels of a model that is to be trained: as asked, as it had before, or as the images have."""
    if asked is not None or not spec.labels:
        return asked
    if place.goes_on:
        return read_plan(place.folder / "run.json").get("classes")
    if place.origin:
        return ModelSpec.from_config(read_config(place.origin)).labels
    return images.class_count or None  # without labels: the default, which `Run` refuses with a remedy


def open_with_bar(
    data: str, bar: Bar, split: str = "train", size: int = IMAGE_SIZES[0], limit: int | None = None
) -> Images:
    """Opens images as `open_images` does, and shows how many are decoded."""
    with bar(f"decoding {data}", None) as show:
        return open_images(data, split, size, limit, lambda done, total: show(done, total=total))


def make_judge(
    images: Images,
    count: int,
    device: str,
    discriminator: str | None,
    bar: Bar = silent,
    progress: Callable[[int, int], object] | None = None,
) -> Judge:
    """Makes what measures the Fréchet distance of a fixed draw, to pick the best checkpoint by.

    The feature network is not the one in the discriminator, if another is of use on these images; else the record says
    that it is not independent.

    Args:
        discriminator: The feature network that is in the discriminator, if any.
    """
    names = networks.named_networks("auto") + networks.second_networks(images.fingerprint)
    (name, *_), independent = networks.headline_first(names, discriminator)
    network = networks.open_features(name, device=device)
    real = {network.metric: Reference(network, images, bar=bar).statistics}

    def measure(generator) -> dict:
        verdict = evaluate(draw(generator, [network], count, progress=progress), real)
        return {**asdict(verdict), "independent": independent}

    return measure
