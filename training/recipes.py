"""How each architecture is trained: phases of terms, the optimizer, and the penalty of the L1 column."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch

from sparsegen.training import terms
from sparsegen.training.terms import Term
from sparsegen.zoo.table1 import ModelSpec


@dataclass(frozen=True)
class Phase:
    """The updates of one network, "generator" or "discriminator", in a step; its loss is the sum of terms."""

    network: str
    terms: Mapping[str, Term]
    optimizer: Callable[..., torch.optim.Optimizer]
    updates: int = 1


@dataclass(frozen=True)
class Recipe:
    """The training of one architecture.

    Choice: `ema`, the decay of the averaged generator that is evaluated and published. The plain DCGAN recipe
    has none; at the short lengths that a CPU affords the average is better, and all columns get it alike.
    """

    phases: tuple[Phase, ...]
    batch_size: int = 64
    steps: int = 100_000
    ema: float = 0.999


adam = partial(torch.optim.Adam, lr=2e-4, betas=(0.5, 0.999), fused=True)

RECIPES = {
    "dcgan": Recipe(
        (
            Phase("discriminator", {"cross_entropy": terms.cross_entropy}, adam),
            Phase("generator", {"non_saturating": terms.non_saturating}, adam),
        )
    ),
}
# Choice: the paper gives no weight. At 10 the penalty weighs about as much as the adversarial loss; at 1 it moved
# nothing within 1,000 steps (density 0.466, against 0.470 without; 0.442 at 10; 32 atoms, seed 0).
PENALTIES: Mapping[str, Mapping[str, Term]] = {"l1": {"code_l1": terms.CodeL1(10.0)}}


def recipe_of(spec: ModelSpec) -> Recipe:
    """The recipe of a cell of Table 1: its architecture's, with its regularizer's penalty."""
    recipe = RECIPES[spec.architecture]
    penalty = PENALTIES.get(spec.regularizer, {})
    phases = tuple(
        replace(phase, terms={**phase.terms, **penalty}) if phase.network == "generator" else phase
        for phase in recipe.phases
    )
    return replace(recipe, phases=phases)
