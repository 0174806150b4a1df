from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

import sparsegen
from sparsegen.pictures.picture import from_array
from sparsegen.pictures.reading import read_picture
from sparsegen.restoration import settings
from sparsegen.restoration.damage import known_pixels
from sparsegen.restoration.fit import Best, Fit, LastGood, Progress, seeds
from sparsegen.restoration.operators import Blur, Downsample, Mask
from sparsegen.restoration.restore import run, to_pixels
from sparsegen.restoration.settings import (
    PRESETS,
    SPARSITIES,
    Exponential,
    Polynomial,
    Preset,
    Sparsity,
    Task,
    Widths,
)
from sparsegen.restoration.stopping import HeldOutRule

TINY = Preset(
    Widths((8, 16, 16), (8, 16, 16), (4, 4, 4), "zeros"), inputs=8, betas=(0.9, 0.9), iterations=400
)


@pytest.fixture(autouse=True)
def tiny_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(settings.PRESETS, "fast", TINY)


def clean_picture(height: int = 64, width: int = 64) -> np.ndarray:
    """Smooth hills with an edge, which a convolutional prior fits well."""
    hills = gaussian_filter(np.random.default_rng(0).standard_normal((height, width, 3)), (6, 6, 0))
    hills = 0.5 + 0.1 * hills / hills.std()
    hills[height // 3 : height // 2, width // 4 : width // 2] += 0.2
    return hills.clip(0, 1).astype(np.float32)


def noisy_picture(sigma: float = 25, **size: int) -> np.ndarray:
    clean = clean_picture(**size)
    noise = np.random.default_rng(1).standard_normal(clean.shape)
    return (clean + sigma / 255 * noise).clip(0, 1).astype(np.float32)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((np.asarray(a, float) - b) ** 2)))


def tensor(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture.transpose(2, 0, 1))[None].float()


def fit(preset: Preset = TINY, sparsity: Sparsity = SPARSITIES["l0_inf"], **about) -> Fit:
    return Fit(tensor(noisy_picture()), preset, sparsity, **about)


def test_denoising_stops_near_the_best_average() -> None:
    clean, noisy = clean_picture(), noisy_picture()
    seen = {}

    def measure(progress: Progress) -> None:
        if progress.iteration % 10 == 0:
            seen[progress.iteration] = psnr(progress.average[0].permute(1, 2, 0).numpy(), clean)

    result = sparsegen.restore(noisy, sigma=25, callback=measure)
    assert "best at iteration" in result.stopped_because and result.iterations < TINY.iterations
    assert psnr(result.image, clean) == pytest.approx(seen[result.best_iteration], abs=0.01)
    assert psnr(result.image, clean) > psnr(noisy, clean) + 5
    assert psnr(result.image, clean) > max(seen.values()) - 1  # the picture is small, and the statistic noisy
    assert result.iterations == list(result.history["iteration"])[-1]
    assert np.isfinite(result.history["statistic"]).all()
    assert np.argmin(result.history["statistic"]) == list(result.history["iteration"]).index(
        result.best_iteration
    )


def sharp_picture(size: int = 64) -> np.ndarray:
    """Rectangles, whose edges are lost by shrinking and blurring."""
    random, picture = np.random.default_rng(0), np.full((size, size, 3), 0.5, np.float32)
    for _ in range(12):
        top, left = random.integers(0, size - 12, 2)
        picture[top : top + random.integers(6, 20), left : left + random.integers(6, 20)] = random.random(3)
    return picture


@pytest.mark.parametrize(
    "operator",
    [Mask(np.random.default_rng(0).random((64, 64)) > 0.5), Downsample(2), Blur.gaussian(1.6)],
    ids=["inpaint", "upscale", "deblur"],
)
def test_other_operators_are_inverted(operator) -> None:
    clean = tensor(sharp_picture())
    observation = operator(clean)
    result = sparsegen.restore(observation, operator, iterations=400)
    assert result.image.shape == clean.shape
    before = torch.nn.functional.interpolate(observation, clean.shape[2:], mode="bicubic").clamp(0, 1)
    error, error_before = (float((image - clean).square().mean()) for image in (result.image, before))
    assert error < 0.8 * error_before


