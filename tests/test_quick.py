"""The preset quick: collaborative filtering in Python, on the command line and as a job."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import CLI
from PIL import Image

pytest.importorskip("numba")

import sparsegen  # noqa: E402
from pictures import encoded  # noqa: E402
from sparsegen.pictures.picture import Picture  # noqa: E402
from sparsegen.pictures.reading import read_picture  # noqa: E402
from sparsegen.restoration import restore, settings, tiles  # noqa: E402
from sparsegen.restoration.clipping import clipped_moments, undo_clipping  # noqa: E402
from sparsegen.restoration.collaborative import denoise  # noqa: E402
from sparsegen.restoration.operators import Blur, Mask  # noqa: E402
from sparsegen.restoration.settings import Preset, Task, Widths  # noqa: E402
from sparsegen.service.jobs.orders import check  # noqa: E402


def clean_picture(height: int = 64, width: int = 48) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([0.3 + 0.4 * (x > width // 2), y / height, np.full_like(y, 0.5, float)], axis=2)


def noisy_picture(sigma: float = 25, **size: int) -> np.ndarray:
    clean = clean_picture(**size)
    noise = np.random.default_rng(0).standard_normal(clean.shape)
    return (clean + sigma / 255 * noise).clip(0, 1).astype(np.float32)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((np.asarray(a, float) - b) ** 2)))


@pytest.mark.parametrize("sigma", [None, 25])
def test_noise_is_removed_and_sigma_is_estimated(sigma: float | None) -> None:
    noisy, clean = noisy_picture(), clean_picture()
    result = sparsegen.restore(noisy, preset="quick", sigma=sigma)
    assert psnr(result.image, clean) > psnr(noisy, clean) + 10
    assert (result.image.dtype, result.image.shape) == (noisy.dtype, noisy.shape)
    assert result.stopped_because == "both steps are done"
    assert result.iterations == result.best_iteration == 100
    assert list(result.history["iteration"])[-1] == 100 and np.isnan(result.history["statistic"]).all()
    again = sparsegen.restore(noisy, preset="quick", sigma=sigma, seed=1)
    np.testing.assert_array_equal(again.image, result.image)  # there is no chance


def test_the_result_is_that_of_the_filter() -> None:
    noisy = noisy_picture()
    task = Task.of(preset="quick", sigma=25)
    levels = restore.noise_level(restore.to_tensor(Picture(noisy)), task)
    expected = denoise(noisy, levels[0].permute(1, 2, 0).numpy()).clip(0, 1)
    expected = restore.to_pixels(
        undo_clipping(restore.to_tensor(Picture(expected)), restore.to_tensor(Picture(noisy)), levels)
    )
    np.testing.assert_array_equal(sparsegen.restore(noisy, preset="quick", sigma=25).image, expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", ["gray", "color", "alpha"])
def test_arrays_of_integers_gray_and_with_alpha_keep_their_form(dtype: type, shape: str) -> None:
    most = np.iinfo(dtype).max
    whole = np.rint(noisy_picture() * most).astype(dtype)
    alpha = np.arange(64 * 48).reshape(64, 48, 1).astype(dtype)
    picture = {"gray": whole[..., 0], "color": whole, "alpha": np.concatenate([whole, alpha], axis=2)}[shape]
    found = sparsegen.restore(picture, preset="quick").image
    assert (found.dtype, found.shape) == (picture.dtype, picture.shape)
    if shape == "alpha":
        np.testing.assert_array_equal(found[..., 3:], alpha)
    else:
        clean = clean_picture()[..., 0] if shape == "gray" else clean_picture()
        assert psnr(found / most, clean) > psnr(picture / most, clean) + 8


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_tensors_of_any_number_of_channels_are_denoised(channels: int) -> None:
    clean = torch.linspace(0.2, 0.8, 40).expand(1, channels, 32, 40).double()
    noisy = clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    found = sparsegen.restore(noisy, preset="quick").image
    assert (found.dtype, found.shape) == (noisy.dtype, noisy.shape)
    assert (found - clean).square().mean() < 0.2 * (noisy - clean).square().mean()


def test_the_callback_sees_estimates_and_stops_the_filter() -> None:
    seen = []
    result = sparsegen.restore(noisy_picture(height=400), preset="quick", callback=seen.append)
    numbers = [progress.iteration for progress in seen]
    assert numbers == sorted(numbers) and numbers[-1] == 100 and seen[-1].seconds_left == 0
    assert all(progress.image.shape == (1, 3, 400, 48) and 0 <= progress.fraction <= 1 for progress in seen)
    stopped = sparsegen.restore(
        noisy_picture(height=400), preset="quick", callback=lambda progress: progress.iteration >= 50
    )
    assert stopped.stopped_because == "the callback stopped it" and stopped.iterations < 100
    assert 0 < np.abs(stopped.image - result.image).max() < 0.5


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"operator": Blur.gaussian(1)}, "removes noise and undoes JPEG compression only: omit the operator"),
        ({"operator": Mask(np.arange(64 * 48).reshape(64, 48) % 2 > 0)}, "omit the operator"),
        ({"operator": lambda image: image}, "omit the operator"),
        ({"stops": True}, "has no stopping rule: omit stops"),
        ({"iterations": 10}, "fits no network, so iterations has no effect; got 10: omit it"),
        ({"ensemble_size": 2}, "so ensemble_size has no effect; got 2"),
        ({"density": 0.5}, "so density has no effect; got 0.5"),
        ({"regularizer": "l1"}, "so regularizer has no effect; got 'l1'"),
        ({"loss": "l1"}, "so loss has no effect; got 'l1'"),
    ],
)
def test_what_needs_a_network_is_refused(about: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sparsegen.restore(noisy_picture(), preset="quick", **about)


@pytest.mark.parametrize("kind", [{"kind": "upscale", "by": 2}, {"kind": "inpaint"}], ids=str)
def test_other_tasks_than_denoising_are_refused(kind: dict) -> None:
    with pytest.raises(ValueError, match=f"{kind['kind']} has no preset quick: use the preset fast or paper"):
        Task.of(preset="quick", **kind)


def test_without_numba_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsegen.common.extras.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"the preset quick needs numba: pip install .*\[restore\]"):
        sparsegen.restore(noisy_picture(), preset="quick")


def test_a_large_picture_is_filtered_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "WHOLE", 1000)
    task, picture = Task.of(preset="quick", sigma=25), Picture(noisy_picture(height=140, width=80))
    expected = restore.run(task, picture).image.pixels
    for tile in (None, 64):
        assert not tiles.is_tiled(task, picture.pixels.shape, tile)
        np.testing.assert_array_equal(tiles.run_tiled(task, picture, tile=tile).image.pixels, expected)


def test_time_and_memory_are_estimated_per_pixel() -> None:
    task = Task.of(preset="quick")
    small, large = (task.effort(side, side) for side in (256, 1024))
    assert 10 < large / small < 17
    assert large < Task.of(sigma=25).effort(1024, 1024) / 100
    assert task.memory(3000, 4000) < 5e9
    assert not Task.of(preset="quick", sigma=25).sigma_warning


def test_the_command_writes_the_result_of_python(sparsegen: CLI, tmp_path: Path) -> None:
    pixels = np.rint(255 * noisy_picture()).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noisy.png")
    arguments = ("--sigma", 25, "--preset", "quick", "--preview", "--history", tmp_path / "h.csv")
    done = sparsegen("denoise", tmp_path / "noisy.png", "--out", tmp_path / "out.png", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"\S+/out\.png: both steps are done; iteration 100 of 100, [\d.]+ s\n", done.stdout)
    own = restore.run(Task.of(preset="quick", sigma=25), read_picture(tmp_path / "noisy.png")).image
    assert np.abs(read_picture(tmp_path / "out.png").pixels - own.pixels).max() <= 0.51 / 255
    assert (tmp_path / "h.csv").read_text().startswith("iteration,loss,statistic\n")
    done = sparsegen(
        "upscale", tmp_path / "noisy.png", "--by", 2, "--out", tmp_path / "x.png", *arguments[2:4]
    )
    assert done.returncode == 2 and "upscale has no preset quick" in done.stderr


def test_a_request_over_http_is_checked() -> None:
    picture = encoded(Image.fromarray(np.rint(255 * noisy_picture()).astype(np.uint8)))
    order = check({"preset": "quick", "sigma": "25"}, {"image": picture})
    assert order.task == Task.of(preset="quick", sigma=25.0) and not order.notes
    with pytest.raises(Exception, match="so iterations has no effect; got 5"):
        check({"preset": "quick", "iterations": "5"}, {"image": picture})


def tiny_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    widths = Widths((8, 16), (8, 16), (4, 4), "zeros")
    preset = Preset(widths, inputs=8, iterations=20, filter_share=0.6)
    monkeypatch.setitem(settings.PRESETS, "fast", preset)


def test_the_result_of_fast_is_a_mean_with_the_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_fast(monkeypatch)
    monkeypatch.setattr(restore, "undo_clipping", lambda image, *_, **__: image)
    noisy, seen = noisy_picture(), []
    result = sparsegen.restore(noisy, sigma=25, callback=seen.append)
    network = restore.to_pixels(seen[-1].image)
    filtered = sparsegen.restore(noisy, preset="quick", sigma=25).image
    np.testing.assert_allclose(result.image, 0.4 * network + 0.6 * filtered, atol=1e-6)
    seen.clear()
    task = restore.run(Task.of(sigma=25), Picture(noisy), callback=seen.append)
    np.testing.assert_allclose(task.image.pixels, result.image, atol=1e-6)
    np.testing.assert_array_equal(seen[-1].picture().pixels, task.image.pixels)


@pytest.mark.parametrize(
    "about", [{"loss": "l1"}, {"stops": False}, {"operator": Blur.gaussian(1)}, {"sigma": 0}]
)
def test_the_filter_is_for_noise_that_a_rule_of_noise_stops(
    monkeypatch: pytest.MonkeyPatch, about: dict
) -> None:
    tiny_fast(monkeypatch)
    seen = []
    result = sparsegen.restore(noisy_picture(), callback=seen.append, **about)
    np.testing.assert_array_equal(result.image, restore.to_pixels(seen[-1].image))


def test_without_numba_fast_returns_the_networks_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_fast(monkeypatch)
    monkeypatch.setattr(restore, "is_installed", lambda *packages: False)
    seen = []
    result = sparsegen.restore(noisy_picture(), callback=seen.append)
    np.testing.assert_array_equal(result.image, restore.to_pixels(seen[-1].image))
    assert "networks alone" in caplog.text and "[restore]" in caplog.text


def test_the_moments_of_clipped_noise_are_those_of_many_draws() -> None:
    random, sigma = np.random.default_rng(0), 0.1
    pixels = torch.tensor([-0.1, 0.0, 0.05, 0.5, 0.98], dtype=torch.float64)
    draws = (pixels.numpy() + sigma * random.standard_normal((200_000, 5))).clip(0, 1)
    mean, deviation = clipped_moments(pixels, sigma)
    np.testing.assert_allclose(mean, draws.mean(0), atol=1e-3)
    np.testing.assert_allclose(deviation, draws.std(0), atol=1e-3)


def dark_picture() -> np.ndarray:
    """Black, dark gray and gray stripes."""
    return np.tile(np.repeat([0.0, 0.03, 0.5, 0.6], 24), (96, 1))


def test_the_brightness_that_clipping_adds_to_black_is_removed() -> None:
    clean, random = dark_picture(), np.random.default_rng(0)
    noisy = (clean + 0.2 * random.standard_normal(clean.shape)).clip(0, 1)
    for about in ({}, {"sigma": 51}):
        found = sparsegen.restore(noisy, preset="quick", **about).image
        assert noisy[:, :20].mean() > 0.07 and found[:, :20].mean() < 0.01
        assert found[:, 76:].mean() == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize("noise", ["few photons", "weak", "not clipped"])
def test_dark_pixels_keep_their_brightness_without_clipped_noise(noise: str) -> None:
    clean, random = dark_picture() + 0.03, np.random.default_rng(0)
    noisy = {
        "few photons": random.poisson(clean * 60) / 60,
        "weak": clean + 0.005 * random.standard_normal(clean.shape),
        "not clipped": clean + 0.2 * random.standard_normal(clean.shape),
    }[noise]
    given = torch.from_numpy(noisy)[None, None]
    if noise != "not clipped":
        given = given.clamp(0, 1)
    found = sparsegen.restore(given, preset="quick", sigma=51).image[0, 0].numpy()
    assert found[:, :20].mean() == pytest.approx(0.03, abs=0.015)
    assert found[:, 30:42].mean() == pytest.approx(0.06, abs=0.015)
