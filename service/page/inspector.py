"""Inspection of the code of one image: its density, its atoms, and the image without some of them."""

from collections.abc import Sequence

import numpy as np

# A perceptual dark-to-light scale: the colors of `inferno` at equal steps.
INFERNO = np.array(
    [
        (0, 0, 4),
        (40, 11, 84),
        (101, 21, 110),
        (159, 42, 99),
        (212, 72, 66),
        (245, 125, 21),
        (250, 193, 39),
        (252, 255, 164),
    ]
)


def counts(code: np.ndarray) -> np.ndarray:
    """The non-zeros of every needle.  Shape: Γ (C, H, W) -> int (H, W)."""
    return np.count_nonzero(code, axis=0)


def strengths(code: np.ndarray) -> np.ndarray:
    """The length ‖·‖ of every needle.  Shape: Γ (C, H, W) -> (H, W)."""
    return np.sqrt(np.square(code, dtype=np.float64).sum(0))


def heat(values: np.ndarray, top: float) -> np.ndarray:
    """Colors values from 0 (dark) to `top` (light).  Shape: (H, W) -> uint8 (H, W, 3)."""
    place = np.clip(values / top, 0, 1) * (len(INFERNO) - 1)
    steps = np.arange(len(INFERNO))
    return (
        np.stack([np.interp(place, steps, channel) for channel in INFERNO.T], axis=-1)
        .round()
        .astype(np.uint8)
    )


def shares(code: np.ndarray, atoms: np.ndarray) -> np.ndarray:
    """The share of each atom in an image: ‖Γ[c]‖² ‖d_c‖², over the sum of all.

    Choice: the energy of the terms Γ[c] * d_c before they are added up; the overlap of atoms is not counted.

    Shape: Γ1 (C, H, W), atoms (C, 3, h, w) -> (C,), with sum 1; all 0 if the code is 0.
    """
    energy = np.square(code, dtype=np.float64).sum((1, 2)) * np.square(atoms, dtype=np.float64).sum((1, 2, 3))
    return energy / (energy.sum() or 1)


def without(code: np.ndarray, atoms: Sequence[int]) -> np.ndarray:
    """A copy of the code with some atoms switched off.  Shape: Γ1 (C, H, W) -> the same."""
    edited = code.copy()
    edited[list(atoms)] = 0
    return edited


def difference(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, float]:
    """The difference of two images on mid-gray, scaled so that the largest change has full contrast, and the factor.

    Shape: uint8 (H, W, 3) twice -> uint8 (H, W, 3), factor (1 if nothing changes).
    """
    lost = before.astype(np.float64) - after
    peak = np.abs(lost).max()
    factor = 127.5 / peak if peak else 1.0
    return np.rint(127.5 + factor * lost).astype(np.uint8), factor
