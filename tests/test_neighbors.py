"""Nearest neighbors, precision and recall against loops, known cases, and torch-fidelity."""

import numpy as np
import pytest
import torch

from sparsegen.training import neighbors
from sparsegen.training.neighbors import coverage, nearest


def clouds(count: int, dimension: int, seed: int = 0, shift: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng(seed)
    real = draws.normal(size=(count, dimension)).astype(np.float32)
    return real, (0.8 * draws.normal(size=(count, dimension)) + shift).astype(np.float32)


def naive_nearest(queries: np.ndarray, references: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    distances, rows = [], []
    for query in queries.astype(float):
        found = sorted(
            (float(np.linalg.norm(query - other)), row) for row, other in enumerate(references.astype(float))
        )
        distances.append([distance for distance, _ in found[:count]])
        rows.append([row for _, row in found[:count]])
    return np.array(distances), np.array(rows)


def naive_coverage(points: np.ndarray, centers: np.ndarray, k: int) -> float:
    """Equations 1 and 2 of Kynkäänniemi et al. (2019), without optimization."""
    radii = [
        sorted(np.linalg.norm(center.astype(float) - other) for j, other in enumerate(centers) if j != i)[
            k - 1
        ]
        for i, center in enumerate(centers)
    ]
    inside = 0
    for point in points.astype(float):
        inside += any(
            np.linalg.norm(point - center) <= radius
            for center, radius in zip(centers.astype(float), radii, strict=True)
        )
    return inside / len(points)


@pytest.mark.parametrize("part", [1, 150, 2**25])
def test_the_nearest_equal_those_of_a_loop_for_any_block_size(
    part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbors, "PART", part)
    references, queries = clouds(40, 5)
    told: list[int] = []
    distances, rows = nearest(queries[:30] + 100, references + 100, 4, told.append)
    expected, expected_rows = naive_nearest(queries[:30] + 100, references + 100, 4)
    np.testing.assert_allclose(distances, expected, rtol=1e-3)
    assert np.array_equal(rows, expected_rows)
    assert told[-1] == 30 and told == sorted(told) and len(told) == {1: 30, 150: 10, 2**25: 1}[part]


def test_a_copy_is_nearest_to_its_original() -> None:
    references, _ = clouds(200, 64)
    distances, rows = nearest(references[[7, 3]], references)
    assert rows.ravel().tolist() == [7, 3]
    assert (distances < 0.02).all()


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("part", [170, 2**25])
@pytest.mark.parametrize("shift", [0, 0.5, 2])
def test_precision_and_recall_agree_with_their_definition(
    k: int, part: int, shift: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbors, "PART", part)
    real, generated = clouds(60, 4, seed=1, shift=shift)
    precision, recall = coverage(generated, real, k), coverage(real, generated, k)
    assert precision == naive_coverage(generated, real, k)
    assert recall == naive_coverage(real, generated, k)
    if shift == 0.5:
        assert 0 < recall < 1 and 0 < precision < 1


def test_torch_fidelity_computes_the_same_precision_and_recall() -> None:
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, generated = clouds(300, 16, shift=0.3)
    theirs = prc_features_to_metric(
        torch.from_numpy(generated),
        torch.from_numpy(real),
        prc_neighborhood=3,
        prc_batch_size=100,
        save_cpu_ram=True,
        verbose=False,
    )
    precision, recall = theirs["precision"], theirs["recall"]
    assert (coverage(generated, real), coverage(real, generated)) == pytest.approx(
        (precision, recall), abs=1e-6
    )
    assert precision != recall and 0 < precision < 1 and 0 < recall < 1


def test_known_cases() -> None:
    real, _ = clouds(100, 8)
    assert coverage(real, real) == 1  # the same images
    assert coverage(real + 1000, real) == coverage(real, real + 1000) == 0  # far away
    one_mode = real[:1] + np.random.default_rng(1).normal(0, 1e-3, (100, 8)).astype(np.float32)
    assert coverage(one_mode, real) == 1 and coverage(real, one_mode) <= 0.01  # collapsed
    few = np.repeat(real[:5], 20, axis=0)  # copies, whose balls have no radius
    assert coverage(few, few) == 1 and coverage(real, few) == 0.05


def test_progress_counts_the_rows_of_both() -> None:
    real, generated = clouds(20, 4)
    told: list[int] = []
    coverage(generated[:15], real, progress=told.append)
    assert told == [20, 35]


def test_the_distances_of_ten_thousand_features_are_computed_in_parts() -> None:
    parts = [len(part) for part in neighbors._squared_distances(*clouds(10_000, 2), None)]
    assert max(parts) * 10_000 <= neighbors.PART and sum(parts) == 10_000


@pytest.mark.parametrize("count", [1, 3])
def test_fewer_images_than_neighbors_are_refused(count: int) -> None:
    real, generated = clouds(count, 4)
    with pytest.raises(
        ValueError, match=f"at least 4 real and 4 generated images are needed; got {count}: use more"
    ):
        coverage(generated, real)


@pytest.mark.parametrize("count", [0, 6])
def test_more_neighbors_than_references_are_refused(count: int) -> None:
    real, generated = clouds(5, 4)
    with pytest.raises(ValueError, match=f"from 1 to 5; got {count}"):
        nearest(generated, real, count)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_infinity_and_other_dimensions_are_refused(value: float) -> None:
    real, generated = clouds(10, 4)
    broken = real.copy()
    broken[2, 1] = value
    for pair in ((broken, generated), (generated, broken)):
        with pytest.raises(ValueError, match="1 of 10 features hold NaN or infinity"):
            coverage(*pair)
    with pytest.raises(ValueError, match=r"equal dimensions; got \[3, 4\]"):
        nearest(real, generated[:, :3])
