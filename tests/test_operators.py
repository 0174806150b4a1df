from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from sparsegen.restoration.operators import Blur, Downsample, Mask, Operator
from sparsegen.restoration.restore import make_operator
from sparsegen.restoration.settings import Task


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.rand(1, channels, height, width, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=20, deadline=None)
@given(by=st.sampled_from([2, 4]), height=st.integers(2, 9), width=st.integers(2, 9), seed=st.integers(0, 99))
def test_shrinking_is_that_of_pillow(by: int, height: int, width: int, seed: int) -> None:
    image = picture(height * by, width * by, 1, seed)
    small = Image.fromarray(image[0, 0].numpy()).resize((width, height), Image.Resampling.BICUBIC)
    assert np.allclose(Downsample(by)(image)[0, 0], np.asarray(small), atol=1e-5)
    assert Downsample(by).image_shape((1, 1, height, width)) == tuple(image.shape)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_blurring_is_a_convolution_with_mirrored_borders(data: st.DataObject) -> None:
    kernel = np.random.default_rng(data.draw(st.integers(0, 99))).random(
        (data.draw(st.sampled_from([1, 3, 5])), data.draw(st.sampled_from([1, 3, 7])))
    )
    image = picture(data.draw(st.integers(8, 14)), data.draw(st.integers(8, 14)))
    blurred = Blur(kernel)(image)
    for channel, truth in zip(blurred[0], image[0].numpy(), strict=True):
        assert np.allclose(channel, ndimage.convolve(truth, kernel / kernel.sum(), mode="mirror"), atol=1e-5)


@pytest.mark.parametrize("sigma", [0.5, 1.6, 3.0])
def test_a_gaussian_blur_is_a_gaussian_filter(sigma: float) -> None:
    image = picture(40, 50)
    radius = int(np.ceil(3 * sigma))
    for channel, truth in zip(Blur.gaussian(sigma)(image)[0], image[0].numpy(), strict=True):
        expected = ndimage.gaussian_filter(truth, sigma, mode="mirror", radius=radius)
        assert np.allclose(channel, expected, atol=1e-5)


def test_a_kernel_of_the_largest_numbers_is_normalized_too() -> None:
    for dtype, value in ((np.float32, 3e38), (np.float64, 1e308)):
        kernel = Blur(np.full((3, 3), value, dtype)).kernel
        assert torch.allclose(kernel, torch.full((3, 3), 1 / 9))


def test_a_mask_keeps_the_known_pixels() -> None:
    known = np.zeros((6, 7), bool)
    known[2:4, 1:5] = True
    image = picture(6, 7)
    assert np.array_equal(Mask(known)(image)[0], np.where(known, image[0].numpy(), 0))


@pytest.mark.parametrize("operator", [Downsample(2), Blur.gaussian(0.6), Mask(np.eye(6, dtype=bool))])
def test_gradients_are_those_of_finite_differences(operator: Operator) -> None:
    image = picture(6, 6, 1).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: operator(x).double(), image, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mask(np.zeros((4, 4), bool)), "without a true pixel, so no pixel is known"),
        (lambda: Mask(np.ones((4, 4), bool)), "without a false pixel, so .* nothing to fill in"),
        (lambda: Mask(np.ones((4, 4))), "boolean"),
        (lambda: Mask(np.eye(4, dtype=bool))(picture(4, 5)), "mask has 4 x 4 pixels and the image 5 x 4"),
        (lambda: Downsample(3), "factor must be 2 or 4; got 3"),
        (lambda: Blur(np.ones(3)), r"a matrix \(h, w\); got \(3,\)"),
        (lambda: Blur(np.ones((4, 3))), "odd sides; got 3 x 4"),
        (lambda: Blur(np.zeros((3, 3))), "above 0"),
        (lambda: Blur(np.full((3, 3), np.nan)), "finite"),
        (lambda: Blur.gaussian(0), "above 0 and up to 10 pixels; got 0"),
        (lambda: Blur.gaussian(float("nan")), "got nan"),
        (
            lambda: Blur(np.ones((9, 9)))(picture(4, 20)),
            "20 x 4 pixels is smaller than the blur kernel of 9 x 9",
        ),
    ],
)
def test_invalid_arguments_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Task(kind="inpaint"), "inpaint needs the known pixels that check_damage returns; got None"),
        (Task(kind="deblur", kernel="gaussian:1"), "deblur needs the kernel that check_damage returns"),
        (Task(kind="upscale"), "factor must be 2 or 4"),
    ],
)
def test_an_operator_of_an_unchecked_task_is_refused(task: Task, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_operator(task, None)
