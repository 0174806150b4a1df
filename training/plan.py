"""What a run is: its plan, its schedule, what it starts from and where; checked before any work."""

import json
import re
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Self

import torch

from sparsegen.common.files import check_utf8, check_writable
from sparsegen.training.projected import NETWORK as HEADS
from sparsegen.zoo.bundled import COMPANIONS
from sparsegen.zoo.checkpoint import find_checkpoint, read_config
from sparsegen.zoo.spec import ModelSpec

FILES = ("run.json", "metrics.jsonl", "samples", "checkpoints", "best")  # of a run's folder


@dataclass(frozen=True)
class Plan:
    """What a run trains, on what and how; two runs of one plan on one machine end in the same weights.

    `k` is of each projected level, Γ1 first; None takes the k of the source, where that is of the same regularizer,
    and else the column's.
    """

    model: str
    k: tuple[int, ...] | None
    data: str
    fingerprint: str
    seed: int = 0
    batch_size: int = 64
    precision: str = "no"  # or "bf16": about 1.8x faster where `has_bfloat16`
    flip: bool = True
    share: float = 1.0  # of the images of `data` that are trained on
    rate: float = 1.0  # of learning, as a multiple of the recipe's
    start_from: str | None = None
    warm_up: int = 0  # steps of the discriminator alone; none where `start_from` brings its own
    features: str | None = None  # frozen network under the heads of the projected recipe
    classes: int | None = None  # labels, where they are not as many as the architecture has by default

    @property
    def spec(self) -> ModelSpec:
        return replace(ModelSpec.parse(self.model).with_classes(self.classes), k=self.k)


@dataclass(frozen=True)
class Source:
    """The checkpoint that a run started from, as the run remembers it when that is gone."""

    model: str
    steps: int | None
    discriminator: bool
    k: Sequence[int] | None = None
    class_names: Sequence[str] = ()
    heads: str | None = None  # the frozen network under the projected heads that it brings

    @classmethod
    def of(cls, checkpoint: Path) -> Self:
        config = read_config(checkpoint)
        training = config.get("training", {})
        discriminator, heads = (
            (checkpoint / COMPANIONS[name]).is_file() for name in ("discriminator", HEADS)
        )
        return cls(
            config["model"],
            training.get("steps"),
            discriminator,
            config["k"],
            config.get("class_names", ()),
            training.get("features") if heads else None,
        )

    def __str__(self) -> str:
        return self.model + (f" after {self.steps} steps" if self.steps else "")


@dataclass(frozen=True)
class Schedule:
    """How long a run is, and after how many steps it is measured, saved, and judged and drawn."""

    steps: int
    measure_every: int = 100
    save_every: int = 500
    judge_every: int = 2_000


def find_device(name: str | None = None) -> torch.device:
    """The device of a name, or a GPU where there is one: this process's own, where there are several.

    Raises: ValueError if torch has no such device here.
    """
    from accelerate import PartialState

    if name is None:
        return PartialState().device
    if not re.fullmatch(r"cpu|cuda(:\d+)?|mps", name):
        raise ValueError(f"a device is cpu, cuda, cuda:N or mps; got {name!r}")
    device = torch.device(name)
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= (count := counts[device.type]):
        raise ValueError(
            f"no device {name} here, where torch finds {count} of {device.type}: use another, as cpu"
        )
    return device


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of the run in a folder, oldest first."""
    return sorted((folder / "checkpoints").glob("[0-9]*"))


def _find_origin(spec: ModelSpec, start_from: str) -> Path:
    """Finds the checkpoint that a run of `spec` is to start from.

    Raises: as `find_checkpoint` and `read_config`; ValueError if it is of another architecture or width.
    """
    checkpoint = find_checkpoint(start_from)
    source = ModelSpec.from_config(read_config(checkpoint))
    kept = ("architecture", "atoms", "image_size")
    theirs, asked = ([getattr(one, name) for name in kept] for one in (source, spec))
    if theirs != asked:
        raise ValueError(
            f"{spec.name} cannot start from a {source.name}: fine-tuning keeps architecture, atoms and image size, "
            f"{', '.join(map(str, theirs))} there, {', '.join(map(str, asked))} asked"
        )
    return checkpoint


def _check_folder(folder: Path) -> None:
    """Finds out before any work whether a run may be begun, or gone on with, in a folder.

    Raises: OSError if nothing can be written there; FileExistsError if something is there that is named as a run's
        files and is not of a run.
    """
    check_writable(folder / "run.json")
    foreign = [name for name in FILES if (folder / name).exists()]
    if foreign and not checkpoints(folder) and not _is_plan(folder / "run.json"):
        raise FileExistsError(
            f"{folder} has {', '.join(foreign)} and is no folder of a run, which would replace them: choose another "
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
    """Where a run begins or goes on, found fit for it by `check_start`.

    Attributes:
        goes_on: There are checkpoints to go on from.
        resume: To go on is what was asked for.
        origin: The checkpoint whose weights a new run starts from; None: from none.
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
    device: str | None = None,
) -> Start:
    """Finds out before any work whether a run may be begun, or gone on with, in a folder.

    Args:
        start_from: The model that is fine-tuned, if any.
        resume: Go on with the run in the folder; without a checkpoint there, it starts at step 0.
        device: See `find_device`.

    Raises: OSError if nothing can be written there; FileExistsError if the folder holds what is no run; ValueError if
        there is no such device, or the model cannot be started from.
    """
    folder = Path(folder)
    check_utf8(folder)
    _check_folder(folder)
    goes_on = bool(checkpoints(folder))
    found = find_device(device)
    origin = (
        _find_origin(spec, start_from) if start_from and not goes_on else None
    )  # else it has all it needs
    return Start(folder, found, goes_on, resume, origin)


def read_plan(path: Path) -> dict:
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}): restore it, or choose another folder") from None


def with_k(plan: Plan, source: Source | None) -> Plan:
    """The plan with its k written out."""
    if plan.k is not None:
        return plan
    if source and source.k is not None and ModelSpec.parse(source.model).regularizer == plan.spec.regularizer:
        return replace(plan, k=tuple(source.k))
    return replace(plan, k=_columns_k(plan.model))


def _columns_k(model: str) -> tuple[int, ...]:
    """The k of a model's column."""
    return tuple(dial.k for dial in ModelSpec.parse(model).dials)


def identity(plan: dict) -> dict:
    """What two plans of one run have in common: the data's fingerprint, however data and source are spelled.

    What an older plan does not say was as it is by default.
    """
    if plan.get("k") is None:
        plan = plan | {"k": list(_columns_k(plan["model"]))}
    source = plan.get("start_from")
    defaults = {field.name: field.default for field in fields(Plan) if field.default is not MISSING}
    same = {key: value for key, value in (defaults | plan).items() if key != "data"}
    return same | {"start_from": source and Path(source).name}
