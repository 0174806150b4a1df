"""The metrics against closed forms and torch-fidelity."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset
from torch_fidelity import metric_kid

from sparsegen.training.metrics import Statistics, density, diversity, frechet_distance, kernel_distance


def gaussian(mean, covariance) -> Statistics:
    return Statistics(np.array(mean, float), np.array(covariance, float), 100)


def random_rotation(dimension: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(dimension, dimension)))[0]


def test_statistics_are_those_of_numpy_in_float64():
    features = np.random.default_rng(0).normal(5, 2, size=(9000, 7)).astype(np.float32)
    statistics = Statistics.of(features)
    np.testing.assert_allclose(statistics.mean, features.astype(np.float64).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(statistics.covariance, np.cov(features.astype(float), rowvar=False), rtol=1e-9)
    assert statistics.mean.dtype == statistics.covariance.dtype == np.float64
    assert statistics.count == 9000


def test_the_distance_of_gaussians_of_equal_covariance_is_that_of_their_means():
    spread = random_rotation(4, seed=1) * [3.0, 2.0, 1.0, 0.5]
    covariance = spread @ spread.T
    distance = frechet_distance(gaussian([1, 2, 3, 4], covariance), gaussian([1, 2, 0, 8], covariance))
    assert distance == pytest.approx(3**2 + 4**2, rel=1e-12)


def test_commuting_covariances_have_their_closed_form():
    axes, mean = random_rotation(5, seed=2), np.zeros(5)
    a, b = np.array([4.0, 1.0, 9.0, 0.0, 25.0]), np.array([1.0, 1.0, 16.0, 36.0, 0.0])
    distance = frechet_distance(gaussian(mean, axes * a @ axes.T), gaussian(mean, axes * b @ axes.T))
    assert distance == pytest.approx(((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), rel=1e-12)


def test_the_distance_of_covariances_that_do_not_commute_is_that_of_two_dimensions():
    # For 2 x 2 matrices tr (A B)^½ = √(tr AB + 2 √det AB), by the Cayley-Hamilton theorem.
    a, b = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.7], [-0.7, 3.0]])
    overlap = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    expected = np.trace(a) + np.trace(b) - 2 * overlap
    assert frechet_distance(gaussian([0, 0], a), gaussian([0, 0], b)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("count", [40, 2000])
def test_a_distance_is_symmetric_and_zero_to_itself_for_singular_covariances_too(count):
    draws = np.random.default_rng(3)
    a = Statistics.of(draws.normal(size=(count, 100)))
    b = Statistics.of(draws.normal(0.1, 1.5, size=(count, 100)))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)
    assert frechet_distance(a, b) > 1
    assert frechet_distance(a, a) < 1e-10


def test_rotating_and_shifting_both_does_not_change_the_distance():
    draws = np.random.default_rng(4)
    a, b = draws.normal(size=(50, 30)), draws.normal(1, 2, size=(60, 30))
    turn = random_rotation(30, seed=5)
    moved = frechet_distance(Statistics.of(a @ turn + 7), Statistics.of(b @ turn + 7))
    assert moved == pytest.approx(frechet_distance(Statistics.of(a), Statistics.of(b)), rel=1e-10)


def test_identical_images_have_a_distance():
    real = Statistics.of(np.random.default_rng(6).normal(size=(300, 8)))
    alike = Statistics.of(np.ones((5, 8)))
    expected = ((real.mean - 1) ** 2).sum() + np.trace(real.covariance)
    assert frechet_distance(alike, real) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(alike, alike) == 0


def test_1280_dimensions_take_seconds_not_minutes():
    draws = np.random.default_rng(7)
    a, b = (Statistics.of(draws.normal(size=(1500, 1280)).astype(np.float32)) for _ in range(2))
    start = time.process_time()
    frechet_distance(a, b)
    assert time.process_time() - start < 10  # about 1 s on an idle core


class Images(Dataset):
    def __init__(self, images: np.ndarray):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.images[index]).permute(2, 0, 1)


@pytest.mark.parametrize("count", [60, 400], ids=["fewer images than dimensions", "more"])
def test_torch_fidelity_computes_the_same_distance(count):
    import torch_fidelity
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    class Pooled(FeatureExtractorBase):
        """Returns the means of 4 x 4 blocks: 192 dimensions of a 32 x 32 image."""

        feature_extractor_internal_dtype = torch.float32

        def __init__(self, name, features_list, **_):
            super().__init__(name, features_list)

        @staticmethod
        def get_provided_features_list():
            return ("pooled",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "pooled"

        @staticmethod
        def can_be_compiled():
            return False

        def forward(self, images):
            return (torch.nn.functional.avg_pool2d(images.float() / 255, 4).flatten(1),)

    if "pooled" not in torch_fidelity.registry.FEATURE_EXTRACTORS_REGISTRY:
        torch_fidelity.register_feature_extractor("pooled", Pooled)
    draws = np.random.default_rng(8)
    a = draws.integers(0, 256, size=(count, 32, 32, 3), dtype=np.uint8)
    b = (a[::-1] // 2 + draws.integers(0, 100, size=a.shape, dtype=np.uint8)).astype(np.uint8)
    theirs = torch_fidelity.calculate_metrics(
        input1=Images(a),
        input2=Images(b),
        fid=True,
        feature_extractor="pooled",
        cuda=False,
        save_cpu_ram=True,  # no worker processes
        verbose=False,
    )["frechet_inception_distance"]

    def ours(images):
        blocks = images.reshape(count, 8, 4, 8, 4, 3).mean(axis=(2, 4)) / 255
        return Statistics.of(blocks.transpose(0, 3, 1, 2).reshape(count, -1))

    assert frechet_distance(ours(a), ours(b)) == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused_and_counted(value):
    features = np.zeros((6, 3), np.float32)
    features[[1, 4], 2] = value, -value
    with pytest.raises(ValueError, match="2 of 6 features hold NaN or infinity"):
        Statistics.of(features)


@pytest.mark.parametrize("shape", [(5,), (1, 5), (0, 5), (5, 0), (2, 3, 4)])
def test_features_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="at least 2 rows"):
        Statistics.of(np.zeros(shape))


def test_statistics_of_two_networks_cannot_be_compared():
    with pytest.raises(ValueError, match="3 and 4 dimensions"):
        frechet_distance(gaussian(np.zeros(3), np.eye(3)), gaussian(np.zeros(4), np.eye(4)))


def test_density_counts_exact_zeros_only():
    code = torch.tensor([0.0, -0.0, 1e-30, -2.0, float("nan")]).reshape(1, 5, 1, 1)
    assert density(code) == 3 / 5
    assert density(torch.zeros(2, 3, 4, 4)) == 0 and density(torch.ones(7)) == 1
    with pytest.raises(ValueError, match="without entries"):
        density(torch.empty(0, 3))


def naive_kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    def mean(pairs: list) -> float:
        return sum((float(a @ b) / x.shape[1] + 1) ** 3 for a, b in pairs) / len(pairs)

    within = [mean([(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]) for z in (x, y)]
    return sum(within) - 2 * mean([(a, b) for a in x for b in y])


@given(st.integers(2, 6), st.integers(2, 6), st.integers(1, 4), st.integers(0, 99))
def test_the_kernel_distance_is_its_definition(n: int, m: int, dimension: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    x, y = random.standard_normal((n, dimension)), random.standard_normal((m, dimension)) + 1
    assert kernel_distance(x, y) == pytest.approx(naive_kernel_distance(x, y), rel=1e-9, abs=1e-9)


def test_the_kernel_distance_is_that_of_torch_fidelity() -> None:
    random = np.random.default_rng(0)
    x, y = random.standard_normal((50, 20)), 2 * random.standard_normal((50, 20))
    grams = [metric_kid.kernel_poly(a, b) for a, b in ((x, x), (x, y), (y, y))]
    assert kernel_distance(x, y) == pytest.approx(metric_kid.mmd2(*grams), rel=1e-9)


def test_the_kernel_distance_of_few_images_is_not_biased() -> None:
    random = np.random.default_rng(0)
    found = [kernel_distance(*random.standard_normal((2, 8, 5))) for _ in range(4_000)]
    assert abs(np.mean(found)) < 4 * np.std(found) / len(found) ** 0.5


def test_diversity_is_the_share_of_the_variance() -> None:
    random = np.random.default_rng(0)
    real = random.standard_normal((500, 6)) * [1, 2, 3, 4, 5, 6]
    shrunk = real.mean(0) + 0.3 * (real - real.mean(0))
    assert diversity(Statistics.of(shrunk), Statistics.of(real)) == pytest.approx(0.09)
    with pytest.raises(ValueError, match="all real images are equal"):
        diversity(Statistics.of(real), Statistics.of(np.ones((3, 6))))
