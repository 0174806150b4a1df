"""The definition of a run: plan, schedule, starting model and folder; checked before any work."""

import json
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import torch

from sparsegen.common import devices
from sparsegen.common.files import check_utf8, check_writable
from sparsegen.training.processes import join_processes
from sparsegen.training.projected import NETWORK as HEADS
from sparsegen.zoo.bundled import AUXILIARY
from sparsegen.zoo.checkpoint import find_checkpoint, read_config
from sparsegen.zoo.spec import ModelSpec

RUN_FILES = ("run.json", "metrics.jsonl", "samples", "checkpoints", "best")  # of a run's folder


@dataclass(frozen=True)
class RunPlan:
    """The model, data and settings of a run.

    Two runs of one plan, with the same number of processes and threads, end in the same weights on one CPU. On a GPU
    that needs `deterministic`.

    `k` is given per projected level, Γ1 first; None: the k of the starting model if it has the same regularizer, else
    the regularizer's.
    """

    model: str
    k: tuple[int, ...] | None
    data: str
    fingerprint: str
    seed: int = 0
    batch_size: int = 64  # images per step, of all processes together
    precision: str = "no"  # or "bf16": about 1.8x faster where `has_bfloat16`
    flip: bool = True
    share: float = 1.0  # of the images of `data` used for training
    rate: float = 1.0  # factor of the recipe's learning rates
    start_from: str | None = None
    warm_up: int = 0  # steps of the discriminator alone; 0 if `start_from` has its own
    augment: bool = False  # DiffAugment for recipes without an augmentation
    features: str | None = None  # frozen network of the projected recipe
    classes: int | None = None  # number of labels, if not the architecture's default
    deterministic: bool = False  # see `deterministic_algorithms`
    compiled: bool = False  # see `Networks.compile`

    @property
    def spec(self) -> ModelSpec:
        return replace(ModelSpec.parse(self.model).with_classes(self.classes), k=self.k)


@dataclass(frozen=True)
class StartingModel:
    """The checkpoint that a run started from, recorded because the checkpoint may be deleted."""

    model: str
    steps: int | None
    discriminator: bool
    k: Sequence[int] | None = None
    class_names: Sequence[str] = ()
    heads: str | None = None  # frozen network of its projected heads
    license: str | None = None
    classes: int | None = None  # number of its labels; None: recorded by an earlier version

    @classmethod
    def of(cls, checkpoint: Path) -> Self:
        config = read_config(checkpoint)
        training = config.get("training", {})
        discriminator, heads = ((checkpoint / AUXILIARY[name]).is_file() for name in ("discriminator", HEADS))
        return cls(
            config["model"],
            training.get("steps"),
            discriminator,
            config["k"],
            config.get("class_names", ()),
            training.get("features") if heads else None,
            config.get("license"),
            ModelSpec.from_config(config).labels,
        )

    def __str__(self) -> str:
        return self.model + (f" after {self.steps} steps" if self.steps else "")


@dataclass(frozen=True)
class Schedule:
    """Length of a run, and the steps between measurements, checkpoints, and evaluations with samples.

    After `patience` evaluations in a row without a smaller distance the run ends; 0: never.
    """

    steps: int
    measure_every: int = 100
    save_every: int = 500
    eval_every: int = 2_000
    patience: int = 0


def find_device(device: str | torch.device | None = None) -> torch.device:
    """Returns the device as `common.devices.find_device`; for "auto" and None, that of this process.

    Accelerate chooses it: with several processes each has its own.

    Raises:
        TypeError, ValueError: As `common.devices.find_device`.
    """
    if device is None or device == devices.AUTO:
        from accelerate import PartialState

        device = PartialState().device
    return devices.find_device(device)


def checkpoints(folder: Path) -> list[Path]:
    """Lists the checkpoints of the run in a folder, oldest first."""
    return sorted((folder / "checkpoints").glob("[0-9]*"))


