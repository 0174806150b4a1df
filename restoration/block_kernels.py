"""The loops of `collaborative`, compiled by numba.

A group of m blocks of n x n pixels is stored as a matrix (n, m n): row k holds row k of all blocks, one block after
another. So the products with the transform and the steps of the Haar transform run along contiguous memory, and one
instruction processes 8 or 16 entries.
"""

from functools import partial
from typing import NamedTuple

import numpy as np

from sparsegen.common.compiled import compiled

# Sums may be reordered, so that they are computed 8 or 16 entries at a time. The order is the same in every call.
compiled_sums = partial(compiled, fastmath={"contract", "reassoc"})
_HALF = np.float32(np.sqrt(0.5))
_TOGETHER = 64  # blocks whose distances are measured together, so that they fit in the cache


@compiled_sums
def _measure_row(guide, y, columns, size, radius, distances):
    """Writes the squared distances of the blocks at (y, columns) to all blocks at up to `radius` pixels.

    Shape: guide (H, W), columns (C,), ascending -> distances (C, (2 radius + 1)²), infinite outside of the picture.
    """
    height, width = guide.shape
    squares, sums = np.empty(width, np.float32), np.empty(width, np.float32)
    distances[:] = np.inf
    begin, end, at = columns[0], columns[-1] + size, -1
    for down in range(-radius, radius + 1):
        other = y + down
        for right in range(-radius, radius + 1):
            at += 1
            if other < 0 or other + size > height:
                continue
            start, stop = max(begin, -right), min(end, width - right)
            if stop - start < size:
                continue
            squares[: stop - start] = 0
            for row in range(size):
                ours = guide[y + row, start:stop]
                theirs = guide[other + row, start + right : stop + right]
                for i in range(ours.size):
                    difference = ours[i] - theirs[i]
                    squares[i] += difference * difference
            places = stop - start - size + 1
            sums[:places] = 0
            for column in range(size):
                shifted = squares[column : column + places]
                for i in range(shifted.size):
                    sums[i] += shifted[i]
            for block in range(columns.size):
                place = columns[block] - start
                if 0 <= place < places:
                    distances[block, at] = sums[place]


@compiled
def _find_nearest(distances, limit, nearest, found):
    """Writes the smallest distances up to `limit`, ascending, and their indices; returns their number.

    Shape: distances (D,), nearest and found (most,). Of equal distances, the first are found.
    """
    most, count, bound = nearest.size, 0, limit
    for index in range(distances.size):
        distance = distances[index]
        if distance < bound:
            place = min(count, most - 1)
            while place > 0 and nearest[place - 1] > distance:
                nearest[place], found[place] = nearest[place - 1], found[place - 1]
                place -= 1
            nearest[place], found[place] = distance, index
            count = min(count + 1, most)
            if count == most:
                bound = nearest[most - 1]
    return count


@compiled
def _gather(plane, tops, lefts, members, size, group):
    for member in range(members):
        top, left = np.uintp(tops[member]), np.uintp(lefts[member])
        start = np.uintp(member * size)
        for row in range(np.uintp(size)):
            for column in range(np.uintp(size)):
                group[row, start + column] = plane[top + row, left + column]


@compiled_sums
def _multiply(matrix, x, y, width):
    """y = matrix @ x, of the first `width` columns. Two rows of x are read at a time, so the size is even."""
    for row in range(matrix.shape[0]):
        target, first, second = y[row, :width], x[0, :width], x[1, :width]
        a, b = matrix[row, 0], matrix[row, 1]
        for i in range(target.size):
            target[i] = a * first[i] + b * second[i]
        for k in range(2, matrix.shape[1], 2):
            first, second = x[k, :width], x[k + 1, :width]
            a, b = matrix[row, k], matrix[row, k + 1]
            for i in range(target.size):
                target[i] += a * first[i] + b * second[i]


@compiled
def _transpose(x, y, members, size):
    """Transposes each block of a group."""
    for row in range(np.uintp(size)):
        for member in range(members):
            start = np.uintp(member * size)
            for column in range(np.uintp(size)):
                y[column, start + row] = x[row, start + column]


@compiled
def _transform(matrix, group, work, members):
    """Replaces each block B of a group by (matrix B matrixᵀ)ᵀ in `work`; `group` is overwritten."""
    size = matrix.shape[0]
    _multiply(matrix, group, work, members * size)
    _transpose(work, group, members, size)
    _multiply(matrix, group, work, members * size)


@compiled
def _haar(group, members, size):
    """The orthonormal Haar transform along the blocks of a group. Each step pairs block i with block i + half.

    With `members` in bit-reversed order, the pairs are neighbors.
    """
    for row in range(size):
        half = members // 2
        while half:
            first, second = group[row, : half * size], group[row, half * size : 2 * half * size]
            for i in range(first.size):
                a, b = first[i], second[i]
                first[i], second[i] = (a + b) * _HALF, (a - b) * _HALF
            half //= 2


@compiled
def _inverse_haar(group, members, size):
    for row in range(size):
        half = 1
        while half < members:
            first, second = group[row, : half * size], group[row, half * size : 2 * half * size]
            for i in range(first.size):
                a, b = first[i], second[i]
                first[i], second[i] = (a + b) * _HALF, (a - b) * _HALF
            half *= 2


