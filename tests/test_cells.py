"""Each cell of Table 1, from its first training steps to its exported file and over HTTP, at width 8."""

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import CLASSES
from server import Server, start
from torch import Tensor, nn

from sparsegen.export.onnx_file import bundle
from sparsegen.export.runtime import open_sampler
from sparsegen.training.data import Images
from sparsegen.training.plan import RunPlan, Schedule
from sparsegen.training.run import Run, open_run
from sparsegen.zoo import noise
from sparsegen.zoo.architectures import ARCHITECTURES
from sparsegen.zoo.bundled import GRAPH
from sparsegen.zoo.checkpoint import from_pretrained
from sparsegen.zoo.generator import Generator
from sparsegen.zoo.regularizers import REGULARIZERS

CELLS = [f"{row}-8.{column}" for row in ARCHITECTURES for column in REGULARIZERS]


def network(name: str) -> tuple[object, ...]:
    """What the generator of a cell is made of; cells that differ in their training alone have the same."""
    row, column = name.split("-8.")
    architecture, regularizer = ARCHITECTURES[row], REGULARIZERS[column]
    levels = regularizer.levels if regularizer.projection else 0
    # The bodies are partial functions, which compare by identity.
    return (
        repr(architecture.generator),
        architecture.z_dim,
        architecture.classes,
        regularizer.projection,
        levels,
    )


GENERATORS = list(
    {network(name): name for name in reversed(CELLS)}.values()
)  # one cell for each distinct network


@dataclass
class Cell:
    """A model after two training steps on random labeled images."""

    run: Run
    before: dict[str, Tensor]
    generator: Generator  # opened from the checkpoint
    losses: list[dict[str, float]] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.run.folder / "checkpoints" / "00000002"

    def noise(self, count: int) -> tuple[Tensor, ...]:
        """Returns z, and labels if the generator is conditional."""
        labels = noise.labels(count, self.generator.classes, seed=5)
        z = torch.from_numpy(noise.z(count, self.generator.z_dim, seed=5))
        return (z,) if labels is None else (z, torch.from_numpy(labels))


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Cell]:
    """Builds and trains a cell once."""
    return cache(lambda name: make_cell(tmp_path_factory.mktemp("cell") / "run", name))


@pytest.fixture(scope="module", params=CELLS)
def cell(request: pytest.FixtureRequest, cells: Callable[[str], Cell]) -> Cell:
    return cells(request.param)


def make_cell(folder: Path, name: str) -> Cell:
    random = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (32, 3, 32, 32), dtype=torch.uint8, generator=random)
    images = Images(pixels, torch.arange(32) % 10, "noise", "0" * 16, (), tuple(CLASSES))
    plan = RunPlan(name, None, "noise", "0" * 16, batch_size=4)
    run = open_run(folder, plan, images, Schedule(2, 1, 2), device="cpu")
    before = {
        f"{name}.{key}": parameter.detach().clone()
        for name, network in run.networks.trained.items()
        for key, parameter in network.named_parameters()
    }
    losses = [progress.metrics["losses"] for progress in run]
    return Cell(run, before, from_pretrained(run.folder / "checkpoints" / "00000002"), losses)


def test_two_steps_of_training_have_finite_losses_and_move_every_weight(cell: Cell) -> None:
    wanted = {name for phase in cell.run.recipe.phases for name in phase.terms}
    assert [set(losses) for losses in cell.losses] == [wanted, wanted]
    assert all(np.isfinite(loss) for losses in cell.losses for loss in losses.values())
    after = cell.run.networks.state()
    still = {key for key, value in cell.before.items() if torch.equal(after[key], value)}
    # What is added to all scores alike has no gradient where the loss is of their difference.
    assert still <= {"discriminator.head.conv.bias", "discriminator.head.linear.bias"}


def test_a_saved_cell_is_opened_to_the_same_pixels(cell: Cell) -> None:
    assert cell.generator.spec == cell.run.networks.averaged.spec
    assert np.array_equal(cell.generator.sample(3, seed=4), cell.run.networks.averaged.sample(3, seed=4))
    assert cell.generator.class_names == (tuple(CLASSES) if cell.generator.classes else ())


def test_a_label_changes_the_image_and_is_drawn_from_the_seed_by_default(cell: Cell) -> None:
    generator = cell.generator
    if not generator.classes:
        with pytest.raises(ValueError, match="unconditional and has no labels"):
            generator.sample(1, labels=0)
        return
    drawn = noise.labels(4, 10, seed=2)
    assert np.array_equal(generator.sample(4, seed=2), generator.sample(4, seed=2, labels=drawn))
    z, _ = cell.noise(1)
    images = generator(z.expand(10, -1), torch.arange(10))[0]
    for label in range(10):
        torch.testing.assert_close(generator(z, torch.tensor([label]))[0][0], images[label])
        assert [i for i in range(10) if torch.allclose(images[i], images[label], atol=1e-6)] == [label]


