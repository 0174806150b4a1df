import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

from sparsegen.training.data import Images
from sparsegen.training.run import STATE, Plan, Run, Schedule
from sparsegen.zoo.bundled import DISCRIMINATOR, WEIGHTS
from sparsegen.zoo.pretrained import from_pretrained

COLUMNS = ["baseline", "l0_inf", "l0", "l1", "ml"]


def pictures(count: int = 64) -> Images:
    pixels = torch.randint(
        0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    return Images(pixels, None, "noise", "0123456789abcdef", ())


def plan(regularizer: str = "ml", **changes: object) -> Plan:
    return Plan(
        **{
            "model": f"dcgan-8.{regularizer}",
            "k": None,
            "data": "noise",
            "fingerprint": "0",
            "batch_size": 8,
            **changes,
        }
    )


def start(
    folder: Path,
    steps: int,
    *,
    regularizer: str = "ml",
    judge: Callable | None = None,
    resume: bool = False,
    save_every: int = 4,
    judge_every: int = 1000,
    **changes: object,
) -> Run:
    schedule = Schedule(steps, measure_every=2, save_every=save_every, judge_every=judge_every)
    return Run(folder, plan(regularizer, **changes), pictures(), schedule, judge, resume, device="cpu")


def state(folder: Path) -> dict[str, torch.Tensor]:
    last = sorted((folder / "checkpoints").iterdir())[-1]
    return {
        **load_file(last / STATE),
        **{f"published.{key}": value for key, value in load_file(last / WEIGHTS).items()},
        **{f"judge.{key}": value for key, value in load_file(last / DISCRIMINATOR).items()},
    }


def records(folder: Path) -> list[dict]:
    """What a run logged, but its speed, which is never the same."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    differing = [key for key in expected if not torch.equal(found[key], expected[key])]
    assert differing == []


@pytest.mark.parametrize("regularizer", COLUMNS)
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(tmp_path: Path, regularizer: str) -> None:
    for _ in start(tmp_path / "unbroken", 9, regularizer=regularizer):
        pass
    for progress in start(tmp_path / "broken", 9, regularizer=regularizer):
        if progress.step == 6:
            break
    resumed = start(tmp_path / "broken", 9, regularizer=regularizer, resume=True)
    assert resumed.step == 4
    for _ in resumed:
        pass
    assert_equal(state(tmp_path / "broken"), state(tmp_path / "unbroken"))
    assert records(tmp_path / "broken") == records(tmp_path / "unbroken")


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_run import start
import torch
torch.set_num_threads(1)
for progress in start(Path({folder!r}), 40, resume=True, save_every=3):
    print(progress.step, flush=True)
"""


def test_a_run_killed_at_random_moments_ends_in_the_same_weights(tmp_path: Path) -> None:
    for _ in start(tmp_path / "unbroken", 40, save_every=40):
        pass
    folder = tmp_path / "killed"
    script = SCRIPT.format(tests=str(ROOT / "tests"), folder=str(folder))
    moments = random.Random(time.time_ns())
    kills = 0
    while True:
        process = subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        target = moments.randint(5, 18)
        steps = [line for line, _ in zip(process.stdout, range(target), strict=False)]
        if len(steps) < target:  # it came to its end
            assert process.wait(60) == 0
            process.stdout.close()
            break
        time.sleep(moments.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        process.stdout.close()
        kills += 1
    assert kills >= 2
    assert_equal(state(folder), state(tmp_path / "unbroken"))


def test_a_full_disk_while_saving_leaves_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(tmp_path / "run", 8)
    writes = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if STATE in path.name and run.step > 4:
            writes(path, content[: len(content) // 2])
            raise OSError(28, "No space left on device")
        return writes(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        for _ in run:
            pass
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["00000004"]
    for _ in start(tmp_path / "run", 8, resume=True):
        pass
    for _ in start(tmp_path / "unbroken", 8):
        pass
    assert_equal(state(tmp_path / "run"), state(tmp_path / "unbroken"))


def test_every_network_learns_and_the_published_generator_is_the_running_average(tmp_path: Path) -> None:
    run = start(tmp_path / "run", 3, save_every=1)
    before = {key: value.clone() for key, value in run.networks.state().items()}
    expected = {key: value.clone() for key, value in run.networks.generator.state_dict().items()}
    for step, _ in run:
        decay = min(0.999, step / (step + 9))
        for key, value in run.networks.generator.state_dict().items():
            floating = value.is_floating_point()
            expected[key] = (decay * expected[key] + (1 - decay) * value) if floating else value.clone()
    after = run.networks.state()
    for key, value in after.items():
        if key.endswith("weight") and not key.startswith("optimizer"):
            assert not torch.equal(value, before[key]), key
    published = load_file(tmp_path / "run" / "checkpoints" / "00000003" / WEIGHTS)
    for key, value in expected.items():
        torch.testing.assert_close(published[key], value, rtol=1e-5, atol=1e-6)
    opened = from_pretrained(tmp_path / "run" / "checkpoints" / "00000003")
    assert np.array_equal(opened.sample(2), run.networks.averaged.sample(2))


def test_the_best_generator_is_kept(tmp_path: Path) -> None:
    distances = iter([5.0, 3.0, 4.0])
    run = start(
        tmp_path / "run", 6, judge=lambda _: {"metric": "d", "distance": next(distances)}, judge_every=2
    )
    weights = {}
    for step, _ in run:
        weights[step] = {key: value.clone() for key, value in run.networks.averaged.state_dict().items()}
    assert run.best == {"step": 4, "metric": "d", "distance": 3.0}
    best = from_pretrained(tmp_path / "run" / "best")
    assert best.config["evaluation"] == {"metric": "d", "distance": 3.0}
    assert best.config["training"]["steps"] == 4
    assert_equal(best.state_dict(), weights[4])
    assert sorted(path.name for path in (tmp_path / "run" / "samples").iterdir()) == [
        f"{step:08d}.png" for step in (2, 4, 6)
    ]


def test_metrics_say_how_sparse_the_codes_are(tmp_path: Path) -> None:
    for _ in start(tmp_path / "run", 4):
        pass
    found = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in found] == [2, 4]
    for record in found:
        assert set(record["losses"]) == {"cross_entropy", "non_saturating"}
        assert all(0 < density <= 0.25 for density in record["density"])
        assert all(value > 0 for value in record["mean_magnitude"] + record["dictionary_norm"])
        assert record["images_per_second"] > 0


@pytest.mark.parametrize("regularizer", COLUMNS)
def test_any_checkpoint_can_be_fine_tuned_into_any_regularizer(tmp_path: Path, regularizer: str) -> None:
    for _ in start(tmp_path / "first", 2, regularizer="baseline", save_every=2):
        pass
    source = tmp_path / "first" / "checkpoints" / "00000002"
    run = start(tmp_path / "second", 1, regularizer=regularizer, start_from=str(source))
    assert_equal(run.networks.generator.state_dict(), load_file(source / WEIGHTS))
    assert_equal(run.networks.discriminator.state_dict(), load_file(source / DISCRIMINATOR))
    for _ in run:
        pass
    told = from_pretrained(tmp_path / "second" / "checkpoints" / "00000001").config["training"]
    assert told["start_from"] == "dcgan-8.baseline after 2 steps"
    assert str(tmp_path) not in json.dumps(told)


def test_a_new_discriminator_catches_up_before_a_fine_tuned_generator_moves(tmp_path: Path) -> None:
    for _ in start(tmp_path / "first", 2, save_every=2):
        pass
    run = start(tmp_path / "second", 4, start_from=str(tmp_path / "first/checkpoints/00000002"), warm_up=3)
    first, judge = (
        {key: value.detach().clone() for key, value in network.named_parameters()}
        for network in (run.networks.generator, run.networks.discriminator)
    )
    for step, _ in run:
        moved = any(
            not torch.equal(first[key], value) for key, value in run.networks.generator.named_parameters()
        )
        assert moved == (step > 3)
    assert not torch.equal(judge["head.weight"], run.networks.discriminator.head.weight)


def test_a_folder_holds_one_run(tmp_path: Path) -> None:
    for _ in start(tmp_path / "run", 4):
        pass
    with pytest.raises(ValueError, match="holds this run already: go on with --resume"):
        start(tmp_path / "run", 8)
    with pytest.raises(ValueError, match="holds another run .seed: 0 there, 1 asked"):
        start(tmp_path / "run", 8, seed=1, resume=True)
    assert start(tmp_path / "run", 8, resume=True).step == 4  # a longer schedule is the same run


def test_a_damaged_newest_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in start(tmp_path / "run", 8):
        pass
    broken = tmp_path / "run" / "checkpoints" / "00000008" / STATE
    broken.write_bytes(broken.read_bytes()[:1000])
    assert start(tmp_path / "run", 8, resume=True).step == 4
    assert "00000008 cannot be read" in caplog.text
    (tmp_path / "run" / "checkpoints" / "00000004" / STATE).unlink()
    with pytest.raises(ValueError, match="none of the checkpoints in .* can be read"):
        start(tmp_path / "run", 8, resume=True)


def test_two_processes_end_in_equal_weights_and_see_different_images(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "from pathlib import Path\n"
        "import torch; torch.set_num_threads(1)\n"
        "from safetensors.torch import save_file\n"
        "from test_run import start\n"
        f"run = start(Path({str(tmp_path / 'run')!r}), 3)\n"
        "rank = run.accelerator.process_index\n"
        "real, _ = run.batches.at(0)\n"
        "for _ in run: pass\n"
        "weights = dict(run.networks.generator.named_parameters())\n"
        "weights = {key: value.detach().contiguous() for key, value in weights.items()}\n"
        f"save_file({{**weights, 'real': real}}, {str(tmp_path)!r} + f'/{{rank}}.safetensors')\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0",
               "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", str(script)]  # fmt: skip
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    assert not torch.equal(first.pop("real"), second.pop("real"))
    assert_equal(first, second)
    alone = start(tmp_path / "alone", 3)
    for _ in alone:
        pass
    key = next(iter(first))
    assert not torch.equal(first[key], dict(alone.networks.generator.named_parameters())[key])


def test_the_plan_is_kept_as_json(tmp_path: Path) -> None:
    start(tmp_path / "run", 1)
    assert json.loads((tmp_path / "run" / "run.json").read_text()) == asdict(plan())
