"""Speed of our training step relative to reimplemented steps of two libraries, and the cost of each regularizer.

    python -m benchmarks.training
    python -m benchmarks.training --settings dcgan --atoms 64 --quick

The reimplementations perform one generator step of kwotsin/mimicry and of POSTECH-CVLab/PyTorch-StudioGAN with the same
torch, on networks that compute the same function as ours; this is checked for outputs and gradients, with the same
weights. So the differences are:

- Memory format (theirs contiguous, ours channels last) and Adam (theirs a loop over the parameters, ours fused).
- Order of commuting operations: theirs double the side before the 1 x 1 convolution of a generator's shortcut, and
  halve it after that of a discriminator's (except in the first block); ours do the opposite.
- Passes: theirs draw new images for the generator update; ours reuses those of the last discriminator update.
- mimicry does not freeze networks: the discriminator update records a graph of the generator, and the generator update
  computes gradients of the discriminator weights, which are discarded.
- StudioGAN freezes the network that is not trained, like ours, and iterates over all modules for it and for batch norm.
- Spectral norm: both use `torch.nn.utils.spectral_norm` (mimicry has another implementation, not used by default).
- Parts of a step: numbers for the log in mimicry; in ours the running average of the generator, noise and batch as
  functions of (seed, step), and the check that losses are finite.

Changes of the originals, so that the function is the same: mimicry doubles by bilinear interpolation, here by
repetition; their in-place ReLU at the start of a discriminator block also changes the input of the shortcut, here it is
not in-place; the epsilons of batch norm and Adam are the defaults of torch (1e-4 and 1e-6 in StudioGAN). For an equal
comparison, StudioGAN's DCGAN has one discriminator update per step, not two, and its SNGAN is unconditional.

Loading is measured separately and added. Theirs applies the transforms of torchvision to one image at a time in the
same process; workers would move the same cost to other cores. Steps run in turns on one thread. The median of the
ratios of each turn, in CPU time of the thread, is reported. Writes records/training.json unless --quick is given.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from itertools import repeat
from pathlib import Path
from statistics import median, quantiles
from typing import Annotated, Any

import numpy as np
import torch
import typer
from accelerate import Accelerator
from PIL import Image
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import spectral_norm
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms  # type: ignore[import-untyped]  # it has no annotations

from benchmarks.machine import processor, versions
from benchmarks.projection import show, turns
from sparsegen.common.files import write_json
from sparsegen.training.data import ImageLoader, Images
from sparsegen.training.loop import Networks, train
from sparsegen.training.recipes import recipe_of
from sparsegen.zoo.architectures import ARCHITECTURES
from sparsegen.zoo.regularizers import REGULARIZERS
from sparsegen.zoo.spec import ModelSpec

RECORDS = Path(__file__).parent / "records" / "training.json"
SEED, BATCH, ENDLESS = 0, 64, 1_000_000_000

# ---- Ours ----


class Bfloat16(Accelerator):
    """Like `Accelerator(mixed_precision="bf16")`; a process can have only one precision in Accelerate."""

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16)


@dataclass(frozen=True)
class Given:
    """A constant batch."""

    real: Tensor

    @property
    def batch_size(self) -> int:
        return len(self.real)

    @property
    def rows(self) -> slice:
        return slice(0, len(self.real))

    def at(self, step: int) -> tuple[Tensor, None]:
        return self.real, None


# ---- Theirs: networks ----


def activation() -> nn.Module:
    return nn.ReLU(inplace=True)


class UpBlock(nn.Module):
    """Doubles the side before the convolutions. Shape: (B, C, H, W) -> (B, C, 2H, 2W)."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm_1, self.norm_2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.conv_1, self.conv_2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.shortcut, self.activation = nn.Conv2d(channels, channels, 1), activation()

    def forward(self, x: Tensor) -> Tensor:
        main = self.conv_1(F.interpolate(self.activation(self.norm_1(x)), scale_factor=2, mode="nearest"))
        main = self.conv_2(self.activation(self.norm_2(main)))
        return main + self.shortcut(F.interpolate(x, scale_factor=2, mode="nearest"))


