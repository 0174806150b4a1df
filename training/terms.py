"""Every loss: a term is a callable from what one update sees (`Forward`) to a scalar."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn
from torch.nn import functional as F


class Draw:
    """A mini-batch of images and of noise, with what the generator makes of it; shared by the phases."""

    def __init__(self, generator: nn.Module, real: Tensor, z: Tensor):
        self.generator, self.real, self.z = generator, real, z

    @cached_property
    def generated(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.generator(self.z)


class Forward:
    """What one update of one network sees.

    `real` and `fake` are images (B, 3, H, W) in [-1, 1], `codes` the sparse codes of `fake`, Γ1 first, and
    the scores what the discriminator says of each, (B,). Each is computed when a term first asks for it.
    """

    def __init__(self, draw: Draw, discriminator: nn.Module, trains_generator: bool):
        self.draw, self.discriminator, self.trains_generator = draw, discriminator, trains_generator

    @property
    def real(self) -> Tensor:
        return self.draw.real

    @property
    def fake(self) -> Tensor:
        fake, _ = self.draw.generated
        return fake if self.trains_generator else fake.detach()

    @property
    def codes(self) -> tuple[Tensor, ...]:
        return self.draw.generated[1]

    @cached_property
    def real_scores(self) -> Tensor:
        return self.discriminator(self.real).float()

    @cached_property
    def fake_scores(self) -> Tensor:
        return self.discriminator(self.fake).float()


Term = Callable[[Forward], Tensor]


def cross_entropy(forward: Forward) -> Tensor:
    """The discriminator's loss: cross-entropy of real against fake, on logits (Goodfellow et al., 2014)."""
    return F.softplus(-forward.real_scores).mean() + F.softplus(forward.fake_scores).mean()


def non_saturating(forward: Forward) -> Tensor:
    """The generator's loss: -log D(G(z)), on logits (Goodfellow et al., 2014, section 3)."""
    return F.softplus(-forward.fake_scores).mean()


@dataclass(frozen=True)
class CodeL1:
    """The L1 penalty on Γ1: weight times its mean magnitude (App. C, item 1).

    Choice: the paper gives no weight, and leaves open whether the norm is a sum or a mean; the mean makes the
    weight independent of the width and of the batch.
    """

    weight: float

    def __call__(self, forward: Forward) -> Tensor:
        return self.weight * forward.codes[0].float().abs().mean()
