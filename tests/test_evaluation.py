"""Evaluation with a stand-in generator, a stand-in feature network, and, where it is found, CIFAR-10."""

import logging

import numpy as np
import pytest
import torch
from torch import nn

from sparsegen.training import cache, evaluation
from sparsegen.training.data import open_images
from sparsegen.training.evaluation import evaluate, reference_statistics
from sparsegen.training.features import FeatureNetwork, open_features
from sparsegen.training.metrics import Statistics, frechet_distance
from sparsegen.zoo import images as pixels
from sparsegen.zoo import noise


class StandIn(nn.Module):
    """Has the interface of a generator of the zoo: two codes, of which the first keeps one entry in four."""

    z_dim, classes, class_names, device = 6, 0, (), torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.coder = nn.Linear(6, 8 * 4 * 4)
        self.norm = nn.BatchNorm2d(8)
        self.dictionary = nn.ConvTranspose2d(8, 3, 8, stride=8)
        self.sizes, self.labels = [], []

    def forward(self, z, labels=None):
        self.sizes.append(len(z))
        self.labels += [] if labels is None else labels.tolist()
        deeper = self.norm(self.coder(z).view(-1, 8, 4, 4))
        code = deeper * (torch.arange(8) % 4 == 0).view(8, 1, 1)
        return torch.tanh(self.dictionary(code)), (code, deeper)


@pytest.fixture
def generator() -> StandIn:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return StandIn()


@pytest.fixture
def features() -> FeatureNetwork:
    """Features one can compute by hand: the mean color of each quarter of an image."""
    return FeatureNetwork(
        "fd-quarters", 12, lambda x: nn.functional.adaptive_avg_pool2d(x.float() / 255, 2).flatten(1)
    )


@pytest.fixture
def real() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=(700, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def reference(real, features) -> Statistics:
    return Statistics.of(features(real))


def test_an_evaluation_measures_exactly_the_images_of_its_seed(generator, reference, features):
    result = evaluate(generator, reference, features, count=50, seed=3, batch=16)
    generator.eval()
    with torch.no_grad():
        image, codes = generator(torch.from_numpy(noise.z(50, 6, 3)))
    drawn = Statistics.of(features(pixels.to_uint8(image.numpy())))
    assert result.distance == pytest.approx(frechet_distance(drawn, reference), rel=1e-6)
    assert result.density == pytest.approx([code.count_nonzero().item() / code.numel() for code in codes])
    assert result.density == pytest.approx((0.25, 1))
    assert (result.metric, result.count, result.reference_count) == ("fd-quarters", 50, 700)
    assert (result.seed, result.batch, result.threads) == (3, 16, torch.get_num_threads())
    assert result.device == "cpu" and result.samples_per_second > 0


def test_each_image_takes_one_forward_pass_and_progress_is_told(generator, reference, features):
    told = []
    evaluate(generator, reference, features, 50, batch=20, progress=lambda *done: told.append(done))
    assert generator.sizes == [20, 20, 10]
    assert told == [(20, 50), (40, 50), (50, 50)]


def test_a_conditional_generator_is_asked_for_the_classes_of_its_seed(generator, reference, features):
    generator.classes = 10
    evaluate(generator, reference, features, 50, seed=3, batch=20)
    assert generator.labels == noise.labels(50, 10, seed=3).tolist()


def test_the_batch_size_does_not_change_what_is_measured(generator, reference, features):
    small, large = (evaluate(generator, reference, features, 30, batch=batch) for batch in (7, 30))
    assert small.distance == pytest.approx(large.distance, rel=1e-6)
    assert small.density == pytest.approx(large.density)


def test_a_generator_is_left_as_it_was(generator, reference, features):
    generator.train()
    generator.coder.eval()
    generator.norm.running_mean.fill_(0.5)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    evaluate(generator, reference, features, 10)
    assert generator.training and generator.norm.training and not generator.coder.training
    for name, value in generator.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ({"count": 1}, ValueError, "count .* from 2 to 100000; got 1"),
        ({"count": -5}, ValueError, "got -5"),
        ({"count": 10**9}, ValueError, "got 1000000000"),
        ({"count": 10.0}, TypeError, "integer .* got 10.0"),
        ({"count": "10"}, TypeError, "integer .* got '10'"),
        ({"batch": 0}, ValueError, "batch .* from 1"),
        ({"seed": -1}, ValueError, "seed .* from 0"),
    ],
)
def test_a_number_out_of_range_is_refused_before_any_work(
    arguments, error, told, generator, reference, features
):
    with pytest.raises(error, match=told):
        evaluate(generator, reference, features, **arguments)
    assert not generator.sizes


def test_a_reference_of_another_network_is_refused(generator, features):
    other = Statistics(np.zeros(5), np.eye(5), 100)
    with pytest.raises(ValueError, match="5 dimensions and fd-quarters has 12"):
        evaluate(generator, other, features, 10)
    assert not generator.sizes


