"""Collaborative filtering of an observation, with the interface of a `Fit`."""

from collections.abc import Iterator
from time import perf_counter

import torch
from torch import Tensor

from sparsegen.common.extras import require
from sparsegen.restoration.collaborative import estimates
from sparsegen.restoration.fit import EVALUATE_EVERY, Progress


class Filter:
    """Removes noise by `collaborative.estimates`; iterating over it runs the filter, on the CPU.

    It uses the number of threads of torch, and the result does not depend on it.

    Args:
        observation: (1, C, H, W).
        sigma: Standard deviation of the noise at each pixel, of the same shape.
        iterations: The number of the last iteration; others are proportional to the finished work.

    Raises:
        ImportError: If numba is not installed.
    """

    def __init__(self, observation: Tensor, sigma: Tensor, iterations: int) -> None:
        require("restore", "the preset quick", "numba")
        self.observation, self.sigma, self.iterations = observation, sigma, iterations
        self.stopped_because = ""

    def __iter__(self) -> Iterator[Progress]:
        self.stopped_because = "both steps are done"
        started, looked_at = perf_counter(), 0
        noisy, sigma = (image[0].permute(1, 2, 0).cpu().numpy() for image in (self.observation, self.sigma))
        for estimate in estimates(noisy, sigma, torch.get_num_threads()):
            image = torch.from_numpy(estimate.image).permute(2, 0, 1)[None].to(self.observation).clamp(0, 1)
            iteration = max(1, round(self.iterations * estimate.fraction))
            seconds = perf_counter() - started
            looked = looked_at == 0 or iteration == self.iterations or iteration - looked_at >= EVALUATE_EVERY
            looked_at = iteration if looked else looked_at
            yield Progress(
                iteration=iteration,
                loss=float((image - self.observation).square().mean()),
                output=image,
                average=image,
                image=image,
                statistic=None,
                best_iteration=None,
                density=(),
                seconds=seconds,
                seconds_left=seconds * (1 - estimate.fraction) / max(estimate.fraction, 1e-3),
                looked=looked,
            )

    def result(self) -> Tensor:
        """Runs the filter to its end, and returns the image."""
        *_, last = self
        return last.image
