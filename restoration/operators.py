"""What a camera or a thief did to an image: differentiable operators from the image to the observation.

Any callable from (1, C, H, W) to the observation can take their place, a `deepinv` physics among them.
"""

from collections.abc import Callable, Sequence
from inspect import ismethod
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sparsegen.restoration.damage import (
    FACTORS,
    check_kernel,
    check_kernel_size,
    check_mask,
    check_mask_size,
    gaussian_kernel,
)
from sparsegen.restoration.settings import Task


class Operator:
    """From an image (1, C, H, W) to its observation, and what a fit has to know of that.

    Attributes:
        known: 1 where a pixel of the observation tells something, (H, W); None: everywhere.
        only_noise: The observation is the image and noise, so that the fit of the noise says when to stop.
        reach: How many pixels around it a pixel of the observation depends on: what tiles need as margins.
        value_range: Which values an observation may have; None: any, and then it need not be a picture.
    """

    known: Tensor | None = None
    only_noise = False
    reach = 0
    value_range: tuple[float, float] | None = (-1, 2)  # a noisy picture need not be clipped

    @classmethod
    def of(cls, task: Task, damage: np.ndarray | None) -> Self:
        """The operator of a task, and of what `check_damage` returned for it."""
        return cls()

    def image_shape(self, observation: Sequence[int]) -> tuple[int, ...]:
        """The shape of the image whose observation has this shape, both with the batch dimension."""
        return tuple(observation)

    def masked(self, observation: Tensor) -> Tensor:
        """The observation without what it shows where nothing is known."""
        return observation

    def __call__(self, image: Tensor) -> Tensor:
        raise NotImplementedError


class Identity(Operator):
    """Nothing but noise: denoising."""

    only_noise = True

    def __call__(self, image: Tensor) -> Tensor:
        return image


class Mask(Operator):
    """Keeps the pixels where the mask is true, and zeroes the others: inpainting.

    Args:
        mask: bool (H, W), true where the picture is known.

    Raises: ValueError if the mask knows no pixel, or all of them.
    """

    def __init__(self, mask: np.ndarray | Tensor) -> None:
        known = np.asarray(mask)
        check_mask(known, hole="false", kept="true")
        self.known = torch.from_numpy(known).float()

    @classmethod
    def of(cls, task: Task, damage: np.ndarray | None) -> Self:
        return cls(damage)

    def masked(self, observation: Tensor) -> Tensor:
        return self(observation)

    def __call__(self, image: Tensor) -> Tensor:
        check_mask_size(self.known.shape, image.shape[-2:])
        return image * self.known.to(image.device)


class Downsample(Operator):
    """Shrinks an image `by` 2 or 4 as most software does, bicubic with anti-aliasing: super-resolution.

    Raises: ValueError for another factor.
    """

    reach = 2  # bicubic

    def __init__(self, by: int) -> None:
        if by not in FACTORS:
            raise ValueError(f"an image is enlarged by 2 or 4; got {by!r}")
        self.by = by

    @classmethod
    def of(cls, task: Task, damage: np.ndarray | None) -> Self:
        return cls(task.by)

    def image_shape(self, observation: Sequence[int]) -> tuple[int, ...]:
        *head, height, width = observation
        return (*head, height * self.by, width * self.by)

    def __call__(self, image: Tensor) -> Tensor:
        size = image.shape[-2] // self.by, image.shape[-1] // self.by
        return F.interpolate(image, size, mode="bicubic", antialias=True, align_corners=False)


class Blur(Operator):
    """Convolves every channel with one kernel, reflecting at the borders: deblurring.

    Args:
        kernel: float (h, w), both odd; it is normalized to the sum 1.

    Raises: ValueError if it is no such kernel, or sums to 0.
    """

    def __init__(self, kernel: np.ndarray) -> None:
        kernel = np.asarray(kernel, np.float64)
        check_kernel(kernel)
        kernel = kernel / kernel.max()  # first, since the sum of large numbers has no end
        self.kernel = torch.from_numpy((kernel / kernel.sum()).astype(np.float32))
        self.reach = max(kernel.shape) // 2

    @classmethod
    def of(cls, task: Task, damage: np.ndarray | None) -> Self:
        return cls(damage)

    @classmethod
    def gaussian(cls, sigma: float) -> Self:
        """A Gaussian of standard deviation `sigma` pixels.

        Raises: ValueError as `gaussian_kernel`.
        """
        return cls(gaussian_kernel(sigma))

    def __call__(self, image: Tensor) -> Tensor:
        check_kernel_size(self.kernel.shape, image.shape[-2:])
        height, width = self.kernel.shape
        channels = image.shape[1]
        padded = F.pad(image, (width // 2, width // 2, height // 2, height // 2), mode="reflect")
        weight = self.kernel.to(image).flip(0, 1).expand(channels, 1, height, width)
        return F.conv2d(padded, weight, groups=channels)


class Foreign(Operator):
    """Any callable from an image to its observation, of which nothing else is known, e.g. a physics of deepinv."""

    value_range = None

    def __init__(self, call: Callable[[Tensor], Tensor]) -> None:
        forward = getattr(call, "A", None)  # deepinv's physics without the noise that calling it adds
        self.call, self.forward = call, forward if ismethod(forward) else call

    def image_shape(self, observation: Sequence[int]) -> tuple[int, ...]:
        size = getattr(self.call, "img_size", None)  # as some of deepinv's physics have it
        if size is not None and len(size) == 3:
            return (observation[0], *size)
        shape = getattr(self.call, "image_shape", None)
        return tuple(shape(observation) if shape else observation)

    def __call__(self, image: Tensor) -> Tensor:
        return self.forward(image)


def declared(operator: Callable[[Tensor], Tensor] | None) -> Operator:
    """The operator with what a fit has to know of it; None: nothing but noise."""
    if operator is None:
        return Identity()
    return operator if isinstance(operator, Operator) else Foreign(operator)
