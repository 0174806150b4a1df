"""Augmentations: compared with loops over single images, and statistics of many draws."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from sparsegen.training import augment

ALL = [augment.flip, augment.translate, augment.cutout, augment.Color()]
names = pytest.mark.parametrize("part", ALL, ids=lambda part: getattr(part, "__name__", repr(part)))


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shifted(image: Tensor, down: int, right: int) -> Tensor:
    made = torch.zeros_like(image)
    height, width = image.shape[1:]
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                made[:, row, column] = image[:, row - down, column - right]
    return made


@given(height=st.integers(3, 24), width=st.integers(3, 24), seed=st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_translation_shifts_by_at_most_an_eighth_and_pads_with_zeros(
    height: int, width: int, seed: int
) -> None:
    images = (
        torch.rand(3, 2, height, width) + 1
    )  # no pixel is 0, so that all shifts differ but the empty ones
    rows, columns = round(height / 8), round(width / 8)
    for image, made in zip(images, augment.translate(images, source(seed)), strict=True):
        candidates = [
            shifted(image, down, right)
            for down in range(-rows, rows + 1)
            for right in range(-columns, columns + 1)
        ]
        assert any(torch.equal(made, candidate) for candidate in candidates)


def test_translation_shifts_a_32_pixel_image_by_minus_4_to_4_with_equal_frequency() -> None:
    images = torch.zeros(9_000, 1, 32, 32)
    images[:, :, 16, 16] = 1
    places = augment.translate(images, source()).flatten(1).argmax(1)
    for shifts in (places // 32 - 16, places % 32 - 16):
        counts = torch.bincount(shifts + 4, minlength=9)
        assert len(counts) == 9
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_cutout_zeroes_a_square_of_half_the_side_with_a_random_center() -> None:
    side, half = 8, 2
    images = torch.rand(4_000, 2, side, side) + 1
    squares = [
        square(side, row - half, column - half, 2 * half).numpy().tobytes()
        for row in range(side + 1)
        for column in range(side + 1)
    ]
    assert len(set(squares)) == 81
    made = augment.cutout(images, source())
    holes = made[:, :1] == 0
    assert torch.equal(made, torch.where(holes, 0, images))
    found = Counter(hole.numpy().tobytes() for hole in holes)
    assert set(found) == set(squares)
    assert stats.chisquare([found[hole] for hole in squares]).pvalue > 1e-3


def square(side: int, top: int, left: int, size: int) -> Tensor:
    hole = torch.zeros(side, side, dtype=torch.bool)
    hole[max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)] = True
    return hole


def test_flips_mirror_about_half_of_the_images() -> None:
    images = torch.rand(2_000, 2, 3, 4)
    mirrored = []
    for image, made in zip(images, augment.flip(images, source()), strict=True):
        mirrored.append(torch.equal(made, image.flip(2)))
        assert mirrored[-1] or torch.equal(made, image)
    assert abs(np.mean(mirrored) - 0.5) < 4 * 0.5 / np.sqrt(2_000)


def test_color_adds_brightness_then_scales_saturation_then_contrast_within_their_ranges() -> None:
    """The three numbers are computed from the means and the differences of pixels."""
    images = torch.rand(2_000, 3, 4, 4, dtype=torch.float64)
    made = augment.Color()(images, source())
    brightness = (made - images).mean((1, 2, 3))  # neither of the other two moves the mean
    gray, gray_made = images.mean(1), made.mean(1)  # nor does saturation move the gray of a pixel
    spread, spread_made = (x - x.mean((1, 2), keepdim=True) for x in (gray, gray_made))
    contrast = (spread_made * spread).sum((1, 2)) / spread.square().sum((1, 2))
    tint, tint_made = images - gray[:, None], made - gray_made[:, None]
    both = (tint_made * tint).sum((1, 2, 3)) / tint.square().sum((1, 2, 3))
    saturation = both / contrast
    for values, low, high in ((brightness, -0.5, 0.5), (saturation, 0, 2), (contrast, 0.5, 1.5)):
        assert stats.kstest(values.numpy(), stats.uniform(low, high - low).cdf).pvalue > 1e-3
    for image, wanted, b, s, c in zip(images, made, brightness, saturation, contrast, strict=True):
        image = image + b
        image = s * image + (1 - s) * image.mean(0)
        torch.testing.assert_close(wanted, c * image + (1 - c) * image.mean(), rtol=0, atol=1e-9)


@names
def test_gradients_of_the_pixels_agree_with_finite_differences(part: augment.Augment) -> None:
    images = torch.randn(3, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: part(x, source(3)), (images,))


@names
def test_each_image_has_its_own_random_numbers_from_the_given_generator(part: augment.Augment) -> None:
    images = torch.rand(1, 3, 16, 16).expand(64, -1, -1, -1)
    before = torch.random.get_rng_state()
    once, again, other = (part(images, source(seed)) for seed in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(once, again) and not torch.equal(once, other)
    assert len({image.numpy().tobytes() for image in once}) > (1 if part is augment.flip else 10)
    random = source(5)
    first, second = part(images, random), part(images, random)
    assert torch.equal(first, once) and not torch.equal(second, once)


def test_a_chain_applies_its_parts_in_order_and_nothing_changes_nothing() -> None:
    images, random = torch.rand(4, 3, 8, 8), source(2)
    assert augment.nothing(images, random) is images
    wanted = augment.cutout(augment.translate(images, random), random)
    made = augment.chain(augment.translate, augment.cutout)(images, source(2))
    assert torch.equal(made, wanted)
