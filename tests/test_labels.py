import pytest
import torch

from sparsegen.zoo.architectures import ARCHITECTURES
from sparsegen.zoo.labels import class_mixture, transfer
from sparsegen.zoo.spec import ModelSpec


@pytest.mark.parametrize(
    ("names", "known", "order"),
    [
        (["a", "b", "c", None], ["a", "b", "c"], [0, 1, 2, 3]),
        (["c", "a"], ["a", "b", "c"], [2, 0]),
        (["new", "b"], ["a", "b"], [2, 1]),  # one without a name is taken first
        (["w", "x", "y", "a"], ["a", "b", "c", "d"], [1, 2, 3, 0]),
        ([None, None], ["a", "b"], [2, 3]),
        (["x", "y"], [], [0, 1]),
        (["b"], ["a", "b"], [1]),
    ],
)
def test_a_class_keeps_its_weights_by_its_name(
    names: list[str | None], known: list[str], order: list[int]
) -> None:
    given = [name for name in names if name]
    assert class_mixture(given, known, len(names), 4).tolist() == torch.eye(4)[order].tolist()


@pytest.mark.parametrize(("names", "known"), [(["x"], ["a", "b"]), ([], []), (["x"], [])])
def test_a_single_unknown_class_starts_from_the_mean(names: list[str], known: list[str]) -> None:
    assert class_mixture(names, known, 1, 4).tolist() == [[1 / 4] * 4]


def test_classes_without_a_number_left_start_from_the_mean() -> None:
    mixture = class_mixture(["x", "b", "y"], ["a", "b"], 3, 2)
    assert mixture.tolist() == [[1, 0], [0, 1], [1 / 2, 1 / 2]]
    assert class_mixture(["x", "y"], ["a"], 2, 1).tolist() == [[1], [1]]


CONDITIONAL = [row for row in ARCHITECTURES if ARCHITECTURES[row].classes]


@pytest.mark.parametrize("classes", [1, 3, 10, 12])
@pytest.mark.parametrize("row", CONDITIONAL)
@pytest.mark.parametrize("atoms", [8, 10, 20])  # also as many as there are classes
def test_a_network_with_other_classes_has_each_old_class_at_its_new_number(
    row: str, atoms: int, classes: int
) -> None:
    torch.manual_seed(0)
    old, new = ModelSpec.of(row, "ml", atoms), ModelSpec.of(row, "ml", atoms, classes=classes)
    generator, discriminator = old.generator().eval(), old.auxiliary_networks()["discriminator"].eval()
    for parameter in [*generator.parameters(), *discriminator.parameters()]:  # label biases start at 0
        parameter.data += 0.1 * torch.randn_like(parameter)
    order = torch.arange(12)[torch.randperm(10)].repeat(2)[:classes]
    mixture = torch.eye(10)[order]
    z, images, labels = (
        torch.randn(classes, generator.z_dim),
        torch.randn(classes, 3, 32, 32),
        torch.arange(classes),
    )
    changed = new.generator().eval()
    transfer(generator, changed, mixture)
    torch.testing.assert_close(changed(z, labels)[0], generator(z, order)[0])
    critic = new.auxiliary_networks()["discriminator"].eval()
    transfer(discriminator, critic, mixture)
    if classes == 10:  # else the norm of the embedding, by which it is divided, is another one
        torch.testing.assert_close(critic(images, labels), discriminator(images, order))
    else:
        assert critic(images, labels).isfinite().all()


@pytest.mark.parametrize("row", CONDITIONAL)
def test_a_mean_class_has_the_mean_of_the_weights_of_all_classes(row: str) -> None:
    torch.manual_seed(0)
    old, new = ModelSpec.of(row, "ml", 8), ModelSpec.of(row, "ml", 8, classes=1)
    source, network = old.generator(), new.generator()
    for parameter in source.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    transfer(source, network, torch.full((1, 10), 0.1))
    before = source.state_dict()
    for key, now in network.state_dict().items():
        if now.shape == before[key].shape:
            assert torch.equal(now, before[key])
        else:
            (axis,) = [axis for axis, size in enumerate(now.shape) if size != before[key].shape[axis]]
            mean = before[key].narrow(axis, before[key].shape[axis] - 10, 10).mean(axis)
            torch.testing.assert_close(now.select(axis, now.shape[axis] - 1), mean)
