"""What a camera or a thief did to an image: differentiable operators from the image to the observation.

Any callable from (1, C, H, W) to the observation can take their place, a `deepinv` physics among them.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sparsegen.restoration.damage import (
    check_kernel,
    check_kernel_size,
    check_mask,
    check_mask_size,
    gaussian_kernel,
)
from sparsegen.restoration.settings import FACTORS

Operator = Callable[[Tensor], Tensor]


class Identity:
    """Nothing but noise: denoising."""

    def __call__(self, image: Tensor) -> Tensor:
        return image


class Mask:
    """Keeps the pixels where the mask is true, and zeroes the others: inpainting.

    Args:
        mask: bool (H, W), true where the picture is known.

    Raises: ValueError if the mask knows no pixel, or all of them.
    """

    def __init__(self, mask: np.ndarray | Tensor) -> None:
        known = np.asarray(mask)
        check_mask(known, hole="false", kept="true")
        self.known = torch.from_numpy(known).float()

    def __call__(self, image: Tensor) -> Tensor:
        check_mask_size(self.known.shape, image.shape[-2:])
        return image * self.known.to(image.device)


class Downsample:
    """Shrinks an image `by` 2 or 4 as most software does, bicubic with anti-aliasing: super-resolution.

    Raises: ValueError for another factor.
    """

    def __init__(self, by: int) -> None:
        if by not in FACTORS:
            raise ValueError(f"an image is enlarged by 2 or 4; got {by!r}")
        self.by = by

    def image_shape(self, observation: Sequence[int]) -> tuple[int, ...]:
        """The shape of the image whose observation has this shape."""
        *head, height, width = observation
        return (*head, height * self.by, width * self.by)

    def __call__(self, image: Tensor) -> Tensor:
        size = image.shape[-2] // self.by, image.shape[-1] // self.by
        return F.interpolate(image, size, mode="bicubic", antialias=True, align_corners=False)


class Blur:
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

    @classmethod
    def gaussian(cls, sigma: float) -> "Blur":
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


def image_shape(operator: Operator, observation: Sequence[int]) -> tuple[int, ...]:
    """The shape of the image behind an observation: the operator's word where it has one, else the same."""
    shape = getattr(operator, "image_shape", None)
    return tuple(shape(observation) if shape else observation)
