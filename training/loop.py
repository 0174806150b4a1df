"""The training loop of all GANs: it sums the loss terms of each phase.

A step does not wait for the device: losses stay there until a step is measured.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sparsegen.training.augment import Augment
from sparsegen.training.data import ImageLoader
from sparsegen.training.processes import (
    BatchRandom,
    data_parallel,
    process_count,
    share_batch_norm,
    to_device,
)
from sparsegen.training.recipes import Phase, Recipe
from sparsegen.training.terms import Batch, LossInputs
from sparsegen.zoo.blocks import needed
from sparsegen.zoo.spec import ModelSpec

if TYPE_CHECKING:
    from accelerate import Accelerator

FIRST_MEASURED = (1, 10)  # steps that are measured besides every hundredth, to see soon that a run works


class TrainingStep(NamedTuple):
    """State of a run after `step` steps; `metrics` is None if this step was not measured."""

    step: int
    metrics: dict[str, Any] | None


class Networks:
    """The trained networks (generator, discriminator, encoder if there is one), their optimizers, and the running
    average of the generator.

    Attributes:
        trained: The trained networks by name, as in `Phase.network`.
        auxiliary_networks: The trained networks except the generator.
    """

    def __init__(self, spec: ModelSpec, recipe: Recipe, seed: int, device: torch.device | str = "cpu"):
        with torch.random.fork_rng(devices=[]):  # the weights are drawn on the CPU
            torch.default_generator.manual_seed(seed)
            self.generator, auxiliary_networks = spec.generator(), spec.auxiliary_networks()
            auxiliary_networks |= {name: build(self.generator) for name, build in recipe.networks.items()}
            self.averaged = spec.generator()
        self.device = torch.device(device)
        self.averaged.eval().requires_grad_(False)
        self.auxiliary_networks = auxiliary_networks
        self.trained: dict[str, nn.Module] = {"generator": self.generator, **auxiliary_networks}
        if process_count() > 1:
            for network in self.trained.values():
                share_batch_norm(network)
        for network in self._all.values():
            network.to(device).to(memory_format=torch.channels_last)
        self.start_average()
        self.optimizers = {
            phase.network: phase.optimizer(self.trained[phase.network].parameters())
            for phase in recipe.phases
        }
        self.rates = {
            name: [group["lr"] for group in optimizer.param_groups]
            for name, optimizer in self.optimizers.items()
        }

    @property
    def _all(self) -> dict[str, nn.Module]:
        return {**self.trained, "averaged": self.averaged}

    def compile(self) -> None:
        """Compiles the generator by torch.compile, in the first step. The names of its weights stay.

        The other networks stay as they are: spectral norm changes its buffers between the forward passes before a
        backward pass, and a gradient penalty is differentiated twice; compiled code allows neither.
        """
        self.generator.compile(dynamic=False)

    def start_average(self) -> None:
        """Sets the average to the generator, as at the start of a run or of fine-tuning."""
        self.averaged.load_state_dict(self.generator.state_dict())

    @torch.no_grad()
    def average(self, decay: float) -> None:
        """Updates the average of weights and batch-norm statistics.

        Other buffers are copied: counters, and the singular vectors of spectral norm, whose average would not have
        length 1.
        """
        now: dict[str, Tensor] = dict(self.generator.named_parameters())
        average: dict[str, Tensor] = dict(self.averaged.named_parameters())
        copied = dict(self.averaged.named_buffers())
        for key, value in self.generator.named_buffers():
            if key.endswith(("running_mean", "running_var")):
                now[key], average[key] = value, copied[key]
            else:
                copied[key].copy_(value)
        get_ema_multi_avg_fn(decay)(list(average.values()), list(now.values()), None)

    def set_rates(self, factor: float) -> None:
        """Sets every learning rate to a multiple of its initial value."""
        for name, optimizer in self.optimizers.items():
            for group, rate in zip(optimizer.param_groups, self.rates[name], strict=True):
                group["lr"] = factor * rate

    def state(self) -> dict[str, Tensor]:
        """Returns the complete state except the step, as a flat dict of tensors on the CPU."""
        tensors: dict[str, Tensor] = {}
        for name, network in self._all.items():
            tensors |= {f"{name}.{key}": value for key, value in network.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            for index, moments in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{name}.{index}.{key}": value for key, value in moments.items()}
        return {key: value.detach().cpu().contiguous() for key, value in tensors.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Loads a `state()`."""
        for name, network in self._all.items():
            network.load_state_dict(_under(f"{name}.", tensors))
        for name, optimizer in self.optimizers.items():
            moments: dict[int, dict[str, Tensor]] = {}
            parameters = list(self.trained[name].parameters())
            for key, value in _under(f"optimizer.{name}.", tensors).items():
                index, _, field = key.partition(".")
                parameter = parameters[int(index)]
                # Copied, because the file's tensors are memory-mapped and Adam updates them in place. In the layout of
                # the parameter, because the fused Adam reads both in memory order.
                own = torch.empty_like(parameter if value.shape == parameter.shape else value)
                moments.setdefault(int(index), {})[field] = own.detach().copy_(value)
            optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})