def test_weights_that_have_diverged_are_named_as_the_cause(generator, reference, features):
    with torch.no_grad():
        generator.dictionary.bias[0] = float("nan")
    generator.train()
    with pytest.raises(FloatingPointError, match="8 of 8 generated images.*diverged"):
        evaluate(generator, reference, features, 20, batch=8)
    assert generator.training


def count_calls(features: FeatureNetwork) -> tuple[FeatureNetwork, list[int]]:
    sizes = []

    def network(x):
        sizes.append(len(x))
        return features.network(x)

    return FeatureNetwork(features.metric, features.dimension, network), sizes


def test_reference_statistics_are_computed_once_and_then_read(real, features, tmp_path):
    counting, sizes = count_calls(features)
    told = []
    first = reference_statistics(
        real, "cifar10-train.a1b2", counting, tmp_path / "new", lambda *done: told.append(done)
    )
    assert told == [(500, 700), (700, 700)] and sum(sizes) == 700
    assert [path.name for path in (tmp_path / "new").iterdir()] == [
        "fd-quarters-cifar10-train.a1b2-700.safetensors"
    ]
    again = reference_statistics(real, "cifar10-train.a1b2", counting, tmp_path / "new")
    assert sum(sizes) == 700
    direct = Statistics.of(features(real))
    for statistics in (first, again):
        assert np.array_equal(statistics.mean, direct.mean)
        assert np.array_equal(statistics.covariance, direct.covariance)
        assert statistics.count == 700


def test_other_images_metrics_and_counts_have_files_of_their_own(real, features, tmp_path):
    other = FeatureNetwork("fd-other", 12, features.network)
    for images, fingerprint, network in [
        (real, "a", features),
        (real, "b", features),
        (real[:600], "a", features),
        (real, "a", other),
    ]:
        reference_statistics(images, fingerprint, network, tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_a_damaged_cache_file_is_computed_again_with_a_warning(damage, real, features, tmp_path, caplog):
    good = reference_statistics(real, "a", features, tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes({"cut": path.read_bytes()[:200], "empty": b"", "text": b"statistics" * 50}[damage])
    with caplog.at_level(logging.WARNING):
        again = reference_statistics(real, "a", features, tmp_path)
    assert np.array_equal(again.covariance, good.covariance)
    assert len(caplog.records) == 1 and str(path) in caplog.text
    caplog.clear()
    reference_statistics(real, "a", features, tmp_path)
    assert not caplog.records


def test_statistics_of_an_older_format_are_computed_again(real, features, tmp_path, monkeypatch):
    counting, sizes = count_calls(features)
    for version in ("0", "1", "1"):
        monkeypatch.setattr(evaluation, "FORMAT", version)
        reference_statistics(real, "a", counting, tmp_path)
    assert sum(sizes) == 2 * 700


def test_a_write_that_fails_leaves_nothing_behind_and_the_numbers_still_come(
    real, features, tmp_path, caplog, monkeypatch
):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "save_file", full)
    with caplog.at_level(logging.WARNING):
        assert reference_statistics(real, "a", features, tmp_path).count == 700
    assert "No space left" in caplog.text
    assert not list(tmp_path.iterdir())


def test_without_a_folder_the_cache_of_the_user_keeps_the_statistics(real, features, tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEGEN_CACHE", str(tmp_path))
    reference_statistics(real, "a", features)
    assert (tmp_path / "reference" / "fd-quarters-a-700.safetensors").is_file()


@pytest.mark.parametrize("fingerprint", ["", "../a", "a/b", "a b", "a" * 101])
def test_a_fingerprint_that_is_no_file_name_is_refused(fingerprint, real, features, tmp_path):
    counting, sizes = count_calls(features)
    with pytest.raises(ValueError, match="1 to 100 letters"):
        reference_statistics(real, fingerprint, counting, tmp_path)
    assert not sizes


def test_one_image_is_no_reference(real, features, tmp_path):
    with pytest.raises(ValueError, match="at least 2 images"):
        reference_statistics(real[:1], "a", features, tmp_path)


@pytest.mark.cifar10
def test_real_images_are_near_each_other_and_farther_the_more_they_are_spoiled(cifar10, tmp_path):
    features = open_features("efficientnet-lite0")
    train, test = (open_images(cifar10, split, limit=300).numpy() for split in ("train", "test"))
    reference = reference_statistics(train, "train", features, tmp_path)
    draws = np.random.default_rng(0).normal(size=test.shape)

    def distance(images):
        return frechet_distance(Statistics.of(features(images)), reference)

    def blurred(width):
        smooth = torch.nn.functional.avg_pool2d(
            torch.from_numpy(test).permute(0, 3, 1, 2).float(), width, 1, width // 2, count_include_pad=False
        )
        return smooth.round().byte().permute(0, 2, 3, 1).numpy()

    floor = distance(test)
    noised = [distance((test + level * draws).clip(0, 255).round().astype(np.uint8)) for level in (16, 32)]
    assert floor < noised[0] < noised[1]
    assert floor < distance(blurred(3))