@pytest.mark.parametrize("regularizer", settings.SPARSITIES)
def test_codes_have_the_requested_density(regularizer: str) -> None:
    result = sparsegen.restore(noisy_picture(), regularizer=regularizer, iterations=20)
    wanted = settings.SPARSITIES[regularizer].density
    assert result.history["density"].shape == (3, 3)
    assert np.allclose(result.history["density"], wanted, atol=0.02)


def test_the_penalty_makes_codes_smaller() -> None:
    def magnitude(penalty: float) -> float:
        hourglass = fit(sparsity=Sparsity(penalty=penalty))
        for progress in hourglass:
            if progress.iteration == 30:
                break
        _, codes = hourglass.members[0].network(hourglass.members[0].z)
        return sum(float(code.detach().abs().mean()) for code in codes)

    assert magnitude(1.0) < 0.8 * magnitude(0.0)


def test_one_seed_is_one_picture() -> None:
    noisy = noisy_picture()
    first, again, other = (sparsegen.restore(noisy, seed=seed, iterations=20).image for seed in (3, 3, 4))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_the_largest_seed_is_a_seed() -> None:
    assert sparsegen.restore(noisy_picture(), seed=2**64 - 1, iterations=2).iterations == 2


@pytest.mark.parametrize("iterations", [1, 9, 19])
def test_the_last_iteration_is_evaluated(iterations: int) -> None:
    result = sparsegen.restore(noisy_picture(), iterations=iterations)
    assert result.best_iteration == iterations == result.history["iteration"][-1]


def test_it_works_without_gradients() -> None:
    with torch.no_grad():
        assert sparsegen.restore(noisy_picture(), iterations=2).iterations == 2


def test_it_works_in_inference_mode_on_tensors_made_there() -> None:
    with torch.inference_mode():
        observation = tensor(noisy_picture()) + 0.0
        result = sparsegen.restore(observation, iterations=2)
    assert torch.equal(result.image, sparsegen.restore(observation, iterations=2).image)


