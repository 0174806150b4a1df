"""The projected recipe: frozen features, their mixing, the heads over them, and the losses."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_run import assert_equal, pictures, start, state
from torch import Tensor
from torch.nn import functional as F

from sparsegen.training import augment, classifier, projected
from sparsegen.training import start as starting
from sparsegen.training.classifier import Classifier, open_classifier
from sparsegen.training.data import Images, open_images
from sparsegen.training.loop import Networks
from sparsegen.training.projected import (
    FEATURES,
    FrozenFeatures,
    Mixing,
    ProjectedDiscriminator,
    ProjectedHinge,
    ProjectedScore,
    find_frozen,
    frozen_for,
    open_frozen,
)
from sparsegen.training.recipes import RECIPES, recipe_of
from sparsegen.training.terms import Batch, LossInputs
from sparsegen.zoo.bundled import AUXILIARY
from sparsegen.zoo.checkpoint import from_pretrained, save_auxiliary_networks
from sparsegen.zoo.spec import ModelSpec

PROJECTED = {"model": "biggan-8.ml.projected", "features": "cifar10-classifier", "batch_size": 4}


def images(count: int = 4, side: int = 32) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(3)) * 2 - 1


@pytest.fixture(scope="module", params=FEATURES)
def features(request: pytest.FixtureRequest) -> FrozenFeatures:
    return open_frozen(request.param)


def heads(features: FrozenFeatures, classes: int = 10) -> ProjectedDiscriminator:
    torch.manual_seed(0)
    return ProjectedDiscriminator(features, 32, classes, width=8)


def test_maps_have_the_stated_channels_and_strides(features: FrozenFeatures) -> None:
    maps = features.maps(images(2, 64))
    assert [x.shape[1] for x in maps] == list(features.channels)
    assert [x.shape[2] for x in maps] == [round(64 / stride) for stride in features.strides]


def test_the_last_map_of_efficientnet_equals_that_of_its_package() -> None:
    features = open_frozen("efficientnet-lite0")
    network, x = features.network, images(2)
    found = network._swish(network._bn1(network._conv_head(features.maps(x)[-1])))
    pixels = F.interpolate((x + 1) * 127.5, scale_factor=3.0, mode="bilinear", align_corners=False)
    torch.testing.assert_close(found, network.extract_features((pixels - 127) / 128))


def test_the_frozen_network_is_neither_trained_nor_saved(features: FrozenFeatures) -> None:
    discriminator, x = heads(features), images().requires_grad_()
    frozen = {key: value.clone() for key, value in features.network.state_dict().items()}
    assert not any(parameter.requires_grad for parameter in features.network.parameters())
    sum(score.mean() for score in discriminator.train()(x, torch.arange(4))).backward()
    assert x.grad.abs().sum() > 0
    assert_equal(features.network.state_dict(), frozen)
    assert not features.network.training
    assert {key.partition(".")[0] for key in discriminator.state_dict()} == {"mixing", "heads"}
    assert not any(key.startswith("mixing") for key, _ in discriminator.named_parameters())


def test_the_frozen_network_moves_to_another_device_with_the_heads() -> None:
    features = open_frozen("cifar10-classifier")
    discriminator = heads(features).to("meta")
    assert {parameter.device.type for parameter in features.network.parameters()} == {"meta"}
    assert {parameter.device.type for parameter in discriminator.parameters()} == {"meta"}


def test_mixing_goes_from_coarse_to_fine() -> None:
    torch.manual_seed(0)
    mixing = Mixing([2, 3], [4, 5])
    fine, coarse = torch.randn(1, 2, 4, 4), torch.randn(1, 3, 2, 2)
    found = mixing([fine, coarse])
    within = [mixing.within_0[:, :, 0, 0], mixing.within_1[:, :, 0, 0]]
    expected_coarse = torch.einsum("oc,bchw->bohw", within[1], coarse)
    torch.testing.assert_close(found[1], expected_coarse)
    # Bilinear at twice the side: each pixel is 9/16, 3/16, 3/16 and 1/16 of the four nearest, edges repeated.
    padded = F.pad(expected_coarse, (1, 1, 1, 1), mode="replicate")
    above = torch.empty(1, 5, 4, 4)
    for row in range(4):
        for column in range(4):
            near = (row // 2 + 1, column // 2 + 1)
            far = (near[0] + (1 if row % 2 else -1), near[1] + (1 if column % 2 else -1))
            above[:, :, row, column] = (
                9 * padded[:, :, near[0], near[1]]
                + 3 * padded[:, :, far[0], near[1]]
                + 3 * padded[:, :, near[0], far[1]]
                + padded[:, :, far[0], far[1]]
            ) / 16
    across = F.conv2d(above, mixing.across_0, padding=1)
    torch.testing.assert_close(found[0], torch.einsum("oc,bchw->bohw", within[0], fine) + across)


def test_a_label_adds_the_projection_of_the_features_on_its_embedding() -> None:
    discriminator = heads(open_frozen("cifar10-classifier")).eval()
    head, x = discriminator.heads[0], torch.randn(2, 8, 16, 16)
    features = head.stages(x)
    found = head(x, torch.tensor([3, 7])) - head(x, torch.tensor([5, 5]))
    direction = head.embedding.weight[[3, 7]] - head.embedding.weight[[5, 5]]
    torch.testing.assert_close(
        found[:, 0], torch.einsum("bchw,bc->bhw", features, direction), atol=1e-5, rtol=1e-4
    )


class Constant(torch.nn.Module):
    """Scores by the mean of an image at two scales, so that losses can be computed by hand."""

    def forward(self, x: Tensor, labels: Tensor | None) -> list[Tensor]:
        mean = x.mean((1, 2, 3))
        return [mean[:, None, None, None].expand(-1, 1, 2, 2), 2 * mean[:, None, None, None]]


def test_the_losses_are_the_sums_of_hinge_and_negative_score_over_scales() -> None:
    generator = ModelSpec.parse("dcgan-8.baseline").generator()
    networks = {"generator": generator, "discriminator": Constant(), "projected": Constant()}
    batch = Batch(networks, images(), None, torch.randn(4, generator.z_dim), torch.Generator())
    real = batch.real.mean((1, 2, 3)).numpy()
    fake = batch.generated[0].detach().mean((1, 2, 3)).numpy()
    hinge = sum(np.maximum(0, 1 - s * real).mean() + np.maximum(0, 1 + s * fake).mean() for s in (1, 2))
    learned = ProjectedHinge(augment.nothing)(LossInputs(batch, "projected"))
    assert learned.item() == pytest.approx(hinge, abs=1e-5) and not learned.requires_grad
    score = ProjectedScore(augment.nothing)(LossInputs(batch, "generator"))
    assert score.item() == pytest.approx(-3 * fake.mean(), abs=1e-5) and score.requires_grad


@pytest.mark.parametrize("architecture", RECIPES)
def test_every_architecture_trains_with_its_discriminator_and_the_heads(
    architecture: str, tmp_path: Path
) -> None:
    model = f"{architecture}-8.l1.projected"
    own = recipe_of(ModelSpec.parse(model.removesuffix(".projected")))
    run = start(tmp_path / "run", 2, **PROJECTED | {"model": model})
    terms = {phase.network: set(phase.terms) for phase in run.recipe.phases}
    assert [phase.network for phase in run.recipe.phases] == [
        *(phase.network for phase in own.phases[:-1]),
        "projected",
        "generator",
    ]
    assert [phase.updates for phase in run.recipe.phases] == [
        *(min(2, phase.updates) for phase in own.phases[:-1]),
        1,
        1,
    ]
    assert run.networks.rates == {
        phase.network: [1e-4 if phase.network == "generator" else 4e-4] for phase in run.recipe.phases
    }
    assert terms == {phase.network: set(phase.terms) for phase in own.phases} | {
        "projected": {"projected_hinge"},
        "generator": {*own.phases[-1].terms, "projected_score"},
    }
    before = {key: value.clone() for key, value in run.networks.state().items()}
    metrics = [progress.metrics for progress in run]
    assert {"projected_hinge", "projected_score"} <= metrics[-1]["losses"].keys()
    after = run.networks.state()
    moved = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert {"generator", "projected"} <= {key.partition(".")[0] for key in moved}
    assert not any(key.startswith("projected.mixing") for key in moved)
    assert from_pretrained(tmp_path / "run" / "checkpoints" / "00000002").spec.name == model


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    for _ in start(tmp_path / "unbroken", 4, save_every=2, **PROJECTED):
        pass
    for progress in start(tmp_path / "broken", 4, save_every=2, **PROJECTED):
        if progress.step == 3:
            break
    for _ in start(tmp_path / "broken", 4, save_every=2, resume=True, **PROJECTED):
        pass
    assert_equal(state(tmp_path / "broken"), state(tmp_path / "unbroken"))


def test_another_recipe_or_feature_network_is_another_run(tmp_path: Path) -> None:
    for _ in start(tmp_path / "run", 2, save_every=2, **PROJECTED):
        pass
    with pytest.raises(
        ValueError, match="features: 'cifar10-classifier' there, 'efficientnet-lite0' requested"
    ):
        start(tmp_path / "run", 4, resume=True, **PROJECTED | {"features": "efficientnet-lite0"})
    with pytest.raises(ValueError, match=r"model: 'biggan-8.ml.projected' there, 'biggan-8.ml' requested"):
        start(tmp_path / "run", 4, resume=True, **PROJECTED | {"model": "biggan-8.ml", "features": None})


def test_fine_tuning_keeps_the_heads_only_with_the_same_features(tmp_path: Path) -> None:
    for _ in start(tmp_path / "run", 2, save_every=2, **PROJECTED):
        pass
    source = tmp_path / "run" / "checkpoints" / "00000002"
    assert (source / AUXILIARY["projected"]).is_file()
    tuned = PROJECTED | {"start_from": str(source), "warm_up": 1}
    warm = start(tmp_path / "warm", 4, **tuned)
    expected = {
        key: value
        for key, value in Networks.state(warm.networks).items()
        if key.startswith("projected.heads")
    }
    trained = state(tmp_path / "run")
    assert_equal(expected, {key: trained[key] for key in expected})
    assert warm.warm_up == 0
    cold = start(tmp_path / "cold", 4, **tuned | {"features": "efficientnet-lite0"})
    assert cold.warm_up == 1


def test_the_heads_are_published_with_the_model_in_half_precision(tmp_path: Path) -> None:
    for _ in start(tmp_path / "run", 2, save_every=2, **PROJECTED):
        pass
    source, folder = tmp_path / "run" / "checkpoints" / "00000002", tmp_path / "published"
    save_auxiliary_networks(source, folder, ModelSpec.parse(PROJECTED["model"]), torch.float16)
    found = load_file(folder / AUXILIARY["projected"])
    expected = load_file(source / AUXILIARY["projected"])
    assert_equal(
        found, {key: value.half() if value.is_floating_point() else value for key, value in expected.items()}
    )
    assert (folder / AUXILIARY["discriminator"]).is_file()


def test_the_features_are_selected_by_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModelSpec.parse("biggan-8.ml.projected")
    found = find_frozen(spec, "auto")
    assert list(found) == ["cifar10-classifier", "efficientnet-lite0"]
    assert frozen_for(found, classifier.trained_on()).name == "cifar10-classifier"
    assert frozen_for(found, "of others").name == "efficientnet-lite0"
    assert list(named := find_frozen(spec, "efficientnet-lite0")) == ["efficientnet-lite0"]
    assert frozen_for(named, classifier.trained_on()) is named["efficientnet-lite0"]
    with pytest.raises(ValueError, match=r"train dcgan-8.ml.projected"):
        find_frozen(ModelSpec.parse("dcgan-8.ml"), "efficientnet-lite0")
    with pytest.raises(
        ValueError, match="no feature network 'vgg': choose one of cifar10-classifier, efficientnet-lite0"
    ):
        find_frozen(spec, "vgg")


def test_a_run_opens_each_frozen_network_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened: list[str] = []

    def counted(name: str, opener: Callable[[], FrozenFeatures]) -> Callable[[], FrozenFeatures]:
        return lambda: opened.append(name) or opener()

    for name, opener in list(projected.FEATURES.items()):
        monkeypatch.setitem(projected.FEATURES, name, counted(name, opener))
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    config = starting.TrainConfig(
        "dcgan-8.ml.projected",
        str(tmp_path),
        tmp_path / "run",
        steps=1,
        batch_size=4,
        eval_count=0,
        device="cpu",
    )
    assert starting.start(config).plan.features == "efficientnet-lite0"
    assert sorted(opened) == ["cifar10-classifier", "efficientnet-lite0"]


def test_missing_weights_and_packages_are_reported_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="install sparsegen again, or train them with"):
        open_classifier(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="use images of at least 16 pixels"):
        ProjectedDiscriminator(open_frozen("cifar10-classifier"), 8, 0)
    with pytest.raises(ValueError, match="trained with features of a frozen network"):
        recipe_of(ModelSpec.parse("biggan-8.ml.projected"))
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ImportError, match=r"pip install .*\[train\]"):
        open_frozen("efficientnet-lite0")


def test_weaker_colors_change_less() -> None:
    x = images()

    def change(strength: float) -> float:
        return float((augment.Color(strength)(x, torch.Generator().manual_seed(1)) - x).abs().mean())

    assert change(0) < 1e-6 < change(0.5) < change(1)


def test_the_first_layer_of_the_classifier_whitens_patches() -> None:
    network = Classifier()
    pixels = (images(256) * 50 + 127).byte()
    classifier._start(network, pixels, torch.Generator().manual_seed(0))
    made = network.whiten(pixels.float() / 127.5 - 1)[:, :12].movedim(1, 0).flatten(1)
    torch.testing.assert_close(torch.cov(made), torch.eye(12), atol=0.05, rtol=0)


def train(data: Images, recipe: classifier.Recipe) -> tuple[list[classifier.Epoch], Classifier]:
    found, training = [], classifier.train(data, data, recipe)
    while True:
        try:
            found.append(next(training))
        except StopIteration as end:
            return found, end.value


def test_the_training_of_the_classifier_is_deterministic() -> None:
    torch.manual_seed(1)
    noise = pictures(64)
    told_apart = noise.pixels // 4 + (noise.labels * 18)[:, None, None, None].byte()  # by their brightness
    data = Images(told_apart, noise.labels, "brightness", "0")
    recipe = classifier.Recipe(epochs=12, batch_size=16, average=0.5, hole=0, rate=0.05)
    (first, network), (second, again) = (train(data, recipe) for _ in range(2))
    assert first[-1].accuracy >= 0.5 > first[0].accuracy
    assert [progress.loss for progress in first] == [progress.loss for progress in second]
    assert_equal(network.state_dict(), again.state_dict())


def test_the_classifier_refuses_images_without_labels() -> None:
    data = Images(torch.zeros(16, 3, 32, 32, dtype=torch.uint8), None, "photos", "0", unlabeled="one folder")
    with pytest.raises(ValueError, match=r"photos has no labels \(one folder\): give data with labels"):
        train(data, classifier.Recipe(epochs=1, batch_size=8))


@pytest.mark.cifar10
def test_the_published_classifier_has_its_accuracy_on_the_test_images(cifar10: Path) -> None:
    test = open_images(cifar10, "test", limit=2000)
    assert classifier.accuracy(open_classifier(), test) == pytest.approx(0.899, abs=0.015)  # of all 10,000
