"""Properties of the networks that parameter counts do not show (architectures.md, sections 2 to 4)."""

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from sparsegen.zoo.architectures import ARCHITECTURES
from sparsegen.zoo.blocks import WEIGHTED, ConditionalBatchNorm, DownBlock, Score, SelfAttention
from sparsegen.zoo.spec import ModelSpec

LABELS = torch.tensor([3, 0, 9])


class Facts(NamedTuple):
    """The facts of one row.

    `init` is of the generator, discriminator and encoder; `slope` that of the discriminator's activations below 0.
    """

    init: str = "normal"
    normalized: tuple[str, ...] = ()  # networks whose weights are divided by their largest singular value
    slope: float = 0.2
    attention_at: int | None = None  # the side of the map, in generator and discriminator
    sees: str = "image"  # of an image, the discriminator
    unit_range: bool = False  # images of a sigmoid, and z uniform


FACTS = {
    "dcgan": Facts(),
    "cgan": Facts(sees="image and label maps"),
    "wgan_gp": Facts(slope=0.1),
    "msgan": Facts(sees="image and label maps"),
    "sngan": Facts(slope=0.1, normalized=("discriminator",)),
    "sagan": Facts("orthogonal", ("generator", "discriminator"), 0.0, 16),
    "ssgan": Facts("xavier", (), 0.0, sees="image in [0, 1]", unit_range=True),
    "biggan": Facts("normal", ("generator", "discriminator"), 0.0),
    "diffcr_biggan": Facts("normal", ("generator", "discriminator"), 0.0),
    "wgan_gp_resnet": Facts("xavier, 3 x 3 gain √2", (), 0.0),
    "sngan_resnet": Facts("xavier, 3 x 3 gain √2", ("discriminator",), 0.0),
    "biggan_tapered": Facts("normal", ("generator", "discriminator"), 0.0),
}
rows = pytest.mark.parametrize("row", ARCHITECTURES)


def networks(row: str, atoms: int = 32) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    spec = ModelSpec.of(row, "baseline", atoms)
    return {"generator": spec.generator(), **spec.auxiliary_networks()}


def weighted(network: nn.Module) -> dict[str, nn.Module]:
    """Returns the modules with weights by name, except the gains and biases of labels."""
    of_labels = {
        id(part)
        for norm in network.modules()
        if isinstance(norm, ConditionalBatchNorm)
        for part in norm.modules()
    }
    return {
        name: part
        for name, part in network.named_modules()
        if isinstance(part, WEIGHTED) and id(part) not in of_labels
    }


def noise(network: nn.Module) -> tuple[Tensor, ...]:
    return torch.randn(3, network.z_dim), *[LABELS][: network.classes]


def first_input(network: nn.Module, *given: Tensor) -> Tensor:
    """Returns the input of the first layer with weights."""
    inputs = []
    for part in weighted(network).values():
        part.register_forward_pre_hook(lambda part, given: inputs.append(given[0].detach().clone()))
    network(*given)
    return inputs[0]


def test_every_row_has_facts() -> None:
    assert FACTS.keys() == ARCHITECTURES.keys()


@rows
def test_the_spectrally_normalized_weights_are_those_of_the_tables(row: str) -> None:
    for name, network in networks(row).items():
        for key, part in weighted(network).items():
            assert is_parametrized(part, "weight") == (name in FACTS[row].normalized), f"{name}.{key}"


