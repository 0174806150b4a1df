"""Features of real images: computed once, cached, and computed again if the cache is damaged."""

import logging

import numpy as np
import pytest
import torch

from sparsegen.training import cache, reference
from sparsegen.training.data import Images, fingerprint
from sparsegen.training.features import FeatureNetwork
from sparsegen.training.metrics import Statistics
from sparsegen.training.reference import Reference, reference_features, reference_statistics


def count_calls(features: FeatureNetwork) -> tuple[FeatureNetwork, list[int]]:
    sizes = []

    def network(x):
        sizes.append(len(x))
        return features.network(x)

    return FeatureNetwork(features.metric, features.dimension, network), sizes


def test_reference_statistics_are_computed_once_and_then_read(real, features, tmp_path):
    counting, sizes = count_calls(features)
    reported = []
    first = reference_statistics(
        real, "cifar10-train.a1b2", counting, tmp_path / "new", lambda *done: reported.append(done)
    )
    assert reported == [(500, 700), (700, 700)] and sum(sizes) == 700
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "fd-quarters-cifar10-train.a1b2-700-features.safetensors",
        "fd-quarters-cifar10-train.a1b2-700.safetensors",
    ]
    again = reference_statistics(real, "cifar10-train.a1b2", counting, tmp_path / "new")
    assert sum(sizes) == 700
    direct = Statistics.of(features(real))
    for statistics in (first, again):
        assert np.array_equal(statistics.mean, direct.mean)
        assert np.array_equal(statistics.covariance, direct.covariance)
        assert statistics.count == 700


def test_other_images_metrics_weights_and_counts_have_their_own_files(real, features, tmp_path):
    other = FeatureNetwork("fd-other", 12, features.network)
    newer = FeatureNetwork("fd-other", 12, features.network, version="a1b2")
    for images, called, network in [
        (real, "a", features),
        (real, "b", features),
        (real[:600], "a", features),
        (real, "a", other),
        (real, "a", newer),
    ]:
        reference_features(images, called, network, tmp_path)
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_a_damaged_cache_file_is_computed_again_with_a_warning(damage, real, features, tmp_path, caplog):
    good = reference_features(real, "a", features, tmp_path).copy()
    (path,) = tmp_path.iterdir()
    path.write_bytes({"cut": path.read_bytes()[:200], "empty": b"", "text": b"statistics" * 50}[damage])
    with caplog.at_level(logging.WARNING):
        again = reference_features(real, "a", features, tmp_path)
    assert np.array_equal(again, good)
    assert len(caplog.records) == 1 and str(path) in caplog.text
    caplog.clear()
    reference_features(real, "a", features, tmp_path)
    assert not caplog.records


def test_a_file_of_an_older_format_is_computed_again(real, features, tmp_path, monkeypatch):
    counting, sizes = count_calls(features)
    for version in ("0", "1", "1"):
        monkeypatch.setattr(reference, "FORMAT", version)
        reference_statistics(real, "a", counting, tmp_path)
    assert sum(sizes) == 2 * 700


def test_a_failed_write_leaves_no_file_and_returns_the_statistics(
    real, features, tmp_path, caplog, monkeypatch
):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "save_file", full)
    with caplog.at_level(logging.WARNING):
        assert reference_statistics(real, "a", features, tmp_path).count == 700
    assert "No space left" in caplog.text
    assert not list(tmp_path.iterdir())


def test_the_default_folder_is_the_cache_of_the_user(real, features, tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEGEN_CACHE", str(tmp_path))
    reference_statistics(real, "a", features)
    assert (tmp_path / "reference" / "fd-quarters-a-700.safetensors").is_file()


@pytest.mark.parametrize("fingerprint", ["", "../a", "a/b", "a b", "a" * 101])
def test_an_invalid_fingerprint_is_refused(fingerprint, real, features, tmp_path):
    counting, sizes = count_calls(features)
    with pytest.raises(ValueError, match="1 to 100 letters"):
        reference_statistics(real, fingerprint, counting, tmp_path)
    assert not sizes


def test_a_single_image_is_refused(real, features, tmp_path):
    with pytest.raises(ValueError, match="at least 2 images"):
        reference_statistics(real[:1], "a", features, tmp_path)


def images_of(pixels: np.ndarray, labels: list[int] | None = None) -> Images:
    planes = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    labels = None if labels is None else torch.tensor(labels)
    return Images(planes, labels, "pictures", fingerprint(planes, labels))


def test_a_reference_computes_the_feature_of_each_image_once(real, features, tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEGEN_CACHE", str(tmp_path))
    counting, sizes = count_calls(features)
    train, test = images_of(real[:600], [row % 3 for row in range(600)]), images_of(real[600:])
    first, second = (Reference(counting, train, test) for _ in range(2))
    for found in (first, second):
        assert found.statistics.count == 600 and found.train_features.shape == (600, 12)
        assert found.probe(found.train_features).shape == (600,)
        assert found.test_distances.shape == (100,)
    assert sum(sizes) == 700
    assert torch.equal(first.probe.weight, second.probe.weight)
    gaps = np.linalg.norm(features(real[600:])[:, None] - features(real[:600]), axis=2)
    np.testing.assert_allclose(first.test_distances, gaps.min(1), rtol=1e-3)
    assert np.array_equal(first.test_distances, second.test_distances)


def test_a_reference_needs_labels_for_a_probe_and_test_images_for_distances(real, features):
    assert Reference(features, images_of(real)).probe is None
    assert Reference(features, images_of(real, [4] * 700)).probe is None
    with pytest.raises(ValueError, match="pictures has no test images: give test images"):
        _ = Reference(features, images_of(real)).test_distances
