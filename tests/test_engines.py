"""Campaigns and folders on other nodes: a Ray cluster of two nodes, and submitit's executor for one machine.

The results equal those of one process, also if a node is lost and if the command is interrupted.
"""

import json
import math
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from operator import truediv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from benchmarks import table1, table3
from benchmarks.campaign import run_campaign
from sparsegen.common import engines
from sparsegen.common.engines import InProcess, Needs, Ray, Slurm, TaskError, gpus_of, open_engine
from sparsegen.common.files import read_lines
from sparsegen.training.metrics import Statistics

# Ray reads these once, when it is imported. The token keeps other programs out of the cluster.
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32), RAY_USAGE_STATS_ENABLED="0")
# Ray leaves its log files to the garbage collector, which reports them.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
ONE = Needs(1)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Nodes:
    """A head and a second node with one processor each."""

    def __init__(self) -> None:
        self.client = free_port()
        fast = {
            "health_check_initial_delay_ms": 0,
            "health_check_period_ms": 500,
            "health_check_failure_threshold": 2,
            "worker_niceness": 0,
        }
        head = {
            "num_cpus": 1, "include_dashboard": False, "memory": 4 * 10**9,
            "gcs_server_port": free_port(), "ray_client_server_port": self.client, "_system_config": fast,
        }  # fmt: skip
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.second = self.cluster.add_node(num_cpus=1, memory=4 * 10**9)

    def lose(self) -> None:
        """Kills the processes of the second node."""
        self.cluster.remove_node(self.second, allow_graceful=False)

    def stop(self) -> None:
        self.cluster.shutdown()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    pytest.importorskip("ray", reason="Ray has no wheel for this platform")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSEGEN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.setenv("PYTHONPATH", str(ROOT))
        folder = tempfile.mkdtemp(prefix="ray-")  # short, for the paths of sockets
        patch.setenv("RAY_TMPDIR", folder)  # other clusters of this machine are not changed
        found = Nodes()
        patch.setenv("RAY_ADDRESS", found.cluster.address)
        yield found
        found.stop()
        shutil.rmtree(folder, ignore_errors=True)


def when(ready: Callable[[], bool], act: Callable[[], object]) -> threading.Thread:
    """Acts in another thread as soon as something is ready; join it to see its errors."""

    def wait() -> None:
        until = time.monotonic() + 120
        while not ready() and time.monotonic() < until:
            time.sleep(0.05)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def steps(runs: Path) -> dict[str, str]:
    """The last checkpoint of each run."""
    found = {
        run.name: sorted(path.name for path in (run / "checkpoints").glob("[0-9]*")) for run in runs.glob("*")
    }
    return {name: checkpoints[-1] for name, checkpoints in found.items() if checkpoints}


def comparable(records: Path) -> list[str]:
    """The records without times, sorted."""
    timed = re.compile("date|.*per_second|.*cpu.*")
    lines = [
        {name: value for name, value in record.items() if not timed.fullmatch(name)}
        for record in read_lines(records)
    ]
    return sorted(json.dumps(line, sort_keys=True) for line in lines)


@pytest.mark.parametrize(
    "on", ["raay", "ray:", "ray:x", "here:x", "slurm:", "slurm:partition", "slurm:time="]
)
def test_unknown_names_and_options_are_refused(on: str) -> None:
    with pytest.raises(ValueError, match=re.escape("slurm")):
        open_engine(on)


def test_unknown_options_of_slurm_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Slurm, "folder", tmp_path)
    monkeypatch.setattr(Slurm, "cluster", "local")  # submitit checks the names for each of its executors
    with (
        pytest.raises(ValueError, match="--on slurm: .*no_such_option"),
        open_engine("slurm:no_such_option=1"),
    ):
        pass


@pytest.mark.parametrize(("on", "module"), [("ray", "ray"), ("ray://host:1", "grpc"), ("slurm", "submitit")])
def test_a_missing_extra_is_named(on: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsegen.common.extras.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=rf"needs .*{module}.*: pip install .*\[{on.partition(':')[0]}\]"):
        open_engine(on)


def test_an_address_that_does_not_answer_is_reported_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    started, port = time.monotonic(), free_port()
    with pytest.raises(ConnectionError, match=f"no Ray cluster answers at ray://127.0.0.1:{port} "):
        open_engine(f"ray://127.0.0.1:{port}")
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(ConnectionError, match=f"no Ray cluster answers at .*:{port} .*`ray start --head`"):
        open_engine("ray")
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("device", "gpus", "here", "expected"),
    [
        ("auto", None, True, ("auto", 0)), ("auto", None, False, ("cpu", 0)), ("auto", 0.5, False, ("auto", 0.5)),
        ("cuda", None, False, ("cuda", 1)), ("cuda", 0.25, False, ("cuda", 0.25)), ("cpu", None, False, ("cpu", 0)),
    ],
)  # fmt: skip
def test_a_gpu_is_reserved_for_a_device_that_is_one(
    device: str, gpus: Any, here: bool, expected: tuple
) -> None:
    assert gpus_of(device, gpus, here) == expected


