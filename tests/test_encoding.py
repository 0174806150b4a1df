"""From images back to their sparse codes."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import CLI, assert_refused
from PIL import Image

from sparsegen.zoo.bundled import list_models
from sparsegen.zoo.checkpoint import from_pretrained
from sparsegen.zoo.generator import Generator
from sparsegen.zoo.spec import create_model

ARCHITECTURES = {
    name.split(".")[0].split("-")[0]: name for name in list_models() if ".ml" in name or ".l0" in name
}


@pytest.fixture(scope="module")
def generator() -> Generator:
    return from_pretrained("cgan-32.ml")


def nonzeros(code: torch.Tensor, unit: str) -> int:
    """The largest number of non-zeros in a needle, or in the code of an image."""
    counts = (code != 0).sum(1) if unit == "needle" else (code != 0).flatten(1).sum(1)
    return int(counts.max())


@pytest.mark.parametrize("name", ARCHITECTURES.values())
def test_own_samples_come_back_at_30_db_with_exactly_sparse_codes(name: str) -> None:
    generator = from_pretrained(name)
    images = generator.sample(4, seed=3)
    encoding = generator.encode(images)
    assert encoding.psnr.mean() > 30
    for k_range in generator.k_ranges:
        assert nonzeros(encoding.codes[k_range.level - 1], k_range.unit) <= k_range.k
    with torch.no_grad():  # the codes alone give the reconstruction, also the highest one alone
        found = generator.eval().synthesize(encoding.codes)
        highest = [None] * (len(encoding.codes) - 1) + [encoding.codes[-1]]
        torch.testing.assert_close(generator.synthesize(highest), found)
    pixels = ((found.clamp(-1, 1) + 1) * 127.5).round().movedim(1, -1).numpy()
    assert np.abs(pixels - encoding.reconstruction).max() <= 1
    errors = images.astype(float) - encoding.reconstruction
    assert np.array_equal(encoding.residuals, errors)
    np.testing.assert_allclose(encoding.psnr, 10 * np.log10(255**2 / np.square(errors).mean((1, 2, 3))))


def test_a_larger_k_and_more_iterations_come_nearer(generator: Generator) -> None:
    images = generator.sample(4, seed=1)
    few, some, many = (generator.encode(images, k=k, iterations=60).psnr.mean() for k in (2, 8, 32))
    assert few < some < many
    assert generator.encode(images, k=2, iterations=10).psnr.mean() < few
    assert [k_range.k for k_range in generator.k_ranges] == [8, 16] and generator.training is False


def test_an_image_does_not_depend_on_the_others_and_a_search_is_repeated(generator: Generator) -> None:
    images = generator.sample(3, seed=1)
    done = []
    together = generator.encode(images, iterations=20, progress=done.append)
    alone = generator.encode(images[1:2], iterations=20)
    assert done == [3] and np.array_equal(
        together.residuals, generator.encode(images, iterations=20).residuals
    )
    assert np.abs(together.residuals[1] - alone.residuals[0]).max() <= 2


def test_unknown_pixels_are_filled_and_do_not_matter(generator: Generator) -> None:
    images, mask = generator.sample(2, seed=5), np.ones((32, 32), bool)
    mask[10:14, 8:24] = False
    encoding = generator.encode(images, mask=mask, level=1)
    noisy = images.copy()
    noisy[:, ~mask] = np.random.default_rng(0).integers(0, 256, noisy[:, ~mask].shape)
    assert np.array_equal(generator.encode(noisy, mask=mask, level=1).reconstruction, encoding.reconstruction)
    errors = np.square(images.astype(float) - encoding.reconstruction).mean(-1)
    np.testing.assert_allclose(encoding.psnr, 10 * np.log10(255**2 / errors[:, mask].mean(1)))
    assert encoding.psnr.min() > 30 and len(encoding.codes) == 1


def test_z_is_found_for_samples_of_the_model() -> None:
    generator = from_pretrained("cgan-32.ml")
    images = generator.sample(4, seed=2, labels=[1, 3, 5, 7])
    encoding = generator.encode(images, find_z=True, labels=[1, 3, 5, 7], iterations=200)
    with torch.no_grad():
        made = generator.eval()(encoding.z, torch.tensor([1, 3, 5, 7]))[0]
    pixels = ((made.clamp(-1, 1) + 1) * 127.5).round().movedim(1, -1).numpy()
    psnr = 10 * np.log10(255**2 / np.square(images - pixels).mean((1, 2, 3)))
    np.testing.assert_allclose(encoding.z_psnr, psnr, atol=0.1)
    start = generator.encode(images, find_z=True, labels=[1, 3, 5, 7], iterations=1).z_psnr
    assert (encoding.z_psnr > start + 3).all()


IMAGES = np.zeros((2, 32, 32, 3), np.uint8)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"images": IMAGES.astype(float)}, TypeError, "uint8, as `sample` returns it; got float64"),
        ({"images": torch.zeros(1)}, TypeError, "got Tensor"),
        (
            {"images": IMAGES[:, :16]},
            ValueError,
            r"shape \(B, 32, 32, 3\) of the model; got \(2, 16, 32, 3\)",
        ),
        ({"images": IMAGES[:0]}, ValueError, "got \\(0, 32, 32, 3\\)"),
        ({"k": 33}, ValueError, "from 1 to 32; got 33"),
        ({"level": 3}, ValueError, "from 1 to 2; got 3"),
        ({"iterations": 0}, ValueError, "from 1 to 100000; got 0"),
        ({"mask": np.ones((32, 32))}, TypeError, "bool, True where the pixel is known; got float64"),
        ({"mask": np.ones((3, 32, 32), bool)}, ValueError, r"\(32, 32\) or \(2, 32, 32\)"),
        ({"mask": np.zeros((32, 32), bool)}, ValueError, "no known pixel"),
        ({"labels": 3}, ValueError, "labels are for find_z"),
        ({"find_z": True}, ValueError, "conditional: give labels"),
        ({"find_z": True, "labels": [1, 2, 3]}, ValueError, "one for each of 2; got 3"),
    ],
)
def test_bad_values_are_named(generator: Generator, given: dict, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        generator.encode(**{"images": IMAGES} | given)


def test_a_model_whose_weights_have_diverged_says_so(generator: Generator) -> None:
    broken = create_model("dcgan", "ml", width=8)
    with torch.no_grad():
        broken.stages[0].conv.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="diverged"):
        broken.encode(IMAGES, iterations=2)


@pytest.fixture(scope="module")
def pictures(generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine samples, and one picture of another size."""
    folder = tmp_path_factory.mktemp("pictures")
    for index, image in enumerate(generator.sample(9, seed=4)):
        Image.fromarray(image).save(folder / f"{index}.png")
    Image.new("RGB", (80, 50), "red").save(folder / "w[red]ide.jpg")  # not markup
    (folder / "notes.txt").touch()
    return folder


