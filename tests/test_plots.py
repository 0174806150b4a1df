import numpy as np
import pytest
import torch

from sparsegen.pictures.images import atom_pictures, grid
from sparsegen.reproduce import plots
from sparsegen.zoo import noise
from sparsegen.zoo.generator import Generator


@pytest.mark.parametrize("level", [1, 2])
def test_needle_density_is_the_share_of_non_zeros_at_each_position(tiny_ml: Generator, level: int) -> None:
    found = plots.needle_density(tiny_ml, 70, seed=3, level=level)
    with torch.no_grad():
        code = tiny_ml(torch.from_numpy(noise.z(70, 128, seed=3)))[1][level - 1]
    assert found == pytest.approx((code != 0).float().mean((0, 1)).numpy(), abs=1e-3)
    assert found.max() <= 2 / 8 + 1e-6  # k = 2 of 8


def test_needle_density_of_a_conditional_generator_is_that_of_its_samples(
    tiny_conditional: Generator,
) -> None:
    found = plots.needle_density(tiny_conditional, 70, seed=3)
    z, labels = noise.z(70, 128, seed=3), noise.labels(70, 10, seed=3)
    with torch.no_grad():
        code = tiny_conditional(torch.from_numpy(z), torch.from_numpy(labels))[1][0]
    assert found == pytest.approx((code != 0).float().mean((0, 1)).numpy(), abs=1e-3)
    assert found.shape == (32, 32)
    for figure in (plots.density({"one": tiny_conditional}, 4), plots.atoms({"one": tiny_conditional})):
        assert figure.axes
    titles = [axes.get_title() for axes in plots.atoms({"one": tiny_conditional}).axes]
    assert "8 atoms of 3 × 3 × 3" in titles[0] and "8 atoms of 5 × 5 × 3" in titles[1]


def test_each_atom_is_scaled_separately_around_mid_gray() -> None:
    atoms = np.zeros((3, 3, 1, 2), np.float32)
    atoms[0, :, 0, 0], atoms[1, 0, 0, 1] = 0.01, -7
    pictures = atom_pictures(atoms)
    assert pictures[0].tolist() == [[[255] * 3, [128] * 3]]
    assert pictures[1, 0, 1].tolist() == [0, 128, 128]
    assert (pictures[2] == 128).all()


def test_samples_have_one_row_per_generator_with_the_classes_in_order(
    tiny_ml: Generator, tiny_conditional: Generator
) -> None:
    figure = plots.samples({"one": tiny_ml, "two": tiny_conditional}, count=12, seed=5)
    shown = [axes.images[0].get_array() for axes in figure.axes]
    assert np.array_equal(shown[0], grid(tiny_ml.sample(12, seed=5), 12))
    classes = [*range(10), 0, 1]
    assert np.array_equal(shown[1], grid(tiny_conditional.sample(12, seed=5, labels=classes), 12))


def test_many_density_maps_are_arranged_in_rows(tiny_ml: Generator) -> None:
    figure = plots.density({f"model {index}": tiny_ml for index in range(7)}, 2)
    assert [len(axes.images) for axes in figure.axes[:10]] == [1] * 7 + [0] * 3
