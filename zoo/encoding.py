"""The way back from an image to its sparse code: pursuit by projected gradient descent under the learned dictionaries.

    min over Γ_L of |mask · (G_D(Γ_L) - x)|²,   each of Γ1…Γ_L sparse

G_D is the network from the code to the image (`Generator.synthesize`). Each step follows the gradient with momentum,
and projects the code: iterative hard thresholding (Blumensath & Davies, 2009), here through the multi-layer model
(Papyan et al., 2017), since the codes below Γ_L are projected within G_D.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsegen.common.checks import check_integer
from sparsegen.common.devices import batch_size, full_precision, in_batches
from sparsegen.pictures.images import to_uint8
from sparsegen.zoo import noise
from sparsegen.zoo.fitting import (
    ITERATIONS,
    MAX_ITERATIONS,
    MOMENTUM,
    POWER_DECAY,
    Encoding,
    check_images,
    psnr,
    step_size,
)
from sparsegen.zoo.projections import Projection

if TYPE_CHECKING:
    from sparsegen.zoo.generator import Generator


def encode(
    generator: "Generator",
    images: NDArray[np.uint8],
    k: int | Sequence[int] | None = None,
    level: int | None = None,
    iterations: int = ITERATIONS,
    mask: NDArray[np.bool_] | None = None,
    find_z: bool = False,
    labels: int | str | Sequence[int | str] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Encoding[Tensor]:
    """Finds the sparse codes of images; see `Generator.encode` for the arguments."""
    network = generator.view(k)
    if level is None:
        level = default_level(network)
    check_integer("level", level, 1, len(network.stages), "the code counted from the image")
    check_integer("iterations", iterations, 1, MAX_ITERATIONS, "the number of steps")
    known = check_images(images, mask, network.image_size)
    drawn = _check_labels(network, len(images), find_z, labels)
    device = network.device
    done, parts = 0, []

    def run(first: int, stop: int) -> list[Tensor]:
        # Copies, because torch warns of arrays that are read-only, such as those of Pillow, or one mask for all images.
        x = (
            torch.from_numpy(images[first:stop].copy()).to(device).movedim(-1, 1).to(network.dtype) / 127.5
            - 1
        )
        weight = torch.from_numpy(known[first:stop, None].copy()).to(device, network.dtype)
        found = _Search(x, weight).code(network, level, iterations)
        codes = [found]
        for index in range(level - 2, -1, -1):
            codes.append(network.projections[index](network.stages[index + 1](codes[-1], None)))
        made = [network.synthesize(codes[-1]), *reversed(codes)]
        if find_z:
            classes = None if drawn is None else torch.from_numpy(drawn[first:stop]).to(device)
            z = _Search(x, weight).z(network, first, iterations, classes)
            made += [z, network(z, classes)[0]]
        return [tensor.cpu() for tensor in made]

    with torch.no_grad(), full_precision(device):
        # Choice: a third of the images of a sampling batch, because the gradient needs about three times the memory.
        for part in in_batches(len(images), max(1, batch_size(device, network.image_bytes) // 3), run):
            parts.append(part)
            done += len(part[0])
            if progress:
                progress(done)
    image, *rest = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
    reconstruction = to_uint8(image.float().numpy())
    z = z_psnr = None
    if find_z:
        *rest, z, of_z = rest
        z_psnr = psnr(images, to_uint8(of_z.float().numpy()), known)
    return Encoding(
        tuple(rest),
        reconstruction,
        psnr(images, reconstruction, known),
        images.astype(np.int16) - reconstruction,
        z,
        z_psnr,
    )


@dataclass(frozen=True)
class _Search:
    """The minimization of the weighted squared error of each image; x and weight (B, 3, H, W) and (B, 1, H, W)."""

    x: Tensor
    weight: Tensor

    def code(self, network: "Generator", level: int, iterations: int) -> Tensor:
        """Returns the code of the smallest error, from a code of zeros."""
        project = network.projections[level - 1]
        start = self.x.new_zeros(len(self.x), *network.code_shapes[level - 1])
        above: list[Tensor | None] = [None] * (level - 1)
        return self._minimum(
            start,
            lambda code: network.synthesize([*above, code]),
            lambda code: project(code.relu()),
            iterations,
        )

    def z(self, network: "Generator", first: int, iterations: int, labels: Tensor | None) -> Tensor:
        """Returns the z of the smallest error, from the noise of seed 0."""
        start = torch.from_numpy(noise.z(len(self.x), network.z_dim, 0, first)).to(self.x)
        return self._minimum(start, lambda z: network(z, labels)[0], lambda z: z, iterations)

    def _minimum(
        self,
        values: Tensor,
        image: Callable[[Tensor], Tensor],
        project: Callable[[Tensor], Tensor],
        iterations: int,
    ) -> Tensor:
        """Descends along the gradient with momentum, divided by its root mean square, with a decreasing rate."""
        ones = (1,) * (values.ndim - 1)
        mean, power = torch.zeros_like(values), values.new_zeros(len(values), *ones)
        best, least = values, values.new_full((len(values),), math.inf)
        for iteration in range(1, iterations + 2):  # the last one only measures
            values = values.detach().requires_grad_()
            with torch.enable_grad():
                losses = (self.weight * (image(values) - self.x)).square().flatten(1).sum(1)
                (gradient,) = torch.autograd.grad(losses.sum(), values)
            better = losses < least
            least = torch.where(better, losses, least).detach()
            best = torch.where(better.view(-1, *ones), values, best).detach()
            if iteration > iterations:
                break
            mean = mean.lerp(gradient, 1 - MOMENTUM)
            power = power.lerp(gradient.square().flatten(1).mean(1).view(-1, *ones), 1 - POWER_DECAY)
            scale = (power / (1 - POWER_DECAY**iteration)).sqrt() * (1 - MOMENTUM**iteration)
            values = project(
                values.detach() - step_size(iteration, iterations) * mean / scale.clamp_min(1e-20)
            )
        return best


def default_level(network: "Generator") -> int:
    """Returns the level that is searched by default: the highest projected one, else 1."""
    projected = [index for index, each in enumerate(network.projections, 1) if isinstance(each, Projection)]
    return max(projected, default=1)


def _check_labels(
    network: "Generator", count: int, find_z: bool, labels: int | str | Sequence[int | str] | None
) -> NDArray[np.int64] | None:
    if not find_z:
        if labels is not None:
            raise ValueError("labels are for find_z: a code does not depend on them")
        return None
    noise.check_conditional(labels is not None, network.classes, network.class_names)
    return noise.labels(count, network.classes, 0, labels, network.class_names)
