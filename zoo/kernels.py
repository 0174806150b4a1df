"""The projections as loops over integers, compiled by numba: what a CPU runs where numba is installed.

The bits of |x| order as |x| does, those of bfloat16 as the upper half of float32's, so the k-th largest
magnitude is found by bisecting an int32: count how many reach the middle, 8 or 16 of them to an instruction,
and stop as soon as exactly k do. For a needle of 128 atoms that takes about 7 counts, for a code of 32768
entries 17. What ties beyond k is dropped, the highest index first.
"""

from collections.abc import Callable

import numpy as np
from numba import njit  # noqa: TID253
from numpy.typing import NDArray

_MAGNITUDE = np.int32(0x7FFFFFFF)
_NAN = np.int32(0x7F800001)  # one above infinity: every NaN has this rank
_FIRST_STEP = np.int32(1 << 22)  # half an octave below the largest magnitude, then one, two, …
_LAST_STEP = np.int32(1 << 30)
_DROPPED = np.int32(-1)
_LANES = 64  # pixels that are bisected side by side


def _compiled(function: Callable) -> Callable:
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return njit(function, cache=True, **options)
    except RuntimeError:  # neither this folder nor the user's cache folder can be written
        return njit(function, **options)


@_compiled
def _load(x, rank):
    narrower = np.int32(32 - 8 * x.itemsize)
    for i in range(x.size):
        rank[i] = min(np.int32((np.int32(x[i]) << narrower) & _MAGNITUDE), _NAN)


@_compiled
def _store(x, rank, least, y, mask):
    for i in range(x.size):
        mask[i] = rank[i] >= least[i]
    for i in range(x.size):
        y[i] = x[i] & -np.int32(mask[i])


@_compiled
def _bisect_line(rank, k, channels):
    """Returns the rank that exactly k entries reach, after dropping those that tie beyond the k-th."""
    high = np.int32(0)
    for i in range(rank.size):
        high = max(high, rank[i])
    low, high, reached, step = np.int32(0), np.int32(high + 1), rank.size, _FIRST_STEP
    while reached != k and high - low > 1:
        middle = np.int32(low + ((high - low) >> 1)) if low else np.int32(max(high - step, 1))
        count = np.int32(0)
        for i in range(rank.size):
            count = np.int32(count + np.int32(rank[i] >= middle))
        if count >= k:
            low, reached = middle, count
        else:
            high, step = middle, min(np.int32(step << 1), _LAST_STEP)
    for channel in range(channels):  # one where the memory has (C, H, W) order, by which ties go
        for at in range(rank.size - 1 - channel, -1, -channels):
            if reached <= k:
                return low
            if rank[at] == low:
                rank[at] = _DROPPED
                reached -= 1
    return low


@_compiled
def project_lines(x, y, mask, k, channels):
    """Projects every row of x (rows, n), a needle or a code of pixels that hold `channels` entries each."""
    rank = np.empty(x.shape[1], np.int32)
    for row in range(x.shape[0]):
        _load(x[row], rank)
        least = _bisect_line(rank, k, channels)
        for i in range(rank.size):
            y[row, i] = x[row, i] if rank[i] >= least else 0
        for i in range(rank.size):
            mask[row, i] = rank[i] >= least


@_compiled
def _count(rank, middle, count):
    count[:] = 0
    quarters = rank.shape[0] // 4
    for quarter in range(quarters):
        a, b, c, d = rank[4 * quarter], rank[4 * quarter + 1], rank[4 * quarter + 2], rank[4 * quarter + 3]
        for i in range(count.size):
            at = middle[i]
            pairs = np.int32(a[i] >= at) + np.int32(b[i] >= at), np.int32(c[i] >= at) + np.int32(d[i] >= at)
            count[i] += pairs[0] + pairs[1]
    for channel in range(4 * quarters, rank.shape[0]):
        a = rank[channel]
        for i in range(count.size):
            count[i] += np.int32(a[i] >= middle[i])


@_compiled
def _middle(low, high, reached, k, step, middle):
    unfinished = np.int32(0)
    for i in range(low.size):
        half = np.int32(low[i] + ((high[i] - low[i]) >> 1))
        middle[i] = half if low[i] > 0 else np.int32(max(np.int32(high[i] - step), np.int32(1)))
        unfinished |= np.int32((reached[i] != k) & (high[i] - low[i] > 1))
    return unfinished > 0


@_compiled
def _narrow(low, high, reached, k, middle, count):
    for i in range(low.size):
        enough = count[i] >= k
        low[i] = middle[i] if enough else low[i]
        high[i] = high[i] if enough else middle[i]
        reached[i] = count[i] if enough else reached[i]


@_compiled
def _drop_ties(rank, low, reached, k):
    if reached.max() > k:
        for back in range(rank.shape[0]):
            channel = rank[rank.shape[0] - 1 - back]
            for i in range(low.size):
                drop = (channel[i] == low[i]) & (reached[i] > k)
                channel[i] = _DROPPED if drop else channel[i]
                reached[i] -= np.int32(drop)


@_compiled
def project_planes(x, y, mask, k):
    """Projects x (samples, n, pixels) along n: as `_bisect_line`, a tile of pixels side by side."""
    samples, n, pixels = x.shape
    lanes = min(_LANES, pixels)
    rank = np.zeros((n, lanes), np.int32)
    low, high, reached = np.empty(lanes, np.int32), np.empty(lanes, np.int32), np.empty(lanes, np.int32)
    middle, count = np.empty(lanes, np.int32), np.empty(lanes, np.int32)
    for sample in range(samples):
        for tile in range((pixels + lanes - 1) // lanes):
            start, stop = tile * lanes, min((tile + 1) * lanes, pixels)
            low[:], high[:], reached[:] = 0, 0, n
            for channel in range(n):
                _load(x[sample, channel, start:stop], rank[channel])
                rank[channel, stop - start :] = 0  # lanes without a pixel are finished from the start
                for i in range(lanes):
                    high[i] = max(high[i], rank[channel, i])
            high += np.int32(1)
            step = _FIRST_STEP
            while _middle(low, high, reached, k, step, middle):
                _count(rank, middle, count)
                _narrow(low, high, reached, k, middle, count)
                step = min(np.int32(step << 1), _LAST_STEP)
            _drop_ties(rank, low, reached, k)
            for channel in range(n):
                part = (sample, channel, slice(start, stop))
                _store(x[part], rank[channel], low, y[part], mask[part])


def project(x: NDArray, y: NDArray, mask: NDArray, k: int, channels: int = 1) -> None:
    """Writes the projection of x to y and which entries it kept to mask: the bits of float32 or bfloat16, as int32 or
    int16, the same, and uint8.

    Shape: (rows, n), a needle or code per row, or (samples, n, pixels), projected along n.
    `channels`: above 1, a row is pixel after pixel of so many entries; ties go by (C, H, W) order even so.
    """
    if x.ndim == 2:
        project_lines(x, y, mask, k, channels)
    else:
        project_planes(x, y, mask, k)
