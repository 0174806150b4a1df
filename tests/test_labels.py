import pytest
import torch

from sparsegen.zoo.architectures import ARCHITECTURES
from sparsegen.zoo.labels import class_permutation, renumber
from sparsegen.zoo.spec import ModelSpec


@pytest.mark.parametrize(
    ("names", "known", "order"),
    [
        (["a", "b", "c"], ["a", "b", "c"], [0, 1, 2, 3]),
        (["c", "a"], ["a", "b", "c"], [2, 0, 1, 3]),
        (["new", "b"], ["a", "b"], [2, 1, 0, 3]),  # one without a name is taken first
        (["w", "x", "y", "a"], ["a", "b", "c", "d"], [1, 2, 3, 0]),
        ([], ["a", "b"], [0, 1, 2, 3]),
        (["x"], [], [0, 1, 2, 3]),
    ],
)
def test_a_class_keeps_its_weights_by_its_name(names: list[str], known: list[str], order: list[int]) -> None:
    assert class_permutation(names, known, 4) == order


@pytest.mark.parametrize("row", [row for row in ARCHITECTURES if ARCHITECTURES[row].classes])
@pytest.mark.parametrize("atoms", [8, 10, 20])  # also as many as there are classes
def test_a_renumbered_network_has_each_class_at_its_new_number(row: str, atoms: int) -> None:
    torch.manual_seed(0)
    spec = ModelSpec.of(row, "ml", atoms)
    generator, discriminator = spec.generator().eval(), spec.auxiliary_networks()["discriminator"].eval()
    for parameter in [*generator.parameters(), *discriminator.parameters()]:  # label biases start at 0
        parameter.data += 0.1 * torch.randn_like(parameter)
    z, images, labels = torch.randn(10, generator.z_dim), torch.randn(10, 3, 32, 32), torch.arange(10)
    order = torch.randperm(10)
    made, scores = generator(z, order)[0].clone(), discriminator(images, order).clone()
    assert not torch.allclose(generator(z, labels)[0], made) and not torch.allclose(
        discriminator(images, labels), scores
    )
    for network in (generator, discriminator):
        renumber(network, order.tolist())
    torch.testing.assert_close(generator(z, labels)[0], made)
    torch.testing.assert_close(discriminator(images, labels), scores)
