"""The training loop: the networks, batches and learning rates of each phase, and the running average."""

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from sparsegen.training.data import ImageLoader, Images
from sparsegen.training.loop import Networks, TrainingStep, random_of, train
from sparsegen.training.recipes import RECIPES, Recipe, half_then_linear, linear_decay, recipe_of
from sparsegen.zoo.spec import ModelSpec


def batches(size: int = 4) -> ImageLoader:
    random = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (24, 3, 32, 32), dtype=torch.uint8, generator=random)
    return ImageLoader(Images(pixels, torch.arange(24) % 10, "noise", "0"), size, seed=0)


def trained(name: str, steps: int, recipe: Recipe | None = None) -> tuple[Networks, Iterator[TrainingStep]]:
    spec = ModelSpec.parse(name)
    recipe = recipe or recipe_of(spec)
    networks = Networks(spec, recipe, seed=0)
    loop = train(networks, recipe, batches(), Accelerator(cpu=True), seed=0, start=0, steps=steps)
    return networks, loop


@pytest.mark.parametrize("architecture", RECIPES)
def test_a_phase_gives_gradients_only_to_its_network(architecture: str) -> None:
    networks, loop = trained(f"{architecture}-8.l1", 1)
    learned = []

    def before(name: str) -> None:
        for other, network in networks.trained.items():
            missing = {key for key, parameter in network.named_parameters() if parameter.grad is None}
            assert missing == (set() if other == name else {key for key, _ in network.named_parameters()})
            network.zero_grad(set_to_none=True)
        learned.append(name)

    for name, optimizer in networks.optimizers.items():
        optimizer.register_step_pre_hook(lambda *_, name=name: before(name))
    next(loop)
    wanted = [phase.network for phase in RECIPES[architecture].phases for _ in range(phase.updates)]
    assert learned == wanted


@pytest.mark.parametrize("architecture", RECIPES)
def test_each_batch_is_generated_once_and_the_generator_learns_from_the_last_one(architecture: str) -> None:
    networks, loop = trained(f"{architecture}-8.ml", 3)
    sizes, learned_from = [], []

    def count(_: object, inputs: tuple, outputs: tuple) -> None:
        sizes.append(len(inputs[0]))
        learned_from.append(outputs[0].requires_grad)

    networks.generator.register_forward_hook(count)
    updates = {phase.network: phase.updates for phase in RECIPES[architecture].phases}
    # An encoder has the real images made again, before its update and after it.
    a_step = updates["discriminator"] + 2 * ("encoder" in updates)
    for step in range(1, 4):
        next(loop)
        assert len(sizes) == step * a_step
    assert set(sizes) == {8 if architecture == "msgan" else 4}
    if "encoder" not in updates:  # a graph of the others would be memory for nothing
        assert learned_from == 3 * [update == a_step - 1 for update in range(a_step)]


