"""The expected time of a restoration: what it measures in a picture, the fitted length, and the calibration."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sparsegen.reproduce.tables import read_records
from sparsegen.restoration.settings import Task
from sparsegen.service.jobs import calibration
from sparsegen.service.jobs.budget import (
    DEFAULT_PACE,
    PACES,
    check_wait,
    expected_effort,
    expected_iterations,
    expected_seconds,
    measure_content,
)
from sparsegen.service.jobs.errors import Busy
from sparsegen.service.jobs.store import open_store

LENGTHS = Path(__file__).parents[1] / "benchmarks" / "records" / "denoising_lengths.jsonl"


@pytest.mark.parametrize("sigma", [5, 25, 60])
def test_a_flat_picture_has_the_level_of_its_noise_and_no_other_structure(sigma):
    noise = np.random.default_rng(0).normal(0, sigma / 255, (65, 64, 3))
    assert measure_content(0.5 + noise) == pytest.approx((sigma, sigma), rel=0.1)


def test_stripes_are_structure_but_not_noise():
    stripes = np.zeros((64, 64, 3))
    stripes[:, ::2] = 40 / 255
    noise, detail = measure_content(stripes)
    assert noise == pytest.approx(0, abs=1e-9) and detail == pytest.approx(40 / 2**0.5)


def test_the_expected_length_agrees_with_measured_denoisings():
    ratios, others = [], []
    for run in read_records(LENGTHS):
        noise, pixels = min(run["noise"], run["sigma"]), max(run["size"], 64) ** 2
        ratio = run["iterations"] / expected_iterations(noise, run["detail"], pixels)
        (ratios if run["fitted"] else others).append(ratio)
    assert (len(ratios), len(others)) == (37, 17)
    for found in (ratios, others):
        assert np.mean([1 / 1.5 < ratio < 1.5 for ratio in found]) > 0.9
        assert all(0.6 < ratio < 1.6 for ratio in found)


def test_weaker_noise_and_finer_structure_take_longer_up_to_the_last_iteration():
    def effort(noise: float, detail: float, **settings: object) -> float:
        return expected_effort(Task.of(**settings), 128, 128, noise, detail)

    assert effort(10, 30) > effort(25, 38) > effort(25, 30) > effort(25, 25) == effort(25, 0)
    assert effort(25, 35, sigma=10) > effort(25, 35) == effort(25, 35, sigma=60)  # sigma is an upper bound
    assert effort(0, 200) == Task.of().effort(128, 128, 3000)
    for settings in ({"kind": "inpaint"}, {"preset": "paper"}, {"loss": "l1"}):
        assert effort(25, 35, **settings) == Task.of(**settings).effort(128, 128)


def test_the_pace_of_this_machine_replaces_the_default():
    assert expected_seconds(1e6, None) == 1e6 * DEFAULT_PACE and expected_seconds(1e6, 3e-6) == 3


def test_a_wait_is_refused_only_if_the_result_is_not_expected_in_time():
    pace = 2e-6  # so 1e7 units take 20 seconds
    check_wait("denoise", 1e7, pace, 0, 20, 100)
    check_wait("denoise", 1e7, pace, 10, 30, 100)
    with pytest.raises(
        ValueError, match="about 20 seconds, and this request waits for 19: set max_seconds to up to 100"
    ):
        check_wait("denoise", 1e7, pace, 0, 19, 100)
    with pytest.raises(ValueError, match="waits for 15: use fewer iterations"):
        check_wait("denoise", 1e7, pace, 0, 15, 15)  # a higher max_seconds would not help
    with pytest.raises(
        Busy, match="about 20 seconds after 11 seconds for the restorations before it"
    ) as busy:
        check_wait("denoise", 1e7, pace, 11, 30, 100)
    assert busy.value.retry_after == 1
    check_wait(
        "denoise", 1e7, 1000 * PACES[1], 0, 1e7 * PACES[1], 100
    )  # a wrong pace does not lock the route


@pytest.fixture(name="store")
def empty_store(tmp_path):
    store = open_store(str(tmp_path / "jobs.sqlite"))
    yield store
    store.close()


def look(measuring: calibration.Calibration, store) -> None:
    end = time.monotonic() + 60
    while store.pace() is None and time.monotonic() < end:
        measuring.look()
        time.sleep(0.05)


def test_an_idle_worker_measures_the_pace_once(store, monkeypatch, tmp_path):
    (tmp_path / "measure.py").write_text("print(3.0, 2.0)")
    monkeypatch.setattr(calibration, "COMMAND", [sys.executable, str(tmp_path / "measure.py")])
    with calibration.Calibration(store) as measuring:
        measuring.look()
        assert measuring._process is None  # not at once
    monkeypatch.setattr(calibration, "IDLE", 0)
    with calibration.Calibration(store) as measuring:
        look(measuring, store)
        assert store.pace() == 1.5
        store.calibrate(1, 1)
        assert store.pace() == 1.5
        measuring.look()
        assert measuring._process is None


def test_a_job_ends_the_measurement(store, monkeypatch):
    monkeypatch.setattr(calibration, "COMMAND", [sys.executable, "-c", "import time; time.sleep(60)"])
    monkeypatch.setattr(calibration, "IDLE", 0)
    with calibration.Calibration(store) as measuring:
        measuring.look()
        process = measuring._process
        measuring.stop()
        assert process.returncode not in (None, 0) and store.pace() is None
        measuring.look()
        assert measuring._process not in (None, process)  # again when idle


def test_a_failed_measurement_is_logged_and_not_repeated(store, monkeypatch, caplog):
    monkeypatch.setattr(calibration, "COMMAND", [sys.executable, "-c", "raise SystemExit(3)"])
    monkeypatch.setattr(calibration, "IDLE", 0)
    with calibration.Calibration(store) as measuring:
        measuring.look()
        measuring._process.wait()
        measuring.look()
        measuring.look()
        assert measuring._process is None and store.pace() is None
    assert "the pace of restorations cannot be measured: exit code 3" in caplog.text


def test_the_measurement_runs_the_real_computation(monkeypatch):
    monkeypatch.setattr(calibration, "MEASURED", 2)
    monkeypatch.setattr(calibration, "SIDE", 64)
    seconds, effort = calibration.measure()
    assert 0 < seconds < 60 and effort == Task.of().effort(64, 64, 2)
