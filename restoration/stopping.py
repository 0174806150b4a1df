"""Stopping rules, which assess the average of the outputs without the clean image.

A rule may modify the fitted data: each member of the ensemble fits its own entry of `targets` instead of the
observation, with `weight` (None: equal weights). A rule is called with the averages of the members,
(ensemble_size, C, H, W), and with A(mean of the averages). It returns a statistic, an estimate of the error of this
mean.
"""

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsegen.restoration.damage import LEAST_KNOWN
from sparsegen.restoration.operators import Blur
from sparsegen.restoration.settings import typical_iterations


class StoppingRule(Protocol):
    """Assesses the average of the outputs.

    Attributes:
        patience: Number of iterations without a better average after which a fit stops, relative to the iteration of
            the best one.
        typical: The typical last iteration, used only for estimates of the remaining time.
    """

    targets: Sequence[Tensor]
    weight: Tensor | None
    patience: float
    typical: float

    def __call__(self, averages: Tensor, observed: Tensor) -> float: ...


class NoiseFitRule(StoppingRule):
    """Estimates the mean squared error by the share of a known noise that has been fitted.

        risk(t) = mean |x_t - y|² + 2 u g(t),   g(t) = mean over m of mean b_m (x_m,t - y) / s

    x_m is fitted to y + s b_m, and x is the mean of all x_m. This is Stein's unbiased risk estimate (Stein, 1981) up
    to a constant; g estimates the covariance of the noise and the output. It is usually estimated by a second run on
    perturbed data (Ramani, Blu & Unser, 2008). Here the perturbation b, of random signs and with the standard deviation
    of the noise at each pixel, is part of the fitted data: the network fits it like the noise, so one run is enough.
    Each member has its own b, which reduces the variance of g.

    The random correlation of b and the picture is noise in g, which grows as the output becomes sharper. So b is made
    orthogonal, block by block, to smoothed versions of the observation, which are similar to all x_t; this halves the
    noise. But the network fits more noise in the removed directions, so g is multiplied by u, `unseen`; with u = 1 and
    white b the estimate is Stein's.

    Choice: `strength` is s; s² is the share that b adds to the variance of the noise that a member fits. `unseen` = 1.5
    was chosen by two measurements on crops of 128 x 128. With one member, it lost least of the values 0.6 to 2, at most
    0.02 dB on four crops. With two members, it lost 0.03 dB in the mean of five crops; 1.3 lost 0.08 and 1 lost 0.39
    (lena, f16, peppers, house, kodim12).

    `patience` was 0.1 with exponential averages. With polynomial averages, 0.05 gave the same quality sooner in a fit
    of more than 1,200 iterations (one crop of 256 x 256); in shorter fits, `Best.least` is larger.

    Args:
        observation: An image with noise that is independent from pixel to pixel, (1, C, H, W).
        sigma: Standard deviation of the noise in units of the observation, one number or one per pixel; it need not be
            exact.
        random: A generator of the CPU, as in `HeldOutRule`.
    """

    strength, unseen, patience = 0.15, 1.5, 0.05

    def __init__(
        self, observation: Tensor, sigma: float | Tensor, random: torch.Generator, ensemble_size: int = 1
    ) -> None:
        # On the CPU, so that every device fits the same targets; MPS lacks a QR decomposition.
        device, observation = observation.device, observation.cpu()
        sigma = sigma.cpu() if isinstance(sigma, Tensor) else sigma
        power = (torch.ones_like(observation) * sigma).square().mean()
        versions, noises = _smoothed(observation), []
        for _ in range(ensemble_size):
            signs = (2 * torch.randint(2, observation.shape, generator=random) - 1).to(observation)
            noise = _orthogonal(signs * sigma, versions)
            noises.append(noise * (power / noise.square().mean()).sqrt())
        self.noise, self.observation, self.weight = torch.cat(noises).to(device), observation.to(device), None
        self.targets = torch.split(self.observation + self.strength * self.noise, 1)
        self.typical = typical_iterations(float(power.sqrt()), observation.shape[2] * observation.shape[3])

    def __call__(self, averages: Tensor, observed: Tensor) -> float:
        fitted_noise = (self.noise * (averages - self.observation)).mean() / self.strength
        residual = (observed - self.observation).square().mean()
        return float(residual + 2 * self.unseen * fitted_noise)