@compiled_sums
def _threshold(group, width, least):
    """Zeroes the entries below `least`; returns the number of the others."""
    kept = 0
    for row in range(group.shape[0]):
        line, count = group[row, :width], np.int32(0)
        for i in range(line.size):
            keeps = abs(line[i]) >= least
            count += np.int32(keeps)
            line[i] = line[i] if keeps else np.float32(0)
        kept += count
    return np.float32(kept)


@compiled_sums
def _wiener(group, pilot, width, variance):
    """Multiplies the entries by the Wiener factors of a pilot; returns the sum of the squared factors."""
    energy = np.float32(0)
    for row in range(group.shape[0]):
        line, guess = group[row, :width], pilot[row, :width]
        for i in range(line.size):
            power = guess[i] * guess[i]
            factor = power / (power + variance)
            line[i] *= factor
            energy += factor * factor
    return energy


@compiled
def _scatter(group, tops, lefts, members, window, sums):
    """Adds the blocks of a group, multiplied by the window, to the sums."""
    size = window.shape[0]
    for member in range(members):
        top, left = np.uintp(tops[member]), np.uintp(lefts[member])
        start = np.uintp(member * size)
        for row in range(np.uintp(size)):
            for column in range(np.uintp(size)):
                sums[top + row, left + column] += window[row, column] * group[row, start + column]


@compiled_sums
def _mean_at_centers(plane, tops, lefts, members, size):
    total = np.float32(0)
    for member in range(members):
        total += plane[tops[member] + size // 2, lefts[member] + size // 2]
    return total / np.float32(members)


@compiled
def _reversed_bits(number, count):
    """The number with its bits in reverse order, as an index of `count`, a power of two."""
    result, bit = 0, count // 2
    while number:
        if number & 1:
            result += bit
        number >>= 1
        bit //= 2
    return result


class Planes(NamedTuple):
    """The components of a picture, float32 (C, H, W); `guide` is (H, W).

    Attributes:
        guide: In which similar blocks are searched.
        pilot: The basic estimate, for Wiener factors; with a threshold, it is not read.
        variance: Of the noise at each pixel; that of a group is the mean at the centers of its blocks.
    """

    guide: np.ndarray
    noisy: np.ndarray
    pilot: np.ndarray
    variance: np.ndarray


class Rules(NamedTuple):
    """How groups are formed and filtered; numbers are np.float32.

    Attributes:
        forward, inverse: The transform of the rows and columns of a block, and its inverse; the size is even.
        window: Weights of the pixels of a block.
        most: Maximum number of blocks of a group, a power of two.
        radius: Maximum distance in pixels along a side.
        limit: Maximum squared difference to the first block.
        threshold: Coefficients below this number of standard deviations are zeroed; 0: Wiener factors.
        share: The share of the variance that Wiener factors assume.
    """

    forward: np.ndarray
    inverse: np.ndarray
    window: np.ndarray
    most: int
    radius: int
    limit: np.float32
    threshold: np.float32
    share: np.float32


@compiled
def filter_rows(planes, rules, tops, lefts, start, sums, weights):
    """Filters the groups of the blocks at (tops, lefts), and adds the weighted blocks to `sums`.

    The weight of a block is added to `weights` at its first pixel; that of each pixel is the product with the window.

    Args:
        start: The row of the picture that is the first of `sums` and `weights`.

    Shape: sums and weights (C, rows, W).
    """
    guide, noisy, pilot, variance = planes
    forward, inverse, window, most, radius, limit, threshold, share = rules
    channels, size, side = noisy.shape[0], forward.shape[0], 2 * radius + 1
    distances = np.empty((_TOGETHER, side * side), np.float32)
    nearest, found = np.empty(most, np.float32), np.empty(most, np.int64)
    above, left_of = np.empty(most, np.int64), np.empty(most, np.int64)
    group, other = np.empty((size, most * size), np.float32), np.empty((size, most * size), np.float32)
    work, weighted = np.empty((size, most * size), np.float32), np.empty_like(window)
    for top in tops:
        for block in range(lefts.size):
            row = block % _TOGETHER
            if row == 0:
                _measure_row(guide, top, lefts[block : block + _TOGETHER], size, radius, distances)
            left = lefts[block]
            distances[
                row, side * radius + radius
            ] = -1  # so that the block is the first, also among equal ones
            count, members = _find_nearest(distances[row], limit, nearest, found), 1
            while 2 * members <= count:
                members *= 2
            for index in range(members):
                place = _reversed_bits(index, members)
                above[place] = top + found[index] // side - radius
                left_of[place] = left + found[index] % side - radius
            width = members * size
            for channel in range(channels):
                power = _mean_at_centers(variance[channel], above, left_of, members, size)
                _gather(noisy[channel], above, left_of, members, size, work)
                _transform(forward, work, group, members)
                _haar(group, members, size)
                if threshold > 0:
                    energy = _threshold(group, width, threshold * np.sqrt(power))
                else:
                    _gather(pilot[channel], above, left_of, members, size, work)
                    _transform(forward, work, other, members)
                    _haar(other, members, size)
                    energy = _wiener(group, other, width, share * power)
                _inverse_haar(group, members, size)
                _transform(inverse, group, work, members)
                weight = 1 / (power * max(energy, np.float32(1)))
                for i in range(size):
                    for j in range(size):
                        weighted[i, j] = weight * window[i, j]
                for member in range(members):
                    above[member] -= start
                    weights[channel, above[member], left_of[member]] += weight
                _scatter(work, above, left_of, members, weighted, sums[channel])
                for member in range(members):
                    above[member] += start