def test_a_negative_number_of_gpus_is_refused() -> None:
    with pytest.raises(ValueError, match="--gpus .* at least 0; got -1"):
        gpus_of("cuda", -1.0, False)


def test_in_this_process_tasks_start_one_by_one_and_an_error_does_not_end_them() -> None:
    started = []

    def arguments() -> Iterator[float]:
        for value in (4.0, -1.0, 9.0):
            started.append(value)
            yield value

    with InProcess() as engine:
        outcomes = engine.map(math.sqrt, arguments(), lambda _: ONE)
        assert next(outcomes).result() == 2 and started == [4.0]
        with pytest.raises(ValueError):
            next(outcomes).result()
        assert next(outcomes).result() == 3 and not list(outcomes)


def test_slurm_has_no_fractions_of_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Slurm, "folder", tmp_path)
    monkeypatch.setattr(Slurm, "cluster", "local")
    with (
        open_engine("slurm") as engine,
        pytest.raises(ValueError, match="--gpus must be an integer; got 0.5"),
    ):
        list(engine.map(math.sqrt, [4.0], lambda _: Needs(1, 0.5)))


def test_without_slurm_the_error_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(Slurm, "folder", tmp_path)
    with (
        pytest.raises(ValueError, match="--on slurm: .*are you indeed on a slurm cluster"),
        open_engine("slurm"),
    ):
        pass


@pytest.fixture
def local_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """submitit's executor for one machine instead of Slurm."""
    monkeypatch.setattr(Slurm, "folder", tmp_path / "jobs")
    monkeypatch.setattr(Slurm, "cluster", "local")
    monkeypatch.setattr(Slurm, "poll", 0.2)


