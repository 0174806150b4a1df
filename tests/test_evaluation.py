"""Evaluation with a fake generator, a fake feature network and, if it is found, CIFAR-10."""

import numpy as np
import pytest
import torch
from torch import nn

from sparsegen.pictures import images as pixels
from sparsegen.training.data import open_images
from sparsegen.training.evaluation import Evaluation, Samples, draw, evaluate_samples
from sparsegen.training.features import FeatureNetwork, open_features
from sparsegen.training.metrics import Statistics, frechet_distance
from sparsegen.training.reference import reference_statistics
from sparsegen.zoo import noise


class StandIn(nn.Module):
    """A fake generator with two codes; a quarter of the first code is not 0."""

    z_dim, classes, class_names, device, image_bytes = 6, 0, (), torch.device("cpu"), 1

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
def reference(real, features) -> Statistics:
    return Statistics.of(features(real))


def measured(generator, reference, features, *arguments, **options) -> Evaluation:
    return evaluate_samples(draw(generator, [features], *arguments, **options), {features.metric: reference})


def test_an_evaluation_measures_exactly_the_images_of_its_seed(generator, reference, features):
    result = measured(generator, reference, features, count=50, seed=3, batch=16)
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


def test_each_image_takes_one_forward_pass_and_progress_is_reported(generator, features):
    reported = []
    draw(generator, [features], 50, batch=20, progress=lambda *done: reported.append(done))
    assert generator.sizes == [20, 20, 10]
    assert reported == [(20, 50), (40, 50), (50, 50)]


def test_a_conditional_generator_draws_the_classes_of_its_seed(generator, features):
    generator.classes = 10
    samples = draw(generator, [features], 50, seed=3, batch=20)
    assert generator.labels == samples.labels.tolist() == noise.labels(50, 10, seed=3).tolist()


def test_the_batch_size_does_not_change_the_figures(generator, reference, features):
    small, large = (measured(generator, reference, features, 30, batch=batch) for batch in (7, 30))
    assert small.distance == pytest.approx(large.distance, rel=1e-6)
    assert small.density == pytest.approx(large.density)


def test_the_mode_of_a_generator_is_restored(generator, features):
    generator.train()
    generator.coder.eval()
    generator.norm.running_mean.fill_(0.5)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    draw(generator, [features], 10)
    assert generator.training and generator.norm.training and not generator.coder.training
    for name, value in generator.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
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
def test_a_number_out_of_range_is_refused_before_any_work(arguments, error, message, generator, features):
    with pytest.raises(error, match=message):
        draw(generator, [features], **arguments)
    assert not generator.sizes


def test_a_reference_of_another_network_is_refused(generator, features):
    samples = draw(generator, [features], 10)
    other = Statistics(np.zeros(5), np.eye(5), 100)
    with pytest.raises(ValueError, match="12 and 5 dimensions"):
        evaluate_samples(samples, {"fd-quarters": other})
    with pytest.raises(ValueError, match=r"fd-quarters; got \['fd-other'\]"):
        evaluate_samples(samples, {"fd-other": other})
    with pytest.raises(ValueError, match="references must belong"):
        evaluate_samples(samples, {})


def test_several_networks_measure_the_same_samples_and_the_first_reference_is_the_headline(
    generator, real, reference, features
):
    mean = FeatureNetwork("fd-mean", 3, lambda x: x.float().mean((2, 3)) / 255)
    samples = draw(generator, [features, mean], 50, seed=3, batch=20)
    assert generator.sizes == [20, 20, 10]
    for network in (features, mean):
        assert np.array_equal(samples.features[network.metric], network(samples.images))
    result = evaluate_samples(samples, {"fd-mean": Statistics.of(mean(real)), "fd-quarters": reference})
    assert list(result.distances) == ["fd-mean", "fd-quarters"]
    assert (result.metric, result.distance) == ("fd-mean", result.distances["fd-mean"])
    alone = evaluate_samples(samples, {"fd-quarters": reference})
    assert alone.distance == result.distances["fd-quarters"] != result.distance


def test_features_that_hold_nan_have_no_distance(reference):
    broken = Samples(np.zeros((4, 2, 2, 3), np.uint8), {"fd-quarters": np.full((4, 12), np.nan, np.float32)})
    with pytest.raises(ValueError, match="4 of 4 features hold NaN"):
        evaluate_samples(broken, {"fd-quarters": reference})


def test_weights_that_have_diverged_are_named_as_the_cause(generator, features):
    with torch.no_grad():
        generator.dictionary.bias[0] = float("nan")
    generator.train()
    with pytest.raises(FloatingPointError, match="8 of 8 generated images.*diverged"):
        draw(generator, [features], 20, batch=8)
    assert generator.training


@pytest.mark.cifar10
def test_the_distance_of_real_images_is_small_and_grows_with_noise(cifar10, tmp_path):
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
