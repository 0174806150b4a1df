"""A discriminator over the features of a frozen network (Sauer et al., 2021, "Projected GANs Converge Faster").

    images -> frozen network -> maps at several scales -> frozen random mixing -> one head per scale -> scores

The frozen network is pretrained, so that the heads reward recognizable shapes early in training. It does not detect
fine grid noise; an additional discriminator of pixels does (Kumari et al., 2022).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from sparsegen.training.augment import Augment
from sparsegen.training.classifier import Classifier, open_classifier, trained_on
from sparsegen.training.terms import LossInputs
from sparsegen.zoo.blocks import needed
from sparsegen.zoo.spec import ModelSpec

if TYPE_CHECKING:
    from efficientnet_lite_pytorch.model import MBConvBlock

NETWORK = "projected"  # its name in phases, terms and checkpoints
SMALLEST = 4  # side that a head reduces its map to
WIDEST = 256  # channels of a head


@dataclass(frozen=True)
class FrozenFeatures:
    """A trained network that returns maps of an image at several scales; its weights are fixed.

    Args:
        name: Its name in the record of a run.
        channels, strides: Of each map, from the finest to the coarsest.
        network: In eval mode, its weights frozen.
        maps: Function from images (B, 3, H, W) in [-1, 1] to maps (B, C_i, H / stride_i, W / stride_i).
    """

    name: str
    channels: Sequence[int]
    strides: Sequence[float]
    network: nn.Module
    maps: Callable[[Tensor], list[Tensor]]


def classifier_features() -> FrozenFeatures:
    """Opens our CIFAR-10 classifier. Raises: FileNotFoundError if its weights are missing."""
    network = open_classifier()
    return FrozenFeatures(
        "cifar10-classifier", Classifier.channels, Classifier.strides, network, network.maps
    )


def efficientnet_features() -> FrozenFeatures:
    """Opens EfficientNet-Lite0, trained on ImageNet; images are enlarged three times, to at least 96 pixels.

    Raises:
        ImportError: If its packages are not installed.
    """
    from sparsegen.training.features import efficientnet_lite0

    network = efficientnet_lite0()
    ends = [index - 1 for index, block in enumerate(network._blocks) if _stride(block) == 2][1:]
    ends.append(len(network._blocks) - 1)

    def maps(images: Tensor) -> list[Tensor]:
        pixels = (images + 1) * 127.5
        x = F.interpolate(pixels, scale_factor=3.0, mode="bilinear", align_corners=False)
        x = ((x - 127) / 128).contiguous(memory_format=torch.channels_last)
        x, found = network._swish(network._bn0(network._conv_stem(x))), []
        for index, block in enumerate(network._blocks):
            x = block(x)
            if index in ends:
                found.append(x)
        return found

    channels = [network._blocks[end]._block_args.output_filters for end in ends]
    return FrozenFeatures("efficientnet-lite0", channels, [4 / 3, 8 / 3, 16 / 3, 32 / 3], network, maps)


FEATURES = {"cifar10-classifier": classifier_features, "efficientnet-lite0": efficientnet_features}


def open_frozen(name: str) -> FrozenFeatures:
    """Opens a feature network by its name.

    Raises:
        ValueError: Listing the names.
        FileNotFoundError, ImportError: If it is not installed.
    """
    if name not in FEATURES:
        raise ValueError(f"no feature network {name!r}: choose one of {', '.join(FEATURES)}")
    return FEATURES[name]()


def find_frozen(spec: ModelSpec, name: str) -> dict[str, FrozenFeatures]:
    """Opens the feature networks that a model may be trained with; `frozen_for` selects one by the images.

    Returns: By name: the named network, all for "auto", none for another recipe.

    Raises:
        ValueError: If a network is named for another recipe; as `open_frozen`.
    """
    if spec.recipe != NETWORK:
        if name != "auto":
            raise ValueError(
                f"features are only for the projected recipe, and {spec.name} has its own: omit them, or train "
                f"{spec.name}.projected"
            )
        return {}
    return {known: open_frozen(known) for known in (FEATURES if name == "auto" else (name,))}


def frozen_for(found: Mapping[str, FrozenFeatures], fingerprint: str) -> FrozenFeatures | None:
    """Selects from several networks our classifier for its training images, else EfficientNet-Lite0."""
    if len(found) <= 1:
        return next(iter(found.values()), None)
    return found["cifar10-classifier" if fingerprint == trained_on() else "efficientnet-lite0"]


class Mixing(nn.Module):
    """Random convolutions that are not trained: 1 x 1 within each scale, then 3 x 3 from coarse to fine.

    They mix the channels of the frozen network, so that a head cannot rely on a few of them (Sauer et al., 2021,
    section 3.2). They are buffers, saved with the heads.

    Shape: maps (B, C_i, H_i, W_i) -> maps (B, outputs_i, H_i, W_i).
    """

    def __init__(self, channels: Sequence[int], outputs: Sequence[int]):
        super().__init__()
        self.count = len(channels)
        for index, (inputs, made) in enumerate(zip(channels, outputs, strict=True)):
            self.register_buffer(f"within_{index}", _kaiming(made, inputs, 1))
        for index, (fine, coarse) in enumerate(zip(outputs, outputs[1:], strict=False)):
            self.register_buffer(f"across_{index}", _kaiming(fine, coarse, 3))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        mixed = [F.conv2d(x, getattr(self, f"within_{index}")) for index, x in enumerate(maps)]
        for index in reversed(range(self.count - 1)):
            side = mixed[index].shape[2:]
            above = F.interpolate(mixed[index + 1], side, mode="bilinear", align_corners=False)
            mixed[index] = mixed[index] + F.conv2d(above, getattr(self, f"across_{index}"), padding=1)
        return mixed


class Head(nn.Module):
    """Reduces a map to a side of about 4 by strided convolutions and scores each position; with classes, also the fit
    to the label (projection, Miyato & Koyama, 2018).

    Shape: map (B, C, H, W), labels (B,) -> scores (B, 1, h, w).
    """

    def __init__(self, channels: int, halvings: int, classes: int):
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(halvings):
            wider = min(2 * channels, WIDEST)
            layers += _layer(nn.Conv2d(channels, wider, 4, 2, 1))
            channels = wider
        self.stages = nn.Sequential(*layers, *_layer(nn.Conv2d(channels, channels, 3, padding=1)))
        self.score = spectral_norm(nn.Conv2d(channels, 1, 1))
        self.embedding = spectral_norm(nn.Embedding(classes, channels)) if classes else None

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        features = self.stages(x)
        scores = self.score(features)
        if self.embedding is None:
            return scores
        direction = self.embedding(needed(labels))[:, :, None, None]
        return scores + (features * direction).sum(1, keepdim=True)


class ProjectedDiscriminator(nn.Module):
    """One head per scale of a frozen network's mixed features.

    The frozen network is not in the state dict; checkpoints record its name.

    Args:
        side: Of the square images, in pixels.
        classes: 0 if the generator is unconditional.
        width: Channels of the finest mixed map; the coarser ones have twice as many.

    Shape: images (B, 3, side, side) in [-1, 1], labels (B,) where there are classes -> scores (B, 1, h, w) per scale.

    Raises:
        ValueError: If the images are too small for the feature network.
    """

    def __init__(self, features: FrozenFeatures, side: int, classes: int, width: int = 64):
        super().__init__()
        if side / features.strides[-1] < 2:
            raise ValueError(
                f"{features.name} divides the side of images by {features.strides[-1]:g}, and {side} pixels are too "
                f"few: use images of at least {2 * features.strides[-1]:.0f} pixels"
            )
        outputs = [width, *[2 * width] * (len(features.channels) - 1)]
        self._features = features  # not a module, so its network is not registered as a submodule
        self.mixing = Mixing(features.channels, outputs)
        self.heads = nn.ModuleList(
            Head(channels, _halvings(side / stride), classes)
            for channels, stride in zip(outputs, features.strides, strict=True)
        )

    def forward(self, images: Tensor, labels: Tensor | None = None) -> list[Tensor]:
        maps = self.mixing(self._features.maps(images))
        return [head(x, labels) for head, x in zip(self.heads, maps, strict=True)]

    def _apply(self, change: Callable[[Tensor], Tensor], recurse: bool = True) -> "ProjectedDiscriminator":
        """Also moves the frozen network to another device."""
        self._features.network._apply(change)
        return super()._apply(change, recurse)


@dataclass(frozen=True)
class ProjectedHinge:
    """The heads' loss: the sum of the hinge losses of all scales, each the mean over positions."""

    augment: Augment

    def __call__(self, inputs: LossInputs) -> Tensor:
        real = _scores(inputs, inputs.batch.real, inputs.batch.labels, self.augment)
        fake = _scores(inputs, inputs.made, inputs.batch.fake_labels, self.augment)
        return _sum(F.relu(1 - score).mean() for score in real) + _sum(
            F.relu(1 + score).mean() for score in fake
        )


