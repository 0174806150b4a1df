import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sparsegen.pictures import images
from sparsegen.zoo import noise


@given(seed=st.integers(0, 2**64 - 1), first=st.integers(0, 10_000), count=st.integers(1, 8))
@settings(max_examples=50, deadline=None)
def test_a_row_depends_only_on_its_seed_and_index(seed: int, first: int, count: int) -> None:
    rows = noise.z(count, 16, seed, first)
    alone = [noise.z(1, 16, seed, first + index)[0] for index in range(count)]
    assert np.array_equal(rows, alone)


@given(
    seed=st.integers(0, 2**64 - 1),
    first=st.integers(0, 10_000),
    count=st.integers(1, 8),
    classes=st.integers(1, 1000),
)
@settings(max_examples=50, deadline=None)
def test_a_label_depends_only_on_its_seed_and_index(seed: int, first: int, count: int, classes: int) -> None:
    drawn = noise.labels(count, classes, seed, first=first)
    alone = [noise.labels(1, classes, seed, first=first + index)[0] for index in range(count)]
    assert drawn.dtype == np.int64 and drawn.tolist() == alone
    assert 0 <= drawn.min() and drawn.max() < classes


def test_labels_are_drawn_uniformly_and_independently_of_the_noise() -> None:
    drawn = noise.labels(5_000, 10)
    assert stats.chisquare(np.bincount(drawn, minlength=10)).pvalue > 1e-3
    pairs = np.bincount(drawn[:-1] * 10 + drawn[1:], minlength=100)
    assert stats.chisquare(pairs).pvalue > 1e-3
    by_seed = [noise.labels(1, 10, seed)[0] for seed in range(5_000)]
    assert stats.chisquare(np.bincount(by_seed, minlength=10)).pvalue > 1e-3
    assert abs(np.corrcoef(noise.z(5_000, 1)[:, 0], drawn)[0, 1]) < 5 / 5_000**0.5


def test_the_labels_of_seed_0_never_change() -> None:
    # The published images of a seed rest on these numbers.
    assert noise.labels(8, 10, 0).tolist() == [8, 6, 9, 9, 6, 5, 9, 9]


@pytest.mark.parametrize("given", [3, [3, 3], (3, 3), np.array([3, 3]), np.int64(3)])
def test_given_labels_are_used(given: object) -> None:
    assert noise.labels(2, 10, 0, given).tolist() == [3, 3]


def test_an_unconditional_generator_has_no_labels() -> None:
    assert noise.labels(2, 0) is None
    with pytest.raises(ValueError, match="unconditional and has no labels"):
        noise.labels(2, 0, given=1)


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


def test_a_class_without_a_name_is_called_by_its_number() -> None:
    assert noise.titles(2, ("cat", "dog")) == ["cat", "dog"]
    assert noise.titles(2, ()) == ["0", "1"]
    assert noise.titles(0, ()) == []
    assert noise.titles(2, ("cat", "dog", "not learned")) == ["cat", "dog"]
    called = ["7", "8", "dog"]  # the digits of some folders: a name goes before a number
    assert noise.labels(4, 3, given=["7", "2", 2, "dog"], names=called).tolist() == [0, 2, 2, 2]
    assert noise.labels(2, 3, given="dog", names=called).tolist() == [2, 2]
    with pytest.raises(ValueError, match="no class 'cat': there are 7, 8, dog"):
        noise.labels(1, 3, given="cat", names=called)
    with pytest.raises(ValueError, match="unconditional and has no labels"):
        noise.labels(1, 0, given="dog")


def test_classes_that_the_data_did_not_have_are_neither_drawn_nor_accepted() -> None:
    names = ("red", "green", "blue")
    assert set(noise.labels(200, 10, names=names).tolist()) == {0, 1, 2}
    assert noise.labels(2, 10, given=["blue", 0], names=names).tolist() == [2, 0]
    with pytest.raises(ValueError, match=r"a label is 0 red, 1 green, 2 blue, from 0 to 2; got 3"):
        noise.labels(2, 10, given=3, names=names)
    with pytest.raises(ValueError, match=r"a label is a class, from 0 to 9; got 10"):
        noise.labels(2, 10, given=10)