class ResidualGenerator(nn.Module):
    def __init__(self, atoms: int, z_dim: int):
        super().__init__()
        self.linear = nn.Linear(z_dim, atoms * 16)
        self.blocks = nn.Sequential(*(UpBlock(atoms) for _ in range(3)))
        self.norm, self.activation = nn.BatchNorm2d(atoms), activation()
        self.conv = nn.Conv2d(atoms, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        features = self.blocks(self.linear(z).view(len(z), -1, 4, 4))
        return torch.tanh(self.conv(self.activation(self.norm(features))))


class DownBlock(nn.Module):
    """Halves the side after the convolutions, except in the shortcut of the first block."""

    def __init__(self, inputs: int, outputs: int, halves: bool, first: bool = False):
        super().__init__()
        self.first, self.activation = first, activation()
        self.conv_1 = spectral_norm(nn.Conv2d(inputs, outputs, 3, padding=1))
        self.conv_2 = spectral_norm(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.shortcut = spectral_norm(nn.Conv2d(inputs, outputs, 1)) if halves else None

    def forward(self, x: Tensor) -> Tensor:
        main = self.conv_1(x if self.first else F.relu(x))
        main = self.conv_2(self.activation(main))
        if self.shortcut is None:
            return main + x
        main = F.avg_pool2d(main, 2)
        if self.first:
            return main + self.shortcut(F.avg_pool2d(x, 2))
        return main + F.avg_pool2d(self.shortcut(x), 2)


class ResidualDiscriminator(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.blocks = nn.Sequential(
            DownBlock(3, channels, halves=True, first=True),
            DownBlock(channels, channels, halves=True),
            DownBlock(channels, channels, halves=False),
            DownBlock(channels, channels, halves=False),
        )
        self.activation, self.linear = activation(), spectral_norm(nn.Linear(channels, 1))

    def forward(self, image: Tensor) -> Tensor:
        return self.linear(torch.sum(self.activation(self.blocks(image)), dim=(2, 3)))


class ConvBlock(nn.Module):
    def __init__(self, conv: nn.Module, channels: int, act: nn.Module, norm: bool = True):
        super().__init__()
        self.conv, self.norm = conv, nn.BatchNorm2d(channels) if norm else nn.Identity()
        self.activation = act

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(x)))


class ConvGenerator(nn.Module):
    def __init__(self, atoms: int, z_dim: int):
        super().__init__()
        up = partial(nn.ConvTranspose2d, kernel_size=4, bias=False)
        self.blocks = nn.Sequential(
            ConvBlock(up(z_dim, 4 * atoms), 4 * atoms, activation()),
            ConvBlock(up(4 * atoms, 2 * atoms, stride=2, padding=1), 2 * atoms, activation()),
            ConvBlock(up(2 * atoms, atoms, stride=2, padding=1), atoms, activation()),
            ConvBlock(nn.Conv2d(atoms, atoms, 3, padding=1, bias=False), atoms, activation()),
        )
        self.conv = nn.ConvTranspose2d(atoms, 3, 4, stride=2, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(self.conv(self.blocks(z.view(len(z), -1, 1, 1))))


class ConvDiscriminator(nn.Module):
    def __init__(self, atoms: int):
        super().__init__()
        leaky = partial(nn.LeakyReLU, 0.2, inplace=True)
        down = partial(nn.Conv2d, kernel_size=4, stride=2, padding=1)
        self.blocks = nn.Sequential(
            ConvBlock(down(3, atoms), atoms, leaky(), norm=False),
            ConvBlock(down(atoms, 2 * atoms, bias=False), 2 * atoms, leaky()),
            ConvBlock(down(2 * atoms, 4 * atoms, bias=False), 4 * atoms, leaky()),
        )
        self.conv = nn.Conv2d(4 * atoms, 1, 4)

    def forward(self, image: Tensor) -> Tensor:
        return self.conv(self.blocks(image)).flatten(1)


# Names of our weights and of theirs, replaced in this order.
SPECTRAL_NAMES = (
    (".parametrizations.weight.original", ".weight_orig"),
    (".parametrizations.weight.0._", ".weight_"),
)
RESIDUAL_NAMES = (
    ("coder.dense", "linear"),
    ("coder.last.", "blocks.2."),
    ("coder.", ""),
    (".code.", "."),
    ("stages.1.conv", "blocks.2.conv_2"),
    ("stages.1.norm", "norm"),
    ("stages.0.conv", "conv"),
)
RESIDUAL_SCORE_NAMES = (
    ("stages", "blocks"),
    ("shortcut.1", "shortcut"),
    ("head.linear", "linear"),
    *SPECTRAL_NAMES,
)
CONV_NAMES = (("coder.stages", "blocks"), ("stages.1", "blocks.3"), ("stages.0.conv", "conv"))
CONV_SCORE_NAMES = (("stages", "blocks"), ("head.conv", "conv"))


def renamed(tensors: dict[str, Tensor], names: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    result = {}
    for key, tensor in tensors.items():
        for ours, theirs in names:
            key = key.replace(ours, theirs)
        result[key] = tensor.detach().clone(memory_format=torch.contiguous_format)
    return result


# ---- Theirs: losses and steps ----


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    return F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean()


def negative_mean(fake: Tensor) -> Tensor:
    return -fake.mean()


def cross_entropy(real: Tensor, fake: Tensor) -> Tensor:
    """With labels, as in mimicry."""
    of_real = F.binary_cross_entropy_with_logits(real, torch.full((len(real), 1), 1.0))
    return of_real + F.binary_cross_entropy_with_logits(fake, torch.full((len(fake), 1), 0.0))


def log_sigmoid(fake: Tensor) -> Tensor:
    """As in mimicry."""
    return -torch.mean(torch.log(torch.sigmoid(fake) + 1e-8))


def softplus(real: Tensor, fake: Tensor) -> Tensor:
    """As in StudioGAN."""
    return torch.mean(F.softplus(-real)) + torch.mean(F.softplus(fake))


def softplus_generator(fake: Tensor) -> Tensor:
    """As in StudioGAN."""
    return torch.mean(F.softplus(-fake))


Losses = tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class Setting:
    """A row of the zoo, and its networks and losses in the other libraries.

    Attributes:
        row: Name of the architecture.
        atoms: Default width.
        names: Pairs of names of the weights, for the generator and the discriminator.
    """

    row: str
    atoms: int
    generator: Callable[[int, int], nn.Module]
    discriminator: Callable[[int], nn.Module]
    names: tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]
    betas: tuple[float, float]
    updates: int
    mimicry: Losses
    studiogan: Losses


SETTINGS = {
    "sngan": Setting(
        row="sngan_resnet",
        atoms=32,
        generator=ResidualGenerator,
        discriminator=lambda atoms: ResidualDiscriminator(round(atoms / 2)),
        names=(RESIDUAL_NAMES, RESIDUAL_SCORE_NAMES),
        betas=(0.0, 0.9),
        updates=5,
        mimicry=(hinge, negative_mean),
        studiogan=(hinge, negative_mean),
    ),
    "dcgan": Setting(
        row="dcgan",
        atoms=128,
        generator=ConvGenerator,
        discriminator=ConvDiscriminator,
        names=(CONV_NAMES, CONV_SCORE_NAMES),
        betas=(0.5, 0.999),
        updates=1,
        mimicry=(cross_entropy, log_sigmoid),
        studiogan=(softplus, softplus_generator),
    ),
}


class Usual:
    """A pair of contiguous networks with our weights, and two Adam optimizers that are not fused."""

    def __init__(self, setting: Setting, ours: Networks, losses: Losses):
        self.z_dim, self.updates = ARCHITECTURES[setting.row].z_dim, setting.updates
        atoms = ours.generator.code_shapes[0][0]
        self.generator, self.discriminator = (
            setting.generator(atoms, self.z_dim),
            setting.discriminator(atoms),
        )
        mine = ours.generator, ours.auxiliary_networks["discriminator"]
        for network, source, names in zip(self.networks, mine, setting.names, strict=True):
            network.load_state_dict(renamed(source.state_dict(), names))
        self.of_generator, self.of_discriminator = (
            torch.optim.Adam(network.parameters(), 2e-4, betas=setting.betas) for network in self.networks
        )
        self.discriminator_loss, self.generator_loss = losses

    @property
    def networks(self) -> tuple[nn.Module, nn.Module]:
        return self.generator, self.discriminator

    def step(self, reals: Iterator[Tensor]) -> object:
        """Runs one step of the generator and returns its losses."""
        raise NotImplementedError


class Mimicry(Usual):
    """One step of the trainer of mimicry."""

    def step(self, reals: Iterator[Tensor]) -> dict[str, float]:
        log = {}
        for _ in range(self.updates):
            real = next(reals)
            self.discriminator.zero_grad()
            real_scores = self.discriminator(real)
            fake = self.generator(torch.randn(len(real), self.z_dim)).detach()
            fake_scores = self.discriminator(fake)
            loss = self.discriminator_loss(real_scores, fake_scores)
            loss.backward()
            self.of_discriminator.step()
            log["D(x)"] = torch.sigmoid(real_scores).mean().item()
            log["D(G(z))"] = torch.sigmoid(fake_scores).mean().item()
            log["discriminator"] = loss.item()
        self.generator.zero_grad()
        loss = self.generator_loss(self.discriminator(self.generator(torch.randn(len(real), self.z_dim))))
        loss.backward()
        self.of_generator.step()
        log["generator"] = loss.item()
        for optimizer in (self.of_discriminator, self.of_generator):  # its scheduler
            optimizer.param_groups[0]["lr"] = 2e-4
        return log


class StudioGan(Usual):
    """One step of the worker of StudioGAN, which logs only every hundredth step."""

    def step(self, reals: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
        self.prepare(self.generator, self.discriminator)
        self.generator.apply(partial(count_statistics, counts=False))
        for _ in range(self.updates):
            self.of_discriminator.zero_grad()
            real = next(reals)
            fake = self.fake(len(real))
            real_scores, fake_scores = self.discriminator(real), self.discriminator(fake)
            loss = self.discriminator_loss(real_scores.squeeze(1), fake_scores.squeeze(1))
            loss.backward()
            self.of_discriminator.step()
        self.prepare(self.discriminator, self.generator)
        self.generator.apply(partial(count_statistics, counts=True))
        self.of_generator.zero_grad()
        generator_loss = self.generator_loss(self.discriminator(self.fake(len(real))).squeeze(1))
        generator_loss.backward()
        self.of_generator.step()
        return loss, generator_loss

    def prepare(self, frozen: nn.Module, trained: nn.Module) -> None:
        for network in self.networks:
            network.train()
            network.apply(partial(count_statistics, counts=True))
        for network in (frozen, trained):
            for parameter in network.parameters():
                parameter.requires_grad = network is trained

    def fake(self, count: int) -> Tensor:
        z = torch.randn(count, self.z_dim)
        torch.randint(0, 10, (count,), dtype=torch.long)  # labels are drawn for unconditional models too
        return self.generator(z)


def count_statistics(part: nn.Module, counts: bool) -> None:
    if isinstance(part, nn.modules.batchnorm._BatchNorm):
        part.track_running_stats = counts


# ---- Theirs: loading ----


class Pictures(Dataset):
    """CIFAR-10 as in torchvision: an array in memory; each image is converted by PIL."""

    def __init__(self, pixels: np.ndarray, transform: Callable[[Image.Image], Tensor]):
        self.pixels, self.transform = pixels, transform

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), 0


def endless(loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from loader


def loading(images: Images, updates: int) -> dict[str, Callable[[], Any]]:
    """Functions that load the batches of one step, by library."""
    scaled = [transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)]
    plain, flipped = (
        Pictures(images.numpy(), transforms.Compose(steps))
        for steps in (scaled, [transforms.RandomHorizontalFlip(), *scaled])
    )
    singly = endless(DataLoader(plain, BATCH, shuffle=True))
    basket = endless(DataLoader(flipped, BATCH * updates, shuffle=True, drop_last=True))
    ours, steps = ImageLoader(images, BATCH, SEED), iter(range(ENDLESS))
    return {
        "mimicry": lambda: [next(singly) for _ in range(updates)],
        "StudioGAN": lambda: next(basket)[0].split(BATCH),
        "ours": lambda: [ours.at(next(steps)) for _ in range(updates)],
    }


# ---- The measurement ----


def check(setting: Setting, ours: Networks, theirs: Usual) -> None:
    """Raises: AssertionError unless images, scores and the gradients of all weights agree."""
    z = torch.from_numpy(
        np.random.default_rng(SEED).standard_normal((8, ARCHITECTURES[setting.row].z_dim), np.float32)
    )
    results = []
    for generator, discriminator in (ours.trained.values(), theirs.networks):
        generator.train()
        discriminator.eval()  # in training, the order of the power iteration differs between the two spectral norms
        image = generator(z)
        image = image[0] if isinstance(image, tuple) else image
        scores = discriminator(image).flatten()
        scores.square().mean().backward()
        gradients = [{k: p.grad for k, p in n.named_parameters()} for n in (generator, discriminator)]
        results.append([{"image": image, "scores": scores}, *gradients])
        for network in (generator, discriminator):
            network.zero_grad()
            network.train()
    for mine, other, names in zip(*results, ((), *setting.names), strict=True):
        mine = renamed(mine, names)
        assert mine.keys() == other.keys()
        # Over all weights, since the gradient of a bias before a batch norm is only rounding error.
        largest = max(float(tensor.abs().max()) for tensor in mine.values())
        for key, tensor in mine.items():
            difference = float((other[key].detach() - tensor).abs().max())
            assert difference <= 1e-4 * largest, f"{key} differs by {difference}, of {largest}"


def stepper(setting: Setting, column: str, atoms: int, batches: Any, accelerator: Accelerator) -> Callable:
    """Returns a function that runs one step of ours per call."""
    spec = ModelSpec.of(setting.row, column, atoms)
    recipe = recipe_of(spec)
    networks = Networks(spec, recipe, SEED)
    steps = train(
        networks, recipe, batches, accelerator, seed=SEED, start=0, steps=ENDLESS, measure_every=ENDLESS
    )
    return lambda: next(steps)


def candidates(setting: Setting, atoms: int, images: Images) -> dict[str, Callable[[], Any]]:
    """Steps and loading functions by name; the reimplementations are checked against ours."""
    real = ImageLoader(images, BATCH, SEED).at(0)[0]
    spec = ModelSpec.of(setting.row, "baseline", atoms)
    ours = Networks(spec, recipe_of(spec), SEED)
    theirs = {
        "mimicry": Mimicry(setting, ours, setting.mimicry),
        "StudioGAN": StudioGan(setting, ours, setting.studiogan),
    }
    for usual in theirs.values():
        check(setting, ours, usual)
    own = partial(stepper, setting, "baseline", atoms, Given(real))
    return {
        **{name: partial(usual.step, repeat(real)) for name, usual in theirs.items()},
        "ours": own(Accelerator(cpu=True)),
        "ours, bf16": own(Bfloat16(cpu=True)),
        **{f"loading, {name}": load for name, load in loading(images, setting.updates).items()},
    }


def columns(setting: Setting, atoms: int, images: Images) -> dict[str, Callable[[], Any]]:
    """Our step for each column."""
    given, accelerator = Given(ImageLoader(images, BATCH, SEED).at(0)[0]), Accelerator(cpu=True)
    return {column: stepper(setting, column, atoms, given, accelerator) for column in REGULARIZERS}


def ratio(numerator: list[float], denominator: list[float]) -> dict[str, Any]:
    """The median and quartiles of the ratios of each turn."""
    ratios = [n / d for n, d in zip(numerator, denominator, strict=True)]
    low, middle, high = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {"median": round(middle, 3), "quartiles": [round(low, 3), round(high, 3)]}


def summed(first: list[float], second: list[float]) -> list[float]:
    return [a + b for a, b in zip(first, second, strict=True)]


def described(times: list[float]) -> dict[str, Any]:
    return {
        "ms": round(1e3 * median(times), 1),
        "ms from, to": [round(1e3 * min(times), 1), round(1e3 * max(times), 1)],
    }


def measure_steps(name: str, atoms: int, images: Images, repeats: int) -> list[dict[str, Any]]:
    seconds = turns(candidates(SETTINGS[name], atoms, images), repeats)
    loaded = summed(seconds["ours"], seconds["loading, ours"])
    rows = []
    for step in ("mimicry", "StudioGAN", "ours", "ours, bf16"):
        load = seconds[f"loading, {step.removesuffix(', bf16')}"]
        rows.append(
            {
                "setting": name,
                "atoms": atoms,
                "step": step,
                **described(seconds[step]),
                "times ours": ratio(seconds[step], seconds["ours"]),
                "loading ms": round(1e3 * median(load), 2),
                "times ours, with loading": ratio(summed(seconds[step], load), loaded),
            }
        )
    return rows


def measure_columns(name: str, atoms: int, images: Images, repeats: int) -> list[dict[str, Any]]:
    seconds = turns(columns(SETTINGS[name], atoms, images), repeats)
    return [
        {
            "setting": name,
            "atoms": atoms,
            "column": column,
            **described(times),
            "times baseline": ratio(times, seconds["baseline"]),
        }
        for column, times in seconds.items()
    ]


def noise_images(count: int = 4096) -> Images:
    pixels = np.random.default_rng(SEED).integers(0, 256, (count, 3, 32, 32), np.uint8)
    return Images(torch.from_numpy(pixels), None, "noise", "")


def text(value: Any) -> Any:
    if isinstance(value, dict):
        return f"{value['median']:.2f} ({text(value['quartiles'])})"
    return "–".join(f"{number:.4g}" for number in value) if isinstance(value, list) else value


def main(
    settings: Annotated[str, typer.Option(help="Settings, separated by commas.")] = ",".join(SETTINGS),
    atoms: Annotated[int, typer.Option(help="Width; 0: 32 for sngan, 128 for dcgan.")] = 0,
    repeats: Annotated[int, typer.Option("--turns", help="Number of steps of each candidate.")] = 9,
    quick: Annotated[bool, typer.Option("--quick", help="Three turns, without a record.")] = False,
) -> None:
    """Measures the steps in turns and prints their times relative to ours."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    images, names = noise_images(), settings.split(",")
    results: dict[str, list[dict[str, Any]]] = {"steps": [], "columns": []}
    for name in names:
        width = atoms or SETTINGS[name].atoms
        for kind, measure in (("steps", measure_steps), ("columns", measure_columns)):
            rows = measure(name, width, images, 3 if quick else repeats)
            results[kind] += rows
            shown = [{key: text(value) for key, value in list(row.items())[2:]} for row in rows]
            show(Console(width=110), f"{name}, {width} atoms", shown)
    if not quick:
        used = {name: found for name, found in versions().items() if not name.startswith("onnx")}
        head = {
            "date": datetime.now(UTC).date().isoformat(),
            "hardware": f"{processor()}, {os.cpu_count()} cores",
            "threads": 1,
            "versions": {**used, **{name: version(name) for name in ("torchvision", "accelerate")}},
            "turns": repeats,
            "seed": SEED,
            "batch": BATCH,
            "data": "uniform noise of the shape of CIFAR-10",
            "time": "CPU time of the thread; medians, and quartiles of the ratios of each turn",
            "updates of the discriminator": {name: SETTINGS[name].updates for name in names},
        }
        write_json(RECORDS, {**head, **results})


if __name__ == "__main__":
    typer.run(main)
