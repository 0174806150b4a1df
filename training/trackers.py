"""Trackers of experiments: TensorBoard and Weights & Biases, through accelerate."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsegen.common.extras import require
from sparsegen.pictures import images

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

PROJECT = "sparsegen"


class Tracker:
    """Sends the measurements and sample grids of one run to a tracker of accelerate."""

    def __init__(self, inner: "GeneralTracker", **of_images: str):
        self._inner, self._of_images = inner, of_images

    def start(self, config: Mapping[str, Any]) -> None:
        """Opens the tracker and stores the configuration of the run."""
        self._inner.start()
        self._inner.store_init_configuration(dict(_flat(config)))

    def log(self, step: int, record: Mapping[str, Any]) -> None:
        """Sends the numbers of a nested record; the names of nested ones are joined by a slash."""
        numbers = {name: value for name, value in _flat(record) if isinstance(value, int | float)}
        self._inner.log(numbers, step=step)

    def samples(self, step: int, pixels: np.ndarray) -> None:
        """Sends a grid of images, uint8 (N, H, W, 3)."""
        grid = images.grid(pixels)[None]
        self._inner.log_images({"samples": grid}, step=step, **self._of_images)  # type: ignore[attr-defined]

    def finish(self) -> None:
        """Writes what is left, and closes the tracker."""
        self._inner.finish()


def _tensorboard(folder: Path) -> Tracker:
    from accelerate.tracking import TensorBoardTracker

    return Tracker(TensorBoardTracker("tensorboard", folder), dataformats="NHWC")


def _wandb(folder: Path) -> Tracker:
    from accelerate.tracking import WandBTracker

    return Tracker(WandBTracker(PROJECT, dir=str(folder), name=folder.name))


# The modules of a tracker have its name.
TRACKERS: dict[str, Callable[[Path], Tracker]] = {"tensorboard": _tensorboard, "wandb": _wandb}


def check_trackers(names: Sequence[str]) -> None:
    """Checks before any work that trackers exist and are installed.

    Raises:
        ValueError: On an unknown name.
        ImportError: With the pip command.
    """
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"no tracker {name!r}: use {' or '.join(TRACKERS)}")
        require("track", f"the tracker {name}", name)


def open_trackers(names: Sequence[str], folder: Path, config: Mapping[str, Any]) -> list[Tracker]:
    """Opens trackers; TensorBoard writes to the subfolder `tensorboard` of the run."""
    folder.mkdir(parents=True, exist_ok=True)
    found = [TRACKERS[name](folder) for name in names]
    for tracker in found:
        tracker.start(config)
    return found


def _flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, list | tuple):
            yield from _flat({str(number): part for number, part in enumerate(value, 1)}, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value if isinstance(value, bool | int | float | str) else str(value)
