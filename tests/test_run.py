import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import ROOT
from safetensors.torch import load_file

from sparsegen.training import run as run_module
from sparsegen.training.data import Images
from sparsegen.training.plan import RunPlan, Schedule, checkpoints, find_device
from sparsegen.training.run import STATE, Run, append_line, open_run, read_lines
from sparsegen.zoo.bundled import AUXILIARY, CONFIG, WEIGHTS
from sparsegen.zoo.checkpoint import from_pretrained

COLUMNS = ["baseline", "l0_inf", "l0", "l1", "ml"]


RECIPES = [  # several updates of the discriminator, two fakes per real image, random augmentations, three networks
    "wgan_gp-8.l1",
    "msgan-8.l0",
    "sagan-8.l0_inf",
    "ssgan-8.ml",
    "biggan-8.baseline",
    "diffcr_biggan-8.ml",
]


def pictures(count: int = 64, labels: int = 10) -> Images:
    """Random images with labels of `labels` classes; 0: no labels."""
    pixels = torch.randint(
        0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    given = torch.arange(count) % labels if labels else None
    return Images(pixels, given, "noise", "0123456789abcdef", (), tuple("abcdefghij"[:labels]))


def plan(regularizer: str = "ml", **changes: object) -> RunPlan:
    return RunPlan(
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
    evaluator: Callable | None = None,
    resume: bool = False,
    save_every: int = 4,
    eval_every: int = 1000,
    labels: int = 10,
    **changes: object,
) -> Run:
    schedule = Schedule(steps, measure_every=2, save_every=save_every, eval_every=eval_every)
    images = pictures(labels=labels)
    run = open_run(folder, plan(regularizer, **changes), images, schedule, resume, device="cpu")
    run.evaluator = evaluator
    return run


def state(folder: Path) -> dict[str, torch.Tensor]:
    last = sorted((folder / "checkpoints").iterdir())[-1]
    return {
        **load_file(last / STATE),
        **{f"published.{key}": value for key, value in load_file(last / WEIGHTS).items()},
        **{
            f"discriminator.{key}": value
            for key, value in load_file(last / AUXILIARY["discriminator"]).items()
        },
    }


def records(folder: Path) -> list[dict]:
    """Returns the log of a run without its speed, which varies."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    differing = [key for key in expected if not torch.equal(found[key], expected[key])]
    assert differing == []


@pytest.mark.parametrize("regularizer", COLUMNS)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path, regularizer: str) -> None:
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


@pytest.mark.parametrize(
    ("model", "share"), [*((model, 1.0) for model in RECIPES), ("diffcr_biggan-8.l0", 0.1)]
)
def test_every_kind_of_recipe_is_resumed_bit_for_bit(tmp_path: Path, model: str, share: float) -> None:
    options = {"model": model, "share": share, "batch_size": 4, "save_every": 2}
    for _ in start(tmp_path / "unbroken", 4, **options):
        pass
    for progress in start(tmp_path / "broken", 4, **options):
        if progress.step == 3:
            break
    resumed = start(tmp_path / "broken", 4, resume=True, **options)
    assert resumed.step == 2
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


def test_a_run_killed_at_random_times_ends_with_the_same_weights(tmp_path: Path) -> None:
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


def test_a_full_disk_while_saving_keeps_the_previous_checkpoint(
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


def test_all_networks_are_trained_and_the_saved_generator_is_the_running_average(tmp_path: Path) -> None:
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
        tmp_path / "run", 6, evaluator=lambda _: {"metric": "d", "distance": next(distances)}, eval_every=2
    )
    weights = {}
    for step, _ in run:
        weights[step] = {key: value.clone() for key, value in run.networks.averaged.state_dict().items()}
    assert run.best == {"step": 4, "metric": "d", "distance": 3.0}
    best = from_pretrained(tmp_path / "run" / "best")
    assert best.config["evaluation"] == {"metric": "d", "distance": 3.0}
    assert best.config["training"]["steps"] == 4
    assert_equal(best.state_dict(), weights[4])
    tuned = start(tmp_path / "tuned", 1, start_from=str(tmp_path / "run" / "best"), warm_up=500)
    assert tuned.warm_up == 0
    discriminator = load_file(tmp_path / "run" / "best" / AUXILIARY["discriminator"])
    assert_equal(tuned.networks.auxiliary_networks["discriminator"].state_dict(), discriminator)
    assert sorted(path.name for path in (tmp_path / "run" / "samples").iterdir()) == [
        f"{step:08d}.png" for step in (2, 4, 6)
    ]


def test_metrics_include_the_density_of_the_codes(tmp_path: Path) -> None:
    for _ in start(tmp_path / "run", 4):
        pass
    found = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in found] == [1, 2, 4]
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
    assert_equal(
        run.networks.auxiliary_networks["discriminator"].state_dict(),
        load_file(source / AUXILIARY["discriminator"]),
    )
    for _ in run:
        pass
    training = from_pretrained(tmp_path / "second" / "checkpoints" / "00000001").config["training"]
    assert training["start_from"] == "dcgan-8.baseline after 2 steps"
    assert str(tmp_path) not in json.dumps(training)


def test_fine_tuning_starts_from_all_networks_of_the_run(tmp_path: Path) -> None:
    for _ in start(tmp_path / "first", 1, model="ssgan-8.ml", save_every=1):
        pass
    source = tmp_path / "first" / "checkpoints" / "00000001"
    tuned = start(tmp_path / "second", 1, model="ssgan-8.l0", start_from=str(source))
    assert tuned.networks.auxiliary_networks.keys() == {"discriminator", "encoder"}
    for name, network in tuned.networks.auxiliary_networks.items():
        assert_equal(network.state_dict(), load_file(source / f"{name}.safetensors"))


def test_weights_that_do_not_fit_their_config_are_refused_by_file(tmp_path: Path) -> None:
    for model in ("dcgan-8.ml", "dcgan-16.ml"):
        for _ in start(tmp_path / model, 1, model=model):
            pass
    source, other = (tmp_path / f"dcgan-{atoms}.ml/checkpoints/00000001" for atoms in (8, 16))
    shutil.copy(other / "discriminator.safetensors", source)
    with pytest.raises(
        ValueError, match="cannot start from a .*discriminator.safetensors holds another width"
    ):
        start(tmp_path / "second", 4, start_from=str(source))
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("there", [True, False])
def test_a_machine_without_bfloat16_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, there: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": there})
    AcceleratorState._reset_state(reset_partial_state=True)  # a process has one precision
    try:
        start(tmp_path / "run", 1, precision="bf16")
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert ("use the precision no" in caplog.text) == (not there)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (
            "wgan_gp-8.l0",
            "from a dcgan-8.ml: .* The source is a dcgan with 8 atoms .* a wgan_gp with 8 atoms .* is requested",
        ),
        (
            "dcgan-16.ml",
            "from a dcgan-8.ml: .* The source is a dcgan with 8 atoms .* a dcgan with 16 atoms .* is requested",
        ),
    ],
)
def test_a_checkpoint_of_another_architecture_or_width_is_refused_by_name(
    tmp_path: Path, model: str, says: str
) -> None:
    for _ in start(tmp_path / "first", 1):
        pass
    with pytest.raises(ValueError, match=says):
        start(tmp_path / "second", 4, model=model, start_from=str(tmp_path / "first/checkpoints/00000001"))
    assert not (tmp_path / "second").exists()


def test_a_checkpoint_of_a_conditional_run_has_the_names_of_its_classes(tmp_path: Path) -> None:
    for _ in start(tmp_path / "run", 1, model="cgan-8.ml"):
        pass
    opened = from_pretrained(tmp_path / "run" / "checkpoints" / "00000001")
    assert opened.class_names == tuple("abcdefghij")
    with pytest.raises(ValueError, match="0 a, 1 b, .* 9 j.* got 10"):
        opened.sample(1, labels=10)


@pytest.mark.parametrize("model", ["cgan-8.ml", "biggan-8.l0"])
def test_fine_tuning_keeps_the_weights_of_a_class_under_another_number(tmp_path: Path, model: str) -> None:
    for _ in start(tmp_path / "first", 2, model=model):
        pass
    source = tmp_path / "first" / "checkpoints" / "00000002"
    images = replace(pictures(labels=3), classes=("c", "new", "j"))
    tuned = open_run(
        tmp_path / "second", plan(model=model, start_from=str(source)), images, Schedule(2), device="cpu"
    )
    was, z = from_pretrained(source), torch.randn(1, tuned.networks.averaged.z_dim)
    for number, before in enumerate(
        (2, 0, 9)
    ):  # a class that is not known takes the first place that is left
        now = tuned.networks.averaged(z, torch.tensor([number]))[0]
        torch.testing.assert_close(now, was(z, torch.tensor([before]))[0])
        scores = [
            network(now, torch.tensor([label]))
            for network, label in (
                (tuned.networks.auxiliary_networks["discriminator"].eval(), number),
                (discriminator(source), before),
            )
        ]
        torch.testing.assert_close(*scores)
    for _ in tuned:
        pass
    published = tmp_path / "second" / "checkpoints" / "00000002"
    assert from_pretrained(published).class_names == ("c", "new", "j")


def discriminator(checkpoint: Path) -> torch.nn.Module:
    network = from_pretrained(checkpoint).spec.auxiliary_networks()["discriminator"]
    network.load_state_dict(load_file(checkpoint / AUXILIARY["discriminator"]))
    return network.eval()


def test_images_without_class_names_keep_the_known_names(tmp_path: Path) -> None:
    for _ in start(tmp_path / "first", 1, model="cgan-8.ml", labels=3):
        pass
    source = str(tmp_path / "first" / "checkpoints" / "00000001")
    images = replace(pictures(labels=4), classes=())
    tuned = open_run(
        tmp_path / "second", plan(model="cgan-8.ml", start_from=source), images, Schedule(2), device="cpu"
    )
    assert tuned.networks.averaged.class_names == ("a", "b", "c", "3")


@pytest.mark.parametrize(
    ("regularizer", "asked", "k"),
    [("ml", None, (1, 3)), ("ml", (2, 2), (2, 2)), ("l0_inf", None, (2,)), ("baseline", None, ())],
)
def test_fine_tuning_keeps_the_k_of_the_same_regularizer(
    tmp_path: Path, regularizer: str, asked: tuple | None, k: tuple
) -> None:
    for _ in start(tmp_path / "first", 1, k=(1, 3)):
        pass
    tune = {
        "regularizer": regularizer,
        "k": asked,
        "start_from": str(tmp_path / "first/checkpoints/00000001"),
    }
    for _ in start(tmp_path / "second", 1, **tune):
        pass
    assert from_pretrained(tmp_path / "second/checkpoints/00000001").spec.k == k
    shutil.rmtree(tmp_path / "first")
    assert start(tmp_path / "second", 3, resume=True, **tune).plan.k == k


def a_generator_alone(folder: Path) -> Path:
    """A checkpoint without a discriminator, after 2 steps."""
    for _ in start(folder, 2, save_every=2):
        pass
    (folder / "checkpoints" / "00000002" / AUXILIARY["discriminator"]).unlink()
    return (folder / "checkpoints" / "00000002").rename(folder / "published")


def test_a_fine_tuned_run_resumes_without_its_source(tmp_path: Path) -> None:
    source = a_generator_alone(tmp_path / "first")
    tune = {"warm_up": 5, "start_from": str(source)}
    for _ in start(tmp_path / "unbroken", 9, **tune):
        pass
    for progress in start(tmp_path / "broken", 9, **tune):
        if progress.step == 1:
            shutil.rmtree(source)
        if progress.step == 4:
            break
    moved = {"warm_up": 5, "start_from": "elsewhere/published/"}
    for _ in start(tmp_path / "broken", 9, resume=True, **moved):
        pass
    assert_equal(state(tmp_path / "broken"), state(tmp_path / "unbroken"))
    training = from_pretrained(tmp_path / "broken" / "checkpoints" / "00000009").config["training"]
    assert training["start_from"] == "dcgan-8.ml after 2 steps"


def test_a_new_discriminator_warms_up_before_the_generator_is_trained(tmp_path: Path) -> None:
    source = a_generator_alone(tmp_path / "first")
    with pytest.raises(ValueError, match="warms up for 3 steps and the run ends after 3, before"):
        start(tmp_path / "second", 3, start_from=str(source), warm_up=3)
    run = start(tmp_path / "second", 4, start_from=str(source), warm_up=3)
    first, discriminator = (
        {key: value.detach().clone() for key, value in network.named_parameters()}
        for network in (run.networks.generator, run.networks.auxiliary_networks["discriminator"])
    )
    for step, _ in run:
        moved = any(
            not torch.equal(first[key], value) for key, value in run.networks.generator.named_parameters()
        )
        assert moved == (step > 3)
    assert not torch.equal(
        discriminator["head.conv.weight"], run.networks.auxiliary_networks["discriminator"].head.conv.weight
    )


def test_a_folder_holds_one_run(tmp_path: Path) -> None:
    for _ in start(tmp_path / "run", 4):
        pass
    with pytest.raises(ValueError, match="holds this run already: resume it"):
        start(tmp_path / "run", 8)
    with pytest.raises(ValueError, match="holds another run .seed: 0 there, 1 requested"):
        start(tmp_path / "run", 8, seed=1, resume=True)
    assert start(tmp_path / "run", 8, resume=True).step == 4  # a longer schedule is the same run
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    del about["share"]  # as before there was such a choice
    (tmp_path / "run" / "run.json").write_text(json.dumps(about))
    assert start(tmp_path / "run", 8, resume=True).step == 4


def test_a_damaged_checkpoint_is_skipped_for_the_previous_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in start(tmp_path / "run", 8):
        pass
    broken = tmp_path / "run" / "checkpoints" / "00000008" / STATE
    record = broken.with_name("run.json")
    for other in ([], {}, {"step": "8", "best": None}, {"step": 8, "best": 5}):
        record.write_text(json.dumps(other))
        assert start(tmp_path / "run", 8, resume=True).step == 4
    record.write_text(json.dumps({"step": 8, "best": None}))
    assert start(tmp_path / "run", 8, resume=True).step == 8
    broken.write_bytes(broken.read_bytes()[:1000])
    assert start(tmp_path / "run", 8, resume=True).step == 4
    assert "00000008 cannot be read" in caplog.text
    (tmp_path / "run" / "checkpoints" / "00000004" / STATE).unlink()
    with pytest.raises(ValueError, match="none of the checkpoints in .* can be read"):
        start(tmp_path / "run", 8, resume=True)


TWO = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import torch
torch.set_num_threads(1)
from safetensors.torch import save_file
from test_run import start

folder = Path({folder!r})
run = start(folder / "gradless", 1)
run.networks.auxiliary_networks["discriminator"].unused = torch.nn.Parameter(torch.zeros(1))
for _ in run: pass

run = start(folder / "unbroken", 6)
rank = run.accelerator.process_index
real, _ = run.batches.at(0)
for _ in run: pass
save_file({{**run.networks.state(), "real": real}}, folder / f"{{rank}}.safetensors")

run = start(folder / "broken", 6)
for progress in run:
    if run.agree(rank == 1 and progress.step == 3):
        run.save()
        break
(folder / f"{{rank}}.step").write_text(str(progress.step))
for _ in start(folder / "broken", 6, resume=True): pass
"""


def test_two_processes_have_one_state_and_different_images_and_stop_and_resume_together(
    tmp_path: Path,
) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO.format(tests=str(ROOT / "tests"), folder=str(tmp_path)))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0",
               "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", str(script)]  # fmt: skip
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    assert not torch.equal(first.pop("real"), second.pop("real"))
    assert_equal(first, second)
    assert [(tmp_path / f"{rank}.step").read_text() for rank in (0, 1)] == ["3", "3"]
    assert_equal(state(tmp_path / "broken"), state(tmp_path / "unbroken"))


