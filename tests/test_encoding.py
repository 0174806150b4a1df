"""From images back to their sparse codes."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import CLI, assert_refused
from conftest import warmed
from PIL import Image

from sparsegen.export.onnx_file import bundle, export_onnx
from sparsegen.export.runtime import OnnxSampler, open_sampler
from sparsegen.zoo.bundled import ENCODING, GRAPH, SYNTHESIS, list_models
from sparsegen.zoo.checkpoint import from_pretrained
from sparsegen.zoo.generator import Generator
from sparsegen.zoo.spec import ModelSpec, create_model

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


@pytest.mark.filterwarnings("error")
def test_read_only_arrays_are_taken_without_a_warning() -> None:
    generator = from_pretrained("cgan-32.ml")
    images, mask = np.zeros((1, 32, 32, 3), np.uint8), np.ones((32, 32), bool)
    images.flags.writeable = mask.flags.writeable = False
    assert generator.encode(images, mask=mask, iterations=2).psnr.shape == (1,)


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
    assert "pictures cropped to a square and resized to 32 x 32 pixels: 1 of 10" in done.stderr
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


@pytest.mark.parametrize(
    ("architecture", "regularizer"),
    # Each kind of convolution, norm and activation; `export_onnx` compares the gradient with autograd for all others.
    [("dcgan", "ml"), ("wgan_gp", "ml"), ("ssgan", "ml"), ("sagan", "l0"), ("biggan", "baseline")],
)
def test_onnxruntime_finds_the_codes_that_torch_finds(
    tmp_path: Path, architecture: str, regularizer: str
) -> None:
    torch.manual_seed(0)
    generator = warmed(ModelSpec.of(architecture, regularizer, 8).generator())
    export_onnx(generator, tmp_path / "m.onnx", synthesis=True, encoding=True)
    sampler = open_sampler(tmp_path / "m.onnx")
    images, mask = (
        np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8),
        np.ones((32, 32), bool),
    )
    mask[4:9] = False
    k = None if regularizer == "baseline" else 5
    found, wanted = (each.encode(images, k=k, iterations=12, mask=mask) for each in (sampler, generator))
    np.testing.assert_allclose(found.psnr, wanted.psnr, atol=0.1)
    assert [code.shape for code in found.codes] == [tuple(code.shape) for code in wanted.codes]
    for k_range in generator.k_ranges:
        assert nonzeros(torch.from_numpy(found.codes[k_range.level - 1]), k_range.unit) <= 5
    pixels = (np.moveaxis(sampler.synthesize(found.codes[0]), 1, -1).clip(-1, 1) + 1) * 127.5
    assert np.abs(pixels - found.reconstruction).max() <= 0.51
    assert np.array_equal(found.residuals, images.astype(float) - found.reconstruction)
    filled = images.copy()
    filled[:, 4:9] = 0
    again = sampler.encode(filled, k=k, iterations=12, mask=mask)
    assert np.array_equal(again.reconstruction, found.reconstruction)


def test_the_bundled_models_encode_without_torch(generator: Generator) -> None:
    sampler, done = open_sampler("cgan-32.ml"), []
    images = generator.sample(17, seed=2)
    encoding = sampler.encode(images, progress=done.append)
    assert encoding.psnr.mean() > 30 and done == [16, 17]
    for name in list_models():
        assert open_sampler(name).encode(images[:1], iterations=1).psnr[0] > 0


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"images": np.zeros((1, 8, 8, 3), np.uint8)}, ValueError, "(B, 32, 32, 3)"),
        ({"images": np.zeros((1, 32, 32, 3))}, TypeError, "float64"),
        ({"k": 33}, ValueError, "from 1 to 32; got 33"),
        ({"iterations": 0}, ValueError, "iterations"),
        ({"mask": np.zeros((32, 32), bool)}, ValueError, "no known pixel"),
    ],
)
def test_onnxruntime_names_bad_values(given: dict, error: type[Exception], words: str) -> None:
    sampler = open_sampler("cgan-32.ml")
    with pytest.raises(error, match=re.escape(words)):
        sampler.encode(**{"images": np.zeros((1, 32, 32, 3), np.uint8)} | given)


def test_a_missing_or_foreign_encoding_graph_is_named(tmp_path: Path) -> None:
    folder, image = tmp_path / "model", np.zeros((1, 32, 32, 3), np.uint8)
    shutil.copytree(open_sampler("cgan-32.ml").path.parent, folder)
    (folder / ENCODING).unlink()
    with pytest.raises(
        FileNotFoundError, match="encoding.onnx is missing: export the model again with --encoding"
    ):
        open_sampler(folder).encode(image)
    shutil.copyfile(folder / SYNTHESIS, folder / ENCODING)
    with pytest.raises(ValueError, match="is not the encoding graph of cgan-32.ml: export again"):
        open_sampler(folder).encode(image)
    shutil.copyfile(open_sampler("cgan-32.ml").path.with_name(ENCODING), folder / GRAPH)
    with pytest.raises(ValueError, match="is the encoding graph of a generator"):
        OnnxSampler(folder / GRAPH)


def test_a_generator_with_a_layer_of_another_package_has_no_encoding_graph(tmp_path: Path) -> None:
    generator = warmed(create_model("dcgan", "ml", width=8))
    folder = generator.save_pretrained(tmp_path / "model")
    generator.stages[1].activation = torch.nn.LeakyReLU(0.0)
    with pytest.raises(TypeError, match="its layer LeakyReLU is none of Tanh, CenteredSigmoid, ReLU"):
        export_onnx(generator, tmp_path / "m.onnx", encoding=True)
    assert not list(tmp_path.glob("*.onnx"))
    bundle(folder)
    assert (folder / ENCODING).is_file()