def naive_wgan_gp(steps: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """WGAN-GP as in its paper's algorithm 1, except that the generator gets no new noise, as in the loop."""
    networks = Networks(ModelSpec.parse("wgan_gp-8.baseline"), RECIPES["wgan_gp"], seed=0)
    generator, critic = networks.generator.train(), networks.auxiliary_networks["discriminator"].train()
    adams = [
        torch.optim.Adam(network.parameters(), 2e-4, betas=(0.0, 0.9)) for network in (generator, critic)
    ]
    data = batches()
    for step in range(steps):
        for adam in adams:
            adam.param_groups[0]["lr"] = 2e-4 * (1 - step / steps)
        for update in range(5):
            real, _ = data.at(5 * step + update)
            numbers = [0, step, update, 0]
            z = np.random.default_rng(numbers).standard_normal((4, 128), np.float32)
            fake = generator(torch.from_numpy(z))[0]
            share = torch.rand(4, 1, 1, 1, generator=random_of(numbers))
            between = (share * fake.detach() + (1 - share) * real).requires_grad_()
            (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
            penalty = ((slope.square().sum((1, 2, 3)).sqrt() - 1) ** 2).mean()
            loss = critic(fake.detach()).mean() - critic(real).mean() + 10 * penalty
            critic.zero_grad()
            loss.backward()
            adams[1].step()
        generator.zero_grad()
        (-critic(fake).mean()).backward()
        adams[0].step()
    return generator.state_dict(), critic.state_dict()


def test_wgan_gp_takes_the_steps_of_its_papers_algorithm_with_the_fakes_of_the_last_update() -> None:
    networks, loop = trained("wgan_gp-8.baseline", 3)
    for _ in loop:
        pass
    found = networks.trained["generator"], networks.trained["discriminator"]
    for network, wanted in zip(found, naive_wgan_gp(3), strict=True):
        for key, value in network.state_dict().items():
            before_a_norm = (
                network is networks.generator and key.endswith("conv.bias") and key != "stages.0.conv.bias"
            )
            if before_a_norm:  # its gradient is nothing but rounding, which Adam makes a step
                continue
            torch.testing.assert_close(value, wanted[key], rtol=1e-3, atol=2e-5)


def test_the_average_is_of_weights_and_statistics_and_other_buffers_are_copied() -> None:
    networks = Networks(ModelSpec.parse("biggan-8.ml"), RECIPES["biggan"], seed=0)
    before = deepcopy(networks.averaged.state_dict())
    with torch.no_grad():
        for parameter in networks.generator.parameters():
            parameter.add_(torch.randn_like(parameter))
    for _ in range(3):
        networks.generator(torch.randn(4, 128), torch.arange(4))
    now = networks.generator.state_dict()
    networks.average(0.75)
    copied = set()
    for key, value in networks.averaged.state_dict().items():
        if key.endswith(("._u", "._v", "num_batches_tracked")):
            assert torch.equal(value, now[key]) and not torch.equal(value, before[key])
            copied.add(key.rpartition(".")[2])
        else:
            torch.testing.assert_close(value, 0.75 * before[key] + 0.25 * now[key])
            assert not torch.equal(value, before[key])
    assert copied == {"_u", "_v", "num_batches_tracked"}


@pytest.mark.parametrize(
    ("rate", "factors"),
    [
        (linear_decay, [1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        (half_then_linear, [0.5, 0.5, 0.5, 0.5, 0.5, 0.375, 0.25, 0.125]),
    ],
)
def test_the_rate_of_each_step_reaches_every_optimizer(rate: object, factors: list[float]) -> None:
    networks, loop = trained("dcgan-4.baseline", 8, replace(RECIPES["dcgan"], rate=rate))
    used = {name: [] for name in networks.optimizers}
    for name, optimizer in networks.optimizers.items():
        optimizer.register_step_pre_hook(
            lambda adam, *_, name=name: used[name].append(adam.param_groups[0]["lr"])
        )
    for _ in loop:
        pass
    for rates in used.values():
        assert rates == pytest.approx([2e-4 * factor for factor in factors])


def test_a_faster_recipe_has_all_rates_times_a_factor() -> None:
    recipe = replace(RECIPES["dcgan"], rate=linear_decay).faster(4).faster(0.5)
    assert [recipe.rate(fraction) for fraction in (0, 0.25, 0.75)] == [2, 1.5, 0.5]
    for factor in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"above 0, e.g. 0.1 or 4; got {factor}"):
            recipe.faster(factor)


TABLE = {  # betas, updates of the discriminator, batch size, steps: architectures.md, section 4.10
    "dcgan": ((0.5, 0.999), 1, 64, 100_000),
    "cgan": ((0.5, 0.999), 1, 64, 100_000),
    "wgan_gp": ((0.0, 0.9), 5, 64, 100_000),
    "msgan": ((0.5, 0.999), 1, 32, 312_400),
    "sngan": ((0.0, 0.9), 1, 64, 100_000),
    "sagan": ((0.5, 0.999), 5, 64, 100_000),
    "ssgan": ((0.0, 0.9), 1, 64, 300_000),
    "biggan": ((0.0, 0.999), 4, 50, 250_000),
    "diffcr_biggan": ((0.0, 0.999), 4, 50, 250_000),
    "wgan_gp_resnet": ((0.0, 0.9), 5, 64, 100_000),
    "sngan_resnet": ((0.0, 0.9), 5, 64, 100_000),
    "biggan_tapered": ((0.0, 0.999), 4, 50, 250_000),
}


@pytest.mark.parametrize("architecture", RECIPES)
def test_recipes_have_the_values_of_the_table(architecture: str) -> None:
    betas, updates, batch_size, steps = TABLE[architecture]
    recipe = RECIPES[architecture]
    assert (recipe.batch_size, recipe.steps) == (batch_size, steps)
    for phase in recipe.phases:
        assert phase.updates == (updates if phase.network == "discriminator" else 1)
    for optimizer in Networks(ModelSpec.of(architecture, "ml", 4), recipe, seed=0).optimizers.values():
        (group,) = optimizer.param_groups
        decay = 1e-4 if architecture == "msgan" else 0
        assert (group["lr"], group["betas"], group["weight_decay"]) == (2e-4, betas, decay)


def test_the_recipes_with_decaying_rates_are_those_of_their_papers() -> None:
    falling = {name: recipe.rate for name, recipe in RECIPES.items() if recipe.rate(0.75) != 1}
    linear = dict.fromkeys(("wgan_gp", "sngan", "wgan_gp_resnet", "sngan_resnet"), linear_decay)
    assert falling == {**linear, "ssgan": half_then_linear}


def test_a_step_uses_one_batch_per_update_of_the_discriminator_and_skips_none() -> None:
    asked = []
    data = batches()
    at = data.at
    data.at = lambda step: asked.append(step) or at(step)
    spec = ModelSpec.parse("biggan-8.baseline")
    networks = Networks(spec, recipe_of(spec), seed=0)
    for _ in train(networks, recipe_of(spec), data, Accelerator(cpu=True), seed=0, start=0, steps=2):
        pass
    assert asked == list(range(8))