@pytest.mark.parametrize("loss", ["mse", "l1"])
def test_it_works_if_floats_are_double_by_default(loss: str) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert sparsegen.restore(noisy_picture(), loss=loss, iterations=2).iterations == 2
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_loss_that_is_not_finite_is_an_error_with_a_message() -> None:
    with pytest.raises(FloatingPointError, match="nan in iteration 1"):
        sparsegen.restore(noisy_picture(), lambda image: image * float("nan"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_restored_tensor_has_the_dtype_of_the_input(dtype: torch.dtype) -> None:
    assert sparsegen.restore(tensor(noisy_picture()).to(dtype), iterations=2).image.dtype == dtype


def test_the_random_state_of_the_caller_is_unchanged() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    sparsegen.restore(noisy_picture(), iterations=2)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("size", [(16, 16), (17, 40), (64, 33), (65, 64)])
@pytest.mark.parametrize("channels", [None, 1, 3, 4])
def test_arrays_of_any_size_and_number_of_channels_keep_their_shape_and_dtype(
    size: tuple[int, int], channels: int | None
) -> None:
    shape = size if channels is None else (*size, channels)
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    restored = sparsegen.restore(image, iterations=2).image
    assert restored.shape == shape and restored.dtype == np.uint8
    if channels == 4:
        assert np.array_equal(restored[..., 3], image[..., 3])


def test_a_callback_stops_it_within_one_iteration_and_keeps_the_best() -> None:
    seen = []

    def stop(progress: Progress) -> bool:
        seen.append(progress)
        return progress.iteration == 25

    result = sparsegen.restore(noisy_picture(), callback=stop)
    assert result.iterations == 25 == len(seen) and result.stopped_because == "the callback stopped it"
    assert torch.equal(seen[-1].image, tensor(result.image))
    assert 0 < seen[5].fraction < seen[20].fraction < 1 and seen[5].seconds_left > 0


def test_the_expected_end_moves_from_the_typical_one_to_the_end_of_the_patience() -> None:
    best = Best(patience=0.05)
    assert best.update(1.0, 100)  # patience ends at 160
    assert best.expected_end(100, typical=600) == 600
    assert best.expected_end(130, typical=600) == (160 + 600) / 2
    assert best.expected_end(160, typical=600) == best.expected_end(130, typical=90) == 160
    assert best.update(0.5, 1000)  # later than the typical last iteration
    assert best.expected_end(1000, typical=600) == 1200
    assert best.expected_end(1060, typical=600) == best.patience_ends == 1060


def test_averages_weigh_outputs_by_their_definition() -> None:
    """The original average starts with the first output and decays with age; ours is polynomial in the iteration."""
    t = np.arange(1, 7)
    for averaging, weights in (
        (Exponential(0.8), 0.8 ** (6 - t) * np.where(t == 1, 1, 0.2)),
        (Polynomial(0), np.ones(6)),
        (Polynomial(2), t * (t + 1)),
    ):
        outputs = []
        for progress in fit(replace(TINY, averaging=averaging, iterations=6)):
            outputs.append(progress.output)
        weights = weights / weights.sum()
        expected = sum(float(weight) * output for weight, output in zip(weights, outputs, strict=True))
        assert torch.allclose(progress.average, expected, atol=1e-6)


def test_members_are_independent_fits_whose_mean_is_the_output() -> None:
    """Compared with fits of one member each; two threads in parallel give the same bits as one."""
    threads, results = torch.get_num_threads(), []
    try:
        torch.set_num_threads(1)
        alone = [fit(replace(TINY, iterations=12)) for _ in range(3)]
        together = fit(replace(TINY, ensemble_size=3, iterations=12))
        for single, member in zip(alone, together.members, strict=True):
            single.members = [member]
        outputs = [[progress.output for progress in single] for single in alone]
        expected = [sum(three) / 3 for three in zip(*outputs, strict=True)]
        for count in (1, 2):
            torch.set_num_threads(count)
            seen = [progress.output for progress in fit(replace(TINY, ensemble_size=3, iterations=12))]
            assert torch.get_num_threads() == count
            for output, mean in zip(seen, expected, strict=True):
                assert torch.allclose(output, mean, atol=1e-6)
            results.append(torch.stack(seen))
        assert torch.equal(*results)
    finally:
        torch.set_num_threads(threads)


def test_the_rule_evaluates_the_returned_image_for_any_operator() -> None:
    """With a nonlinear operator: its value of a mean is not the mean of its values."""

    def fold(image: torch.Tensor) -> torch.Tensor:
        return (2 * image - 1).square()

    observation = fold(tensor(clean_picture()))
    several = fit(
        replace(TINY, ensemble_size=3, iterations=40),
        make_rule=lambda random, ensemble_size: HeldOutRule(
            observation, torch.square, random, ensemble_size=ensemble_size
        ),
        operator=fold,
    )
    for progress in several:
        if progress.looked:
            expected = (fold(progress.average) - observation).square()[several.rule.held_out == 1].mean()
            assert progress.statistic == pytest.approx(float(expected), rel=1e-4)


def test_everything_random_has_its_own_seed() -> None:
    rule, members = seeds(7, 8)
    assert len({rule, *(number for pair in members for number in pair)}) == 17
    assert seeds(7, 3) == (rule, members[:3])


@pytest.mark.parametrize("ending", ["left", "broken"])
def test_the_number_of_threads_is_restored_after_a_fit(ending: str) -> None:
    threads = torch.get_num_threads()

    def seen_by_a_new_thread() -> int:
        with ThreadPoolExecutor(1) as executor:
            return executor.submit(torch.get_num_threads).result()

    def break_it(progress: Progress) -> bool:
        if ending == "broken":
            raise KeyError
        return True

    try:
        torch.set_num_threads(2)
        with suppress(KeyError):
            sparsegen.restore(noisy_picture(), ensemble_size=2, iterations=5, callback=break_it)
        assert torch.get_num_threads() == seen_by_a_new_thread() == 2
    finally:
        torch.set_num_threads(threads)


def test_one_member_is_the_first_of_several_and_the_mean_has_a_smaller_error() -> None:
    clean = tensor(clean_picture())
    preset = replace(TINY, iterations=60)
    several = fit(replace(preset, ensemble_size=4))
    error = [float((progress.output - clean).square().mean()) for progress in several][-1]
    first = [progress.output for progress in fit(replace(preset, iterations=3))]
    again = fit(replace(preset, ensemble_size=4, iterations=3))
    again.members = again.members[:1]
    assert torch.equal(torch.stack(first), torch.stack([progress.output for progress in again]))
    errors = []
    for start in range(4):
        single = fit(preset, seed=start)
        errors.append([float((progress.output - clean).square().mean()) for progress in single][-1])
    assert error < 0.9 * min(errors)


def test_after_a_divergence_weights_and_moments_are_those_of_the_last_good_state() -> None:
    hourglass = fit(replace(TINY, iterations=60, snapshot_every=1, mixed_precision=False))
    states = []
    for progress in hourglass:
        states.append(
            (
                progress.loss,
                {name: p.detach().clone() for name, p in hourglass.members[0].network.named_parameters()},
            )
        )
        if progress.iteration == 30:
            with torch.no_grad():  # a diverged step
                for parameter in hourglass.members[0].network.parameters():
                    parameter.add_(torch.randn(parameter.shape) * 3)
        if progress.iteration == 31:
            break
    assert states[-1][0] < 2 * states[-2][0]  # the fit continues with a small loss
    good, now = states[-3][1], states[-1][1]  # taken at the start of iteration 30, before its step
    moved = max(float((now[name] - good[name]).abs().max()) for name in now)
    assert moved < 3 * TINY.learning_rate  # one step of Adam from there


def test_moments_are_restored_with_the_weights() -> None:
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    good = LastGood(max_psnr_drop=5)
    assert not good.has_diverged(float("nan"))  # there is no state to restore yet
    with pytest.raises(RuntimeError, match="no state has been taken"):
        good.restore(layer, optimizer)
    for step in range(3):
        layer(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        if step == 1:
            good.take(1.0, layer, optimizer)
            kept = optimizer.state_dict()["state"][0]["exp_avg"].clone(), layer.weight.detach().clone()
    assert not torch.equal(layer.weight, kept[1])
    good.restore(layer, optimizer)
    assert torch.equal(optimizer.state_dict()["state"][0]["exp_avg"], kept[0]) and torch.equal(
        layer.weight, kept[1]
    )
    assert (
        good.has_diverged(3.2) and good.has_diverged(float("nan")) and not good.has_diverged(3.1)
    )  # 5 dB are 3.16


def test_the_absolute_loss_is_robust_to_salt_and_pepper() -> None:
    clean, random = clean_picture(), np.random.default_rng(2)
    hit = random.random(clean.shape[:2]) < 0.2
    noisy = np.where(hit[..., None], random.integers(0, 2, clean.shape[:2])[..., None], clean).astype(
        np.float32
    )
    squared, absolute = (
        psnr(sparsegen.restore(noisy, loss=loss, iterations=200).image, clean) for loss in ("mse", "l1")
    )
    assert absolute > squared + 3


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"preset": "quicker"}, "preset must be one of fast, paper, quick.*got 'quicker'"),
        ({"regularizer": "l0inf"}, "did you mean 'l0_inf'"),
        ({"sigma": -1}, "0 to 255; got -1"),
        ({"sigma": 256}, "got 256"),
        ({"sigma": float("nan")}, "got nan"),
        ({"density": 0}, "above 0"),
        ({"density": 0.5, "regularizer": "baseline"}, "has no density"),
        ({"iterations": 0}, "from 1 to 100000"),
        ({"ensemble_size": 0}, "from 1 to 8"),
        ({"ensemble_size": 9}, "from 1 to 8"),
        ({"seed": -1}, "seed"),
        ({"loss": "huber"}, "loss must be one of"),
        ({"operator": Mask(np.eye(32, dtype=bool))}, "the mask has 32 x 32 pixels and the image 64 x 64"),
        ({"operator": lambda image: image[..., :-1]}, r"maps an image .* to \(1, 3, 64, 63\)"),
        ({"operator": lambda image: image.detach()}, "no gradient"),
        ({"operator": lambda image: None}, "to NoneType"),
        ({"shape": (3, 32, 32)}, "give the shape of the image"),
        ({"shape": 5}, r"\(C, H, W\); got 5"),
        ({"shape": (3, -1, 64)}, "H is of the image's shape"),
        ({"device": "cuda:99"}, "no device cuda:99: torch finds cpu"),
        ({"device": "nowhere"}, "got 'nowhere'"),
        ({"stops": "no"}, "True, False, or None.*got 'no'"),
    ],
)
def test_bad_input_is_refused_before_any_work(about: dict, message: str) -> None:
    def never(progress: Progress) -> None:
        raise AssertionError("work was done")

    with pytest.raises((TypeError, ValueError), match=message):
        sparsegen.restore(noisy_picture(), callback=never, **about)


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (torch.full((1, 3, 64, 64), float("nan")), "NaN"),
        (torch.zeros(2, 3, 64, 64), "one sample"),
        (torch.full((1, 3, 64, 64), 255.0), "divide it by 255"),
        (torch.zeros(1, 2000), r"a picture must be \(1, C, H, W\)"),
        (torch.zeros(1, 3, 0, 64), r"must not be empty; got \(1, 3, 0, 64\)"),
        (torch.zeros(1, 3, 64, 64, device="meta"), "must not be empty.*meta"),
        (torch.zeros(1, 3, 8, 64), r"a picture must be \(1, C, H, W\)"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.int32), "float tensor"),
    ],
)
def test_tensors_that_are_not_observations_are_refused(observation: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sparsegen.restore(observation)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "sharpen"}, "kind must be one of denoise"),
        ({"kind": "upscale"}, "by is 2 or 4"),
        ({"kind": "upscale", "by": 3}, "by is 2 or 4"),
        ({"by": 2}, "belongs to upscale, and denoise does not have it; got 2"),
        ({"kind": "deblur"}, "kernel is the blur kernel of deblur"),
        ({"kind": "deblur", "kernel": "gaussian:0"}, "above 0 and up to 10"),
        ({"kind": "deblur", "kernel": "box:3"}, "gaussian:SIGMA"),
        ({"kernel": "gaussian:1"}, "belongs to deblur, and denoise does not have it; got 'gaussian:1'"),
        ({"sigam": 3}, "did you mean 'sigma'"),
        ({"sigma": "25"}, "got '25'"),
    ],
)
def test_invalid_tasks_are_refused(given: dict, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Task.of(**given)


def test_a_task_gives_the_result_of_restore() -> None:
    noisy = noisy_picture()
    pictures = []
    outcome = run(
        Task.of(sigma=25, iterations=20), from_array(noisy), callback=lambda p: pictures.append(p.picture())
    )
    expected = sparsegen.restore(noisy, sigma=25, iterations=20)
    assert np.array_equal(outcome.image.pixels, expected.image)
    assert np.array_equal(pictures[-1].pixels, expected.image) and len(pictures) == 20
    assert np.array_equal(outcome.history, expected.history)


def test_a_mask_is_white_in_the_holes_and_gray_at_their_edges() -> None:
    clean = clean_picture()
    mask = np.full(clean.shape[:2], 0.03, np.float32)  # JPEG's black
    mask[20:30, 20:40] = 0.1
    mask[22:28, 22:38] = 1
    known = mask < 0.05
    damaged = np.where(known[..., None], clean, 0).astype(np.float32)
    outcome = run(Task.of(kind="inpaint", iterations=150), from_array(damaged), mask=from_array(mask))
    assert psnr(outcome.image.pixels[20:30, 20:40], clean[20:30, 20:40]) > 20
    assert np.array_equal(outcome.image.pixels[known], damaged[known])  # known pixels are unchanged
    noisy = run(Task.of(kind="inpaint", sigma=5, iterations=2), from_array(damaged), mask=from_array(mask))
    assert not np.array_equal(noisy.image.pixels[known], damaged[known])


def test_python_keeps_known_pixels_as_the_task_does() -> None:
    damaged, known = clean_picture().astype(np.float32), np.ones((64, 64), bool)
    known[20:30, 20:40] = False
    mask = from_array((~known).astype(np.float32))
    outcome = run(Task.of(kind="inpaint", iterations=3), from_array(damaged), mask=mask)
    for image in (damaged, tensor(damaged)):
        restored = sparsegen.restore(image, Mask(known), iterations=3).image
        pixels = restored if image is damaged else to_pixels(restored)
        assert np.array_equal(pixels, outcome.image.pixels)
    noisy = sparsegen.restore(damaged, Mask(known), iterations=3, sigma=5).image
    assert not np.array_equal(noisy[known], damaged[known])


def test_transparent_pixels_of_a_mask_are_not_holes() -> None:
    rgba = np.full((64, 64, 4), 255, np.uint8)
    rgba[..., 3] = 0
    rgba[20:30, 20:40, 3] = 255
    known = known_pixels(from_array(rgba))
    assert not known[20:30, 20:40].any() and known.sum() == 64 * 64 - 200


def test_a_mask_with_too_few_known_pixels_is_refused() -> None:
    mask = np.ones((64, 64), np.float32)
    mask[0, :19] = 0
    with pytest.raises(ValueError, match="leaves 19 of 4096 pixels known, and at least 20 are needed"):
        known_pixels(from_array(mask))
    mask[1, 1] = 0
    assert known_pixels(from_array(mask)).sum() == 20


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ma.masked_array(np.zeros((64, 64)), np.eye(64)), "plain numpy array; got MaskedArray.*as a Mask"),
        (np.zeros((64, 64)).view(np.matrix), "plain numpy array; got matrix"),
    ],
)
def test_subclasses_of_arrays_are_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sparsegen.restore(array)


