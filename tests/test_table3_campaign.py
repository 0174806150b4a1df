"""The campaign of restorations: noises, statistics, and resuming after an interruption."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from benchmarks import dip, table3
from sparsegen.reproduce import tables
from sparsegen.reproduce.tables import RECORDS, read_records
from sparsegen.restoration import settings

GRAY = np.full((200, 200, 3), 0.5, np.float32)


@pytest.mark.parametrize(
    ("noise", "deviation"),
    [
        ("gaussian:25", 25 / 255),
        ("poisson:100", math.sqrt(0.5 / 100)),
        ("salt-and-pepper:0.2", 0.5 * math.sqrt(0.2)),
    ],
)
def test_noises_have_the_given_strength(noise: str, deviation: float) -> None:
    noisy = table3.observe(GRAY, noise, seed=0)
    assert noisy.dtype == np.float32 and 0 <= noisy.min() and noisy.max() <= 1
    assert np.std(noisy - GRAY) == pytest.approx(deviation, rel=0.03)
    assert np.array_equal(noisy, table3.observe(GRAY, noise, seed=0))
    assert not np.array_equal(noisy, table3.observe(GRAY, noise, seed=1))


def test_jpeg_artifacts_grow_as_the_quality_falls() -> None:
    ramp = np.random.default_rng(0).random((64, 64, 3)).astype(np.float32)
    errors = [np.abs(table3.observe(ramp, f"jpeg:{quality}", 0) - ramp).mean() for quality in (90, 50, 10)]
    assert errors == sorted(errors) and errors[0] > 0


def test_paired_differences_have_the_interval_of_student() -> None:
    differences = [0.1, 0.3, 0.2, 0.24]
    low, high = stats.t.interval(0.95, 3, np.mean(differences), stats.sem(differences))
    assert tables.paired(differences) == f"{np.mean(differences):+.3f} ± {(high - low) / 2:.3f}"


def test_an_interval_is_over_pictures_not_over_their_seeds() -> None:
    pairs = {
        ("a", 0): ({"x": 2.0}, {"x": 1.0}),
        ("a", 1): ({"x": 4.0}, {"x": 1.0}),
        ("b", 0): ({"x": 1.0}, {"x": 1.0}),
    }
    assert tables.by_picture(pairs, "x") == [2.0, 0.0]


def test_a_crop_larger_than_the_picture_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (60, 80)).save(tmp_path / "small.png")
    with pytest.raises(table3.typer.BadParameter, match="60 x 80"):
        table3.crop(tmp_path / "small.png", 64)


def test_the_mean_of_a_seed_is_over_the_pictures_that_all_seeds_have() -> None:
    found = {
        ("a", 0): {"x": 1.0},
        ("b", 0): {"x": 3.0},
        ("a", 1): {"x": 2.0},
        ("b", 1): {"x": 4.0},
        ("c", 1): {"x": 99.0},
    }
    assert tables.over_seeds(found, "x") == [2.0, 3.0]


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny = settings.Widths((8, 16), (8, 16), (2, 2), "zeros")
    for name in ("fast", "paper"):
        preset = replace(settings.PRESETS[name], widths=tiny, inputs=4, iterations=150)
        monkeypatch.setitem(settings.PRESETS, name, preset)
    monkeypatch.setattr(table3, "PAST", 30)
    monkeypatch.setattr(dip, "PAST", 30)
    folder = tmp_path / "pictures"
    folder.mkdir()
    y, x = np.mgrid[:80, :100]
    picture = np.stack([np.sin(x / 9), np.cos(y / 7), np.sin((x + y) / 11)], -1) * 100 + 128
    Image.fromarray(picture.astype(np.uint8)).save(folder / "waves.png")
    return folder


def campaign(pictures: Path, records: Path, regularizers: str) -> list[dict]:
    table3.main(
        images=pictures, only="", size=64, noises="gaussian:25", preset="fast", regularizers=regularizers,
        densities="", seeds="0", iterations=150, know_sigma=True, threads=1, bf16=False, ensemble=None, bm3d=False,
        records=records, only_print=False,
    )  # fmt: skip
    return [json.loads(line) for line in records.read_text().splitlines()]


def test_the_committed_records_have_the_present_settings_of_the_presets() -> None:
    """Otherwise the campaigns would run again, and the tables would show other presets."""
    for record in read_records(RECORDS / "table3.jsonl"):
        own = replace(
            settings.PRESETS[record["preset"]], mixed_precision=True, ensemble_size=record["ensemble_size"]
        )
        assert record["settings"] == repr(own)
    for record in read_records(dip.RECORDS):
        names = {"settings": "fast", "original_settings": "paper"}
        assert all(record[key] == repr(settings.PRESETS[preset]) for key, preset in names.items())


def test_an_interrupted_campaign_is_resumed(pictures: Path, tmp_path: Path, capsys) -> None:
    records = tmp_path / "records.jsonl"
    (first,) = campaign(pictures, records, "baseline")
    again, other = campaign(pictures, records, "baseline,l0_inf")
    assert again == first and other["regularizer"] == "l0_inf" and other["density"] == 0.25
    for record in (first, other):
        assert record["noisy"] < record["returned"]
        assert (
            record["returned"] <= record["average"] and record["returned_iteration"] <= record["stopped_at"]
        )
    assert re.search(r"paper's +29.03 +\+0.29 +29.94 +\+0.06", capsys.readouterr().out)


def test_both_presets_are_measured_on_one_crop(pictures: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    about = {"images": pictures, "only": "", "size": 64, "seeds": "0", "only_print": False}
    records, curves = tmp_path / "dip.jsonl", tmp_path / "curves"
    dip.main(**about, records=records, curves=curves)
    (record,) = [json.loads(line) for line in records.read_text().splitlines()]
    to_goal, used, each = dip.ratios(record)
    mine = record["fast"]
    assert used == pytest.approx(3000 * record["original"]["iteration_cpu"] / mine["stop_cpu"])
    assert each == pytest.approx(record["original"]["iteration_cpu"] / mine["iteration_cpu"])
    reached = [cpu for cpu, average in mine["curve"] if average >= record["original"]["best"]]
    assert (to_goal is None) == (not reached) or mine["best"] == pytest.approx(
        record["original"]["best"], abs=0.2
    )
    theirs = record["original"]
    assert theirs["best"] == pytest.approx(max(point[1] for point in theirs["curve"]), abs=0.2)
    iterations = [point[0] for point in theirs["curve"]]
    assert iterations == list(range(10, iterations[-1] + 1, 10))
    assert iterations[-1] >= theirs["best_iteration"] - 10
    with Image.open(curves / "waves-64-0.png") as picture:
        assert picture.size[0] > 400
    assert "in normal use" in capsys.readouterr().out
    monkeypatch.setattr(dip, "original", None)  # another setting of `fast` takes the goal from the records
    monkeypatch.setitem(settings.PRESETS, "fast", replace(settings.PRESETS["fast"], ensemble_size=1))
    dip.main(**about, records=records, curves=None)
    _, other = [json.loads(line) for line in records.read_text().splitlines()]
    same = ("best", "best_iteration", "curve")
    assert [other["original"][name] for name in same] == [theirs[name] for name in same]
    assert other["original"]["iteration_cpu"] != theirs["iteration_cpu"]
