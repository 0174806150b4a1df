"""Differentiable operators from an image to its observation.

Any callable from (1, C, H, W) to the observation can replace them, e.g. a `deepinv` physics.
"""

from collections.abc import Callable, Sequence
from copy import copy
from inspect import ismethod
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sparsegen.pictures.jpeg import Cells, read_cells
from sparsegen.restoration.damage import (
    FACTORS,
    check_kernel,
    check_kernel_size,
    check_mask,
    check_mask_size,
    gaussian_kernel,
)
from sparsegen.restoration.settings import Task

Damage = np.ndarray | Cells  # what the operator of a task is built from


class Operator:
    """Maps an image (1, C, H, W) to its observation; a fit reads the attributes.

    Attributes:
        known: 1 where a pixel of the observation is known, (H, W); None: everywhere.
        only_noise: The observation is the image plus noise, so `NoiseFitRule` is the stopping rule.
        reach: Radius in pixels of the neighborhood that a pixel of the observation depends on: the margin of tiles.
        value_range: Range of the observation's values; None: any, since the observation need not be a picture.
    """

    known: Tensor | None = None
    only_noise = False
    reach = 0
    value_range: tuple[float, float] | None = (-1, 2)  # wider than [0, 1], since noise may not be clipped

    @classmethod
    def of(cls, task: Task, damage: Damage | None) -> Self:
        """The operator of a task and of the result of `check_damage` for it.

        Raises:
            ValueError: If it needs a mask or kernel, and `damage` is None.
        """
        return cls()

    def to(self, device: torch.device) -> Self:
        """The operator with its tensors, such as a mask or a kernel, on this device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        other = copy(self)
        vars(other).update(moved)
        return other

    def image_shape(self, observation: Sequence[int]) -> tuple[int, ...]:
        """The shape of the image whose observation has this shape, both with the batch dimension."""
        return tuple(observation)

    def masked(self, observation: Tensor) -> Tensor:
        """The observation with its unknown pixels set to 0."""
        return observation

    def __call__(self, image: Tensor) -> Tensor:
        raise NotImplementedError


class Identity(Operator):
    """The image itself, for denoising."""

    only_noise = True

    def __call__(self, image: Tensor) -> Tensor:
        return image


class Mask(Operator):
    """Keeps the pixels where the mask is true, and zeroes the others; for inpainting.

    Args:
        mask: bool (H, W), true where the picture is known.

    Raises:
        ValueError: If no pixel or every pixel is known.
    """

    known: Tensor

    def __init__(self, mask: np.ndarray | Tensor) -> None:
        known = np.asarray(mask)
        check_mask(known, hole="false", kept="true")
        self.known = torch.from_numpy(known).float()

    @classmethod
    def of(cls, task: Task, damage: Damage | None) -> Self:
        if not isinstance(damage, np.ndarray):
            raise ValueError(f"{task.kind} needs the known pixels that check_damage returns; got None")
        return cls(damage)

    def masked(self, observation: Tensor) -> Tensor:
        return self(observation)

    def __call__(self, image: Tensor) -> Tensor:
        check_mask_size(self.known.shape, image.shape[-2:])
        return image * self.known.to(image.device)


class Downsample(Operator):
    """Shrinks an image by the factor `by`, 2 or 4, bicubic with anti-aliasing; for super-resolution.

    Raises:
        ValueError: For another factor.
    """

    reach = 2  # bicubic

    def __init__(self, by: int) -> None:
        if by not in FACTORS:
            raise ValueError(f"the factor must be 2 or 4; got {by!r}")
        self.by = by

    @classmethod
    def of(cls, task: Task, damage: Damage | None) -> Self:
        return cls(task.factor)

    def image_shape(self, observation: Sequence[int]) -> tuple[int, ...]:
        *head, height, width = observation
        return (*head, height * self.by, width * self.by)

    def __call__(self, image: Tensor) -> Tensor:
        size = image.shape[-2] // self.by, image.shape[-1] // self.by
        return F.interpolate(image, size, mode="bicubic", antialias=True, align_corners=False)


class Blur(Operator):
    """Convolves every channel with one kernel, with reflection at the borders; for deblurring.

    Args:
        kernel: float (h, w), both odd; it is normalized to the sum 1.

    Raises:
        ValueError: As `check_kernel`.
    """

    def __init__(self, kernel: np.ndarray) -> None:
        kernel = np.asarray(kernel, np.float64)
        check_kernel(kernel)
        kernel = kernel / kernel.max()  # before the sum, which could overflow
        self.kernel = torch.from_numpy((kernel / kernel.sum()).astype(np.float32))
        self.reach = max(kernel.shape) // 2

    @classmethod
    def of(cls, task: Task, damage: Damage | None) -> Self:
        if not isinstance(damage, np.ndarray):
            raise ValueError(f"{task.kind} needs the kernel that check_damage returns; got None")
        return cls(damage)

    @classmethod
    def gaussian(cls, sigma: float) -> Self:
        """A Gaussian of standard deviation `sigma` pixels.

        Raises:
            ValueError: As `gaussian_kernel`.
        """
        return cls(gaussian_kernel(sigma))

    def __call__(self, image: Tensor) -> Tensor:
        check_kernel_size(self.kernel.shape, image.shape[-2:])
        height, width = self.kernel.shape
        channels = image.shape[1]
        padded = F.pad(image, (width // 2, width // 2, height // 2, height // 2), mode="reflect")
        weight = self.kernel.to(image).flip(0, 1).expand(channels, 1, height, width)
        return F.conv2d(padded, weight, groups=channels)


class Jpeg(Operator):
    """The compression of a JPEG file, for the preset quick, which undoes it.

    Args:
        cells: Of the file whose pixels are the observation.
    """

    def __init__(self, cells: Cells) -> None:
        self.cells = cells

    @classmethod
    def of(cls, task: Task, damage: Damage | None) -> Self:
        if not isinstance(damage, Cells):
            raise ValueError(
                f"{task.kind} needs a picture that was read with its cells: read_picture(path, cells=True)"
            )
        return cls(damage)

    @classmethod
    def file(cls, path: str | Path) -> Self:
        """The compression of this file.

        Raises:
            OSError, ValueError: As `read_cells`.
        """
        return cls(read_cells(Path(path)))

    def __call__(self, image: Tensor) -> Tensor:
        raise NotImplementedError("networks are not fitted to JPEG files: use the preset quick")


class Foreign(Operator):
    """Any other callable from an image to its observation, e.g. a physics of deepinv."""

    value_range = None

    def __init__(self, call: Callable[[Tensor], Tensor]) -> None:
        forward = getattr(call, "A", None)  # of deepinv: the operator without the noise that a call adds
        self.call, self.forward = call, forward if ismethod(forward) else call

    def image_shape(self, observation: Sequence[int]) -> tuple[int, ...]:
        size = getattr(self.call, "img_size", None)  # of some physics of deepinv
        if size is not None and len(size) == 3:
            return (observation[0], *size)
        shape = getattr(self.call, "image_shape", None)
        return tuple(shape(observation) if shape else observation)

    def __call__(self, image: Tensor) -> Tensor:
        return self.forward(image)


def declared(operator: Callable[[Tensor], Tensor] | None) -> Operator:
    """Wraps a callable as an `Operator`; None: `Identity`."""
    if operator is None:
        return Identity()
    return operator if isinstance(operator, Operator) else Foreign(operator)
