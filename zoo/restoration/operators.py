"""What a camera or a thief did to an image: differentiable operators from the image to the observation.

Any callable from (1, C, H, W) to the observation can take their place, a `deepinv` physics among them.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

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
        mask = torch.as_tensor(np.asarray(mask))
        if mask.ndim != 2 or mask.dtype != torch.bool:
            raise ValueError(f"a mask is boolean (H, W); got {mask.dtype} {tuple(mask.shape)}")
        known = int(mask.sum())
        if known in (0, mask.numel()):
            what = (
                "no pixel is known" if known == 0 else "every pixel is known, so there is nothing to fill in"
            )
            raise ValueError(
                f"of this mask {what}: it is to be true where the picture is kept, false in the holes"
            )
        self.known = mask.float()

    def __call__(self, image: Tensor) -> Tensor:
        if image.shape[-2:] != self.known.shape:
            size, own = (" x ".join(map(str, s)) for s in (image.shape[-2:], self.known.shape))
            raise ValueError(f"a mask has the size of its picture: the mask is {own}, the picture {size}")
        return image * self.known.to(image.device)


class Downsample:
    """Shrinks an image `by` 2 or 4 as most software does, bicubic with anti-aliasing: super-resolution.

    Raises: ValueError for another factor.
    """

    def __init__(self, by: int) -> None:
        if by not in (2, 4):
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
        kernel = np.asarray(kernel, np.float32)
        if kernel.ndim != 2 or not all(side % 2 for side in kernel.shape):
            raise ValueError(
                f"a blur kernel is a matrix with odd sides, so that it has a center; got {kernel.shape}"
            )
        if not np.isfinite(kernel).all() or kernel.min() < 0 or not kernel.sum() > 0:
            raise ValueError("a blur kernel holds finite numbers from 0 on, some of them above 0")
        self.kernel = torch.from_numpy(kernel / kernel.sum())

    @classmethod
    def gaussian(cls, sigma: float) -> "Blur":
        """A Gaussian of standard deviation `sigma` pixels, cut off at 3 of them.

        Raises: ValueError unless sigma is above 0 and at most 10.
        """
        if not 0 < sigma <= 10:
            raise ValueError(f"a Gaussian blur has a sigma above 0 and up to 10 pixels; got {sigma}")
        radius = max(1, math.ceil(3 * sigma))
        weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
        return cls(np.outer(weights, weights))

    def __call__(self, image: Tensor) -> Tensor:
        height, width = self.kernel.shape
        if min(image.shape[-2] // height, image.shape[-1] // width) < 1:
            raise ValueError(
                f"a blur kernel is smaller than its picture; got {height} x {width} for a picture of "
                f"{image.shape[-2]} x {image.shape[-1]}"
            )
        channels = image.shape[1]
        padded = F.pad(image, (width // 2, width // 2, height // 2, height // 2), mode="reflect")
        weight = self.kernel.to(image).flip(0, 1).expand(channels, 1, height, width)
        return F.conv2d(padded, weight, groups=channels)


def image_shape(operator: Operator, observation: Sequence[int]) -> tuple[int, ...]:
    """The shape of the image behind an observation: the operator's word where it has one, else the same."""
    shape = getattr(operator, "image_shape", None)
    return tuple(shape(observation) if shape else observation)
