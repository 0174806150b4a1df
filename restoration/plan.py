"""Covers a picture with overlapping tiles that blend without seams."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True)
class Span:
    """The range of a tile along one side, `start` to `stop`; its first `rise` and last `fall` pixels are shared."""

    start: int
    stop: int
    rise: int = 0
    fall: int = 0

    @property
    def weights(self) -> np.ndarray:
        """The window, with ramps of squared sine and cosine; the windows of neighbors sum to 1.

        Shape: float32 (stop - start,).
        """
        weights = np.ones(self.stop - self.start)
        weights[: self.rise] = _ramp(self.rise)
        weights[len(weights) - self.fall :] = _ramp(self.fall)[::-1]
        return weights.astype(np.float32)

    def times(self, by: int) -> "Span":
        return Span(self.start * by, self.stop * by, self.rise * by, self.fall * by)

    def grown(self, margin: int, length: int) -> slice:
        return slice(max(0, self.start - margin), min(length, self.stop + margin))


@dataclass(frozen=True)
class Tile:
    """A rectangle of the picture, with the ramps at its sides."""

    rows: Span
    columns: Span

    @property
    def region(self) -> tuple[slice, slice]:
        return self.grown(0, self.rows.stop, self.columns.stop)

    @property
    def window(self) -> np.ndarray:
        """The weights of its pixels; over all tiles they sum to 1 in each pixel.

        Shape: float32 (height, width, 1).
        """
        return np.outer(self.rows.weights, self.columns.weights)[..., None]

    def times(self, by: int) -> "Tile":
        return Tile(self.rows.times(by), self.columns.times(by))

    def grown(self, margin: int, height: int, width: int) -> tuple[slice, slice]:
        return self.rows.grown(margin, height), self.columns.grown(margin, width)


def plan(height: int, width: int, tile: int, overlap: int) -> list[Tile]:
    """Covers a picture with the fewest tiles of equal size that overlap by at least `overlap`; row by row.

    Args:
        tile: The longest side of a tile; if the picture is shorter, a tile is as long as the picture.

    Raises:
        ValueError: Unless `tile` is positive and `overlap` from 0 to a third of it.
    """
    if tile < 1 or not 0 <= overlap <= tile // 3:
        raise ValueError(
            f"the overlap must be from 0 to a third of the tile; got {overlap} for tiles of {tile}: "
            f"use larger tiles, or an overlap of up to {max(tile, 0) // 3}"
        )
    columns = _spans(width, tile, overlap)
    return [Tile(row, column) for row in _spans(height, tile, overlap) for column in columns]


def _spans(length: int, tile: int, overlap: int) -> list[Span]:
    """Divides one side into pieces of equal length, evenly spaced, so the last piece is not shorter."""
    if length <= tile:
        return [Span(0, length)]
    count = -(-(length - overlap) // (tile - overlap))
    size = -(-(length + (count - 1) * overlap) // count)
    starts = [round(i * (length - size) / (count - 1)) for i in range(count)]
    shared = [0, *(before + size - start for before, start in pairwise(starts)), 0]
    return [Span(a, a + size, rise, fall) for a, (rise, fall) in zip(starts, pairwise(shared), strict=True)]


def _ramp(length: int) -> np.ndarray:
    return np.sin(np.pi / 2 * (np.arange(length) + 0.5) / max(length, 1)) ** 2
