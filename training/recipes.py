"""The training of each architecture: phases of loss terms, optimizers, and the penalty of the L1 column."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import nn

from sparsegen.training import augment, projected, terms
from sparsegen.training.augment import Augment
from sparsegen.training.projected import FrozenFeatures
from sparsegen.training.terms import Term, Weighted
from sparsegen.zoo.generator import Generator
from sparsegen.zoo.registry import get_architecture
from sparsegen.zoo.residual import uniform_prior
from sparsegen.zoo.spec import ModelSpec


@dataclass(frozen=True)
class Phase:
    """The updates of one network in a step. Its loss is the sum of the terms.

    `network` is "generator", "discriminator" or "encoder".
    """

    network: str
    terms: Mapping[str, Term]
    optimizer: Callable[..., torch.optim.Optimizer]
    updates: int = 1

    def at_rate(self, rate: float) -> "Phase":
        """Returns this phase with another learning rate."""
        return replace(self, optimizer=partial(self.optimizer, lr=rate))


def constant(fraction: float) -> float:
    return 1.0


def linear_decay(fraction: float) -> float:
    """Falls linearly to 0 at the end."""
    return 1 - fraction


def half_then_linear(fraction: float) -> float:
    """Half until the middle, then linearly to 0."""
    return min(0.5, 1 - fraction)


@dataclass(frozen=True)
class Recipe:
    """The training of one architecture.

    Choice: `ema`, the decay of the averaged generator that is evaluated and published. Most of the original recipes
    have no average. It improves short training on a CPU, and all columns use it. BigGAN's starts at step 1000, ours at
    the first step with a growing window (`loop.train`).

    Choice: all flip the real images at random (`plan.RunPlan`), unlike the originals of cgan and msgan.

    Attributes:
        rate: From the share of the training that is done, in [0, 1), to the factor of the learning rate.
        augment: Applied to all inputs of the discriminator, in all phases.
        fakes_per_real: Generated images per real one; ModeSeeking needs two with the same label.
        networks: Additional trained networks, each built for a generator.
    """

    phases: tuple[Phase, ...]
    batch_size: int = 64
    steps: int = 100_000
    ema: float = 0.999
    rate: Callable[[float], float] = constant
    augment: Augment = augment.nothing
    fakes_per_real: int = 1
    networks: Mapping[str, Callable[[Generator], nn.Module]] = field(default_factory=dict)

    def with_terms(self, network: str, more: Mapping[str, Term]) -> "Recipe":
        """Returns this recipe with additional terms in the loss of one network."""
        phases = tuple(
            replace(phase, terms={**phase.terms, **more}) if phase.network == network else phase
            for phase in self.phases
        )
        return replace(self, phases=phases)

    def augmented(self) -> "Recipe":
        """Returns this recipe with DiffAugment for the inputs of the discriminator, unless it has an augmentation."""
        return replace(self, augment=DIFF_AUGMENT) if self.augment is augment.nothing else self

    def faster(self, factor: float) -> "Recipe":
        """Returns this recipe with all learning rates multiplied by a factor.

        Raises:
            ValueError: Unless the factor is a finite number above 0.
        """
        if not 0 < factor < math.inf:
            raise ValueError(
                f"a rate must be a factor of the recipe's learning rates above 0, e.g. 0.1 or 4; got {factor}"
            )
        return replace(self, rate=lambda fraction: factor * self.rate(fraction))


RATE = 2e-4  # the learning rate of all recipes of the paper's rows


def adam(beta_1: float, beta_2: float, weight_decay: float = 0.0) -> Callable[..., torch.optim.Optimizer]:
    return partial(torch.optim.Adam, lr=RATE, betas=(beta_1, beta_2), weight_decay=weight_decay, fused=True)


def _pair(
    discriminator: Mapping[str, Term],
    generator: Mapping[str, Term],
    optimizer: Callable[..., torch.optim.Optimizer],
    updates: int = 1,
) -> tuple[Phase, Phase]:
    return (
        Phase("discriminator", discriminator, optimizer, updates),
        Phase("generator", generator, optimizer),
    )


CROSS_ENTROPY, NON_SATURATING = (
    {"cross_entropy": terms.cross_entropy},
    {"non_saturating": terms.non_saturating},
)
HINGE, NEGATIVE_SCORE = {"hinge": terms.hinge}, {"negative_score": terms.negative_score}
BIGGAN = Recipe(
    _pair(HINGE, NEGATIVE_SCORE, adam(0.0, 0.999), updates=4), batch_size=50, steps=250_000, ema=0.9999
)
WGAN_GP = Recipe(
    _pair(
        {"wasserstein": terms.wasserstein, "gradient_penalty": terms.GradientPenalty(10)},
        NEGATIVE_SCORE,
        adam(0.0, 0.9),
        updates=5,
    ),
    rate=linear_decay,
)
RECIPES = {
    "dcgan": Recipe(_pair(CROSS_ENTROPY, NON_SATURATING, adam(0.5, 0.999))),
    "cgan": Recipe(_pair(CROSS_ENTROPY, NON_SATURATING, adam(0.5, 0.999))),
    "wgan_gp": WGAN_GP,
    "wgan_gp_resnet": WGAN_GP,
    "msgan": Recipe(  # the original's losses are sums over the two fakes, which matters with weight decay
        _pair(
            {"cross_entropy": Weighted(2, terms.cross_entropy)},
            {"non_saturating": Weighted(2, terms.non_saturating), "mode_seeking": terms.ModeSeeking(1)},
            adam(0.5, 0.999, weight_decay=1e-4),
        ),
        batch_size=32,
        steps=312_400,
        fakes_per_real=2,
    ),
    "sngan": Recipe(_pair(HINGE, NEGATIVE_SCORE, adam(0.0, 0.9)), rate=linear_decay),
    "sagan": Recipe(_pair(HINGE, NEGATIVE_SCORE, adam(0.5, 0.999), updates=5)),
    # Choice: the gradient's length for images in [0, 1] is compared with 1, as in WGAN-GP. The authors' code compares
    # its root mean square, a 55 times larger target, and in the hinge branch with the opposite sign, which pulls it to
    # 0: with 16 atoms, at four times the rate, the scores did not separate real from generated images after 1,800 steps
    # (hinge 2.000). With the usual sign it grew until all sigmoids were 0 after 600 steps.
    # Choice: batch norm's momentum is torch's default, not 0.001, which needs more steps than most of our runs have.
    "ssgan": Recipe(
        (
            Phase("encoder", {"encoding": terms.Encoding(1, uniform_prior)}, adam(0.0, 0.9)),
            Phase(
                "discriminator",
                {
                    "reconstruction_hinge": terms.reconstruction_hinge,
                    "rotation_classification": terms.RotationClassification(0.5),
                    "gradient_penalty": terms.GradientPenalty(0.5, norm=1 / 2),
                },
                adam(0.0, 0.9),
            ),
            Phase(
                "generator",
                {"score_matching": terms.score_matching, "rotation_matching": terms.RotationMatching(0.1)},
                adam(0.0, 0.9),
            ),
        ),
        steps=300_000,
        rate=half_then_linear,
    ),
    "sngan_resnet": Recipe(_pair(HINGE, NEGATIVE_SCORE, adam(0.0, 0.9), updates=5), rate=linear_decay),
    "biggan": BIGGAN,
    "biggan_tapered": BIGGAN,
    "diffcr_biggan": replace(BIGGAN, augment=augment.cutout).with_terms(
        "discriminator", {"consistency": terms.Consistency(10, terms.moved)}
    ),
}
# With a part of the data: stronger augmentation, and consistency with the unaugmented image (Zhao et al., 2020).
# Choice: the same number of steps as with all data; the authors' script halves it at a tenth of the data.
LOW_DATA = {
    "diffcr_biggan": replace(BIGGAN, augment=augment.chain(augment.translate, augment.cutout)).with_terms(
        "discriminator", {"consistency": terms.Consistency(10, terms.untouched)}
    ),
}
# Choice: the paper gives no weight. At 10 the penalty is about as large as the adversarial loss; at 1 it had no effect
# within 1,000 steps (density 0.466, against 0.470 without; 0.442 at 10; 32 atoms, seed 0).
PENALTIES: dict[str, Mapping[str, Term]] = {"l1": {"code_l1": terms.CodeL1(10.0)}}


def register_recipe(architecture: str, recipe: Recipe) -> None:
    """Sets the recipe of an architecture of another package; see `sparsegen.register_architecture`.

    Raises:
        ValueError: If it has another recipe.
    """
    if RECIPES.setdefault(architecture, recipe) != recipe:
        raise ValueError(f"{architecture!r} has another recipe already")


def register_penalty(regularizer: str, terms: Mapping[str, Term]) -> None:
    """Sets the loss terms that a regularizer of another package adds to the generator's loss, by name.

    Raises:
        ValueError: If it has another penalty.
    """
    if PENALTIES.setdefault(regularizer, terms) != terms:
        raise ValueError(f"{regularizer!r} has another penalty already")


DIFF_AUGMENT = augment.chain(augment.Color(0.5), augment.translate, augment.cutout)


def with_projected_heads(recipe: Recipe, features: FrozenFeatures) -> Recipe:
    """Returns a recipe with an additional discriminator on features of a frozen network.

    Both discriminators contribute to the same generator update.
    Choice: the generator has half the learning rate of the paper's rows, everything else twice that rate (two time
    scales, Heusel et al., 2017), and the row's discriminator has two updates per step at most. At equal rates and one
    update, biggan_tapered.ml generated one prototype per class within 2,000 steps (seed 0: 65 % recognized, recall 0).
    Choice: the heads' score counts a third, about the mean over their three scales. With that and two updates, the
    fd-efficientnet-lite0 of biggan_tapered.ml was 533 after 1,000 steps, the recall 0.047, and 51 % were recognized; at
    full weight and one update 645, 0.005 and 52 % (seed 0, 2,000 samples).
    Choice: Adam with β (0, 0.99) and DiffAugment (Zhao et al., 2020) as in Sauer et al. (2021), its colors at half
    the strength, because samples were oversaturated at full strength. At least 64 images per batch, for batch norm
    in the heads.
    """
    heads = projected.NETWORK
    *others, generator = recipe.phases
    others = [replace(phase, updates=min(2, phase.updates)) for phase in others]
    others.append(Phase(heads, {"projected_hinge": projected.ProjectedHinge(DIFF_AUGMENT)}, adam(0.0, 0.99)))
    more = replace(
        recipe,
        phases=(*(phase.at_rate(2 * RATE) for phase in others), generator.at_rate(RATE / 2)),
        networks={heads: partial(_heads, features)},
        batch_size=max(64, recipe.batch_size),
    )
    score = Weighted(0.33, projected.ProjectedScore(DIFF_AUGMENT))
    return more.with_terms("generator", {"projected_score": score})


def _heads(features: FrozenFeatures, generator: Generator) -> nn.Module:
    return projected.ProjectedDiscriminator(features, generator.image_size, generator.classes)


def recipe_of(spec: ModelSpec, share: float = 1.0, features: FrozenFeatures | None = None) -> Recipe:
    """Returns the recipe of a model: its architecture's, with its regularizer's penalty.

    Args:
        share: Share of the images used for training.
        features: The frozen network of the projected recipe.

    Raises:
        ValueError: If there is no recipe, or the projected recipe has no features.
    """
    table = RECIPES | LOW_DATA if share < 1 else RECIPES
    row = get_architecture(spec.architecture)
    found = table.get(spec.architecture) or table.get(row.recipe or "")
    if found is None:
        raise ValueError(
            f"there is no training recipe for {spec.architecture}: set Architecture(recipe=…), or register one "
            f"with sparsegen.training.recipes.register_recipe"
        )
    recipe = found.with_terms("generator", PENALTIES.get(spec.regularizer, {}))
    if spec.recipe != "projected":
        return recipe
    if features is None:
        raise ValueError(f"{spec.name} is trained with features of a frozen network: give features")
    return with_projected_heads(recipe, features)