def test_the_byte_order_makes_no_difference() -> None:
    deep = (clean_picture() * 65535).astype(np.uint16)
    swapped = sparsegen.restore(deep.astype(">u2"), iterations=2).image
    assert swapped.dtype == np.dtype(">u2")
    assert np.array_equal(swapped, sparsegen.restore(deep, iterations=2).image)


def test_pictures_of_16_bits_keep_their_depth() -> None:
    deep = (clean_picture() * 65535).astype(np.uint16)
    outcome = run(Task.of(iterations=2), from_array(deep))
    again = read_picture(outcome.image.encode(".png"))
    assert again.depth == 16
    assert np.allclose(again.pixels, outcome.image.pixels, atol=1 / 65535)


@pytest.mark.parametrize("noise", [None, "gaussian"])
def test_the_physics_of_deepinv_are_operators(noise: str | None) -> None:
    import deepinv

    clean = tensor(clean_picture())
    noise_model = deepinv.physics.GaussianNoise(0.05) if noise else None
    physics = deepinv.physics.Inpainting((3, 64, 64), mask=0.6, noise_model=noise_model)
    result = sparsegen.restore(physics(clean), physics, iterations=100)
    error = (result.image - clean).square().mean()
    assert error < 0.25 * (physics(clean) - clean).square().mean()
    for other in (
        deepinv.physics.Denoising(noise_model),
        deepinv.physics.Blur(torch.ones(1, 1, 3, 3) / 9, padding="circular"),
    ):
        assert sparsegen.restore(clean, other, iterations=2).image.shape == clean.shape
    shrinking = deepinv.physics.Downsampling(img_size=(3, 64, 64), factor=2, filter="bicubic")
    result = sparsegen.restore(shrinking(clean), shrinking, shape=(3, 64, 64), iterations=2)
    assert result.image.shape == clean.shape