def test_synthesis_reproduces_the_image_from_any_code(cell: Cell) -> None:
    generator, given = cell.generator, cell.noise(3)
    image, codes = generator(*given)
    bypass = generator.bypass(*given)
    assert torch.equal(generator.synthesize(codes[0]), image)
    assert torch.equal(generator.synthesize((None, codes[1]), bypass), image)
    if bypass is not None:
        assert not torch.allclose(generator.synthesize((None, codes[1])), image)


def response(conv: nn.Module, code: Tensor) -> Tensor:
    return conv(code) - conv(torch.zeros_like(code))


def corner(conv: nn.Module, place: int) -> int:
    """Returns the first output row that an entry in input row `place` affects."""
    (kernel, _), (stride, _), (padding, _) = conv.kernel_size, conv.stride, conv.padding
    return (
        stride * place - padding if isinstance(conv, nn.ConvTranspose2d) else place - (kernel - 1 - padding)
    )


def test_an_atom_is_the_response_to_one_unit_of_a_code(cell: Cell) -> None:
    generator = cell.generator
    d1, d2 = (stage.conv for stage in generator.stages)
    (channels, rows, columns), (deep_channels, deep_rows, deep_columns) = generator.code_shapes
    row, column = 5, 6
    for size, shape, maps, atoms in (
        (channels, (rows, columns), (d1,), generator.dictionary(1)),
        (deep_channels, (deep_rows, deep_columns), (d2,), generator.dictionary(2)),
        (deep_channels, (deep_rows, deep_columns), (d2, d1), generator.effective_dictionary()),
    ):
        made = torch.zeros(size, size, *shape)
        made[:, :, row, column] = torch.eye(size)
        first = row, column
        for conv in maps:
            made, first = response(conv, made), tuple(corner(conv, place) for place in first)
        height, width = atoms.shape[2:]
        wanted = torch.zeros_like(made)
        wanted[:, :, first[0] : first[0] + height, first[1] : first[1] + width] = atoms
        torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-6 * float(atoms.abs().max()) + 1e-7)


@pytest.mark.parametrize("name", GENERATORS)
def test_the_exported_file_agrees_with_torch_for_each_k_and_label(
    name: str, cells: Callable[[str], Cell]
) -> None:
    cell = cells(name)
    generator, given = cell.generator, cell.noise(3)
    parity = bundle(cell.folder)
    assert 0 < parity.max_difference <= 1e-5 and parity.same > parity.samples / 2
    sampler = open_sampler(cell.folder)
    names = [value.name for value in onnx.load(sampler.path, load_external_data=False).graph.input]
    k_ranges = generator.k_ranges
    assert names == ["z", *(f"k_{k_range.level}" for k_range in k_ranges), *["labels"][: generator.classes]]
    z, labels = given[0].numpy(), given[1].numpy() if generator.classes else None
    most = [k_range.limit for k_range in k_ranges] or None
    image, codes = sampler.run(z, most, labels=labels)
    with torch.no_grad():
        wanted, wanted_codes = generator.view(most)(*given)
    assert np.abs(image - wanted.numpy()).max() <= 1e-5
    for code, other in zip(codes, wanted_codes, strict=True):
        assert np.abs(code - other.numpy()).max() <= 1e-5 * float(other.abs().max())
    assert np.abs(sampler.synthesize(codes[0]) - image).max() <= 1e-5
    drawn = sampler.sample(3, 7)
    assert sampler.divide() == bool(k_ranges) and np.array_equal(sampler.sample(3, 7), drawn)
    ours, theirs = sampler.sample(3, 7, most).astype(int), generator.sample(3, 7, most)
    assert np.abs(ours - theirs).max() <= 1
    if k_ranges:
        _, sparse = sampler.run(z, 1, labels=labels)
        for k_range in k_ranges:
            code = sparse[k_range.level - 1]
            units = (code != 0).sum(1) if k_range.unit == "needle" else (code != 0).sum((1, 2, 3))
            assert units.max() == 1
    if generator.classes:
        other = sampler.run(z, most, labels=(labels + 1) % 10)[0]
        assert np.abs(other - image).max() > 1e-5


@pytest.fixture(scope="module")
def served(cells: Callable[[str], Cell], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of an exported cell of each distinct network."""
    models = tmp_path_factory.mktemp("cells") / "models"
    models.mkdir()
    for name in GENERATORS:
        folder = cells(name).folder
        if not (folder / GRAPH).is_file():
            bundle(folder)
        (models / name).symlink_to(folder)
    server = start(models.parent / "run", models)
    yield server.wait_until_ready()
    assert server.stop() == 0


@pytest.mark.parametrize("name", GENERATORS)
def test_a_cell_is_served_with_its_k_and_its_classes(name: str, served: Server) -> None:
    sampler = open_sampler(served.models / name)
    listed = {model["name"]: model for model in json.loads(served.ask("GET", "/models")[2])["models"]}
    assert sorted(listed) == sorted(GENERATORS)
    k = [1 + k_range.limit // 2 for k_range in sampler.k_ranges] or None
    labels = [9, 0, 4] if sampler.classes else None
    over_http = np.load(
        io.BytesIO(served.sample(model=name, count=3, seed=7, k=k, labels=labels, format="npy"))
    )
    np.testing.assert_array_equal(over_http, sampler.sample(3, 7, k, labels))
