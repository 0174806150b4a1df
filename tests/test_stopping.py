import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from sparsegen.reproduce.tables import RECORDS, read_records
from sparsegen.restoration import stopping
from sparsegen.restoration.settings import OVERHEAD, PRESETS, Task, typical_iterations
from sparsegen.restoration.stopping import HeldOutRule, NoiseFitRule, estimate_sigma

SIGMA = 0.1


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth_picture(seed: int = 0, size: int = 96) -> torch.Tensor:
    noise = np.random.default_rng(seed).standard_normal((3, size, size))
    smooth = gaussian_filter(noise, (0, 8, 8))
    return torch.from_numpy(0.5 + 0.15 * smooth / smooth.std())[None].float()


def noisy_picture(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    clean = smooth_picture(seed)
    return clean, clean + SIGMA * torch.randn(clean.shape, generator=generator(seed + 50))


def filtered(target: torch.Tensor, width: float) -> torch.Tensor:
    return torch.from_numpy(gaussian_filter(target.numpy(), (0, 0, width, width)))


WIDTHS = [0.3, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0, 11.0, 16.0]


def fitted(rule: NoiseFitRule, width: float) -> torch.Tensor:
    """The outputs of members: filtered targets."""
    return torch.cat([filtered(target, width) for target in rule.targets])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ensemble_size", [1, 3])
def test_the_risk_selects_nearly_the_best_of_a_family_of_estimators(seed: int, ensemble_size: int) -> None:
    """For Gaussian filters of the targets, the width of the smallest risk has nearly the smallest error."""
    clean, noisy = noisy_picture(seed)
    rule = NoiseFitRule(noisy, SIGMA, generator(seed), ensemble_size)
    estimates = [fitted(rule, width) for width in WIDTHS]
    errors = [float((estimate.mean(0) - clean).square().mean()) for estimate in estimates]
    chosen = int(np.argmin([rule(estimate, estimate.mean(0, keepdim=True)) for estimate in estimates]))
    assert errors[chosen] <= 1.2 * min(errors)


@pytest.mark.parametrize("ensemble_size", [1, 4])
def test_the_risk_is_the_error_up_to_a_constant(ensemble_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """This is Stein's estimate, which requires that the known noise is white."""
    monkeypatch.setattr(NoiseFitRule, "unseen", 1)
    monkeypatch.setattr(stopping, "_orthogonal", lambda noise, versions: noise)
    clean, noisy = noisy_picture()
    rule = NoiseFitRule(noisy, SIGMA, generator(), ensemble_size)
    estimates = [fitted(rule, width) for width in WIDTHS[2:]]
    errors = np.array([float((estimate.mean(0) - clean).square().mean()) for estimate in estimates])
    offsets = np.array([rule(e, e.mean(0, keepdim=True)) for e in estimates]) - errors
    assert np.ptp(offsets) < 0.1 * np.ptp(errors)


def test_the_known_noise_is_weak_and_orthogonal_to_the_picture() -> None:
    _, noisy = noisy_picture()
    rule = NoiseFitRule(noisy, SIGMA, generator())
    added = rule.targets[0] - noisy
    assert math.isclose(added.square().mean(), (rule.strength * SIGMA) ** 2, rel_tol=1e-3)
    assert rule.weight is None
    for version in (torch.ones_like(noisy), filtered(noisy, 1.5), noisy.mean(1, keepdim=True)):
        for top, left in ((0, 0), (40, 88), (8, 16)):
            block = np.s_[:, :, top : top + 8, left : left + 8]
            scale = float(
                (added[block].square().mean() * version.expand_as(noisy)[block].square().mean()).sqrt()
            )
            assert abs((added * version)[block].mean(dim=(2, 3))).max() < 0.02 * scale


def test_members_have_independent_known_noise() -> None:
    _, noisy = noisy_picture()
    first, second, third = NoiseFitRule(noisy, SIGMA, generator(), 3).noise
    assert torch.equal(first[None], NoiseFitRule(noisy, SIGMA, generator()).noise)
    for one, other in ((first, second), (first, third), (second, third)):
        assert abs((one * other).mean()) < 0.03 * first.square().mean()


@pytest.mark.parametrize("size", [(16, 16), (17, 23), (40, 9)])
def test_the_rule_works_for_pictures_of_any_size(size: tuple[int, int]) -> None:
    noisy = torch.rand(1, 3, *size)
    rule = NoiseFitRule(noisy, SIGMA, generator())
    assert rule.targets[0].shape == noisy.shape and rule.targets[0].isfinite().all()
    assert rule(noisy, noisy) < rule(rule.targets[0], rule.targets[0])  # the latter contains all of the noise


@pytest.mark.parametrize("loss", [torch.square, torch.abs])
def test_held_out_pixels_are_not_fitted_and_only_they_are_evaluated(
    loss: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    _, noisy = noisy_picture()
    rule = HeldOutRule(noisy, loss, generator())
    held_out = rule.weight == 0
    share = held_out.float().mean()
    assert 0.01 < share < 0.03 and torch.equal(held_out[:, 0], held_out[:, 2])  # whole pixels
    assert torch.equal(rule.targets[0], noisy)
    elsewhere = torch.where(held_out, noisy, 0)
    assert rule(noisy, elsewhere) == 0
    guess = torch.rand(noisy.shape, generator=generator(1))
    assert math.isclose(rule(noisy, guess), loss(guess - noisy)[held_out].mean(), rel_tol=1e-4)


def test_unknown_pixels_are_not_held_out() -> None:
    known = torch.zeros(96, 96)
    known[:, :40] = 1
    rule = HeldOutRule(noisy_picture()[1], torch.square, generator(), known)
    assert (rule.weight[..., 40:] == 0).all() and (rule.held_out[..., 40:] == 0).all()
    assert rule.held_out.sum() > 0


@pytest.mark.parametrize("seed", range(20))
def test_ten_of_few_known_pixels_are_held_out_and_too_few_are_an_error(seed: int) -> None:
    known = torch.zeros(64, 64)
    known[::8, ::8] = 1
    rule = HeldOutRule(torch.rand(1, 1, 64, 64), torch.square, generator(seed), known)
    assert rule.held_out.sum() == 10 and rule.weight.sum() == 54
    with pytest.raises(ValueError, match="got 16"):
        HeldOutRule(torch.rand(1, 1, 64, 64), torch.square, generator(seed), known * (torch.arange(64) < 16))


def test_single_entries_are_held_out_if_the_observation_is_not_an_image() -> None:
    rule = HeldOutRule(torch.rand(1, 2000), torch.square, generator())
    assert 0.005 < rule.held_out.mean() < 0.04


@pytest.mark.parametrize("sigma", [5, 15, 25, 50])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_noise_level_is_estimated(sigma: float, channels: int) -> None:
    clean = smooth_picture()[:, :channels]
    noisy = clean + sigma / 255 * torch.randn(clean.shape, generator=generator())
    found = 255 * estimate_sigma(noisy)
    assert found.shape == noisy.shape
    assert math.isclose(found.square().mean().sqrt(), sigma, rel_tol=0.08)
    assert found.std() < 0.15 * sigma


def test_the_noise_level_grows_with_the_brightness_for_photon_noise() -> None:
    """The variance of photon noise is the brightness over the photons of a white pixel."""
    clean = smooth_picture(size=192).clamp(0.05, 0.95)
    noisy = torch.poisson(clean * 100, generator=generator()) / 100
    found, true = estimate_sigma(noisy), (clean / 100).sqrt()
    assert abs(found / true - 1).mean() < 0.1
    correlation = np.corrcoef(found.flatten(), true.flatten())[0, 1]
    assert correlation > 0.8


@pytest.mark.parametrize("size", [(16, 16), (17, 40)])
def test_the_noise_level_of_small_pictures_is_finite(size: tuple[int, int]) -> None:
    assert estimate_sigma(torch.rand(1, 1, *size)).isfinite().all()


def test_typical_iterations_agree_with_the_runs_of_table_3() -> None:
    ratios = []
    for run in read_records(RECORDS / "table3.jsonl"):
        kind, _, level = run["noise"].partition(":")
        if kind == "gaussian" and run["preset"] == "fast" and run["stopped_at"]:
            ratios.append(run["stopped_at"] / typical_iterations(float(level) / 255, run["size"] ** 2))
    assert len(ratios) >= 137
    assert 0.9 < np.median(ratios) < 1.1
    assert np.mean([0.5 <= ratio <= 1.7 for ratio in ratios]) > 0.95


def test_the_effort_agrees_with_the_runs_of_table_3() -> None:
    paces = []
    for run in read_records(RECORDS / "table3.jsonl"):
        kind, _, level = run["noise"].partition(":")
        if (kind, run["preset"], run["ensemble_size"]) == ("gaussian", "fast", PRESETS["fast"].ensemble_size):
            paces.append(
                run["stopped_cpu_seconds"] / Task.of(sigma=float(level)).effort(run["size"], run["size"])
            )
    paces /= np.median(paces)
    assert len(paces) >= 137 and np.mean([0.4 <= pace <= 2.5 for pace in paces]) > 0.95


def test_effort_counts_hourglasses_iterations_and_pixels() -> None:
    ensemble_size, cost = PRESETS["fast"].ensemble_size, PRESETS["paper"].cost
    assert Task.of(iterations=10).effort(100, 200) == 10 * (100 * 200 + OVERHEAD) * ensemble_size
    side_64 = 10 * (64 * 200 + OVERHEAD) * ensemble_size
    assert Task.of(iterations=10).effort(16, 200) == side_64  # a side is at least 64
    assert Task.of(preset="paper").effort(100, 200) == 3000 * (100 * 200 * cost + OVERHEAD)
    assert Task.of(kind="inpaint", ensemble_size=1).effort(100, 200) == 3000 * (
        100 * 200 + OVERHEAD
    )  # HeldOutRule rarely stops it
    assert Task.of(loss="l1", ensemble_size=4).effort(100, 200) == 3000 * (100 * 200 + OVERHEAD) * 4
    assert Task.of(sigma=0).effort(128, 128) == 3000 * (128**2 + OVERHEAD) * ensemble_size
    assert (
        Task.of().effort(100, 200) == Task.of(sigma=25).effort(100, 200) > Task.of(sigma=50).effort(100, 200)
    )


def test_the_typical_iteration_depends_on_the_noise_and_on_the_size() -> None:
    torch.manual_seed(0)
    typical = NoiseFitRule(torch.rand(1, 3, 128, 128), 25 / 255, generator()).typical
    assert typical == pytest.approx(typical_iterations(25 / 255, 128 * 128))
    assert NoiseFitRule(torch.rand(1, 3, 64, 128), 25 / 255, generator()).typical < typical
    assert NoiseFitRule(torch.rand(1, 3, 128, 128), 15 / 255, generator()).typical > typical
