import math

import pytest
import torch
from torch import nn

from sparsegen.training.recipes import RECIPES, recipe_of
from sparsegen.training.terms import CodeL1, Draw, Forward, cross_entropy, non_saturating
from sparsegen.zoo.table1 import REGULARIZERS, ModelSpec


def forward(real: float, fake: float, trains_generator: bool = True) -> Forward:
    """A pair of images whose pixel is their score, and a generator of constant codes."""
    codes = (torch.tensor([[[[-2.0, 0.0], [1.0, 3.0]]]]), torch.full((1, 1, 2, 2), 100.0))
    fakes = torch.full((1, 1, 1, 1), float(fake), requires_grad=True)
    draw = Draw(lambda z: (fakes, codes), torch.full((1, 1, 1, 1), float(real)), torch.zeros(1, 1))
    return Forward(draw, nn.Flatten(0), trains_generator)


@pytest.mark.parametrize(("real", "fake"), [(0, 0), (2, -1), (-3, 4), (60, -60), (-90, 90)])
def test_the_losses_are_the_cross_entropies_of_their_definition(real: float, fake: float) -> None:
    def log_sigmoid(score: float) -> float:
        return -math.log1p(math.exp(-score)) if score > 0 else score - math.log1p(math.exp(score))

    found = forward(real, fake)
    assert cross_entropy(found).item() == pytest.approx(-log_sigmoid(real) - log_sigmoid(-fake), rel=1e-5)
    assert non_saturating(found).item() == pytest.approx(-log_sigmoid(fake), rel=1e-5)


def test_the_l1_penalty_is_the_mean_magnitude_of_gamma_1() -> None:
    assert CodeL1(2.0)(forward(0, 0)).item() == 2 * (2 + 0 + 1 + 3) / 4


def test_only_the_generators_phase_sends_a_gradient_into_the_fakes() -> None:
    assert non_saturating(forward(0, 0, trains_generator=True)).requires_grad
    assert not cross_entropy(forward(0, 0, trains_generator=False)).requires_grad


@pytest.mark.parametrize("architecture", RECIPES)
@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_a_column_adds_its_penalty_to_the_generator_alone(architecture: str, regularizer: str) -> None:
    own = {phase.network: set(phase.terms) for phase in RECIPES[architecture].phases}
    got = {
        phase.network: set(phase.terms) for phase in recipe_of(ModelSpec.of(architecture, regularizer)).phases
    }
    assert got["discriminator"] == own["discriminator"]
    assert got["generator"] - own["generator"] == ({"code_l1"} if regularizer == "l1" else set())
