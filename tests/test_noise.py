import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsegen.zoo import images, noise


@given(seed=st.integers(0, 2**64 - 1), first=st.integers(0, 10_000), count=st.integers(1, 8))
@settings(max_examples=50, deadline=None)
def test_a_row_depends_on_its_seed_and_index_alone(seed: int, first: int, count: int) -> None:
    rows = noise.z(count, 16, seed, first)
    alone = [noise.z(1, 16, seed, first + index)[0] for index in range(count)]
    assert np.array_equal(rows, alone)


def test_the_noise_is_standard_normal() -> None:
    rows = noise.z(2000, 64).ravel().astype(np.float64)
    standard_error = rows.size**-0.5
    assert abs(rows.mean()) < 5 * standard_error
    assert abs(rows.std() - 1) < 5 * standard_error
    assert abs((rows**4).mean() - 3) < 5 * 96**0.5 * standard_error


def test_the_noise_of_seed_0_never_changes() -> None:
    # The published images of a seed rest on these numbers.
    expected = [
        [1.1176220178604126, -1.3871248960494995, -0.4265716075897217],
        [0.4559846520423889, -2.1591031551361084, -2.1299569606781006],
    ]
    assert noise.z(2, 3, 0).tolist() == expected


@given(bound=st.floats(0.05, 3))
@settings(max_examples=30, deadline=None)
def test_truncated_noise_stays_within_its_bound(bound: float) -> None:
    rows = noise.z(4, 32, 1, truncation=bound)
    assert np.abs(rows).max() <= bound
    plain = noise.z(4, 32, 1)
    inside = np.abs(plain) <= bound
    assert np.array_equal(rows[inside], plain[inside])


def test_pixels_round_to_the_nearest_level() -> None:
    levels = np.arange(256)
    image = (levels / 127.5 - 1).astype(np.float32)
    assert np.array_equal(images.to_uint8(np.broadcast_to(image, (1, 3, 1, 256)))[0, 0, :, 0], levels)
    assert images.to_uint8(np.full((1, 3, 1, 1), 7.0)).max() == 255


def test_a_grid_shows_every_image_once() -> None:
    pictures = np.arange(5, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2).repeat(3, 3)
    sheet = images.grid(pictures, gap=1)
    assert sheet.shape == (11, 16, 3)
    assert [int((sheet[..., 0] == value).sum()) for value in range(5)] == [16] * 5
