"""The command line, in its own process."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import CLI, Done, assert_refused
from conftest import CLASSES, ROOT
from PIL import Image

from sparsegen import __version__
from sparsegen.__main__ import main
from sparsegen.export.runtime import open_sampler
from sparsegen.training.data import open_images
from sparsegen.training.features import FeatureNetwork
from sparsegen.zoo.bundled import AUXILIARY, MODELS, list_models
from sparsegen.zoo.checkpoint import from_pretrained
from sparsegen.zoo.generator import Generator
from sparsegen.zoo.spec import ModelSpec
from sparsegen.zoo.weights import save_weights


def in_a_process(*arguments: object) -> Done:
    command = [sys.executable, "-m", "sparsegen", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def model(tiny_ml: Generator, tmp_path: Path) -> Path:
    return tiny_ml.save_pretrained(tmp_path / "model")


@pytest.fixture
def conditional(tiny_conditional: Generator, tmp_path: Path) -> Path:
    return tiny_conditional.save_pretrained(tmp_path / "conditional")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(40):
        noise = np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{index:03d}.png")
    Image.fromarray(np.full((48, 40), 128, np.uint8)).save(folder / "grey.png")
    (folder / "broken.png").write_bytes((folder / "000.png").read_bytes()[:200])
    return folder


def test_sample_writes_the_pixels_that_python_draws(sparsegen: CLI, model: Path, tmp_path: Path) -> None:
    pixels = from_pretrained(model).sample(5, seed=7, k=1)
    common = ("sample", model, "--count", 5, "--seed", 7, "--k", 1, "--out")
    assert sparsegen(*common, tmp_path / "a.npy").returncode == 0
    assert np.array_equal(np.load(tmp_path / "a.npy"), pixels)
    assert sparsegen(*common, tmp_path / "grid.png", "--scale", 1).returncode == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "grid.png"))[2:34, 36:68], pixels[1])
    assert sparsegen(*common, tmp_path / "GRID.PNG", "--scale", 1).returncode == 0
    assert (tmp_path / "GRID.PNG").read_bytes() == (tmp_path / "grid.png").read_bytes()
    assert sparsegen(*common, tmp_path / "new" / "folder").returncode == 0
    files = sorted((tmp_path / "new" / "folder").iterdir())
    assert [file.name for file in files] == [f"7-{index:05d}.png" for index in range(5)]
    assert np.array_equal([np.asarray(Image.open(file)) for file in files], pixels)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--count", 0), "got 0"),
        (("--count", 10**9), "from 1 to 100000; got 1000000000"),
        (("--count", "many"), "--count"),
        (("--seed", -1), "got -1"),
        (("--seed", 2**64), "from 0 to 18446744073709551615"),
        (("--k", 0), "from 1 to 8; got 0"),
        (("--k", "9"), "from 1 to 8; got 9"),
        (("--k", "1,2,3"), "one for each of Γ1, Γ2"),
        (("--k", "few"), "--k must be one integer"),
        (("--truncation", 0), "at least 0.05"),
        (("--out", "/proc/nowhere/grid.png"), "/proc"),
        (("--out", "grid.jpg"), ".png or .npy, or be a folder"),
        (("--scale", 99), "--scale"),
        (("--speed", 2), "--speed"),
    ],
)
def test_sample_refuses_bad_input_in_one_line(
    sparsegen: CLI, model: Path, arguments: tuple, says: str
) -> None:
    assert_refused(sparsegen("sample", model, *arguments), says)


@pytest.mark.parametrize(
    ("labels", "numbers"),
    [("cat", [3] * 16), ("3", [3] * 16), ("3, 5,dog,truck", [3, 5, 5, 9]), (None, None)],
)
def test_sample_takes_labels_by_number_and_by_name(
    sparsegen: CLI, conditional: Path, tmp_path: Path, labels: str | None, numbers: list[int] | None
) -> None:
    asked = [] if labels is None else ["--labels", labels]
    done = sparsegen("sample", conditional, *asked, "--seed", 7, "--out", tmp_path / "drawn.npy")
    assert done.returncode == 0, done.stderr
    expected = from_pretrained(conditional).sample(len(numbers or range(16)), seed=7, labels=numbers)
    assert np.array_equal(np.load(tmp_path / "drawn.npy"), expected)
    assert np.ptp(expected.astype(int), axis=0).mean() > 5  # the images differ


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ("10", "9 truck, from 0 to 9; got 10"),
        ("-1", "9 truck, from 0 to 9; got -1"),
        ("cats", "no class 'cats': there are airplane, automobile, bird, cat, deer"),
        ("3,kat", "did you mean 'cat'?"),
        ("", "no class ''"),
    ],
)
def test_unknown_labels_are_refused_with_the_classes(
    sparsegen: CLI, model: Path, conditional: Path, labels: str, says: str
) -> None:
    assert_refused(sparsegen("sample", conditional, "--labels", labels), says, "airplane", "truck")
    assert_refused(sparsegen("sample", model, "--labels", labels), "omit them")


def test_several_labels_are_one_for_each_image(sparsegen: CLI, conditional: Path) -> None:
    done = sparsegen("sample", conditional, "--labels", "1,2", "--count", 3)
    assert_refused(done, "one class for all images or one for each of 3; got 2")


def test_an_unknown_model_lists_similar_ones(sparsegen: CLI) -> None:
    assert_refused(sparsegen("sample", "dcgan.mll"), "no model 'dcgan.mll'")
    assert_refused(sparsegen("info", "no/such/folder"), "no model")


def test_list_prints_names_in_a_pipe_and_a_table_on_a_terminal(
    sparsegen: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{name}\n" for name in list_models()]
    assert sparsegen("list").stdout == "".join(names)
    assert_refused(sparsegen("list", "stylegan*"), "no bundled model matches 'stylegan*'")
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    monkeypatch.setenv("COLUMNS", "200")
    assert sparsegen("list", "--plain").stdout == "".join(names)
    header, *rows, size, data, metric, terms = re.sub(
        r"\x1b\[[0-9;]*m", "", sparsegen("list").stdout
    ).splitlines()
    assert header.split() == "model classes atoms k steps distance density".split()
    assert size == "size: 32 pixels" and data == "trained on: cifar10"
    assert metric == "distance by: fd-efficientnet-lite0, lower is better"
    assert terms == "license: apache-2.0"
    assert len(rows) == len(names)
    for row, name in zip(rows, list_models(), strict=True):
        config = json.loads((MODELS / name / "config.json").read_text())
        evaluation = config["evaluation"]
        for text in (
            f"{name} ",
            f" {config['atoms']} ",
            " " + (", ".join(map(str, config["k"])) or "-"),
            f" {config['training']['steps']:,} ",
            f" {evaluation['distance']:.1f} ",
            f" {evaluation['density'][0]:.2f}, {evaluation['density'][1]:.2f}",
        ):
            assert text in row
        assert len(row.rstrip()) <= 80


def test_control_characters_do_not_reach_the_terminal(sparsegen: CLI, model: Path) -> None:
    """A config with them is refused; a message that quotes one, e.g. of a file name, escapes it."""
    folder = model.parent / "a\x1b[31m\x9b"
    model.rename(folder)
    done = sparsegen("sample", folder, "--count", 1, "--out", folder / "out.png")
    assert done.returncode == 0 and r"a\x1b[31m\x9b" in done.stdout
    (folder / "config.json").write_text('{"format": 1, "model": "\\u001b]0;"}')
    done = sparsegen("info", folder)
    assert done.returncode == 2 and r"a\x1b[31m\x9b" in done.stderr
    assert not re.search(r"[\x1b\x9b]", done.stdout + done.stderr)


def test_info_describes_a_model(sparsegen: CLI, model: Path, conditional: Path) -> None:
    shown = sparsegen("info", model).stdout
    for text in (
        "dcgan-8.ml",
        "8 x 3 x 4 x 4",
        "8 x 3 x 8 x 8",
        "2 of 8 in each needle",
        "license     not recorded",
    ):
        assert text in shown
    assert re.search(r"classes +none", shown)
    shown = " ".join(sparsegen("info", conditional).stdout.split())
    assert ", ".join(f"{label} {called}" for label, called in enumerate(CLASSES)) in shown
    assert "Γ1 8 x 32 x 32" in shown and "D1 8 x 3 x 3 x 3" in shown and "D_eff 8 x 3 x 5 x 5" in shown


@pytest.mark.parametrize(
    "command", ["list", "sample", "train", "evaluate", "export", "serve", "plot", "push", "info", "encode"]
)
def test_every_command_has_help_with_an_example(sparsegen: CLI, command: str) -> None:
    done = sparsegen(command, "--help")
    assert done.returncode == 0
    assert f"Example: sparsegen {command}" in done.stdout


def test_the_old_names_of_the_evaluation_options_still_work(
    sparsegen: CLI, pictures: Path, tmp_path: Path
) -> None:
    done = sparsegen("train", "dcgan-8.ml.paper", "--data", pictures, "--out", tmp_path, "--batch-size", 8,
                     "--steps", 1, "--judge-count", 0, "--judge-every", 1)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (
        "--judge-count is deprecated and will be removed in the next version: use --eval-count" in done.stderr
    )
    assert "use --eval-every" in done.stderr
    assert not (tmp_path / "best").exists()  # no evaluation, as --judge-count 0 asked


def test_a_k_that_is_the_default_is_the_same_run(sparsegen: CLI, pictures: Path, tmp_path: Path) -> None:
    arguments = (
        "train",
        "dcgan-8.ml.paper",
        "--data",
        pictures,
        "--out",
        tmp_path / "run",
        "--batch-size",
        8,
    )
    arguments += ("--eval-count", 0, "--steps")
    assert sparsegen(*arguments, 1).returncode == 0
    assert_refused(sparsegen(*arguments, 2, "--resume", "--k", "2,3"), "k: [2, 2] there, [2, 3] requested")
    done = sparsegen(*arguments, 2, "--resume", "--k", "2,2")  # a quarter of 8 channels
    assert done.returncode == 0, done.stderr
    assert "trained for 2 steps" in done.stdout


def test_training_on_a_folder_skips_damaged_images_and_saves_a_model(
    sparsegen: CLI, pictures: Path, tmp_path: Path
) -> None:
    arguments = (
        "train",
        "dcgan-8.ml.paper",
        "--data",
        pictures,
        "--out",
        tmp_path / "run",
        "--batch-size",
        8,
    )
    done = in_a_process(*arguments, "--steps", 3, "--eval-count", 0, "--k", "1,2")
    assert done.returncode == 0, done.stderr
    assert "broken.png" in done.stderr
    assert "dcgan-8.ml trained for 3 steps" in done.stdout
    trained = from_pretrained(tmp_path / "run" / "checkpoints" / "00000003")
    assert [k_range.k for k_range in trained.k_ranges] == [1, 2]
    assert trained.config["training"]["steps"] == 3
    assert_refused(sparsegen(*arguments, "--steps", 5, "--k", "1,2"), "resume it")
    done = sparsegen(*arguments, "--steps", 5, "--k", "1,2", "--eval-count", 0, "--resume")
    assert done.returncode == 0, done.stderr
    assert "trained for 5 steps" in done.stdout
    into = (
        "train",
        "dcgan-8.l0.paper",
        "--from",
        tmp_path / "run" / "checkpoints" / "00000005",
        "--data",
        pictures,
    )
    done = sparsegen(*into, "--out", tmp_path / "tuned", "--batch-size", 8, "--steps", 2, "--eval-count", 0)
    assert done.returncode == 0, done.stderr


def test_training_on_a_share_of_the_images_records_it(sparsegen: CLI, pictures: Path, tmp_path: Path) -> None:
    arguments = ("train", "dcgan-8.ml.paper", "--data", pictures, "--steps", 1, "--eval-count", 0)
    more = ("--batch-size", 10, "--share", 0.25)
    done = sparsegen(*arguments, "--out", tmp_path / "run", *more, "--rate", 0.5)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["share"] == 0.25
    trained = from_pretrained(tmp_path / "run" / "checkpoints" / "00000001").config["training"]
    assert trained["share"] == 0.25 and trained["rate"] == 0.5
    assert sparsegen(*arguments, "--out", tmp_path / "all", "--batch-size", 10).returncode == 0
    of_all = json.loads((tmp_path / "all" / "run.json").read_text())
    assert of_all["share"] == 1 and of_all["fingerprint"] != trained["fingerprint"]
    more = sparsegen(*arguments, "--out", tmp_path / "x", "--batch-size", 11, "--share", 0.25)
    assert_refused(more, "has 10 images, fewer than one batch of 11")  # of 41, one of them is broken
    again = sparsegen(*arguments, "--out", tmp_path / "run", "--batch-size", 10, "--resume")
    assert_refused(again, "share: 0.25 there, 1.0 requested; rate: 0.5 there, 1.0 requested")


def test_ctrl_c_saves_and_states_how_to_resume(sparsegen: CLI, pictures: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sparsegen", "train", "dcgan-8.ml.paper", "--data", str(pictures)]
    command += [
        "--out",
        str(tmp_path / "run"),
        "--batch-size",
        "8",
        "--steps",
        "100000",
        "--eval-count",
        "0",
    ]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.index("stopping and saving after this step; press Ctrl-C again") < said.index(
        "--resume continues"
    )
    step = json.loads(next((tmp_path / "run" / "checkpoints").iterdir()).joinpath("run.json").read_text())[
        "step"
    ]
    assert f"saved at step {step}" in said
    assert re.search(
        r"step 1 of 100000  cross_entropy \S+  non_saturating \S+  \d+ images/s  .+ of training left\n",
        said,
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("dcgan.sparse",), "no regularizer 'sparse'"),
        (("stylegan.ml",), "no architecture 'stylegan'"),
        (("dcgan-8.ml", "--k", 9), "from 1 to 8; got 9"),
        (("dcgan-8.ml", "--batch-size", 64), "fewer than one batch of 64"),
        (("dcgan-8.ml", "--from", "nobody.ml"), "no model 'nobody.ml'"),
        (("dcgan-8.ml", "--precision", "fp4"), "precision"),
        (("dcgan-8.ml", "--device", "tpu"), "got 'tpu'"),
        (("dcgan-8.ml", "--device", "cuda:4096"), "no device cuda:4096"),
        (("dcgan-8.ml", "--eval-count", 1), "eval_count is 0, or the number of images drawn, from 2 to"),
        (("dcgan-8.ml", "--share", 0), "above 0 and at most 1; got 0"),
        (("dcgan-8.ml", "--share", 1.5), "--share"),
        (("dcgan-8.ml", "--share", "nan"), "--share"),
        (("dcgan-8.ml", "--rate", 0), "a rate must be a factor of the recipe's learning rates above 0"),
        (("dcgan-8.ml", "--rate", "nan"), "above 0, e.g. 0.1 or 4; got nan"),
        (("dcgan-8.ml", "--resume"), "holds no run to resume"),
        (("dcgan-8.ml", "--out", "/proc/x/run"), "/proc"),
        (("dcgan-8.ml", "--data", "missing/folder/of/images"), "missing/folder"),
    ],
)
def test_train_refuses_bad_input_in_one_line(
    sparsegen: CLI, pictures: Path, tmp_path: Path, arguments: tuple, says: str
) -> None:
    given = {"--data": str(pictures), "--out": str(tmp_path / "run"), "--eval-count": 0}
    rest = [part for name, value in given.items() if name not in arguments for part in (name, value)]
    assert_refused(sparsegen("train", *arguments, *rest, "--steps", 1), says)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("features", "known", "opened", "independent"),
    [
        (None, False, "efficientnet-lite0", True),
        ("cifar10-classifier", False, "efficientnet-lite0", True),
        ("efficientnet-lite0", True, "cifar10-classifier", True),
        ("efficientnet-lite0", False, "efficientnet-lite0", False),
    ],
)
def test_a_run_is_evaluated_on_its_device_by_a_network_that_is_not_in_its_discriminator(
    sparsegen: CLI,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    features: str | None,
    known: bool,
    opened: str,
    independent: bool,
) -> None:
    asked = []

    def open_features(name: str, **how: object) -> FeatureNetwork:
        asked.append((name, how))
        return FeatureNetwork("mean", 3, lambda images: images.float().mean(dim=(2, 3)))

    monkeypatch.setattr("sparsegen.training.features.open_features", open_features)
    if known:
        trained_on = open_images(pictures).fingerprint
        monkeypatch.setattr("sparsegen.training.features.trained_on", lambda: trained_on)
    model = f"dcgan-8.ml.{'projected' if features else 'paper'}"
    done = sparsegen("train", model, "--data", pictures, "--out", tmp_path / "run", "--batch-size", 8, "--steps", 1,
                     "--eval-count", 4, "--device", "cpu", "--features", features or "auto")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert asked == [(opened, {"device": torch.device("cpu")})]
    assert re.search(r"the best model, kernel distance [\d.-]+ \(mean [\d.]+\) at step", done.stdout)
    evaluation = from_pretrained(tmp_path / "run" / "best").config["evaluation"]
    assert evaluation["independent"] is independent and evaluation["distances"] == {
        "mean": evaluation["distance"]
    }


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simple feature networks in place of the slow ones."""
    networks = {
        "efficientnet-lite0": FeatureNetwork("fd-mean", 3, lambda images: images.float().mean(dim=(2, 3))),
        "cifar10-classifier": FeatureNetwork(
            "fd-red", 1, lambda images: images[:, :1].float().mean(dim=(2, 3))
        ),
    }
    monkeypatch.setattr(
        "sparsegen.training.features.open_features", lambda name, weights=None, device=None: networks[name]
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Training and test pictures of ten classes, each of another shade of gray."""
    for split, count in (("train", 6), ("test", 2)):
        for label, name in enumerate(CLASSES):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                draws = np.random.default_rng([label, index, count])
                pixels = draws.integers(20 * label, 20 * label + 60, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "data"


def test_evaluate_names_its_metric_and_writes_its_figures(
    sparsegen: CLI, model: Path, pictures: Path, tmp_path: Path
) -> None:
    done = sparsegen("evaluate", model, "--data", pictures, "--count", 16, "--out", tmp_path / "figures.json",
                     "--features", "efficientnet-lite0")  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["metric"] == figures["measured_by"] == "fd-efficientnet-lite0"
    assert figures["count"] == figures["compared"] == 16
    assert figures["reference_count"] == 41
    assert figures["distance"] > 0 and figures["distances"] == {"fd-efficientnet-lite0": figures["distance"]}
    assert "fd-efficientnet-lite0" in done.stdout and re.search(r"class_accuracy +-", done.stdout)
    assert figures["class_accuracy"] is figures["memorized"] is None and "(give test images)" in done.stderr
    assert_refused(sparsegen("evaluate", model, "--data", pictures, "--count", 1, "--quick"), "got 1")
    assert_refused(sparsegen("evaluate", model, "--data", pictures, "--count", 3), "from 4 to 100000; got 3")
    done = sparsegen("evaluate", model, "--data", pictures, "--count", 8, "--record", "--quick")
    assert done.returncode == 0 and "precision" not in done.stdout and "kernel_distance" in done.stdout
    recorded = from_pretrained(model).config["evaluation"]
    assert recorded["count"] == 8
    assert recorded["data"] == "pictures"
    refused = sparsegen("evaluate", model, "--data", pictures, "--count", 8, "--k", 1, "--record")
    assert_refused(refused, "omit --k")
    assert from_pretrained(model).config["evaluation"] == recorded


def test_evaluate_measures_a_conditional_model_by_all_measures(
    sparsegen: CLI, conditional: Path, data: Path, tmp_path: Path, stand_ins: None
) -> None:
    done = sparsegen("evaluate", conditional, "--data", data, "--count", 30, "--record",
                     "--out", tmp_path / "all.json", "--neighbors", tmp_path / "near.png",
                     "--features", "efficientnet-lite0,cifar10-classifier")  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done.stderr
    figures = json.loads((tmp_path / "all.json").read_text())
    assert list(figures["distances"]) == ["fd-mean", "fd-red"] and figures["metric"] == "fd-mean"
    for name in ("class_accuracy", "class_accuracy_real", "precision", "recall", "memorized"):
        assert 0 <= figures[name] <= 1 and name in done.stdout
    assert figures["class_accuracy_real"] > 0.8
    assert figures["independent"] and figures["compared"] == 30
    recorded = from_pretrained(conditional).config["evaluation"]
    assert recorded == {name: value for name, value in figures.items() if name != "model"}
    assert "fd-red" in sparsegen("info", conditional).stdout
    picture = np.asarray(Image.open(tmp_path / "near.png"))
    assert picture.shape == (2 * (16 * 34 + 2), 2 * (10 * 34 + 2), 3)
    first = from_pretrained(conditional).sample(1)[0]
    assert np.array_equal(picture[4:68:2, 4:68:2], first)


@pytest.mark.parametrize(
    ("features", "headline"), [("cifar10-classifier", "fd-mean"), ("efficientnet-lite0", "fd-red")]
)
def test_the_headline_of_a_projected_model_is_of_a_network_outside_its_discriminator(
    sparsegen: CLI, model: Path, data: Path, tmp_path: Path, stand_ins: None, features: str, headline: str
) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"training": {"features": features}}))
    arguments = (
        "evaluate",
        model,
        "--data",
        data,
        "--count",
        8,
        "--out",
        tmp_path / "all.json",
        "--features",
    )
    assert sparsegen(*arguments, "efficientnet-lite0,cifar10-classifier").returncode == 0
    figures = json.loads((tmp_path / "all.json").read_text())
    assert figures["metric"] == figures["measured_by"] == headline and figures["independent"]
    done = sparsegen(*arguments, features)
    assert done.returncode == 0 and "was trained against the features of" in done.stderr
    assert json.loads((tmp_path / "all.json").read_text())["independent"] is False


def test_real_test_images_are_measured_like_samples(
    sparsegen: CLI, data: Path, pictures: Path, tmp_path: Path, stand_ins: None
) -> None:
    arguments = ("--features", "efficientnet-lite0", "--out", tmp_path / "real.json")
    done = sparsegen("evaluate", "real", "--data", data, *arguments)
    assert done.returncode == 0 and not done.stderr, done.stderr
    figures = json.loads((tmp_path / "real.json").read_text())
    assert (figures["model"], figures["count"], figures["reference_count"]) == ("real", 20, 60)
    assert figures["class_accuracy"] == figures["class_accuracy_real"] > 0.8
    assert figures["seed"] is None and figures["density"] == [] and figures["memorized"] <= 0.1
    assert sparsegen("evaluate", "real", "--data", data, "--count", 8, *arguments).returncode == 0
    assert json.loads((tmp_path / "real.json").read_text())["count"] == 8
    done = sparsegen("evaluate", "real", "--data", data / "train", "--test", data / "test", *arguments)
    assert done.returncode == 0 and json.loads((tmp_path / "real.json").read_text())["count"] == 20


def test_real_images_without_a_test_split_are_refused(
    sparsegen: CLI, data: Path, pictures: Path, tmp_path: Path, stand_ins: None
) -> None:
    real = ("evaluate", "real", "--features", "efficientnet-lite0", "--data")
    assert_refused(
        sparsegen(*real, data / "train"), "measures test images", "no split 'test'", "give test images"
    )
    assert_refused(sparsegen(*real, data / "test", "--test", data / "test"), "are its training images")
    assert_refused(sparsegen(*real, data, "--record"), "omit --record and --k", "./real")
    assert_refused(
        sparsegen(*real, data, "--neighbors", tmp_path / "near.jpg"), "--neighbors must end in .png"
    )
    assert_refused(sparsegen("evaluate", "real", "--data", data, "--features", "vgg"), "got 'vgg'")


def test_ctrl_c_before_any_work_is_reported(
    sparsegen: CLI, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sparsegen.from_pretrained", interrupted)
    done = sparsegen("sample", "dcgan.ml", "--out", tmp_path / "x.png")
    assert done.returncode == 130 and done.stderr == "sparsegen: interrupted\n"


@pytest.mark.parametrize("what", ["atoms", "density", "samples"])
def test_plots_are_written_as_png(sparsegen: CLI, model: Path, tmp_path: Path, what: str) -> None:
    done = sparsegen("plot", what, model, "--out", tmp_path / "picture.png")
    assert done.returncode == 0, done.stderr
    picture = np.asarray(Image.open(tmp_path / "picture.png").convert("RGB"))
    assert min(picture.shape[:2]) > 80
    assert picture.std() > 10
    for name in ("x.pdf", "x"):
        assert_refused(
            sparsegen("plot", what, model, "--out", tmp_path / name), "--out must end in .png; got"
        )


def test_export_reports_its_parity(sparsegen: CLI, model: Path, tmp_path: Path) -> None:
    done = sparsegen("export", model, "--out", tmp_path / "m.onnx")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "m.onnx").stat().st_size > 10_000
    assert "verified against torch: largest difference" in done.stdout
    assert_refused(sparsegen("export", model, "--out", "/proc/x/m.onnx"), "/proc")
    assert sparsegen("export", model, "--out", tmp_path / "served").returncode == 0
    served = open_sampler(tmp_path / "served").sample(4).astype(int)
    assert np.abs(served - from_pretrained(tmp_path / "served").sample(4)).max() <= 1
    assert (
        np.abs(
            open_sampler(tmp_path / "m.onnx").sample(4) - from_pretrained(model).sample(4).astype(int)
        ).max()
        <= 1
    )
    assert_refused(sparsegen("export", model, "--out", tmp_path / "x", "--discriminator"), "discriminator")
    assert not (tmp_path / "x").exists()
    refused = sparsegen("export", model, "--out", tmp_path / "x.onnx", "--discriminator")
    assert_refused(refused, "x.onnx is a file: give a folder")
    assert not (tmp_path / "x.onnx").exists()


def test_export_writes_the_forms_that_other_tools_read(sparsegen: CLI, model: Path, tmp_path: Path) -> None:
    done = sparsegen("export", model, "--out", tmp_path / "m.onnx", "--plain", "--half")
    assert done.returncode == 0, done.stderr
    assert "weights were rounded to half precision" in done.stdout
    assert np.array_equal(open_sampler(tmp_path / "m.onnx").sample(2).shape, (2, 32, 32, 3))
    done = sparsegen("export", model, "--out", tmp_path / "m.pt2")
    assert done.returncode == 0, done.stderr
    assert "torch.export.load" in done.stdout and (tmp_path / "m.pt2").is_file()
    for arguments, says in {
        ("x", "--plain"): "--plain needs an .onnx file, and .*x is a folder",
        ("x", "--half"): "--half needs an .onnx file",
        ("x.pt2", "--plain"): "x.pt2 is a .pt2 file: omit --plain",
        ("x.pt2", "--half"): "x.pt2 is a .pt2 file: omit --half",
        ("x.pt2", "--synthesis"): "x.pt2 is a .pt2 file: omit --synthesis",
        ("x.pt2", "--discriminator"): "x.pt2 is a file: give a folder",
        ("x.tflite",): "must end in .onnx or .pt2 or .html, or be a folder",
    }.items():
        name, *options = arguments
        refused = sparsegen("export", model, "--out", tmp_path / name, *options)
        assert refused.returncode and re.search(says, refused.stderr.replace("\n", " ")), refused.stderr
        assert not (tmp_path / name).exists()


def test_an_export_with_its_discriminator_is_written_again(
    sparsegen: CLI, model: Path, tmp_path: Path
) -> None:
    folder = from_pretrained(model).save_pretrained(tmp_path / "trained")
    network = ModelSpec.parse("dcgan-8.ml").auxiliary_networks()["discriminator"]
    save_weights(network, folder / AUXILIARY["discriminator"], torch.float32)
    for _ in range(2):
        done = sparsegen("export", folder, "--out", tmp_path / "mine", "--discriminator")
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine" / AUXILIARY["discriminator"]).is_file()


def test_export_overwrites_only_the_folder_of_an_older_export(
    sparsegen: CLI, model: Path, tmp_path: Path
) -> None:
    def contents() -> dict:
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    from_pretrained(model).save_pretrained(tmp_path / "other")
    (tmp_path / "link").symlink_to(model)
    before = contents()
    for place, says in [
        ("model", "the model itself"),
        ("link", "the model itself"),
        ("mine", "other files"),
        ("other", "other files"),
        ("m.txt", ".html, or be a folder"),
    ]:
        assert_refused(sparsegen("export", model, "--out", tmp_path / place), says)
    assert contents() == before
    assert sparsegen("export", model, "--out", tmp_path / "dcgan-8.ml").returncode == 0
    bundled = contents()
    assert_refused(sparsegen("export", model, "--out", tmp_path / "dcgan-8.ml", "--discriminator"), "missing")
    assert contents() == bundled
    assert sparsegen("export", model, "--out", tmp_path / "dcgan-8.ml").returncode == 0
    assert contents() == bundled
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_push_offline_is_a_clear_error(sparsegen: CLI, model: Path) -> None:
    assert_refused(sparsegen("push", model, "me/mine"), "me/mine")
    assert_refused(sparsegen("push", model, "not a hub id"), "not a hub id")


@pytest.mark.parametrize(
    "entry", [{"training": [1]}, {"k": []}, {"license": None}, {"evaluation": {"metric": "fid"}}]
)
def test_an_invalid_config_is_reported_in_one_line(sparsegen: CLI, model: Path, entry: dict) -> None:
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entry}))
    assert_refused(sparsegen("info", model), "config.json", next(iter(entry)))
    assert_refused(sparsegen("push", model, "me/mine"), "config.json", next(iter(entry)))


def test_a_bug_is_reported_in_one_line_with_how_to_see_the_traceback(
    sparsegen: CLI, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Generator, "sample", lambda *_, **__: {}["oops"])
    done = sparsegen("sample", model)
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (1, 1)
    assert "KeyError: 'oops'" in done.stderr and "SPARSEGEN_TRACEBACK=1" in done.stderr
    monkeypatch.setenv("SPARSEGEN_TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["sparsegen", "sample", str(model)])
    with pytest.raises(KeyError):
        main()


def test_without_a_command_the_help_is_shown(sparsegen: CLI) -> None:
    done = sparsegen()
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) > 10 and "evaluate" in done.stdout


def test_names_are_not_read_as_markup(sparsegen: CLI, model: Path, tmp_path: Path) -> None:
    for name in ("grid[red].png", "run[/seed 3].png", ":smile:.png"):
        path = tmp_path / name
        done = sparsegen("sample", model, "--count", 1, "--out", path)
        assert (done.returncode, done.stderr) == (0, "") and done.stdout.endswith(f" in {path}\n")


def test_a_run_whose_names_look_like_markup_is_trained(
    sparsegen: CLI, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pictures / "broken.png").unlink()
    data, run = pictures.rename(tmp_path / "data[red]"), tmp_path / "run[bold]"
    done = sparsegen(
        "train",
        "dcgan-8.ml.paper",
        "--data",
        data,
        "--out",
        run,
        "--steps",
        1,
        "--batch-size",
        4,
        "--eval-count",
        0,
    )
    assert (
        done.returncode == 0
        and f"trained for 1 steps: the model is {run}/checkpoints/00000001\n" in done.stdout
    )


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "cp1252"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=["cp1252", "ascii"],
)
def test_greek_letters_are_substituted_in_a_pipe_that_lacks_them(
    model: Path, variables: dict[str, str]
) -> None:
    for arguments, says in ((("info", model), "k of Gamma1"), (("sample", "--help"), "Gamma1 first")):
        command = [sys.executable, "-m", "sparsegen", *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, env=os.environ | variables)
        # Click writes its help as UTF-8 where the encoding is ASCII.
        text = " ".join(done.stdout.decode().replace("Γ", "Gamma").split())
        assert (done.returncode, done.stderr) == (0, b"") and says in text


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are always Unicode there")
def test_file_names_need_not_be_utf_8(sparsegen: CLI, pictures: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(b"b\xe9")
    (pictures / "broken.png").unlink()
    data, run, shown = pictures.rename(tmp_path / odd), tmp_path / "run", "b\\udce9"
    (data / "000.png").rename(data / f"{odd}.png")
    command = ("train", "dcgan-8.ml.paper", "--data", data, "--batch-size", 4, "--eval-count", 0, "--steps")
    assert sparsegen(*command, 1, "--out", run).returncode == 0
    assert sparsegen(*command, 2, "--out", run, "--resume").returncode == 0
    trained = run / "checkpoints" / "00000002"
    assert json.loads((trained / "config.json").read_text("utf-8"))["training"]["data"] == odd
    done = sparsegen("sample", trained, "--count", 1, "--out", tmp_path / f"{odd}.png")
    assert done.returncode == 0 and f"{shown}.png" in done.stdout and (tmp_path / f"{odd}.png").is_file()
    moved = shutil.copytree(trained, tmp_path / f"{odd}-model")
    for refused in (
        (*command, 1, "--out", tmp_path / f"{odd}-run"),
        ("export", trained, "--out", tmp_path / f"{odd}.onnx"),
        ("info", moved),
    ):
        assert_refused(sparsegen(*refused), "is not a UTF-8 path")


def test_a_folder_with_the_name_of_a_bundled_model_is_reported(
    tiny_ml: Generator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert from_pretrained("dcgan.ml").spec.name == "dcgan.ml" and not caplog.messages
    tiny_ml.save_pretrained(tmp_path / "dcgan.ml")
    assert from_pretrained("./dcgan.ml").spec.name == "dcgan-8.ml" and not caplog.messages
    for opened in (from_pretrained("dcgan.ml").spec.name, open_sampler("dcgan.ml").name):
        assert opened == "dcgan.ml" and "give ./dcgan.ml" in caplog.messages.pop()


@pytest.mark.parametrize(
    ("arguments", "module", "extra"),
    [
        (("train", "dcgan-8.ml.paper", "--data", "nowhere", "--out", "run"), "accelerate", "train"),
        (("evaluate", "dcgan.ml", "--data", "nowhere"), "efficientnet_lite_pytorch", "train"),
        (("serve", "--port", 4452), "bentoml", "serve"),
        (("serve", "--port", 4452), "gradio", "serve"),
        (("worker", "--once"), "huey", "serve,restore"),
        (("plot", "atoms", "nowhere", "--out", "atoms.png"), "matplotlib", "plot"),
        (("export", "nowhere", "--out", "model.onnx"), "onnxscript", "export"),
        (("denoise", "nowhere.png", "--out", "o.png", "--history", "h.png"), "matplotlib", "plot"),
        (("train", "dcgan-8.ml.paper", "--data", "nowhere", "--out", "run"), "torch", "train"),
        (("evaluate", "dcgan.ml", "--data", "nowhere"), "torch", "train"),
        (("worker", "--once"), "torch", "serve,restore"),
        (("space", "--out", "space"), "numba", "serve,restore"),
        (("plot", "samples", "dcgan.ml", "--out", "samples.png"), "torch", "plot"),
        (("export", "dcgan.ml", "--out", "model.onnx"), "torch", "export"),
        (("push", "dcgan.ml", "me/mine"), "onnx", "export"),
        (("denoise", ROOT / "docs" / "samples.png", "--out", "o.png"), "torch", "restore"),
    ],
)
def test_a_missing_extra_is_reported_before_any_work_with_the_command_that_installs_it(
    tmp_path: Path, arguments: tuple, module: str, extra: str
) -> None:
    script = f"import sys; sys.modules[{module!r}] = None; from sparsegen.__main__ import main; main()"
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert_refused(Done(done.returncode, done.stdout, done.stderr), "pip install", f"[{extra}]")
    assert not list(tmp_path.iterdir())


def test_the_version_is_shown(sparsegen: CLI) -> None:
    done = sparsegen("--version")
    assert (done.returncode, done.stdout) == (0, f"sparsegen {__version__}\n")
