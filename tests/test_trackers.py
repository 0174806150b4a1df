"""Trackers: what TensorBoard and Weights & Biases receive from a run, read from their own files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_start import config

from sparsegen.training import trackers
from sparsegen.training.start import start


def test_tensorboard_receives_the_measurements_the_evaluations_and_the_sample_grids(
    few: Path,
    tmp_path: Path,
) -> None:
    run = start(config(few, tmp_path / "run", steps=12, eval_every=6, trackers=("tensorboard",)))
    distances = iter((3.5, 2.5))
    run.evaluator = lambda generator: {"distance": next(distances), "density": [0.5, 0.25], "metric": "fd"}
    list(run)
    records = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "losses" in record] == [1, 10]
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    for name in records[0]["losses"]:
        sent = {event.step: event.value for event in events.Scalars(f"losses/{name}")}
        written = {one["step"]: one["losses"][name] for one in records if "losses" in one}
        assert sent == pytest.approx(written, rel=1e-6)
    found = [(event.step, event.value) for event in events.Scalars("evaluation/distance")]
    assert found == [(6, 3.5), (12, 2.5)]
    assert [event.value for event in events.Scalars("evaluation/density/2")] == [0.25, 0.25]
    grids = events.Images("samples")
    assert [grid.step for grid in grids] == [6, 12]
    with Image.open(run.folder / "samples" / "00000012.png") as written_grid:
        assert (grids[-1].width * 2, grids[-1].height * 2) == written_grid.size


def test_wandb_receives_them_offline(
    few: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    script = (
        "import sys; from sparsegen.training.start import TrainConfig, train; train(TrainConfig('dcgan-8.ml.paper', "
        "sys.argv[1], sys.argv[2], steps=10, eval_count=0, device='cpu', trackers=('wandb',)))"
    )
    command = [sys.executable, "-c", script, str(few), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert list(folder.glob("*.wandb")) and list(
        (folder / "files" / "media" / "images").glob("samples_10_*.png")
    )


def test_an_unknown_or_missing_tracker_is_refused_before_images_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="no tracker 'paper': use tensorboard or wandb"):
        start(config(tmp_path / "nowhere", tmp_path / "run", trackers=("paper",)))
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"the tracker wandb needs wandb: pip install .*\[track\]"):
        start(config(tmp_path / "nowhere", tmp_path / "run", trackers=("wandb",)))
    assert not (tmp_path / "run").exists()
    assert set(trackers.TRACKERS) == {"tensorboard", "wandb"}
