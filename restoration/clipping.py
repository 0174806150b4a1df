"""Clipped noise: a picture with noise is usually stored in [0, 1], so noise below black and above white is lost.

The mean of the clipped values of a pixel is brighter than the pixel near black, and darker near white. So is every
denoised picture, which estimates this mean. Foi, "Clipped noisy images: Heteroskedastic modeling and practical
denoising" (2009), inverts the mean as a function of the pixel.
"""

import numpy as np
import torch
from torch import Tensor

STEPS = 4001  # of the tabulated function
LEAST_AGREEMENT = (
    0.9  # Choice: measured below 0.87 for photon noise where the correction harms, above 0.94 for Gaussian
)
MIDDLE = 0.3, 0.7  # brightness at which noise is not clipped
LEAST_SHARE = 0.02  # of the pixels in the middle
LEAST_PIXELS = 50  # that clipping has changed


def clipped_moments(pixels: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """The mean and the standard deviation of pixels with Gaussian noise after clipping to [0, 1]."""
    low, high = -pixels / sigma, (1 - pixels) / sigma
    inside = torch.special.ndtr(high) - torch.special.ndtr(low)
    white = torch.special.ndtr(-high)
    at_low, at_high = (torch.exp(-(z**2) / 2) / (2 * torch.pi) ** 0.5 for z in (low, high))
    mean = pixels * inside + sigma * (at_low - at_high) + white
    square = (pixels**2 + sigma**2) * inside + 2 * pixels * sigma * (at_low - at_high) + white
    square = square + sigma**2 * (low * at_low - high * at_high)
    return mean, (square - mean**2).clamp_min(0).sqrt()


def undo_clipping(image: Tensor, observation: Tensor, sigma: Tensor) -> Tensor:
    """Removes the effect of clipped noise from a denoised picture.

    The picture is returned unchanged unless the measured noise near black and white is that of clipped Gaussian noise.
    Other noise, e.g. of few photons, is weak near black for another reason.

    Args:
        sigma: The measured standard deviation of the noise, clipped, at each pixel.

    Shape: all (1, C, H, W).
    """
    middle = (image > MIDDLE[0]) & (image < MIDDLE[1])
    if observation.min() < 0 or observation.max() > 1 or middle.float().mean() < LEAST_SHARE:
        return image
    sigma = sigma.to(image)
    level = float(sigma[middle].median())
    if level <= 0:
        return image
    pixels = torch.linspace(-0.5, 1.5, STEPS, dtype=torch.float64)
    mean, deviation = (part.numpy() for part in clipped_moments(pixels, level))
    corrected = torch.empty_like(image)
    for channel in range(image.shape[1]):  # one at a time, since interp computes in float64
        found = np.interp(image[0, channel].cpu().numpy(), mean, pixels.numpy())
        corrected[0, channel] = torch.from_numpy(found).clamp(0, 1)
    moved = (corrected - image).abs() > 0.1 * level
    if int(moved.sum()) < LEAST_PIXELS:
        return image
    expected = np.interp(image[moved].cpu().numpy(), mean, deviation)
    measured = sigma[moved].clamp_min(1e-6).cpu().numpy()
    return corrected if np.log(measured / expected).mean() > np.log(LEAST_AGREEMENT) else image
