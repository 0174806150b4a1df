"""The linear classifier: its gradient at the minimum in float64, and its accuracy."""

import numpy as np
import pytest

from sparsegen.training.probe import Probe, fit_probe


def blobs(count: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three classes around corners of different scales, and a constant feature."""
    draws = np.random.default_rng(seed)
    labels = draws.integers(3, size=count)
    centers = np.array([[0, 0, 0, 5], [9, 0, 0, 5], [0, 900, 0, 5]])
    noise = spread * draws.normal(size=(count, 4)) * [1, 100, 1, 0]
    return (centers[labels] + noise).astype(np.float32), labels


def gradient(probe: Probe, features: np.ndarray, labels: np.ndarray, l2: float) -> tuple[np.ndarray, ...]:
    """Returns the gradient of mean cross-entropy + l2 / 2 |weight|² in float64."""
    x = features.astype(np.float64)
    deviation = x.std(axis=0, ddof=1)
    x = (x - x.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    logits = x @ probe.weight.double().numpy() + probe.bias.double().numpy()
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    error = (shares - np.eye(3)[labels]) / len(x)
    return x.T @ error + l2 * probe.weight.double().numpy(), error.sum(axis=0)


@pytest.mark.parametrize("l2", [1e-3, 1e-1])
def test_the_objective_is_at_its_minimum(l2: float) -> None:
    features, labels = blobs(300, spread=5)
    probe = fit_probe(features, labels, l2)
    for slope in gradient(probe, features, labels, l2):
        assert np.abs(slope).max() < 5e-4
    assert probe.weight.abs().max() > 0.1  # the start is not a minimum


def test_separate_classes_are_found_at_any_scale_of_the_features() -> None:
    probe = fit_probe(*blobs(300, spread=0.5))
    features, labels = blobs(200, spread=0.5, seed=1)
    assert (probe(features) == labels).all()


def test_features_without_information_give_chance_accuracy() -> None:
    draws = np.random.default_rng(0)
    probe = fit_probe(draws.normal(size=(2000, 5)).astype(np.float32), draws.integers(4, size=2000))
    found = probe(draws.normal(size=(2000, 5)).astype(np.float32))
    assert (found == draws.integers(4, size=2000)).mean() == pytest.approx(0.25, abs=0.04)


def test_fits_are_deterministic_and_a_class_without_images_is_never_found() -> None:
    features, labels = blobs(200, spread=5)
    labels = np.where(labels == 2, 7, labels)
    one, two = fit_probe(features, labels), fit_probe(features, labels)
    assert np.array_equal(one.weight, two.weight) and one.weight.shape == (4, 8)
    assert set(one(features)) == {0, 1, 7}


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.zeros(6, int), "two classes.* and 0"),
        (np.arange(5), r"shape \(5,\)"),
        (np.array([0, 1, 2, 0, 1, -1]), "labels must be integers"),
    ],
)
def test_labels_of_one_class_or_another_shape_are_refused(labels: np.ndarray, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        fit_probe(np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32), labels)


def test_nan_and_features_of_another_network_are_refused() -> None:
    features, labels = blobs(20, spread=1)
    probe = fit_probe(features, labels)
    with pytest.raises(ValueError, match=r"equal dimensions; got \[2, 4\]"):
        probe(features[:, :2])
    features[3] = np.nan
    for use in (lambda: probe(features), lambda: fit_probe(features, labels)):
        with pytest.raises(ValueError, match="1 of 20 features hold NaN"):
            use()
