"""The search for the sparse codes of images with numpy and onnxruntime; `zoo.encoding` is the same in torch."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sparsegen.common.checks import check_integer
from sparsegen.pictures.images import to_uint8
from sparsegen.zoo.fitting import (
    MAX_ITERATIONS,
    MOMENTUM,
    POWER_DECAY,
    Encoding,
    check_images,
    psnr,
    step_size,
)

BATCH = 16  # images

# Evaluates candidates: from the inputs of the graph to its outputs, by their names.
Step = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


def encode(
    step: Step,
    shapes: Sequence[tuple[int, int, int]],
    side: int,
    k: Mapping[str, np.ndarray],
    images: NDArray[np.uint8],
    iterations: int,
    mask: NDArray[np.bool_] | None,
    progress: Callable[[int], object] | None,
) -> Encoding[NDArray[np.float32]]:
    """Finds the sparse codes of images; see `OnnxSampler.encode`.

    Args:
        shapes: Of Γ1 to the code that is searched.
        side: Of the images.
        k: The inputs k_1, k_2, …
    """
    check_integer("iterations", iterations, 1, MAX_ITERATIONS, "the number of steps")
    known = check_images(images, mask, side)
    names = [f"code_{level}" for level in range(1, len(shapes) + 1)]
    codes: list[list[NDArray[np.float32]]] = [[] for _ in names]
    made = []
    for first in range(0, len(images), BATCH):
        part = slice(first, first + BATCH)
        target = np.moveaxis(images[part], -1, 1).astype(np.float32) / 127.5 - 1
        fixed = {"target": target, "known": known[part, None].astype(np.float32), **k}
        found = _search(step, fixed, np.zeros((len(target), *shapes[-1]), np.float32), names[-1], iterations)
        for collected, name in zip(codes, names, strict=True):
            collected.append(found[name])
        made.append(to_uint8(found["image"]))
        if progress:
            progress(min(first + BATCH, len(images)))
    reconstruction = np.concatenate(made)
    return Encoding(
        tuple(np.concatenate(parts) for parts in codes),
        reconstruction,
        psnr(images, reconstruction, known),
        images.astype(np.int16) - reconstruction,
    )


def _search(
    step: Step, fixed: Mapping[str, np.ndarray], start: NDArray[np.float32], name: str, iterations: int
) -> dict[str, np.ndarray]:
    """Descends along the gradient with momentum, divided by its root mean square; returns the outputs of the best."""
    candidate, mean, power = start, np.zeros_like(start), np.zeros((len(start), 1, 1, 1), np.float32)
    best, least = start, np.full(len(start), np.inf, np.float32)
    for iteration in range(1, iterations + 2):  # the last one only measures
        found = step({"candidate": candidate, **fixed})
        values, gradient, losses = found[name], found["gradient"], found["loss"]
        better = losses < least
        least = np.where(better, losses, least)
        best = np.where(better[:, None, None, None], values, best)
        if iteration > iterations:
            break
        mean += (1 - MOMENTUM) * (gradient - mean)
        power += (1 - POWER_DECAY) * (np.square(gradient).mean((1, 2, 3), keepdims=True) - power)
        scale = np.sqrt(power / (1 - POWER_DECAY**iteration)) * (1 - MOMENTUM**iteration)
        candidate = values - np.float32(step_size(iteration, iterations)) * mean / np.maximum(scale, 1e-20)
    return step({"candidate": best, **fixed})
