"""The one training loop: it sums terms, and never asks which GAN it trains."""

from collections.abc import Callable, Iterator, Mapping
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sparsegen.training.data import Batches
from sparsegen.training.metrics import density
from sparsegen.training.recipes import Phase, Recipe
from sparsegen.training.terms import Draw, Forward
from sparsegen.zoo.generator import Generator

if TYPE_CHECKING:
    from accelerate import Accelerator


class Progress(NamedTuple):
    """The state of a run after `step` steps; `metrics` where this step was measured, else None."""

    step: int
    metrics: dict | None


class Networks:
    """What is trained: the generator, its discriminator, its running average, and their optimizers."""

    def __init__(
        self,
        make_generator: Callable[[], Generator],
        make_discriminator: Callable[[], nn.Module],
        recipe: Recipe,
        seed: int,
        device: torch.device | str = "cpu",
    ):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.generator, self.discriminator = make_generator(), make_discriminator()
            self.averaged = make_generator()
        self.device = torch.device(device)
        self.averaged.eval().requires_grad_(False)
        for network in (self.generator, self.discriminator, self.averaged):
            network.to(device, memory_format=torch.channels_last)
        self.start_average()
        self.optimizers = {
            phase.network: phase.optimizer(getattr(self, phase.network).parameters())
            for phase in recipe.phases
        }

    def start_average(self) -> None:
        """Sets the average to the generator, as at the start of a run or of fine-tuning."""
        self.averaged.load_state_dict(self.generator.state_dict())

    @torch.no_grad()
    def average(self, decay: float) -> None:
        """Moves the average towards the generator: weights and batch-norm statistics; counters are copied."""
        for average, now in zip(
            self.averaged.state_dict().values(), self.generator.state_dict().values(), strict=True
        ):
            if average.is_floating_point():
                average.lerp_(now, 1 - decay)
            else:
                average.copy_(now)

    def state(self) -> dict[str, Tensor]:
        """Everything that an unbroken run would have in memory, but the step, as flat tensors on the CPU."""
        tensors = {}
        for name in ("generator", "discriminator", "averaged"):
            tensors |= {f"{name}.{key}": value for key, value in getattr(self, name).state_dict().items()}
        for name, optimizer in self.optimizers.items():
            for index, moments in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{name}.{index}.{key}": value for key, value in moments.items()}
        return {key: value.detach().cpu().contiguous() for key, value in tensors.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes up a `state()`."""
        for name in ("generator", "discriminator", "averaged"):
            getattr(self, name).load_state_dict(_under(f"{name}.", tensors))
        for name, optimizer in self.optimizers.items():
            moments: dict[int, dict[str, Tensor]] = {}
            parameters = list(getattr(self, name).parameters())
            for key, value in _under(f"optimizer.{name}.", tensors).items():
                index, _, field = key.partition(".")
                parameter = parameters[int(index)]
                # Copied: the file's tensors are memory-mapped and Adam writes into its own. And into the layout of
                # the parameter, which the fused Adam takes for granted: it walks both in the order of memory.
                own = torch.empty_like(parameter if value.shape == parameter.shape else value)
                moments.setdefault(int(index), {})[field] = own.detach().copy_(value)
            optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})


def train(
    networks: Networks,
    recipe: Recipe,
    batches: Batches,
    accelerator: "Accelerator",
    *,
    seed: int,
    start: int,
    steps: int,
    warm_up: int = 0,
    measure_every: int = 100,
) -> Iterator[Progress]:
    """Trains from step `start` to `steps`, and yields after each step.

    In the first `warm_up` steps the generator stands still, while a new discriminator catches up with it.

    Everything random is a function of (seed, step), so that a run taken up from a saved state does what an
    unbroken run does, bit for bit.
    """
    networks.generator.train()
    networks.discriminator.train()
    draws = max(phase.updates for phase in recipe.phases)

    def draw(step: int, update: int) -> Draw:
        real, _ = batches.at(step * draws + update)
        noise = np.random.default_rng([seed, step, update, accelerator.process_index])
        z = noise.standard_normal((len(real), networks.generator.z_dim), np.float32)
        real = real.to(networks.device, memory_format=torch.channels_last)
        return Draw(networks.generator, real, torch.from_numpy(z).to(networks.device))

    since, images = perf_counter(), 0
    for step in range(start, steps):
        losses = {}
        current = draw(step, 0)
        for phase in recipe.phases:
            if step < warm_up and phase.network == "generator":
                continue
            for update in range(phase.updates):
                if update:  # the first update of a phase goes on with the draw of the phase before it
                    current = draw(step, update)
                losses[phase.network] = _update(networks, phase, current, accelerator)
        _share_statistics(networks, accelerator)
        # Early on the generator moves so fast that a long average of it shows nothing: the average grows with it.
        networks.average(min(recipe.ema, (1 + step) / (10 + step)))
        images += len(current.real) * accelerator.num_processes
        measured = None
        if (step + 1) % measure_every == 0:
            measured = _measure(networks, current, losses)
            measured["images_per_second"] = images / (perf_counter() - since)
            since, images = perf_counter(), 0
        yield Progress(step + 1, measured)


def _update(networks: Networks, phase: Phase, draw: Draw, accelerator: "Accelerator") -> dict[str, Tensor]:
    trains_generator = phase.network == "generator"
    networks.discriminator.requires_grad_(not trains_generator)
    with accelerator.autocast():
        forward = Forward(draw, networks.discriminator, trains_generator)
        losses = {name: term(forward) for name, term in phase.terms.items()}
    optimizer = networks.optimizers[phase.network]
    optimizer.zero_grad(set_to_none=True)
    accelerator.backward(sum(losses.values()))
    if accelerator.num_processes > 1:
        for parameter in getattr(networks, phase.network).parameters():
            if parameter.grad is not None:
                parameter.grad = accelerator.reduce(parameter.grad, "mean")
    optimizer.step()
    return {name: loss.detach() for name, loss in losses.items()}


@torch.no_grad()
def _share_statistics(networks: Networks, accelerator: "Accelerator") -> None:
    """Averages batch-norm statistics over the processes, so that any of them holds the whole state."""
    if accelerator.num_processes > 1:
        for network in (networks.generator, networks.discriminator):
            for buffer in network.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(accelerator.reduce(buffer, "mean"))


@torch.no_grad()
def _measure(networks: Networks, draw: Draw, losses: dict[str, dict[str, Tensor]]) -> dict:
    _, codes = draw.generated
    generator = networks.generator
    levels = range(1, len(codes) + 1)
    return {
        "losses": {name: float(loss) for terms in losses.values() for name, loss in terms.items()},
        "density": [density(code) for code in codes],
        "mean_magnitude": [float(code.float().abs().mean()) for code in codes],
        "dictionary_norm": [
            float(generator.dictionary(level).flatten(1).norm(dim=1).mean()) for level in levels
        ],
    }


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