@dataclass(frozen=True)
class ProjectedScore:
    """The generator's loss for `ProjectedHinge`: the sum of the negative mean scores of all scales."""

    augment: Augment

    def __call__(self, inputs: LossInputs) -> Tensor:
        fake = _scores(inputs, inputs.made, inputs.batch.fake_labels, self.augment)
        return -_sum(score.mean() for score in fake)


def _scores(inputs: LossInputs, images: Tensor, labels: Tensor | None, augment: Augment) -> list[Tensor]:
    heads = inputs.batch.networks[NETWORK]
    seen = augment(images, inputs.batch.random).contiguous(memory_format=torch.channels_last)
    return [score.float() for score in heads(seen, labels)]


def _sum(losses: Iterable[Tensor]) -> Tensor:
    return sum(losses, torch.zeros(()))


def _layer(conv: nn.Conv2d) -> list[nn.Module]:
    return [spectral_norm(conv), nn.BatchNorm2d(conv.out_channels), nn.LeakyReLU(0.2)]


def _halvings(side: float) -> int:
    halvings = 0
    while side / 2 >= SMALLEST:
        side, halvings = side / 2, halvings + 1
    return halvings


def _kaiming(outputs: int, inputs: int, kernel: int) -> Tensor:
    return nn.init.kaiming_normal_(torch.empty(outputs, inputs, kernel, kernel))


def _stride(block: "MBConvBlock") -> int:
    stride = block._block_args.stride
    return stride[0] if isinstance(stride, list | tuple) else stride
