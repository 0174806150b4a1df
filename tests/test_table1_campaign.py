"""The campaign of table 1: each cell of a data set is measured once."""

import json
import re
from pathlib import Path

import pytest
from test_run import pictures

from benchmarks import table1
from sparsegen.training.features import FeatureNetwork
from sparsegen.training.recipes import RECIPES

FEATURES = FeatureNetwork("mean", 3, lambda images: images.float().mean(dim=(2, 3)))


def campaign(folder: Path) -> list[dict]:
    """Runs two cells, one of them given twice, and returns the records."""
    records = folder / "records.jsonl"
    table1.main(
        "noise",
        rows="dcgan",
        columns="baseline,l0_inf,baseline",
        densities="0.25,0.26",
        seeds="0",
        shares="1",
        atoms=8,
        steps=1,
        batch_size=8,
        precision="no",
        count=4,
        runs=folder / "runs",
        records=records,
        only_print=False,
    )
    return [json.loads(line) for line in records.read_text().splitlines() if line.endswith("}")]


def test_a_cell_is_measured_once_for_each_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table1, "open_images", lambda _: pictures())
    monkeypatch.setattr(table1, "open_features", lambda **device: FEATURES)
    first = campaign(tmp_path)
    assert [(record["regularizer"], record["k"]) for record in first] == [("baseline", []), ("l0_inf", [2])]
    assert campaign(tmp_path) == first
    records = tmp_path / "records.jsonl"
    other = {**first[0], "fingerprint": "another data set"}
    records.write_text(json.dumps(other) + "\n" + json.dumps(first[1])[:40])
    again = campaign(tmp_path)
    assert again[0] == other
    assert [record["distance"] for record in again[1:]] == [record["distance"] for record in first]


def test_a_dry_run_prints_the_costs_of_each_cell_at_the_scale_of_the_paper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(table1, "open_images", lambda _: pictures())
    table1.main(
        "noise",
        scale=table1.Size.paper,
        rows="dcgan,sngan",
        columns="baseline,ml",
        seeds="0,1",
        shares="1",
        batch_size=4,
        precision="no",
        runs=tmp_path / "runs",
        records=tmp_path / "records.jsonl",
        dry_run=True,
    )
    rows = [
        line.split() for line in capsys.readouterr().out.splitlines() if re.match(r"\s*(dcgan|sngan)\.", line)
    ]
    assert [row[0] for row in rows] == ["dcgan.baseline", "dcgan.ml", "sngan.baseline", "sngan.ml"]
    for name, steps, batch, milliseconds, hours, memory in rows:
        assert (steps, batch) == (f"{RECIPES[name.split('.')[0]].steps:,}", "4")
        expected = float(milliseconds) * int(steps.replace(",", "")) / 3.6e6
        assert float(hours) == pytest.approx(expected, rel=0.02, abs=0.006) and float(memory) > 0.05
    assert not list(tmp_path.iterdir())