def test_an_operator_may_keep_its_matrix_under_any_name() -> None:
    """Only a method A is that of a deepinv physics. The truth value of an operator is never evaluated."""

    class Sensing:
        def __init__(self) -> None:
            self.A = torch.randn(30, 3 * 32 * 32, generator=torch.Generator().manual_seed(0)) / 55

        def __call__(self, image: torch.Tensor) -> torch.Tensor:
            return image.flatten(1) @ self.A.T

        def __len__(self) -> int:
            return 0

    sensing = Sensing()
    observation = sensing(torch.full((1, 3, 32, 32), 0.5))
    result = sparsegen.restore(observation, sensing, shape=(3, 32, 32), iterations=3, stops=False)
    assert result.image.shape == (1, 3, 32, 32)


def test_the_content_of_holes_does_not_influence_the_loss() -> None:
    clean, known = clean_picture(), np.ones((64, 64), bool)
    known[20:40, 20:40] = False
    about = {"operator": Mask(known), "iterations": 3}
    for stops in (True, False):
        losses = [
            sparsegen.restore(np.where(known[..., None], clean, shown), stops=stops, **about).history["loss"]
            for shown in (np.float32(0), np.float32(1))
        ]
        np.testing.assert_array_equal(*losses)


def test_the_preset_paper_has_the_settings_of_the_original() -> None:
    paper = PRESETS["paper"]
    assert (paper.inputs, paper.jitter, paper.learning_rate) == (32, 1 / 30, 0.01)
    assert paper.averaging == Exponential(0.99) and paper.ensemble_size == 1
    assert paper.iterations == 3000 and not paper.stops and not paper.mixed_precision
    result = sparsegen.restore(noisy_picture(), preset="paper", iterations=3)
    assert result.history["density"].shape == (2, 5) and np.isnan(result.history["statistic"]).all()
    assert result.stopped_because == "all 3 iterations are done"
