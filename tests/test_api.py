"""The public Python functions, and the tables that other packages extend."""

import doctest
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sparsegen
from sparsegen.zoo.architectures import ARCHITECTURES
from sparsegen.zoo.regularizers import REGULARIZERS
from sparsegen.zoo.spec import ModelSpec

PUBLIC = [name for name in sparsegen.__all__ if name != "__version__"]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of 12 pictures of 80 x 70 pixels in three class folders."""
    rng = np.random.default_rng(0)
    for number in range(12):
        path = tmp_path / "pictures" / "abc"[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (70, 80, 3), np.uint8)).save(path)
    return tmp_path / "pictures"


@pytest.fixture
def tables() -> Iterator[None]:
    """The tables, restored after the test."""
    architectures, regularizers = dict(ARCHITECTURES), dict(REGULARIZERS)
    yield
    for table, kept in ((ARCHITECTURES, architectures), (REGULARIZERS, regularizers)):
        table.clear()
        table.update(kept)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_exists_and_is_documented(name: str) -> None:
    value = getattr(sparsegen, name)
    assert name in dir(sparsegen)
    assert value.__doc__ and value.__module__.startswith("sparsegen.")


@pytest.mark.parametrize("name", PUBLIC)
def test_the_example_of_a_docstring_runs(name: str, tables: None) -> None:
    value = getattr(sparsegen, name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in doctest.DocTestFinder(recurse=False).find(value, name, globs={}):
        runner.run(test)
    assert runner.failures == 0


@pytest.mark.parametrize("architecture", ["dcgan", "biggan", "ssgan"])
@pytest.mark.parametrize("size", [64, 128])
def test_a_model_of_larger_images_is_saved_opened_and_exported(architecture, size, tmp_path) -> None:
    spec = ModelSpec.of(architecture, "ml", 8, image_size=size)
    assert ModelSpec.parse(spec.name) == spec and f"-{size}px" in spec.name
    generator = sparsegen.create_model(architecture, "ml", width=8, image_size=size)
    folder = generator.save_pretrained(tmp_path / "model")
    opened = sparsegen.from_pretrained(folder)
    pixels = opened.sample(2, seed=3)
    assert pixels.shape == (2, size, size, 3) and opened.image_size == size
    sparsegen.export_onnx(opened, tmp_path / "m.onnx")
    sampler = sparsegen.open_sampler(tmp_path / "m.onnx")
    assert sampler.image_size == size
    assert np.abs(sampler.sample(2, seed=3).astype(int) - pixels).max() <= 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_networks_grow_by_a_block_per_doubling(architecture: str) -> None:
    for size in (32, 64, 128):
        spec = ModelSpec.of(architecture, "ml", 8, image_size=size)
        generator, others = spec.generator().eval(), spec.auxiliary_networks()
        labels = torch.tensor([0, 1]) if generator.classes else None
        image, codes = generator(torch.randn(2, generator.z_dim), labels)
        assert image.shape == (2, 3, size, size)
        assert [tuple(code.shape[1:]) for code in codes] == list(spec.code_shapes)
        assert others["discriminator"].eval()(image, labels).shape[0] == 2
        if "encoder" in others:
            assert others["encoder"](image).shape == (2, generator.z_dim)


def test_full_width_networks_for_32_pixels_are_those_of_the_paper() -> None:
    """Counted before the image size was configurable."""
    counts = {
        name: sum(p.numel() for p in sparsegen.create_model(name).parameters())
        for name in ("dcgan", "cgan", "wgan_gp", "sagan", "ssgan", "biggan")
    }
    assert counts == COUNTS


COUNTS = {
    "dcgan": 3825667, "cgan": 3531395, "wgan_gp": 3813379, "sagan": 4386308, "ssgan": 4276739, "biggan": 4304387,
}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 48}, "image_size is the side of the images in pixels, one of 32, 64, 128; got 48"),
        ({"width": 3}, "atoms is the filters of D1, from 4 to 1024; got 3"),
        ({"classes": 3}, "dcgan has no labels: .*; got 3"),
        ({"classes": -1}, "classes is the number of labels, .*; got -1"),
        ({"k": 9}, "k"),
    ],
)
def test_an_impossible_model_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sparsegen.create_model("dcgan", "ml", **({"width": 8} | options))


def test_a_folder_of_other_sizes_is_trained_on_at_64_pixels(pictures, tmp_path, caplog) -> None:
    """Images are resized with a warning; classes are those of the folder; a callback stops the run; it resumes."""
    seen = []

    def stop_after_two(run, progress) -> bool:
        seen.append(progress.step)
        return progress.step == 2

    config = sparsegen.TrainConfig(
        "biggan-8.ml.paper", str(pictures), tmp_path / "run", 4, image_size=64, batch_size=4, eval_count=0
    )
    run = sparsegen.train(config, [stop_after_two])
    assert "12 of the 12 images" in caplog.text and "resized to 64 x 64 pixels" in caplog.text
    assert run.stopped and run.step == 2 and seen == [1, 2]
    run = sparsegen.train(replace(config, resume=True))
    assert not run.stopped and run.step == 4
    checkpoint = sparsegen.from_pretrained(tmp_path / "run" / "checkpoints" / "00000004")
    assert checkpoint.spec.name == "biggan-8-64px.ml" and checkpoint.classes == 3
    assert checkpoint.class_names == ("a", "b", "c") and checkpoint.sample(1, labels="c").shape == (
        1,
        64,
        64,
        3,
    )


def test_a_registered_name_is_checked(tables: None) -> None:
    biggan = sparsegen.get_architecture("biggan")
    for name in ("Mine", "a-b", "a.b", "", "1a"):
        with pytest.raises(ValueError, match="lower-case letters"):
            sparsegen.register_architecture(name, biggan)
    with pytest.raises(TypeError, match="of type Architecture; got 5"):
        sparsegen.register_architecture("mine", 5)
    sparsegen.register_architecture("biggan", biggan)  # once more, the same
    with pytest.raises(ValueError, match="another architecture 'biggan'"):
        sparsegen.register_architecture("biggan", replace(biggan, atoms=8))


PLUGIN = """
from dataclasses import replace
import sparsegen
tiny = replace(sparsegen.get_architecture("biggan"), atoms=8, z_dim=16, recipe="biggan")
sparsegen.register_architecture("tiny", tiny)
sparsegen.register_regularizer(
    "half", sparsegen.Regularizer(sparsegen.NeedleProjection, levels=1, density=0.5, about="Each needle keeps half.")
)
"""


def test_another_package_adds_an_architecture_and_a_regularizer_for_all_commands(pictures, tmp_path) -> None:
    site = tmp_path / "site"
    info = site / "tiny_models-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "tiny_models.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-models\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sparsegen]\nmodels = tiny_models\n")
    environment = os.environ | {"PYTHONPATH": str(site)}

    def sparsegen_command(*arguments: str) -> str:
        command = [sys.executable, "-m", "sparsegen", *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    steps = ["--steps", "2", "--batch-size", "4", "--eval-count", "0"]
    sparsegen_command("train", "tiny.half.paper", "--data", str(pictures), "--out", "run", *steps)
    sparsegen_command("export", "run/checkpoints/00000002", "--out", "models/tiny")
    assert "tiny" in sparsegen_command("info", "models/tiny")
    sparsegen_command("sample", "models/tiny", "--count", "4", "--k", "2", "--out", "grid.png")
    assert (tmp_path / "grid.png").stat().st_size > 500
    served = subprocess.run(  # what is served needs neither torch nor the other package
        [sys.executable, "-c", "import sparsegen; print(sparsegen.open_sampler('models/tiny').sample(2).shape)"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert served.stdout.strip() == "(2, 32, 32, 3)", served.stderr