def test_the_plan_and_the_source_are_kept_as_json(tmp_path: Path) -> None:
    start(tmp_path / "run", 1)
    wanted = {**asdict(plan()), "k": [2, 2], "source": None, "processes": 1}
    assert json.loads((tmp_path / "run" / "run.json").read_text()) == wanted


def test_an_older_run_without_a_recorded_source_resumes(tmp_path: Path) -> None:
    for _ in start(tmp_path / "run", 4):
        pass
    (tmp_path / "run" / "run.json").write_text(json.dumps(asdict(plan())))
    assert start(tmp_path / "run", 8, resume=True).step == 4


def test_a_refused_run_writes_nothing_and_a_run_without_a_checkpoint_starts_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for wrong, says in [
        ({"batch_size": 65}, "fewer than one batch of 65: use a batch size of 64 or smaller"),
        ({"batch_size": 1}, "at least 2 because batch norm computes statistics over them; got 1"),
        (
            {"model": "cgan-8.ml", "labels": 0},
            "cgan-8.ml is conditional and noise has no labels: give data with",
        ),
        (
            {"model": "biggan-8.ml", "labels": 11},
            "has 10 classes, and noise has labels up to 10: give data of at most 10",
        ),
        ({"start_from": "nobody.ml"}, "no model"),
        ({"start_from": "dcgan.ml"}, "The source is a dcgan with 128 atoms"),
    ]:
        with pytest.raises(ValueError, match=says):
            start(folder, 4, **wrong)
        assert not folder.exists()
    for progress in start(folder, 4, seed=1):
        if progress.step == 3:
            break
    assert len(records(folder)) == 2
    for _ in start(folder, 4):
        pass
    assert [record["step"] for record in records(folder)] == [1, 2, 4]
    assert json.loads((folder / "run.json").read_text())["seed"] == 0


