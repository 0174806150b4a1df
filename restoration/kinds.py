"""The kinds of restorations, one row each: its setting, its additional picture, and the operator that it inverts.

A new kind needs an operator in `operators.py` and a row here. Does not import torch, since the service checks tasks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sparsegen.common.names import known_names
from sparsegen.pictures.picture import Picture
from sparsegen.restoration.damage import (
    FACTORS,
    blur_kernel,
    check_kernel_size,
    check_mask_size,
    kernel_sigma,
    known_pixels,
    mask_note,
)

if TYPE_CHECKING:
    from sparsegen.restoration.settings import Task

CheckSize = Callable[
    [Sequence[int], Sequence[int]], None
]  # of the shapes of the damage and the image, (height, width)


@dataclass(frozen=True)
class Setting:
    """A setting of a task that one kind requires and the others do not have.

    Attributes:
        meaning: Its description, which follows "NAME is " in errors.
        fits: Whether a value is allowed; may raise a more precise ValueError.
    """

    name: str
    meaning: str
    fits: Callable[[object], bool]


def _nothing(task: "Task", mask: Picture | None, kernel: Picture | None) -> None:
    return None


@dataclass(frozen=True)
class Kind:
    """A kind of restoration.

    Attributes:
        label: What it does, in the imperative; shown on the page.
        operator: The name of its class in `operators`, which needs torch.
        read: Makes the array that the operator is built from, given the task, the mask and the kernel.
        note: A remark on what `read` returned, for the user; usually empty.
        check_size: Raises ValueError unless the array fits an image of a given size.
        only_noise: The observation is the image plus noise, so `NoiseFitRule` is the stopping rule.
        presets: The presets that can do it.
        cells: The picture is a JPEG file, and the operator is built from its `Cells`.
        keeps_known: Known pixels are returned unchanged, unless the task has a sigma above 0.
    """

    label: str
    operator: str
    setting: Setting | None = None
    read: Callable[["Task", Picture | None, Picture | None], np.ndarray | None] = _nothing
    note: Callable[[np.ndarray], str] = lambda damage: ""
    check_size: CheckSize | None = None
    only_noise: bool = False
    presets: tuple[str, ...] = ("fast", "paper")
    cells: bool = False
    keeps_known: bool = False


def _is_kernel(name: object) -> bool:
    kernel_sigma(name)
    return True


KINDS = {
    "denoise": Kind("Remove noise", "Identity", only_noise=True, presets=("fast", "paper", "quick")),
    "inpaint": Kind(
        "Fill holes",
        "Mask",
        read=lambda task, mask, kernel: known_pixels(mask),
        note=mask_note,
        check_size=check_mask_size,
        keeps_known=True,
    ),
    "upscale": Kind(
        "Enlarge",
        "Downsample",
        Setting("by", "2 or 4 in upscale", lambda by: by in FACTORS),
    ),
    "deblur": Kind(
        "Remove blur",
        "Blur",
        Setting("kernel", "the blur kernel of deblur, e.g. gaussian:1.6", _is_kernel),
        read=lambda task, mask, kernel: blur_kernel(task.kernel, kernel),
        check_size=check_kernel_size,
    ),
    "dejpeg": Kind("Undo JPEG compression", "Jpeg", presets=("quick",), cells=True),
}
SERVED = {name: kind for name, kind in KINDS.items() if not kind.cells}  # over HTTP and on the page


def find_kind(name: object) -> Kind:
    """Raises: ValueError listing the kinds if there is no such kind."""
    if not isinstance(name, str) or name not in KINDS:
        raise ValueError(f"kind must be one of {known_names(str(name), KINDS)}; got {name!r}")
    return KINDS[name]


def check_settings(task: "Task") -> None:
    """Raises: ValueError if the task lacks the setting of its kind, or has that of another kind."""
    for name, kind in KINDS.items():
        if setting := kind.setting:
            value = getattr(task, setting.name)
            own = name == task.kind
            if (value is not None) != own or (own and not setting.fits(value)):
                where = "" if own else f"; it belongs to {name}, and {task.kind} does not have it"
                raise ValueError(f"{setting.name} is {setting.meaning}{where}; got {value!r}")


def check_damage(
    task: "Task",
    mask: Picture | None = None,
    kernel: Picture | None = None,
    size: Sequence[int] | None = None,
) -> np.ndarray | None:
    """Checks the mask or kernel of a task and, if a (height, width) is given, that it fits an image of this size.

    Returns: The array that the operator is built from, e.g. the known pixels of inpaint; None for kinds without one.

    Raises:
        ValueError: As the functions in `damage`.
    """
    kind = find_kind(task.kind)
    if kind.check_size and size is not None:  # of what was given, before its content is looked at
        for picture in filter(None, (mask, kernel)):
            kind.check_size(picture.pixels.shape[:2], size)
    damage = kind.read(task, mask, kernel)
    if size is not None:
        check_size(task, damage, size)
    return damage


def damage_note(task: "Task", damage: np.ndarray | None) -> str:
    """A remark on what `check_damage` returned, e.g. on a mask that is mostly holes; usually empty."""
    return "" if damage is None else find_kind(task.kind).note(damage)


def check_size(task: "Task", damage: np.ndarray | None, size: Sequence[int]) -> None:
    """Raises: ValueError unless what `check_damage` returned fits an image of this (height, width)."""
    check = find_kind(task.kind).check_size
    if check and damage is not None:
        check(damage.shape, size)
