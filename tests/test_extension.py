"""An additional regularizer, architecture or kind of restoration works in all commands."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import warmed
from rich.console import Console
from torch import Tensor, nn

import sparsegen
from sparsegen.pictures.picture import from_array
from sparsegen.reproduce import plots, tables
from sparsegen.restoration import operators
from sparsegen.restoration.kinds import KINDS, SERVED, Kind
from sparsegen.restoration.restore import make_operator, run
from sparsegen.restoration.settings import Task
from sparsegen.training.recipes import RECIPES, recipe_of
from sparsegen.zoo.architectures import ARCHITECTURES
from sparsegen.zoo.card import model_card
from sparsegen.zoo.checkpoint import read_config
from sparsegen.zoo.generator import Generator
from sparsegen.zoo.projections import GlobalProjection
from sparsegen.zoo.regularizers import REGULARIZERS, Regularizer
from sparsegen.zoo.spec import ModelSpec


@pytest.fixture
def extended(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The tables with a sixth regularizer and another architecture."""
    both = Regularizer(GlobalProjection, levels=2, density=0.5, about="Each code keeps its largest half.")
    monkeypatch.setitem(REGULARIZERS, "l0_both", both)
    monkeypatch.setitem(ARCHITECTURES, "narrow", replace(ARCHITECTURES["biggan"], atoms=32, z_dim=16))
    monkeypatch.setitem(RECIPES, "narrow", RECIPES["biggan"])
    yield


@pytest.mark.usefixtures("extended")
@pytest.mark.parametrize("name", ["dcgan-8.l0_both", "narrow-8.l0_both", "narrow-8.ml"])
def test_an_additional_cell_is_parsed_built_saved_and_plotted(name: str, tmp_path: Path) -> None:
    spec = ModelSpec.parse(name)
    assert spec.name == name
    generator = warmed(spec.generator())
    assert generator.k_ranges == spec.k_ranges and len(spec.k_ranges) == 2
    folder = generator.save_pretrained(tmp_path / name, training={"steps": 3})
    opened = sparsegen.from_pretrained(folder)
    assert np.array_equal(opened.sample(2), generator.sample(2))
    card = model_card(opened, read_config(folder), f"me/{name}")
    assert f"# {name}\n" in card and "k of training" in card
    assert ("Each code keeps its largest half." in card) == name.endswith("l0_both")
    assert recipe_of(spec).phases
    for what in ("atoms", "density", "samples"):
        assert plots.draw(what, [str(folder), str(folder)]).startswith(b"\x89PNG")


@pytest.mark.usefixtures("extended")
def test_the_papers_tables_and_figures_omit_an_additional_cell(capsys: pytest.CaptureFixture[str]) -> None:
    path, show = tables.TABLES["table1"]
    records = tables.read_records(path)
    show(Console(width=200), records)
    printed = capsys.readouterr().out
    assert "l0_inf" in printed and "l0_both" not in printed
    own = {
        **next(record for record in records if record["share"] == 1 and record["architecture"] == "dcgan"),
        "regularizer": "l0_both",
        "k": [1, 1],
    }
    figure = plots.tradeoff([*records, own], ["dcgan"])
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "l0_both" in texts and "ml" in texts


def test_k_is_checked_without_building_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for part in (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, Generator):
        monkeypatch.setattr(part, "__init__", lambda *_, **__: pytest.fail("a network was built"))
    spec = ModelSpec.of("sagan", "ml", k=(1, 256))
    assert [(k_range.k, k_range.limit) for k_range in spec.k_ranges] == [(1, 256), (256, 256)]
    assert [k_range.limit for k_range in ModelSpec.parse("dcgan-8.l0").k_ranges] == [8 * 16 * 16]
    with pytest.raises(
        ValueError, match="k is the non-zeros kept in each needle of Γ2, from 1 to 256; got 257"
    ):
        ModelSpec.of("sagan", "ml", k=(1, 257))


def test_a_regularizer_with_levels_needs_a_projection() -> None:
    with pytest.raises(ValueError, match="a regularizer of 1 levels needs a projection"):
        Regularizer(levels=1).projections([(8, 16, 16), (8, 16, 16)])


class Gray(operators.Operator):
    """The mean of the channels, in each of them."""

    reach = 1

    def __call__(self, image: Tensor) -> Tensor:
        return image.mean(1, keepdim=True).expand_as(image)


def test_an_additional_kind_is_an_operator_and_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "Gray", Gray, raising=False)
    monkeypatch.setitem(KINDS, "color", Kind("Add color", "Gray"))
    task = Task.of(kind="color", iterations=12, ensemble_size=1)
    assert isinstance(make_operator(task, None), Gray)
    assert not task.stops_by_noise
    pixels = np.random.default_rng(0).random((64, 64, 1), np.float32).repeat(3, 2)
    outcome = run(task, from_array(pixels))
    assert outcome.image.pixels.shape == (64, 64, 3) and outcome.iterations == 12
    assert np.isfinite(outcome.history["statistic"]).all()  # some pixels were held out


def test_an_unknown_kind_is_an_error() -> None:
    task, picture = Task(kind="colour"), from_array(np.zeros((64, 64, 3), np.float32))
    for fails in (lambda: make_operator(task, None), lambda: run(task, picture)):
        with pytest.raises(ValueError, match="kind must be one of denoise, inpaint, .*; got 'colour'"):
            fails()


@pytest.mark.parametrize("name", SERVED)
def test_a_row_and_its_operator_agree(name: str) -> None:
    kind = KINDS[name]
    values = {"by": 2, "kernel": "gaussian:1"}
    own = {kind.setting.name: values[kind.setting.name]} if kind.setting else {}
    task, known = Task.of(kind=name, **own), np.eye(9, dtype=bool)
    damage = known if kind.keeps_known else kind.read(task, None, None)
    operator = make_operator(task, damage)
    assert operator.only_noise == kind.only_noise
    assert (operator.known is not None) == kind.keeps_known
    assert torch.is_tensor(operator(torch.rand(1, 3, *((9, 9) if kind.keeps_known else (16, 16)))))
