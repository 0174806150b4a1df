"""The loss terms: callables from `LossInputs` to a scalar.

With several processes, each computes its terms on its rows of the batch, and the gradients are averaged. A term that is
not a mean over images must average with `global_mean`, and random numbers are drawn with `draw_rows`.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsegen.training.augment import Augment, chain, flip, nothing, translate
from sparsegen.training.processes import draw_rows, global_mean


class Batch:
    """A mini-batch of images and noise, with the images generated from it; shared by the phases.

    Choice: generated images have the labels of the real ones, so that both have the same label distribution.

    Args:
        real, labels: (B, 3, H, W) in [-1, 1]; (B,) or None.
        z: (fakes_per_real · B, z_dim); the labels repeat in their order.
        random: For all other random numbers.
        fraction: Share of the training that is done, in [0, 1).
        differentiable: Whether the generator is trained on this batch.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        real: Tensor,
        labels: Tensor | None,
        z: Tensor,
        random: torch.Generator,
        fraction: float = 0.0,
        differentiable: bool = True,
    ):
        self.networks, self.real, self.z, self.random, self.fraction = networks, real, z, random, fraction
        self.differentiable = differentiable
        self.labels = labels
        self.fake_labels = None if labels is None else labels.repeat(len(z) // len(real))

    @cached_property
    def generated(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        generator = self.networks["generator"]
        with torch.set_grad_enabled(self.differentiable), _learning(generator):
            return generator(self.z, self.fake_labels)


@runtime_checkable
class HasFeatures(Protocol):
    """A discriminator whose features are the input of a loss. Shape: images -> (B, …)."""

    def features(self, image: Tensor) -> Tensor: ...


@runtime_checkable
class HasRotationHead(Protocol):
    """A discriminator with a rotation head. Shape: images -> logits (B, 5)."""

    def rotation_logits(self, image: Tensor) -> Tensor: ...


class LossInputs:
    """The inputs of the loss terms in one update of one network.

    `real` and `fake` are augmented images (B, 3, H, W) in [-1, 1], the input of the discriminator; `codes` are the
    sparse codes of the generated images, Γ1 first; the scores are outputs of the discriminator, (B,).
    `reconstructed` is G(E(x)) of the real images x. Each is computed on first use.
    """

    def __init__(self, batch: Batch, trains: str, augment: Augment = nothing):
        self.batch, self.trains, self.augment = batch, trains, augment
        self.discriminator = batch.networks["discriminator"]

    @cached_property
    def real(self) -> Tensor:
        return self.augment(self.batch.real, self.batch.random)

    @property
    def made(self) -> Tensor:
        """The generated images before any augmentation."""
        return self._as_learned("generator", self.batch.generated[0])

    @cached_property
    def fake(self) -> Tensor:
        return self.augment(self.made, self.batch.random)

    @property
    def codes(self) -> tuple[Tensor, ...]:
        return self.batch.generated[1]

    @cached_property
    def real_scores(self) -> Tensor:
        return self.score(self.real)

    @cached_property
    def fake_scores(self) -> Tensor:
        return self.score(self.fake, self.batch.fake_labels)

    def score(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Returns the discriminator's scores of images as float32; labels default to those of the real images."""
        return self.discriminator(images, self.batch.labels if labels is None else labels).float()

    def rotation_logits(self, images: Tensor) -> Tensor:
        """Returns the logits of the rotation head, (B, 5), as float32. Raises: TypeError without such a head."""
        if not isinstance(self.discriminator, HasRotationHead):
            raise TypeError(f"{type(self.discriminator).__name__} has no rotation head: use another recipe")
        return self.discriminator.rotation_logits(images).float()

    def discriminator_features(self, images: Tensor) -> Tensor:
        """Returns the discriminator's features, (B, D), as float32. Raises: TypeError if it has no `features`."""
        if not isinstance(self.discriminator, HasFeatures):
            raise TypeError(f"{type(self.discriminator).__name__} has no features: use another recipe")
        return self.discriminator.features(images).float().flatten(1)

    @cached_property
    def encoded(self) -> Tensor:
        return self._as_learned("encoder", self.batch.networks["encoder"](self.batch.real).float())

    @cached_property
    def reconstructed(self) -> Tensor:
        generator = self.batch.networks["generator"]
        with _statistics_kept(generator):
            return self._as_learned("encoder", generator(self.encoded)[0])

    def _as_learned(self, network: str, made: Tensor) -> Tensor:
        return made if self.trains == network else made.detach()


Term = Callable[[LossInputs], Tensor]


@dataclass(frozen=True)
class Weighted:
    """A term multiplied by a weight."""

    weight: float
    term: Term

    def __call__(self, inputs: LossInputs) -> Tensor:
        return self.weight * self.term(inputs)


def cross_entropy(inputs: LossInputs) -> Tensor:
    """The discriminator's loss: cross-entropy of real against fake, on logits (Goodfellow et al., 2014)."""
    return F.softplus(-inputs.real_scores).mean() + F.softplus(inputs.fake_scores).mean()


def non_saturating(inputs: LossInputs) -> Tensor:
    """The generator's loss: -log D(G(z)), on logits (Goodfellow et al., 2014, section 3)."""
    return F.softplus(-inputs.fake_scores).mean()


def hinge(inputs: LossInputs) -> Tensor:
    """The discriminator's loss: E[max(0, 1 - D(x))] + E[max(0, 1 + D(G(z)))] (Lim & Ye, 2017)."""
    return F.relu(1 - inputs.real_scores).mean() + F.relu(1 + inputs.fake_scores).mean()


def wasserstein(inputs: LossInputs) -> Tensor:
    """The discriminator's loss: E[D(G(z))] - E[D(x)] (Arjovsky et al., 2017)."""
    return inputs.fake_scores.mean() - inputs.real_scores.mean()


def negative_score(inputs: LossInputs) -> Tensor:
    """The generator's loss beside `hinge` and `wasserstein`: -E[D(G(z))]."""
    return -inputs.fake_scores.mean()


@dataclass(frozen=True)
class CodeL1:
    """The L1 penalty on Γ1: weight times its mean magnitude (App. C, item 1).

    Choice: the paper gives no weight and does not say whether the norm is a sum or a mean. With the mean, the weight
    does not depend on the width and the batch.
    """

    weight: float

    def __call__(self, inputs: LossInputs) -> Tensor:
        return self.weight * inputs.codes[0].float().abs().mean()


@dataclass(frozen=True)
class GradientPenalty:
    """weight · E[(|∇D(x̂)| / norm - 1)²], x̂ random between a real and a generated image (Gulrajani et al., 2017).

    `norm` is the target length, over all pixels of an image in [-1, 1].
    """

    weight: float
    norm: float = 1.0

    def __call__(self, inputs: LossInputs) -> Tensor:
        real, fake = inputs.real, inputs.fake.detach()
        random = inputs.batch.random
        share = draw_rows(lambda count: torch.rand(count, 1, 1, 1, generator=random), real, random).to(
            real.dtype
        )
        between = (real + share * (fake[: len(real)] - real)).requires_grad_()
        scores = inputs.score(between)
        (gradient,) = torch.autograd.grad(scores.sum(), between, create_graph=True)
        length = gradient.float().flatten(1).norm(dim=1)
        return self.weight * (length / self.norm - 1).square().mean()


@dataclass(frozen=True)
class ModeSeeking:
    """weight / (r + 1e-5), r = E|G(z₂, y) - G(z₁, y)| / E|z₂ - z₁| (Mao et al., 2019).

    For a recipe with `fakes_per_real` = 2: z₁ and z₂ are the halves of z.
    """

    weight: float

    def __call__(self, inputs: LossInputs) -> Tensor:
        (image_1, image_2), (z_1, z_2) = inputs.batch.generated[0].chunk(2), inputs.batch.z.chunk(2)
        ratio = global_mean((image_2 - image_1).float().abs()) / global_mean((z_2 - z_1).abs())
        return self.weight / (ratio + 1e-5)


Other = Callable[[LossInputs], Tensor]
_move = chain(flip, translate)


def moved(inputs: LossInputs) -> Tensor:
    """Returns the augmented real images, randomly flipped and shifted."""
    return _move(inputs.real, inputs.batch.random)


def untouched(inputs: LossInputs) -> Tensor:
    """Returns the real images before any augmentation."""
    return inputs.batch.real


@dataclass(frozen=True)
class Consistency:
    """weight · E[(D(x) - D(x'))²] of the real images, x' = `other`(inputs) (Zhang et al., 2020).

    Choice: x, x' and the generated images pass through D one after the other, not as one batch, so each pass is also a
    step of the power iteration of spectral norm.
    """

    weight: float
    other: Other

    def __call__(self, inputs: LossInputs) -> Tensor:
        return self.weight * (inputs.real_scores - inputs.score(self.other(inputs))).square().mean()


# ---- SSGAN: multi-class minimax self-supervision over Dist-GAN (Tran et al., 2019) ----


def rotated(images: Tensor, rotations: Tensor) -> Tensor:
    """Rotates each image by a multiple of 90 degrees. Shape: (B, C, S, S), int (B,) -> (B, C, S, S)."""
    quarters = torch.stack([images.rot90(rotation, (2, 3)) for rotation in range(4)])
    return quarters[rotations, torch.arange(len(images), device=images.device)]


def _rotations(images: Tensor, random: torch.Generator, upto: int = 4) -> Tensor:
    return draw_rows(lambda count: torch.randint(upto, (count,), generator=random), images, random)


def reconstruction_hinge(inputs: LossInputs) -> Tensor:
    """The discriminator's loss: a hinge on sigmoids, in which reconstructed images count as real.

        w E[max(0, 1 - s(x))] + (1 - w) E[max(0, 1 - s(G(E(x))))] + E[max(0, 1 + s(G(z)))]

    w rises from 0.95 to 1 between half and three quarters of the training.
    """
    real = 0.95 + 0.05 * min(1.0, max(0.0, (inputs.batch.fraction - 0.5) / 0.25))
    again = inputs.score(inputs.reconstructed)
    return (
        real * F.relu(1 - inputs.real_scores.sigmoid()).mean()
        + (1 - real) * F.relu(1 - again.sigmoid()).mean()
        + F.relu(1 + inputs.fake_scores.sigmoid()).mean()
    )


def score_matching(inputs: LossInputs) -> Tensor:
    """The generator's loss: |E[s(x)] - E[s(G(z))]|."""
    return (global_mean(inputs.real_scores.sigmoid()) - global_mean(inputs.fake_scores.sigmoid())).abs()


@dataclass(frozen=True)
class RotationClassification:
    """weight · cross-entropy of five classes: the four rotations of real images, and generated images.

    The classes are drawn at random; the number of images is that of the batch.
    """

    weight: float

    def __call__(self, inputs: LossInputs) -> Tensor:
        real, fake = inputs.real, inputs.fake
        classes = _rotations(real, inputs.batch.random, 5)
        images = torch.where(
            (classes == 4)[:, None, None, None], fake[: len(real)], rotated(real, classes % 4)
        )
        return self.weight * F.cross_entropy(inputs.rotation_logits(images), classes)


@dataclass(frozen=True)
class RotationMatching:
    """weight · |CE(G(z)) - CE(x)| of the rotation head, with the same rotations for both."""

    weight: float

    def __call__(self, inputs: LossInputs) -> Tensor:
        rotations = _rotations(inputs.real, inputs.batch.random)
        losses = [
            F.cross_entropy(inputs.rotation_logits(rotated(images, rotations)), rotations)
            for images in (inputs.fake[: len(rotations)], inputs.real)
        ]
        return self.weight * global_mean(losses[0] - losses[1]).abs()


@dataclass(frozen=True)
class Encoding:
    """The encoder's loss: a reconstructed image has the features of the image, and its distance from generated
    images in features equals that in z.

        E[(f(x) - f(G(E(x))))²] + weight (E[f(G(E(x))) - f(G(z))] - √(dim z / dim f) E[p(E(x)) - p(z)])²

    `prior` is p, from a normal z to the noise of the original network.

    Choice: the output of the encoder also passes through p, so that it is a normal z as in every interface. In the
    original it is the noise itself, unbounded.
    """

    weight: float
    prior: Callable[[Tensor], Tensor]

    def __call__(self, inputs: LossInputs) -> Tensor:
        of_real, again, of_fake = (
            inputs.discriminator_features(images)
            for images in (inputs.real, inputs.reconstructed, inputs.fake)
        )
        scale = math.sqrt(inputs.batch.z.shape[1] / of_real.shape[1])
        apart = global_mean(again - of_fake[: len(again)])
        z = inputs.batch.z[: len(again)]
        in_noise = global_mean(self.prior(inputs.encoded) - self.prior(z))
        return (of_real - again).square().mean() + self.weight * (apart - scale * in_noise).square()


@contextmanager
def _learning(network: nn.Module) -> Iterator[None]:
    """Enables gradients for the weights of a network that may be frozen in this phase."""
    frozen = [parameter for parameter in network.parameters() if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


@contextmanager
def _statistics_kept(network: nn.Module) -> Iterator[None]:
    """Excludes images that are not generated from noise from the running statistics of batch norm."""
    norms = [(part, part.momentum) for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm, _ in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in norms:
            norm.momentum = momentum