class _PhaseLosses(nn.Module):
    """The loss terms of a phase, as a module of the network that it trains.

    `DistributedDataParallel` wraps it. It expects one forward pass per backward pass, and a phase has several passes of
    its network, through different methods; a gradient penalty has a backward pass of its own within this forward pass.
    """

    def __init__(self, phase: Phase, network: nn.Module, augment: Augment):
        super().__init__()
        self.phase, self.network, self.augment = phase, network, augment

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        inputs = LossInputs(batch, self.phase.network, self.augment)
        return {name: term(inputs) for name, term in self.phase.terms.items()}


def train(
    networks: Networks,
    recipe: Recipe,
    batches: ImageLoader,
    accelerator: "Accelerator",
    *,
    seed: int,
    start: int,
    steps: int,
    warm_up: int = 0,
    measure_every: int = 100,
) -> Iterator[TrainingStep]:
    """Trains from step `start` to `steps`, and yields after each step.

    Besides every `measure_every`-th step, the first and the tenth are measured.

    In the first `warm_up` steps only the other networks are trained, e.g. a new discriminator.

    Choice: the phases of a step share one batch of real images and z. The generator learns from the images of the
    last update of the discriminator, as in the code of Mao et al. (2019), and SSGAN's three networks from one
    batch; the other public recipes draw a new batch for each phase, which costs one more generator pass per step.

    All random numbers are functions of (seed, step) and are drawn for the global batch on the CPU. So a resumed run
    gives the same bits as an uninterrupted one, and several processes the same step as one, up to rounding.

    Raises:
        FloatingPointError: At the next measurement or at the end, in all processes, naming the first step with a loss
            that is not finite.
    """
    losses_of: dict[str, nn.Module] = {}
    for phase in recipe.phases:
        network = networks.trained[phase.network].train().requires_grad_(True)
        losses_of[phase.network] = data_parallel(_PhaseLosses(phase, network, recipe.augment), accelerator)
    draws = max(phase.updates for phase in recipe.phases)
    device = networks.device

    def draw_batch(step: int, update: int, differentiable: bool) -> Batch:
        real, labels = batches.at(step * draws + update)
        numbers = [seed, step, update, 0]  # runs of earlier versions have these numbers
        shape = (recipe.fakes_per_real, batches.batch_size, networks.generator.z_dim)
        z = np.random.default_rng(numbers).standard_normal(shape, np.float32)
        return Batch(
            networks.trained,
            to_device(real.contiguous(memory_format=torch.channels_last), device),
            to_device(needed(labels), device) if networks.generator.classes else None,
            to_device(torch.from_numpy(z[:, batches.rows]).flatten(0, 1), device),
            random_of(numbers, batches),
            step / steps,
            differentiable,
        )

    since, images = perf_counter(), 0
    unread: list[tuple[int, dict[str, Tensor]]] = []  # step and losses since the last measurement
    for step in range(start, steps):
        losses: dict[str, Tensor] = {}
        networks.set_rates(recipe.rate(step / steps))
        phases = [phase for phase in recipe.phases if step >= warm_up or phase.network != "generator"]
        batch = draw_batch(step, 0, differentiable=phases[0].updates == 1)
        for phase in phases:
            for update in range(phase.updates):
                if update:  # the first update of a phase reuses the previous batch
                    batch = draw_batch(step, update, differentiable=update == phase.updates - 1)
                losses |= _update(networks, phase, losses_of[phase.network], batch, accelerator)
        # The window of the average grows, because early weights change too fast for a long average.
        networks.average(min(recipe.ema, (1 + step) / (10 + step)))
        images += batches.batch_size
        unread.append((step + 1, losses))
        measured = None
        if (step + 1) % measure_every == 0 or step + 1 in FIRST_MEASURED:
            measured = {
                "losses": _read(unread, accelerator),
                **_measure(networks, batch, accelerator),
                "images_per_second": images / (perf_counter() - since),
            }
            since, images, unread = perf_counter(), 0, []
        elif step + 1 == steps:
            _read(unread, accelerator)
        yield TrainingStep(step + 1, measured)