class HeldOutRule(StoppingRule):
    """Holds out a part of the observation and measures the loss of its prediction.

    It is valid for any noise that is independent from pixel to pixel, and for operators that lose information.

    Args:
        observation: Of any shape; for an image (1, C, h, w), whole pixels are held out.
        known: 1 where the observation is known, (h, w) of an image; None: everywhere.

    Raises:
        ValueError: If too few pixels are known.
    """

    share, least = 0.02, LEAST_KNOWN // 2
    patience = 0.3  # Choice: longer than of NoiseFitRule, since a few held-out pixels are a noisier measure
    typical = math.inf  # it has rarely stopped before the last iteration

    def __init__(
        self,
        observation: Tensor,
        loss: Callable[[Tensor], Tensor],
        random: torch.Generator,
        known: Tensor | None = None,
        ensemble_size: int = 1,
    ) -> None:
        pixels = (1, 1, *observation.shape[2:]) if observation.ndim == 4 else observation.shape
        # On the CPU: the same choice for every device.
        everywhere = torch.ones(pixels, dtype=observation.dtype)
        if known is not None:
            everywhere = everywhere * known.cpu()
        found = int(everywhere.sum())
        if found < 2 * self.least:
            raise ValueError(
                f"the stopping rule needs at least {2 * self.least} known pixels, to hold out {self.least}; "
                f"got {found}: give a mask with more known pixels, or set stops=False"
            )
        count = max(self.least, round(self.share * found))
        chance = torch.rand(pixels, generator=random, out=everywhere.new_empty(pixels)) + everywhere
        held_out = torch.zeros_like(everywhere).flatten()
        held_out[chance.flatten().topk(count).indices] = 1
        held_out = held_out.view(pixels).to(observation.device)
        self.held_out = held_out.expand(observation.shape)
        self.weight = (everywhere.to(observation.device) - held_out).expand(observation.shape)
        self.observation, self.targets, self.loss = observation, (observation,) * ensemble_size, loss

    def __call__(self, averages: Tensor, observed: Tensor) -> float:
        losses = self.loss(observed - self.observation)
        return float((losses * self.held_out).sum() / self.held_out.sum())


def estimate_sigma(observation: Tensor, groups: int = 8) -> Tensor:
    """Estimates the standard deviation of the noise of each pixel, as a function of its channel and brightness.

    The estimate is the median magnitude of the finest diagonal wavelet coefficients (Daubechies, two vanishing moments)
    over 0.6745 (Donoho & Johnstone, 1994). It is computed for `groups` groups of coefficients of equal size, sorted by
    brightness, since photon noise grows with brightness, and clipping reduces noise near black and white.

    Shape: (1, C, H, W) -> the same.
    """
    high = torch.tensor([1 - math.sqrt(3), -3 + math.sqrt(3), 3 + math.sqrt(3), -1 - math.sqrt(3)])
    high = (high / high.norm()).to(observation)
    channels = observation.shape[1]
    kernel = torch.outer(high, high).expand(channels, 1, 4, 4)
    details = F.conv2d(observation, kernel, stride=2, groups=channels)[0].flatten(1).abs()
    brightness = F.avg_pool2d(observation, 4, stride=2)[0].flatten(1)
    smooth = F.avg_pool2d(F.pad(observation, (2, 1, 2, 1), mode="replicate"), 4, stride=1)[0]
    sigma = torch.empty_like(observation)
    for channel in range(channels):
        parts = brightness[channel].argsort().chunk(groups)
        levels = torch.stack([details[channel][part].median() for part in parts]) / 0.6745
        ends = torch.stack([brightness[channel][part].max() for part in parts[:-1]])
        sigma[0, channel] = levels[torch.bucketize(smooth[channel], ends)]
    return sigma


def _smoothed(observation: Tensor) -> Tensor:
    """Smoothed versions of an image, whose span is close to its restorations.

    These are a constant, and Gaussian blurs of the channels and of their mean.

    Shape: (1, C, H, W) -> (versions, C, H, W).
    """
    side = min(observation.shape[-2:])
    gray = observation.mean(1, keepdim=True)
    versions = [torch.ones_like(observation)]
    if observation.shape[1] > 1:  # for one channel, these are among the blurs below
        versions += [gray, *(Blur.gaussian(sigma)(gray) for sigma in (0.7, 1, 1.5) if 6 * sigma + 3 <= side)]
    versions += [Blur.gaussian(sigma)(observation) for sigma in (1, 1.5, 2, 3, 5) if 6 * sigma + 3 <= side]
    return torch.cat([version.expand_as(observation) for version in versions])


def _orthogonal(noise: Tensor, versions: Tensor, block: int = 8) -> Tensor:
    """Removes from the noise, in each block of each channel, its projection onto the versions.

    Shape: noise (1, C, H, W), versions (V, C, H, W) -> the shape of the noise.
    """
    height, width = noise.shape[-2:]
    padding = 0, -width % block, 0, -height % block

    def blocks(images: Tensor) -> Tensor:  # (N, C, H, W) -> (blocks, block², N)
        padded = F.pad(images, padding)
        count, channels, height, width = padded.shape
        cells = padded.view(count, channels, height // block, block, width // block, block)
        return cells.permute(1, 2, 4, 3, 5, 0).flatten(3, 4).flatten(0, 2)

    basis, _ = torch.linalg.qr(blocks(versions))
    common: Tensor = basis @ (basis.mT @ blocks(noise))
    channels, rows = noise.shape[1], -(-height // block)
    common = common.reshape(channels, rows, -1, block, block).transpose(2, 3)
    return noise - common.reshape(1, channels, rows * block, -1)[..., :height, :width]