def _find_origin(spec: ModelSpec, start_from: str) -> Path:
    """Finds the checkpoint that a run of `spec` starts from.

    Raises:
        FileNotFoundError, ValueError: As `find_checkpoint` and `read_config`.
        ValueError: On another architecture, width or image size.
    """
    checkpoint = find_checkpoint(start_from, auxiliary=True)
    source = ModelSpec.from_config(read_config(checkpoint))
    if _described(source) != _described(spec):
        raise ValueError(
            f"{spec.name} cannot start from a {source.name}: fine-tuning keeps architecture, atoms and image size. "
            f"The source is a {_described(source)}, and a {_described(spec)} is requested"
        )
    return checkpoint


def _described(spec: ModelSpec) -> str:
    return f"{spec.architecture} with {spec.atoms} atoms and images of {spec.image_size} pixels"


def _check_folder(folder: Path) -> None:
    """Checks before any work that a run can be started or resumed in a folder.

    Raises:
        OSError: If the folder cannot be written.
        FileExistsError: If it holds files with the names of a run's files and is not a run.
    """
    check_writable(folder / "run.json")
    foreign = [name for name in RUN_FILES if (folder / name).exists()]
    if foreign and not checkpoints(folder) and not _is_plan(folder / "run.json"):
        raise FileExistsError(
            f"{folder} is not a run and has {', '.join(foreign)}, which a run would overwrite: choose another "
            f"folder"
        )


def _is_plan(path: Path) -> bool:
    try:
        plan = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(plan, dict) and {"model", "fingerprint"} <= plan.keys()


@dataclass(frozen=True)
class Start:
    """A folder where a run starts or resumes, checked by `check_start`.

    Attributes:
        goes_on: There are checkpoints to resume from.
        resume: Resuming was requested.
        origin: The checkpoint whose weights a new run starts from; None: random weights.
    """

    folder: Path
    device: torch.device
    goes_on: bool
    resume: bool
    origin: Path | None


def check_start(
    folder: str | Path,
    spec: ModelSpec,
    start_from: str | None = None,
    resume: bool = False,
    device: str | torch.device | None = None,
) -> Start:
    """Checks before any work that a run can be started or resumed in a folder.

    Args:
        start_from: The model to fine-tune, if any.
        resume: Resume the run in the folder; without a checkpoint it starts at step 0.
        device: See `find_device`.

    Raises:
        OSError: If the folder cannot be written.
        FileExistsError: If it is not a run.
        ValueError: If the device does not exist, or the run cannot start from the model.
        RuntimeError: As `join_processes`.
    """
    folder = Path(folder)
    check_utf8(folder)
    _check_folder(folder)
    goes_on = bool(checkpoints(folder))
    join_processes(device)
    found = find_device(device)
    origin = (
        _find_origin(spec, start_from) if start_from and not goes_on else None
    )  # a resumed run does not need it
    return Start(folder, found, goes_on, resume, origin)


def read_plan(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}): restore it, or choose another folder") from None


def check_warm_up(warm_up: int, steps: int) -> None:
    """Raises: ValueError if the run ends before the generator is trained."""
    if 0 < warm_up >= steps:
        raise ValueError(
            f"the new discriminator warms up for {warm_up} steps and the run ends after {steps}, before the generator "
            f"is trained: train for more steps or shorten the warm-up, or start from a checkpoint with a "
            f"discriminator: one of a run, or a model exported with it"
        )


def with_k(plan: RunPlan, source: StartingModel | None) -> RunPlan:
    """Returns the plan with an explicit k."""
    if plan.k is not None:
        return plan
    if source and source.k is not None and ModelSpec.parse(source.model).regularizer == plan.spec.regularizer:
        return replace(plan, k=tuple(source.k))
    return replace(plan, k=_columns_k(plan.model))


def _columns_k(model: str) -> tuple[int, ...]:
    """Returns the k of a model's regularizer."""
    return tuple(k_range.k for k_range in ModelSpec.parse(model).k_ranges)


def identity(plan: dict[str, Any]) -> dict[str, Any]:
    """Returns the entries in which two plans of one run must agree. Data count by fingerprint, not by path.

    Entries that an older plan lacks have their defaults.
    """
    if plan.get("k") is None:
        plan = plan | {"k": list(_columns_k(plan["model"]))}
    source = plan.get("start_from")
    defaults = {field.name: field.default for field in fields(RunPlan) if field.default is not MISSING}
    same = {key: value for key, value in (defaults | plan).items() if key != "data"}
    return same | {"start_from": source and Path(source).name}