def test_the_command_writes_the_codes_and_a_comparison(
    sparsegen: CLI, generator: Generator, pictures: Path, tmp_path: Path
) -> None:
    options = [
        "--model",
        "cgan-32.ml",
        "--iterations",
        "30",
        "--k",
        "6,8",
        "--compare",
        str(tmp_path / "grid.png"),
    ]
    done = sparsegen("encode", str(pictures), "--out", str(tmp_path / "codes.npz"), *options)
    assert done.returncode == 0, done.stderr
    assert "1 of 10 pictures were cropped to a square and resized to 32 x 32 pixels" in done.stderr
    with np.load(tmp_path / "codes.npz") as arrays:
        given = np.stack([np.asarray(Image.open(pictures / f"{index}.png")) for index in range(9)])
        encoding = generator.encode(given, k=[6, 8], iterations=30)
        assert np.abs(arrays["reconstruction"][:9].astype(int) - encoding.reconstruction).max() <= 2
        assert arrays["gamma1"].shape == (10, 32, 16, 16) and arrays["gamma2"].shape == (10, 64, 8, 8)
        assert arrays["k"].tolist() == [6, 8] and str(arrays["model"]) == "cgan-32.ml"
        assert arrays["names"].tolist() == [f"{index}.png" for index in range(9)] + ["w[red]ide.jpg"]
        assert re.search(rf"0\.png +{arrays['psnr'][0]:.2f}", done.stdout)
        assert "w[red]ide.jpg" in done.stdout
        reconstruction = arrays["reconstruction"]
    grid = np.asarray(Image.open(tmp_path / "grid.png"))[::2, ::2]
    assert grid.shape == (4 * 34 + 2, 8 * 34 + 2, 3)
    assert np.array_equal(grid[2:34, 2:34], given[0]) and np.array_equal(grid[36:68, 2:34], reconstruction[0])
    assert np.array_equal(grid[70:102, 2:34], given[8]) and (grid[70:102, 70:] == 255).all()


def test_bad_input_of_the_command_is_refused(sparsegen: CLI, pictures: Path, tmp_path: Path) -> None:
    def run(*arguments: object) -> object:
        return sparsegen("encode", *map(str, arguments), "--model", "cgan-32.ml")

    assert_refused(run(tmp_path / "none.png"), "none.png does not exist: give image files or folders")
    assert_refused(run(tmp_path), "has no image files (.png .jpg")
    assert_refused(run(pictures / "notes.txt"), "notes.txt: damaged, or not an image")
    assert_refused(run(pictures, "--out", tmp_path / "codes.pt"), "--out must end in .npz")
    assert_refused(run(pictures, "--k", "99"), "from 1 to 32; got 99")