@rows
def test_weights_are_initialized_as_in_the_tables(row: str) -> None:
    for name, network in networks(row).items():
        for key, part in weighted(network).items():
            weight = part.parametrizations.weight.original if is_parametrized(part, "weight") else part.weight
            scores = key.endswith("linear") and isinstance(
                network.get_submodule(key.rpartition(".")[0]), Score
            )
            if row == "ssgan" and scores:  # zero_init_score at the start: a choice of ours
                assert not weight.any()
                continue
            fans = math.prod(weight.shape[2:]) * (weight.shape[0] + weight.shape[1])
            if FACTS[row].init == "orthogonal":
                values = torch.linalg.svdvals(weight.detach().flatten(1))
                torch.testing.assert_close(
                    values, torch.ones_like(values), rtol=1e-4, atol=1e-4, msg=f"{name}.{key}"
                )
                continue
            deviation = {"normal": 0.02}.get(FACTS[row].init, math.sqrt(2 / fans))
            if FACTS[row].init == "xavier, 3 x 3 gain √2" and weight.shape[2:] == (3, 3):
                deviation *= math.sqrt(2)
            expected = 5 / math.sqrt(2 * weight.numel())  # five standard errors, of normal draws
            assert weight.std().item() == pytest.approx(deviation, rel=expected), f"{name}.{key}"
            beyond = weight.abs().max().item() > math.sqrt(3) * deviation * 1.001  # where a uniform draw ends
            if weight.numel() > 100:
                assert beyond == (FACTS[row].init == "normal"), f"{name}.{key}"


@rows
def test_activations_of_the_discriminator_have_the_slope_of_the_tables_below_0(row: str) -> None:
    built = networks(row)
    parts = list(built["discriminator"].modules())
    slopes = {-part(torch.tensor(-1.0)).item() for part in parts if isinstance(part, nn.ReLU | nn.LeakyReLU)}
    blocks = [part for part in parts if isinstance(part, DownBlock)]
    slopes |= {-block.activation(torch.tensor(-1.0)).item() for block in blocks}
    slopes |= {-block.before(torch.tensor(-1.0)).item() for block in blocks[1:]}
    assert sorted(slopes) == pytest.approx([FACTS[row].slope])
    if "encoder" in built:
        for block in built["encoder"].blocks:
            assert -block.activation(torch.tensor(-1.0)).item() == pytest.approx(0.2)
            assert -block.before(torch.tensor(-1.0)).item() == pytest.approx(0.2)


@rows
def test_attention_is_at_the_position_of_the_tables(row: str) -> None:
    built = networks(row, 8)
    sides: dict[str, list[int]] = {"generator": [], "discriminator": []}
    for name, found in sides.items():
        for part in built[name].modules():
            if isinstance(part, SelfAttention):
                part.register_forward_pre_hook(
                    lambda part, given, found=found: found.append(given[0].shape[-1])
                )
    built["discriminator"](built["generator"](*noise(built["generator"]))[0], LABELS)
    side = FACTS[row].attention_at
    assert sides == dict.fromkeys(sides, [] if side is None else [side])


@rows
def test_the_discriminator_and_the_encoder_scale_the_image_to_the_range_of_the_tables(row: str) -> None:
    image = torch.rand(3, 3, 32, 32) * 2 - 1
    label_maps = torch.zeros(3, 10, 32, 32)
    for place, label in enumerate(LABELS):
        label_maps[place, label] = 1
    seen = {
        "image": image,
        "image in [0, 1]": image / 2 + 0.5,
        "image and label maps": torch.cat([image, label_maps], 1),
    }[FACTS[row].sees]
    built = networks(row, 8)
    torch.testing.assert_close(first_input(built["discriminator"], image, LABELS), seen)
    if "encoder" in built:
        torch.testing.assert_close(first_input(built["encoder"], image), seen)


@rows
def test_noise_and_images_have_the_distributions_of_the_tables(row: str) -> None:
    generator = networks(row, 8)["generator"].eval()
    x = torch.linspace(-4, 4, 9)
    squashed = 2 * torch.sigmoid(x) - 1 if FACTS[row].unit_range else torch.tanh(x)
    torch.testing.assert_close(generator.stages[0].activation(x), squashed)
    given = noise(generator)
    z = first_input(generator, *given).flatten(1)[:, : generator.z_dim]
    uniform = 2 * torch.special.ndtr(given[0]) - 1
    torch.testing.assert_close(z, uniform if FACTS[row].unit_range else given[0])