def random_of(numbers: Sequence[int], batches: ImageLoader | None = None) -> torch.Generator:
    """Returns a random generator seeded by numbers, independent of numpy's with the same numbers.

    Args:
        batches: `draw_rows` then returns the numbers of this process's rows.
    """
    seed = int(np.random.SeedSequence([*numbers, 1]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    if batches is None:
        return torch.Generator().manual_seed(seed)
    random = BatchRandom()
    random.batch, random.rows = batches.batch_size, batches.rows
    random.manual_seed(seed)
    return random


def _update(
    networks: Networks, phase: Phase, losses_of: nn.Module, batch: Batch, accelerator: "Accelerator"
) -> dict[str, Tensor]:
    for name, network in networks.trained.items():
        network.requires_grad_(name == phase.network)
    with accelerator.autocast():
        losses = losses_of(batch)
    optimizer = networks.optimizers[phase.network]
    optimizer.zero_grad(set_to_none=True)
    accelerator.backward(sum(losses.values()))
    optimizer.step()
    return {name: loss.detach() for name, loss in losses.items()}


def _read(unread: Sequence[tuple[int, Mapping[str, Tensor]]], accelerator: "Accelerator") -> dict[str, float]:
    """Reads the losses of several steps at once and returns those of the last, as means over the processes.

    Raises:
        FloatingPointError: Naming the first step with a loss that is not finite.
    """
    stacked = torch.stack([loss.float() for _, losses in unread for loss in losses.values()])
    values = iter(_mean(stacked, accelerator).tolist())
    found: dict[str, float] = {}
    for step, losses in unread:
        found = {name: next(values) for name in losses}
        if broken := [f"{name} is {value}" for name, value in found.items() if not isfinite(value)]:
            raise FloatingPointError(f"training has diverged: in step {step} {', '.join(broken)}")
    return found


@torch.no_grad()
def _measure(networks: Networks, batch: Batch, accelerator: "Accelerator") -> dict[str, list[float]]:
    _, codes = batch.generated
    generator = networks.generator
    levels = range(1, len(codes) + 1)
    measures = {
        "density": [code.count_nonzero() / code.numel() for code in codes],
        "mean_magnitude": [code.float().abs().mean() for code in codes],
        "dictionary_norm": [generator.dictionary(level).flatten(1).norm(dim=1).mean() for level in levels],
    }
    stacked = torch.stack([torch.stack(values) for values in measures.values()])
    return dict(zip(measures, _mean(stacked, accelerator).tolist(), strict=True))


def _mean(values: Tensor, accelerator: "Accelerator") -> Tensor:
    """Returns the mean over the processes."""
    return accelerator.reduce(values, "mean") if accelerator.num_processes > 1 else values


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
