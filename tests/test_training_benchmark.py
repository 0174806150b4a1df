"""The reimplemented training steps of other libraries: they compute the same function as ours, and train."""

from itertools import repeat

import pytest
import torch
from torch import Tensor

from benchmarks.training import SETTINGS, Mimicry, StudioGan, Usual, check
from sparsegen.training.loop import Networks
from sparsegen.training.recipes import recipe_of
from sparsegen.zoo.spec import ModelSpec


@pytest.fixture(params=SETTINGS)
def networks(request: pytest.FixtureRequest) -> tuple[str, Networks]:
    setting = SETTINGS[request.param]
    spec = ModelSpec.of(setting.row, "baseline", 8)
    return request.param, Networks(spec, recipe_of(spec), seed=0)


def weights(usual: Usual) -> list[Tensor]:
    """Without biases: the bias of a score has no gradient while no hinge is at zero."""
    parameters = [parameter for network in usual.networks for parameter in network.parameters()]
    return [parameter.detach().clone() for parameter in parameters if parameter.ndim > 1]


@pytest.mark.parametrize("library", [Mimicry, StudioGan])
def test_a_reimplementation_has_our_images_scores_and_gradients_and_all_its_weights_learn(
    networks: tuple[str, Networks], library: type[Usual]
) -> None:
    name, ours = networks
    setting = SETTINGS[name]
    usual = library(setting, ours, setting.mimicry if library is Mimicry else setting.studiogan)
    check(setting, ours, usual)
    before = weights(usual)
    usual.step(repeat(torch.rand(4, 3, 32, 32) * 2 - 1))
    assert not any(torch.equal(old, new) for old, new in zip(before, weights(usual), strict=True))


def test_a_reimplementation_of_another_function_is_detected(networks: tuple[str, Networks]) -> None:
    name, ours = networks
    setting = SETTINGS[name]
    usual = Mimicry(setting, ours, setting.mimicry)
    with torch.no_grad():
        usual.generator.conv.weight.mul_(1.01)
    with pytest.raises(AssertionError, match="differs by"):
        check(setting, ours, usual)
