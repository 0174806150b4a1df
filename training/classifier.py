r"""A small CIFAR-10 classifier and its training, on the training images only.

Its features are the input of a projected discriminator (`sparsegen.training.projected`), or measure generators that
were trained without it (`sparsegen.training.features`).

    python -m sparsegen.training.classifier --data cifar10 --out first.safetensors
    python -m sparsegen.training.classifier --data cifar10 --from first.safetensors --rate 0.2 --epochs 8 \
        --out classifier.safetensors

The second command continues from the weights of the first, with a second rise and fall of the learning rate
(Loshchilov & Hutter, 2017, "SGDR").
"""

import argparse
import json
import logging
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from sparsegen.common.hardware import has_bfloat16
from sparsegen.training.data import Images, open_images
from sparsegen.zoo.weights import write_tensors

log = logging.getLogger(__name__)

WHITENED = 24  # channels: the 12 components of 2 x 2 patches of three colors, each with both signs
WEIGHTS = Path(__file__).parent / "weights" / "cifar10_classifier.safetensors"


class Block(nn.Sequential):
    """Two convolutions, the first of which halves the side. Shape: (B, C, H, W) -> (B, C', H/2, W/2)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(outputs),
            nn.GELU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.GELU(),
        )


class Classifier(nn.Module):
    """Whitened patches, three blocks and a linear layer, similar to Jordan (2024), "94% on CIFAR-10 in 3.29 Seconds".

    It has fewer channels and a padded first layer, so that the maps have 1/2, 1/4 and 1/8 of the side.

    Shape: images (B, 3, H, W) in [-1, 1], H and W multiples of 8 -> logits (B, 10).
    """

    channels = (64, 128, 256)
    strides = (2, 4, 8)

    def __init__(self, classes: int = 10):
        super().__init__()
        self.whiten = nn.Conv2d(3, WHITENED, 2)
        self.blocks = nn.ModuleList(
            Block(inputs, outputs)
            for inputs, outputs in zip((WHITENED, *self.channels), self.channels, strict=False)
        )
        self.linear = nn.Linear(self.channels[-1], classes, bias=False)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Returns the features after each block, with `channels` and `strides`."""
        x, found = F.gelu(self.whiten(F.pad(images, (0, 1, 0, 1), mode="replicate"))), []
        for block in self.blocks:
            x = block(x)
            found.append(x)
        return found

    def features(self, images: Tensor) -> Tensor:
        """Returns the maxima of the last maps, the input of the linear layer. Shape: (B, 256)."""
        return self.maps(images)[-1].amax((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.features(images)) / 9


def open_classifier(path: Path = WEIGHTS) -> Classifier:
    """Opens trained weights, in eval mode.

    Raises:
        FileNotFoundError: With the remedy if the file is missing.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"the weights of the CIFAR-10 classifier are not at {path}: install sparsegen again, or train them with "
            f"`python -m sparsegen.training.classifier --data cifar10 --out FILE`"
        )
    with torch.device(
        "meta"
    ):  # no initial weights are drawn, so the random state of the caller does not change
        network = Classifier()
    tensors = {
        key: value.float() if value.is_floating_point() else value for key, value in load_file(path).items()
    }
    network.load_state_dict(tensors, assign=True)
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def trained_on(path: Path = WEIGHTS) -> str:
    """Returns the fingerprint of the images that the weights were trained on; empty if the file is missing."""
    if not path.is_file():
        return ""
    with safe_open(path, framework="pt") as file:
        return file.metadata()["data"]


@dataclass(frozen=True)
class Recipe:
    """Stochastic gradient descent with Nesterov momentum.

    The rate rises linearly for a fifth of the steps, then falls to 0. Images are flipped in every other epoch and
    shifted by up to two pixels; a square of side `hole` is set to 0.
    """

    epochs: int = 12
    batch_size: int = 256
    rate: float = 0.4
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    average: float = 0.995  # decay of the averaged weights, which are the result
    hole: int = 8
    seed: int = 0


class Epoch(NamedTuple):
    """The number of a finished epoch, its last training loss, the accuracy on the test images, the seconds so far."""

    epoch: int
    loss: float
    accuracy: float
    seconds: float


def train(
    images: Images, test: Images, recipe: Recipe, network: Classifier | None = None
) -> Generator[Epoch, None, Classifier]:
    """Trains a new network, or a given one in place; returns it with the averaged weights, in eval mode.

    Raises:
        ValueError: If the images have no labels.
    """
    labels, random = images.require_labels(), torch.Generator().manual_seed(recipe.seed)
    if network is None:
        network = Classifier()
        _start(network, images.pixels[:5000], random)
    network.whiten.weight.requires_grad_(False)
    network.to(memory_format=torch.channels_last)
    learned = [weight for weight in network.parameters() if weight.requires_grad]
    steps = recipe.epochs * (len(images) // recipe.batch_size)
    optimizer = torch.optim.SGD(
        learned, recipe.rate, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        recipe.rate,
        total_steps=steps,
        pct_start=0.2,
        anneal_strategy="linear",
        cycle_momentum=False,
    )
    averaged = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(recipe.average), use_buffers=True
    )
    mirrored, started = torch.rand(len(images), generator=random) < 0.5, perf_counter()
    for epoch in range(recipe.epochs):
        network.train()
        order = torch.randperm(len(images), generator=random)
        for rows in order.split(recipe.batch_size)[: len(images) // recipe.batch_size]:
            x = _augmented(images.pixels[rows], mirrored[rows] ^ bool(epoch % 2), recipe.hole, random)
            with _autocast():
                logits = network(x)
            loss = F.cross_entropy(logits.float(), labels[rows], label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            averaged.update_parameters(network)
        yield Epoch(epoch + 1, loss.item(), accuracy(averaged.module, test), perf_counter() - started)
    network.load_state_dict(averaged.module.state_dict())
    return network.eval()


@torch.no_grad()
def accuracy(network: nn.Module, images: Images) -> float:
    """Returns the share of images whose label has the largest logit, in eval mode."""
    network.eval()
    labels, right = images.require_labels(), 0
    for rows in torch.arange(len(images)).split(500):
        with _autocast():
            logits = network(_real(images.pixels[rows]))
        right += int((logits.argmax(1) == labels[rows]).sum())
    return right / len(images)


def _real(pixels: Tensor) -> Tensor:
    return pixels.float().div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)


def _autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16("cpu"))


def _augmented(pixels: Tensor, mirrored: Tensor, hole: int, random: torch.Generator) -> Tensor:
    count, _, height, width = pixels.shape
    x = _real(pixels)
    x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    padded = F.pad(x, (2, 2, 2, 2), mode="reflect").permute(0, 2, 3, 1)
    top, left = torch.randint(5, (2, count, 1), generator=random)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    x = padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if hole:
        y, x_ = (torch.randint(side, (count, 1), generator=random) for side in (height, width))
        inside = (torch.arange(height) - y).abs() < hole // 2, (torch.arange(width) - x_).abs() < hole // 2
        x = x * ~(inside[0][:, None, :, None] & inside[1][:, None, None, :])
    return x.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def _start(network: Classifier, pixels: Tensor, random: torch.Generator) -> None:
    """Initializes the weights: the first layer whitens the patches of `pixels`, the others begin near the identity."""
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, generator=random)
            nn.init.dirac_(part.weight[: part.in_channels])
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    nn.init.normal_(network.linear.weight, std=network.linear.in_features**-0.5, generator=random)
    patches = F.unfold(_real(pixels), 2).permute(0, 2, 1).reshape(-1, 12)
    values, vectors = torch.linalg.eigh(torch.cov(patches.T))
    white = (vectors / (values + 5e-4).sqrt()).T.reshape(12, 3, 2, 2)
    network.whiten.weight.copy_(torch.cat([white, -white]))  # fixed; the bias is trained


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", default="cifar10", help="labeled images: a Hub dataset, parquet file or folder"
    )
    parser.add_argument("--test", default="", help="test images (default: the split `test` of --data)")
    parser.add_argument("--out", type=Path, required=True, help="file to write the weights to, as float16")
    parser.add_argument("--from", dest="start", type=Path, help="weights to continue from (default: none)")
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    parser.add_argument("--rate", type=float, default=Recipe.rate, help="maximum of the learning rate")
    options = parser.parse_args()
    images = open_images(options.data, "train")
    test = open_images(options.test) if options.test else open_images(options.data, "test")
    recipe = Recipe(epochs=options.epochs, rate=options.rate)
    start = open_classifier(options.start).requires_grad_(True) if options.start else None
    training = train(images, test, recipe, start)
    try:
        while True:
            progress = next(training)
            print(json.dumps(progress._asdict()), flush=True)
    except StopIteration as end:
        network: Classifier = end.value
    about = {"data": images.fingerprint, "recipe": repr(recipe), "accuracy": f"{progress.accuracy:.4f}"}
    write_tensors(network.state_dict(), options.out, torch.float16, about)


if __name__ == "__main__":
    main()
