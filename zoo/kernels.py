"""The projections on a CPU if numba is installed: loops over integers, compiled by numba.

The *rank* of an entry is the bits of |x| as int32 (those of bfloat16 in the upper half); it has the order of |x|. The
entries above the k-th largest rank are kept, then the first ones equal to it, k in all. The k-th largest rank of a
needle is found by one of two algorithms, depending on its length:

- Short needles: a sorting network (odd-even merge sort, Batcher 1968) without the comparators that do not affect the
  k-th and (k+1)-th largest. Needles are stored side by side, so that one instruction compares 8 or 16 of them.
- Long needles: bisection of the rank. The entries that reach the middle are counted, 8 or 16 per instruction, until
  exactly k do. A needle of 128 atoms takes about 7 counts, a code of 32768 entries 17.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsegen.common.compiled import compiled

Bits = NDArray[np.int32] | NDArray[np.int16]  # of float32 or bfloat16
_MAGNITUDE = np.int32(0x7FFFFFFF)
_NAN = np.int32(0x7F800001)  # the rank of NaN: infinity plus one
_FIRST_STEP = np.int32(1 << 22)  # half an octave below the largest magnitude; doubled in each step
_LAST_STEP = np.int32(1 << 30)
_LANES = 256  # needles stored side by side in a network
_LINE_LANES = (
    272  # the same for transposed needles: not a power of two, because caches are slow at such strides
)
_TILE = 16  # pixels transposed together: one cache line
_PAD = 16  # entries between transposed lines, so that the stride is not a power of two
# Longest needles for which a network is faster (AMD EPYC, AVX-512): contiguous ones, and those along planes, which
# bisection has to transpose.
_NETWORK_LINES, _NETWORK_PLANES = 48, 96
_PART = 1 << 17  # minimum number of entries per thread


@compiled
def _rank(x, rank):
    narrower = np.int32(32 - 8 * x.itemsize)
    for i in range(x.size):
        rank[i] = min(np.int32((np.int32(x[i]) << narrower) & _MAGNITUDE), _NAN)


@compiled
def _bisect(rank, k):
    """Returns a rank that as many entries reach as the k-th largest rank, and the number of these entries."""
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
    return low, reached


@compiled
def _drop_ties(x, k, least, y, mask, channels):
    """Drops the last of the entries of rank `least` until k entries of a line are kept.

    A line of several channels holds pixels of `channels` entries each; the order is that of (C, H, W).
    """
    excess, narrower = -k, np.int32(32 - 8 * x.itemsize)
    for i in range(x.size):
        excess += mask[i]
    for channel in range(channels):
        for at in range(x.size - 1 - channel, -1, -channels):
            if excess == 0:
                return
            bits = np.int32(np.int32(x[at]) << narrower)
            if min(np.int32(bits & _MAGNITUDE), _NAN) == least:
                y[at], mask[at] = 0, 0
                excess -= 1


@compiled
def _bisect_lines(x, y, mask, k, channels):
    rank = np.empty(x.shape[1], np.int32)
    for row in range(x.shape[0]):
        _rank(x[row], rank)
        least, reached = _bisect(rank, k)
        for i in range(rank.size):
            y[row, i] = x[row, i] if rank[i] >= least else 0
        for i in range(rank.size):
            mask[row, i] = rank[i] >= least
        if reached > k:
            _drop_ties(x[row], k, least, y[row], mask[row], channels)


@compiled
def _rank_planes(x, start, width, rank, to):
    """Writes the ranks of `width` pixels of x (n, pixels), starting at `start`, to rank (n, lanes), starting at `to`.

    Indices are unsigned here and below: numba checks signed ones for negative values, and LLVM then does not vectorize
    the loops.
    """
    narrower = np.int32(32 - 8 * x.itemsize)
    for channel in range(np.uintp(x.shape[0])):
        for i in range(width):
            bits = np.int32(np.int32(x[channel, start + i]) << narrower)
            rank[channel, to + i] = min(np.int32(bits & _MAGNITUDE), _NAN)


@compiled
def _transpose_planes(x, start, width, rank):
    """Writes the ranks of `width` pixels of x (n, pixels), starting at `start`, to rank (pixels, n)."""
    narrower = np.int32(32 - 8 * x.itemsize)
    for channel in range(np.uintp(x.shape[0])):
        for i in range(width):
            bits = np.int32(np.int32(x[channel, start + i]) << narrower)
            rank[i, channel] = min(np.int32(bits & _MAGNITUDE), _NAN)


@compiled
def _keep_planes(x, start, width, least, at, y, mask):
    """Keeps the entries of `width` pixels of x (n, pixels), starting at `start`, whose rank is at least
    least[at + i].
    """
    narrower = np.int32(32 - 8 * x.itemsize)
    for channel in range(np.uintp(x.shape[0])):
        for i in range(width):
            bits = np.int32(np.int32(x[channel, start + i]) << narrower)
            mask[channel, start + i] = min(np.int32(bits & _MAGNITUDE), _NAN) >= least[at + i]
        for i in range(width):
            y[channel, start + i] = x[channel, start + i] & -np.int32(mask[channel, start + i])


@compiled
def _bisect_planes(x, y, mask, k):
    samples, n, pixels = x.shape
    rank = np.empty((min(_TILE, pixels), n + _PAD), np.int32)
    least, reached = np.empty(pixels, np.int32), np.empty(pixels, np.int64)
    for sample in range(samples):
        for start in range(0, pixels, _TILE):
            width = min(_TILE, pixels - start)
            _transpose_planes(x[sample], np.uintp(start), np.uintp(width), rank)
            for i in range(width):
                least[start + i], reached[start + i] = _bisect(rank[i, :n], k)
        _keep_planes(x[sample], np.uintp(0), np.uintp(pixels), least, np.uintp(0), y[sample], mask[sample])
        for i in range(pixels):
            if reached[i] > k:
                _drop_ties(x[sample, :, i], k, least[i], y[sample, :, i], mask[sample, :, i], 1)


@compiled
def _exchange(a, b):
    for i in range(a.size):
        x, y = a[i], b[i]
        a[i], b[i] = max(x, y), min(x, y)


@compiled
def _sort(work, pairs):
    for pair in range(pairs.shape[0]):
        _exchange(work[pairs[pair, 0]], work[pairs[pair, 1]])


@compiled
def _tied(work, k):
    """Returns whether more than k entries reach the k-th largest in any lane."""
    if k == work.shape[0]:
        return False
    found = np.int32(0)
    for i in range(work.shape[1]):
        found |= np.int32(work[k, i] == work[k - 1, i])
    return found != 0


@compiled
def _keep_lines(x, least, y, mask):
    """Keeps the entries of each row of x (rows, n) whose rank is at least least[row]."""
    narrower = np.int32(32 - 8 * x.itemsize)
    for row in range(np.uintp(x.shape[0])):
        reach = least[row]
        for i in range(np.uintp(x.shape[1])):
            bits = np.int32(np.int32(x[row, i]) << narrower)
            mask[row, i] = min(np.int32(bits & _MAGNITUDE), _NAN) >= reach
        for i in range(np.uintp(x.shape[1])):
            y[row, i] = x[row, i] & -np.int32(mask[row, i])


@compiled
def _network_lines(x, y, mask, k, pairs):
    rows, n = x.shape
    work = np.zeros((n, min(_LINE_LANES, rows)), np.int32)
    for start in range(0, rows, work.shape[1]):
        part = slice(start, min(start + work.shape[1], rows))
        _transpose_planes(x[part], np.uintp(0), np.uintp(n), work)
        _sort(work, pairs)
        _keep_lines(x[part], work[k - 1], y[part], mask[part])
        if _tied(work, k):
            for row in range(part.start, part.stop):
                least = work[k - 1, row - start]
                if work[k, row - start] == least:
                    _drop_ties(x[row], k, least, y[row], mask[row], 1)


@compiled
def _network_planes(x, y, mask, k, pairs):
    samples, n, pixels = x.shape
    width = min(_LANES, pixels)  # pixels per sample; then samples stored side by side
    together = min(max(_LANES // width, 1), samples)
    work = np.zeros((n, together * width), np.int32)
    for first in range(0, samples, together):
        group = min(together, samples - first)
        for start in range(0, pixels, width):
            stop = min(start + width, pixels)
            size = stop - start
            for other in range(group):
                to = np.uintp(other * size)
                _rank_planes(x[first + other], np.uintp(start), np.uintp(size), work, to)
            _sort(work, pairs)
            for other in range(group):
                one, at = first + other, np.uintp(other * size)
                _keep_planes(x[one], np.uintp(start), np.uintp(size), work[k - 1], at, y[one], mask[one])
            if _tied(work, k):
                for lane in range(group * size):
                    if work[k, lane] == work[k - 1, lane]:
                        sample, pixel = first + lane // size, start + lane % size
                        line = (sample, slice(None), pixel)
                        _drop_ties(x[line], k, work[k - 1, lane], y[line], mask[line], 1)


@cache
def _network(n: int, k: int) -> NDArray[np.int32]:
    """Returns the comparators, in order, that put the k-th and (k+1)-th largest of n entries at k - 1 and k.

    Shape: int32 (comparators, 2): the indices that receive the larger and the smaller of two entries.
    """
    comparators, span = [], 1
    while span < n:
        gap = span
        while gap:
            for first in range(gap % span, n - gap, 2 * gap):
                for i in range(first, min(first + gap, n - gap)):
                    if i // (2 * span) == (i + gap) // (2 * span):
                        comparators.append((i, i + gap))
            gap //= 2
        span *= 2
    needed, kept = {k - 1, min(k, n - 1)}, []
    for pair in reversed(comparators):
        if not needed.isdisjoint(pair):
            needed.update(pair)
            kept.append(pair)
    return np.array(kept[::-1], np.int32).reshape(-1, 2)


def project(
    x: Bits,
    y: Bits,
    mask: NDArray[np.uint8],
    k: int | NDArray[np.int64],
    channels: int = 1,
    threads: int = 1,
) -> None:
    """Writes the projection of x to y, and a mask of the kept entries.

    Args:
        x, y: The bits of float32 as int32, or of bfloat16 as int16.
        k: One number, or one per row or sample.
        channels: Above 1, each row consists of pixels of this number of entries; ties are in (C, H, W) order anyway.
        threads: Maximum number of threads among which the samples or rows are divided.

    Shape: (rows, n), one needle or code per row; or (samples, n, pixels), projected along n.
    """
    if x.ndim == 3 and x.shape[2] == 1:
        x, y, mask = x[:, :, 0], y[:, :, 0], mask[:, :, 0]
    if isinstance(k, int):
        _in_parts(partial(_project, k=k, channels=channels), (x, y, mask), threads)
    else:
        _in_parts(partial(_project_each, channels=channels), (x, y, mask, k), threads)


def keep(x: Bits, y: Bits, mask: NDArray[np.uint8], threads: int = 1) -> None:
    """Writes the entries of x that the mask marks to y, and 0 elsewhere.

    Args:
        x, y: As in `project`.
        threads: Maximum number of threads.

    Shape: (entries,).
    """
    _in_parts(_keep, (x, y, mask), threads)


@compiled
def _keep(x, y, mask):
    for i in range(np.uintp(x.size)):
        y[i] = x[i] & -np.int32(mask[i])


def _in_parts(function: Callable[..., Any], arrays: Sequence[NDArray[Any]], threads: int) -> None:
    """Calls a function with parts of arrays, divided along their first axis, in parallel."""
    count = len(arrays[0])
    parts = max(1, min(threads, count, arrays[0].size // _PART))
    if parts == 1:
        function(*arrays)
        return
    ends = [count * part // parts for part in range(parts + 1)]
    pieces = [[array[a:b] for array in arrays] for a, b in zip(ends, ends[1:], strict=False)]
    futures = [_pool(threads).submit(function, *piece) for piece in pieces[1:]]
    function(*pieces[0])
    for future in futures:
        future.result()


def _project_each(x: Bits, y: Bits, mask: NDArray[np.uint8], k: NDArray[np.int64], channels: int) -> None:
    starts = [
        0,
        *(np.flatnonzero(np.diff(k)) + 1).tolist(),
        len(k),
    ]  # neighbors of equal k are projected together
    for first, end in zip(starts, starts[1:], strict=False):
        part = slice(first, end)
        _project(x[part], y[part], mask[part], int(k[first]), channels)


def _project(x: Bits, y: Bits, mask: NDArray[np.uint8], k: int, channels: int) -> None:
    n = x.shape[1]
    if x.ndim == 2 and (n > _NETWORK_LINES or channels > 1):
        _bisect_lines(x, y, mask, k, channels)
    elif x.ndim == 2:
        _network_lines(x, y, mask, k, _network(n, k))
    elif n > _NETWORK_PLANES:
        _bisect_planes(x, y, mask, k)
    else:
        _network_planes(x, y, mask, k, _network(n, k))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads - 1, "projection")


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked process has no threads