def test_a_campaign_as_jobs_has_the_records_of_one_process(local_jobs: None, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(pictures / "a.png")
    for on in ("here", "slurm"):
        table3.main(images=pictures, size=64, regularizers="baseline", seeds="0", ensemble=1, iterations=5, on=on,
                    records=tmp_path / f"{on}.jsonl")  # fmt: skip
    assert len(comparable(tmp_path / "here.jsonl")) == 1
    assert comparable(tmp_path / "here.jsonl") == comparable(tmp_path / "slurm.jsonl")
    assert not list((tmp_path / "jobs").glob("*.function"))


def test_the_error_of_a_cell_is_reported_and_the_others_are_recorded(
    local_jobs: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for on in ("here", "slurm"):
        records = tmp_path / f"{on}.jsonl"
        complete = run_campaign(
            open_engine(on),
            partial(truediv, 6),
            [1, 0, 2],
            lambda _: ONE,
            records,
            lambda cell: f"cell {cell}",
        )
        assert not complete
        assert sorted(read_lines(records)) == [3.0, 6.0]
        said = capsys.readouterr().err
        assert "cell 0: ZeroDivisionError: division by zero" in said and "1 cells have failed: cell 0" in said
        assert ("(on node " in said) == (on == "slurm")


def test_ray_reports_errors_with_the_node(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_engine("ray") as engine:
        found = {
            outcome.argument: outcome
            for outcome in engine.map(math.sqrt, [4.0, -1.0], lambda _: ONE, [tmp_path])
        }
        assert found[4.0].result() == 2
        with pytest.raises(TaskError, match=r"math domain error \(on node \S+\)"):
            found[-1.0].result()
        assert not list(tmp_path.iterdir())  # the marks of the folders


def test_a_node_without_the_folder_is_named(tmp_path: Path) -> None:
    packed = engines._pack(math.sqrt, [tmp_path / "elsewhere" / "mark"])
    value, error = engines.run_task(packed, engines.pickle.dumps(4.0))
    assert value is None and re.search(
        rf"{tmp_path}/elsewhere is not .* every node sees \(on node", str(error)
    )


def test_a_node_without_the_data_is_named(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    real = Statistics(np.zeros(1), np.zeros((1, 1)), 2)
    setting = table1.Setting(str(absent), "cpu", 1, 8, "metric", "fingerprint", real, tmp_path, 500)
    cell = table1.Cell(table1.cell("dcgan", "baseline", 8, None), {}, "cell")
    packed = engines._pack(partial(table1.measure, setting), [])
    _, error = engines.run_task(packed, engines.pickle.dumps(cell))
    assert str(absent) in str(error) and "(on node " in str(error)


def test_needs_that_no_node_meets_are_reported(nodes: Nodes, caplog: pytest.LogCaptureFixture) -> None:
    with open_engine("ray") as engine:
        assert isinstance(engine, Ray) and not engine.starts
        engine._check_room(Needs(64, 1, 10**12))
        assert re.search(
            r"64 processors, 1 GPUs and 1000.0 GB, .* up to 1, 0 and 4.0 GB; it waits", caplog.text
        )
        engine.starts = True
        with pytest.raises(ValueError, match="use fewer threads"):
            engine._check_room(Needs(2))


def test_tasks_that_are_not_done_are_cancelled(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "GRACE", 1)  # a sleep ignores the interrupt
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), open_engine("ray") as engine:
        for outcome in engine.map(time.sleep, [0.0, 600.0, 600.0, 600.0], lambda _: ONE):
            outcome.result()
            raise KeyboardInterrupt
    assert time.monotonic() - started < 60


def test_another_version_of_ray_is_one_sentence(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.__version__", "2.1.0")
    with pytest.raises(ConnectionError, match="--on ray: Version mismatch: .*2.1.0"), open_engine("ray"):
        pass


def test_a_cluster_is_reached_by_ray_client(nodes: Nodes) -> None:
    def roots() -> list[float]:
        with open_engine(f"ray://127.0.0.1:{nodes.client}") as engine:
            return [outcome.result() for outcome in engine.map(math.sqrt, [4.0], lambda _: ONE)]

    try:
        assert roots() == [2]
    except ConnectionError as error:  # rarely, the process of the client does not survive its fork (gRPC)
        assert "Starting Ray client server failed" in str(error)
        assert roots() == [2]


def test_pictures_on_nodes_equal_those_of_one_process(nodes: Nodes, sparsegen, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "given").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "given" / f"{number}.png")
    command = ["denoise", *sorted((tmp_path / "given").glob("*.png")), "--iterations", 5, "--threads", 1,
               "--regularizer", "baseline"]  # fmt: skip
    lines = {}
    for on in ("here", "ray"):
        done = sparsegen(*command, "--on", on, "--out", tmp_path / on)
        assert (done.returncode, done.stderr) == (0, "")
        lines[on] = sorted(re.sub(r", [\d.]+ s\n", "\n", done.stdout).replace(f"/{on}/", "/").split("\n"))
    assert lines["here"] == lines["ray"]
    results = [{path.name: path.read_bytes() for path in (tmp_path / on).iterdir()} for on in ("here", "ray")]
    assert results[0] == results[1] and len(results[0]) == 3
    (tmp_path / "ray" / "1.png").unlink()
    done = sparsegen(*command, "--out", tmp_path / "ray", "--skip-existing")
    assert done.returncode == 0 and "2 of 3 pictures are skipped" in done.stderr
    assert (tmp_path / "ray" / "1.png").read_bytes() == results[0]["1.png"]


def test_an_interrupted_campaign_survives_the_loss_of_a_node(nodes: Nodes, few: Path, tmp_path: Path) -> None:
    def settings(on: str) -> dict[str, object]:
        return {"data": str(few), "rows": "dcgan", "columns": "baseline,l1", "seeds": "0", "atoms": 8, "steps": 500,
                "batch_size": 8, "precision": "no", "count": 8, "memory": 1, "save_every": 25, "on": on,
                "runs": tmp_path / on, "records": tmp_path / f"{on}.jsonl"}  # fmt: skip

    def campaign(on: str) -> None:
        table1.main(**settings(on))

    runs, records = tmp_path / "ray", tmp_path / "ray.jsonl"
    # A process of its own: in one of pytest-xdist, a Ctrl-C had no effect.
    script = (
        f"from pathlib import PosixPath; from benchmarks import table1; table1.main(**{settings('ray')!r})"
    )
    interrupted = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    when(lambda: bool(steps(runs)), lambda: interrupted.send_signal(signal.SIGINT)).join()
    _, said = interrupted.communicate(timeout=60)
    assert interrupted.returncode == 130 and "interrupted: the same command measures" in said
    assert not records.exists() or not records.read_text()
    before, at_loss = steps(runs), []

    def lose() -> None:
        at_loss.append(len(read_lines(records)))
        nodes.lose()

    loss = when(lambda: sum(step != before.get(name) for name, step in steps(runs).items()) >= 2, lose)
    campaign("ray")
    loss.join()
    assert at_loss == [0]  # the cells of both nodes were in progress
    campaign("here")
    assert len(comparable(records)) == 2 and comparable(records) == comparable(tmp_path / "here.jsonl")
