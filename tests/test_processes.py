"""Training with several processes, connected by gloo on this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from accelerate import PartialState
from conftest import ROOT
from PIL import Image
from process_worker import RATES, trained
from safetensors.torch import load_file
from torch import nn

from sparsegen.training.processes import (
    BatchRandom,
    SharedBatchNorm,
    draw_rows,
    join_processes,
    share_batch_norm,
)
from sparsegen.training.run import STATE
from sparsegen.zoo.spec import ModelSpec

TORCHRUN = [
    "-m",
    "torch.distributed.run",
    "--nproc-per-node=2",
    "--rdzv-backend=c10d",
    "--rdzv-endpoint=127.0.0.1:0",
]
ACCELERATE = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1",
              "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]  # fmt: skip
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def launched(*arguments: str, launcher: list[str] = TORCHRUN) -> subprocess.CompletedProcess:
    command = [sys.executable, *launcher, *arguments]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(9):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def training(data: Path, out: Path, steps: int, batch_size: int = 4) -> list[str]:
    return ["-m", "sparsegen", "train", "dcgan-4.l1.paper", "--data", str(data), "--out", str(out),
            "--steps", str(steps), "--batch-size", str(batch_size), "--eval-count", "0",
            "--save-every", "2"]  # fmt: skip


@pytest.fixture(scope="module")
def states_of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("states")
    done = launched(str(ROOT / "tests" / "process_worker.py"), str(folder), *RATES)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("name", RATES)
def test_two_processes_take_the_steps_of_one_with_the_same_global_batch(
    states_of_two: Path, name: str
) -> None:
    two = load_file(states_of_two / f"{name}.safetensors")
    before, one, last = trained(name)
    for key, value in last.metrics["losses"].items():
        assert float(two[f"measured.{key}"]) == pytest.approx(value, rel=1e-3, abs=1e-6), key
    assert two["measured.density"].tolist() == pytest.approx(last.metrics["density"], abs=1e-3)
    changed = 0
    for key, value in one.items():
        step, error = ((value.double() - other[key].double()).norm() for other in (before, two))
        assert error <= 2e-3 * step + 1e-6 * value.double().norm() + 1e-7, (key, error, step)
        changed += int(step > 1e-6)
    assert changed > len(ModelSpec.parse(name).generator().state_dict())


def test_a_run_may_be_resumed_with_another_number_of_processes(tmp_path: Path, pictures: Path) -> None:
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    for folder, steps in ((unbroken, 4), (broken, 2)):
        done = launched(*training(pictures, folder, steps))
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("trained for") == 1
        assert json.loads((folder / "run.json").read_text())["processes"] == 2
    alone = [sys.executable, *training(pictures, broken, 4), "--resume"]
    done = subprocess.run(alone, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "of 2 process(es), and the run continues with 1: the batches are the same" in " ".join(
        done.stderr.split()
    )
    one, two = (load_file(folder / "checkpoints" / "00000004" / STATE) for folder in (broken, unbroken))
    for key, value in one.items():
        torch.testing.assert_close(value, two[key], rtol=1e-3, atol=1e-4, msg=key)
    config = json.loads((broken / "checkpoints" / "00000004" / "config.json").read_text())
    assert (config["training"]["processes"], config["training"]["batch_size"]) == (1, 4)


@pytest.mark.parametrize(
    ("batch_size", "says"),
    [
        (5, "must be a multiple of their number; got 5: use 4 or 6"),
        (10, "has 9 images, fewer than one batch of 10 for 2 processes: use a batch size of 8 or smaller"),
    ],
)
def test_a_batch_that_two_processes_cannot_share_is_refused(
    tmp_path: Path, pictures: Path, batch_size: int, says: str
) -> None:
    done = launched(*training(pictures, tmp_path / "run", 2, batch_size))
    assert done.returncode == 1 and says in done.stderr
    assert not (tmp_path / "run").exists()


def test_fewer_images_than_processes_are_refused(tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "0.png").write_bytes((pictures / "0.png").read_bytes())
    done = launched(*training(tmp_path / "one", tmp_path / "run", 2))
    assert done.returncode == 1 and "for 2 processes: use more images or fewer processes" in done.stderr


def test_processes_that_are_not_connected_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PartialState(cpu=True).num_processes == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        RuntimeError, match="WORLD_SIZE is 2, and accelerate connects 1: start the processes with"
    ):
        join_processes()


@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_the_end_of_one_process_ends_the_others(tmp_path: Path, pictures: Path, launcher: list[str]) -> None:
    command = [sys.executable, *launcher, *training(pictures, tmp_path / "run", 10**6)]
    with subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        ranks = {rank: child for rank, child in ranks_when_training(process, tmp_path / "run")}
        start = time.monotonic()
        ranks["1"].send_signal(signal.SIGKILL)
        errors = process.stderr.read()
        assert process.wait(60) == 1
        assert time.monotonic() - start < 20
    assert not any(child.is_running() for child in ranks.values())
    assert "SIGKILL" in errors and "rank      : 1" in errors


def ranks_when_training(process: subprocess.Popen, run: Path) -> Iterator[tuple[str, psutil.Process]]:
    for _ in range(600):
        if (run / "checkpoints").exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    for child in psutil.Process(process.pid).children(recursive=True):
        if rank := child.environ().get("RANK"):
            yield rank, child


# ---- parts ----


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("momentum", [0.1, 0.0, None])
def test_the_shared_batch_norm_of_one_process_is_batch_norm_up_to_second_derivatives(
    affine: bool, momentum: float | None
) -> None:
    random = torch.Generator().manual_seed(0)
    norm = nn.BatchNorm2d(3, momentum=momentum, affine=affine)
    for parameter in norm.parameters():
        nn.init.normal_(parameter, generator=random)
    shared = SharedBatchNorm(3, momentum=momentum, affine=affine)
    shared.load_state_dict(norm.state_dict())
    for training in (True, True, False):
        norm.train(training), shared.train(training)
        x = (2 + torch.randn(4, 3, 5, 6, generator=random)).requires_grad_()
        found = []
        for layer in (norm, shared):
            made = layer(x)
            (gradient,) = torch.autograd.grad(made.square().mul(x).sum(), x, create_graph=True)
            (second,) = torch.autograd.grad(gradient.square().sum(), x)
            found.append((made, gradient, second))
        torch.testing.assert_close(*found, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(norm.state_dict(), shared.state_dict(), rtol=1e-4, atol=1e-5)


def test_all_batch_norms_are_shared_with_their_weights() -> None:
    for name in ("dcgan-4.ml", "biggan-4.ml"):
        network = ModelSpec.parse(name).generator()
        before = network.state_dict(keep_vars=True)
        share_batch_norm(network)
        norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
        assert norms and all(type(norm) is SharedBatchNorm for norm in norms)
        after = network.state_dict(keep_vars=True)
        assert after.keys() == before.keys()
        assert all(after[key].data_ptr() == before[key].data_ptr() for key in before)


def random_rows(batch: int, rows: slice) -> BatchRandom:
    random = BatchRandom()
    random.batch, random.rows = batch, rows
    random.manual_seed(7)
    return random


@pytest.mark.parametrize("copies", [1, 2])
def test_processes_draw_the_numbers_of_their_rows(copies: int) -> None:
    def drawn(random: BatchRandom, count: int) -> torch.Tensor:
        images = torch.empty(count, 1)
        draws = [draw_rows(lambda n: torch.rand(n, 2, generator=random), images, random) for _ in range(2)]
        return torch.stack(draws).unflatten(1, (copies, -1))

    whole = drawn(random_rows(6, slice(0, 6)), copies * 6)
    parts = [drawn(random_rows(6, slice(first, first + 2)), copies * 2) for first in (0, 2, 4)]
    assert torch.equal(torch.cat(parts, 2), whole)
    with pytest.raises(
        ValueError, match="2 rows of the batch draws numbers for a multiple of 2 images; got 3"
    ):
        draw_rows(torch.rand, torch.empty(3, 1), random_rows(6, slice(0, 2)))