def test_a_conditional_run_without_labels_is_refused_with_the_reason(tmp_path: Path) -> None:
    images = replace(pictures(labels=0), unlabeled="stray.png lies outside a class folder")
    with pytest.raises(
        ValueError, match=r"noise has no labels \(stray.png lies outside a class folder\): give"
    ):
        open_run(tmp_path / "run", plan(model="cgan-8.ml"), images, Schedule(2), device="cpu")


def test_a_run_is_identified_by_its_data_not_by_their_path(tmp_path: Path) -> None:
    for _ in start(tmp_path / "run", 4):
        pass
    assert start(tmp_path / "run", 8, resume=True, data="./noise").step == 4
    with pytest.raises(ValueError, match="fingerprint: '0' there, '1' requested"):
        start(tmp_path / "run", 8, resume=True, fingerprint="1")


def test_an_incomplete_line_of_the_metrics_is_skipped(tmp_path: Path) -> None:
    for _ in start(tmp_path / "run", 4):
        pass
    path = tmp_path / "run" / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 4, "losses": {"cross')
    append_line(path, {"step": 4, "whole": True})
    assert [record["step"] for record in read_lines(path)] == [1, 2, 4, 4]
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    start(tmp_path / "run", 8, resume=True)
    assert [record["step"] for record in records(tmp_path / "run")] == [1, 2, 4, 4]


@pytest.mark.parametrize("there", ["a checkpoint", "measurements of others", "a record of others"])
def test_a_folder_with_foreign_files_of_the_same_names_is_refused(there: str, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    if there == "a checkpoint":
        for _ in start(tmp_path / "run", 4):
            pass
        (folder,) = checkpoints(tmp_path / "run")
    else:
        folder.mkdir()
        name = "metrics.jsonl" if there == "measurements of others" else "run.json"
        (folder / name).write_text('{"mine": 1}')
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(FileExistsError, match="is not a run and has .* choose another"):
        start(folder, 4)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_with_other_files_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "nohup.out").write_text("step 1")
    for _ in start(tmp_path, 4):
        pass
    assert start(tmp_path, 4, resume=True).step == 4 and (tmp_path / "nohup.out").exists()


def test_a_corrupt_run_json_is_named(tmp_path: Path) -> None:
    for _ in start(tmp_path / "run", 4):
        pass
    for content in ('{"model": ', "[1]"):
        (tmp_path / "run" / "run.json").write_text(content)
        with pytest.raises(ValueError, match="run/run.json cannot be read"):
            start(tmp_path / "run", 8, resume=True)


def test_the_best_checkpoint_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distances = iter([5.0, 3.0])
    run = start(
        tmp_path / "run", 4, evaluator=lambda _: {"metric": "d", "distance": next(distances)}, eval_every=2
    )
    best = tmp_path / "run" / "best"
    steps = iter(run)
    next(steps), next(steps)
    before = {path.name: path.read_bytes() for path in best.iterdir()}
    assert before.keys() == {CONFIG, WEIGHTS, AUXILIARY["discriminator"]}

    def killed(*_: object) -> None:
        raise OSError("killed")

    monkeypatch.setattr(run_module, "save_weights", killed)  # the discriminator's, after config and generator
    with pytest.raises(OSError, match="killed"):
        for _ in steps:
            pass
    assert {path.name: path.read_bytes() for path in best.iterdir()} == before


@pytest.mark.parametrize("eval_every", [1000, 6])
def test_diverged_weights_stop_a_run_before_it_deletes_its_last_finite_checkpoint(
    tmp_path: Path, eval_every: int
) -> None:
    run = start(tmp_path / "run", 20, eval_every=eval_every)
    with pytest.raises(
        RuntimeError, match="diverged: by step [68] .* start again from .*/00000004 in another folder"
    ):
        for step, _ in run:
            if step == 5:
                next(run.networks.averaged.parameters()).data[0] = torch.nan
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["00000004"]
    assert not (tmp_path / "run" / "samples").exists()


@pytest.mark.parametrize(
    ("network", "losses"),
    [("generator", "cross_entropy is nan"), ("discriminator", "cross_entropy is nan")],
)
def test_a_loss_that_is_not_finite_stops_a_run_at_once_and_names_the_step(
    tmp_path: Path, network: str, losses: str
) -> None:
    run = start(tmp_path / "run", 20)
    with pytest.raises(
        FloatingPointError, match=f"diverged: in step 6 {losses}.* again from .*/00000004 in another folder"
    ):
        for step, _ in run:
            if step == 5:
                next(run.networks.trained[network].parameters()).data[0] = torch.nan
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["00000004"]
    assert start(tmp_path / "run", 8, resume=True).step == 4


def test_a_run_that_diverges_before_its_first_checkpoint_does_not_refer_to_one(tmp_path: Path) -> None:
    run = start(tmp_path / "run", 20)
    with pytest.raises(FloatingPointError, match="diverged: in step 3 .*: start again, with a lower rate"):
        for step, _ in run:
            if step == 2:
                next(run.networks.generator.parameters()).data[0] = torch.nan


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("tpu", "cpu, cuda, cuda:N, mps or xpu; got 'tpu'"),
        ("cuda:", "got 'cuda:'"),
        ("cuda:4096", "no device cuda:4096"),
    ],
)
def test_a_missing_device_is_refused(name: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        find_device(name)
    assert find_device("cpu") == torch.device("cpu")
