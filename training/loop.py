"""The training loop of all GANs: it sums the loss terms of each phase."""

from collections.abc import Iterator, Mapping, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sparsegen.training.data import ImageLoader
from sparsegen.training.metrics import density
from sparsegen.training.recipes import Phase, Recipe
from sparsegen.training.terms import Batch, LossInputs
from sparsegen.zoo.blocks import needed
from sparsegen.zoo.spec import ModelSpec

if TYPE_CHECKING:
    from accelerate import Accelerator


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
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.generator, auxiliary_networks = spec.generator(), spec.auxiliary_networks()
            auxiliary_networks |= {name: build(self.generator) for name, build in recipe.networks.items()}
            self.averaged = spec.generator()
        self.device = torch.device(device)
        self.averaged.eval().requires_grad_(False)
        self.auxiliary_networks = auxiliary_networks
        self.trained: dict[str, nn.Module] = {"generator": self.generator, **auxiliary_networks}
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

    In the first `warm_up` steps only the other networks are trained, e.g. a new discriminator.

    Choice: the phases of a step share one batch of real images and z. The generator learns from the images of the
    last update of the discriminator, as in the code of Mao et al. (2019), and SSGAN's three networks from one
    batch; the other public recipes draw a new batch for each phase, which costs one more generator pass per step.

    All random numbers are functions of (seed, step), so a resumed run gives the same bits as an uninterrupted one.
    """
    for network in networks.trained.values():
        network.train()
    draws = max(phase.updates for phase in recipe.phases)

    def draw_batch(step: int, update: int, differentiable: bool) -> Batch:
        real, labels = batches.at(step * draws + update)
        numbers = [seed, step, update, accelerator.process_index]
        count = recipe.fakes_per_real * len(real)
        z = np.random.default_rng(numbers).standard_normal((count, networks.generator.z_dim), np.float32)
        return Batch(
            networks.trained,
            real.to(networks.device, memory_format=torch.channels_last),
            needed(labels).to(networks.device) if networks.generator.classes else None,
            torch.from_numpy(z).to(networks.device),
            random_of(numbers),
            step / steps,
            differentiable,
        )

    since, images = perf_counter(), 0
    for step in range(start, steps):
        losses: dict[str, dict[str, Tensor]] = {}
        networks.set_rates(recipe.rate(step / steps))
        phases = [phase for phase in recipe.phases if step >= warm_up or phase.network != "generator"]
        batch = draw_batch(step, 0, differentiable=phases[0].updates == 1)
        for phase in phases:
            for update in range(phase.updates):
                if update:  # the first update of a phase reuses the previous batch
                    batch = draw_batch(step, update, differentiable=update == phase.updates - 1)
                losses[phase.network] = _update(networks, recipe, phase, batch, accelerator)
                _check_finite(losses[phase.network], step)
        _share_statistics(networks, accelerator)
        # The window of the average grows, because early weights change too fast for a long average.
        networks.average(min(recipe.ema, (1 + step) / (10 + step)))
        images += len(batch.real) * accelerator.num_processes
        measured = None
        if (step + 1) % measure_every == 0:
            measured = _measure(networks, batch, losses)
            measured["images_per_second"] = images / (perf_counter() - since)
            since, images = perf_counter(), 0
        yield TrainingStep(step + 1, measured)


def random_of(numbers: Sequence[int]) -> torch.Generator:
    """Returns a random generator seeded by numbers, independent of numpy's with the same numbers."""
    return torch.Generator().manual_seed(
        int(np.random.SeedSequence([*numbers, 1]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    )


def _update(
    networks: Networks, recipe: Recipe, phase: Phase, batch: Batch, accelerator: "Accelerator"
) -> dict[str, Tensor]:
    for name, network in networks.trained.items():
        network.requires_grad_(name == phase.network)
    with accelerator.autocast():
        inputs = LossInputs(batch, phase.network, recipe.augment)
        losses = {name: term(inputs) for name, term in phase.terms.items()}
    optimizer = networks.optimizers[phase.network]
    optimizer.zero_grad(set_to_none=True)
    accelerator.backward(sum(losses.values()))
    if accelerator.num_processes > 1:
        for parameter in networks.trained[phase.network].parameters():
            if parameter.grad is not None:
                parameter.grad = accelerator.reduce(parameter.grad, "mean")
    optimizer.step()
    return {name: loss.detach() for name, loss in losses.items()}


def _check_finite(losses: Mapping[str, Tensor], step: int) -> None:
    """Raises: FloatingPointError naming the losses and the step."""
    broken = {name: float(loss) for name, loss in losses.items() if not loss.isfinite()}
    if broken:
        what = ", ".join(f"{name} is {value}" for name, value in broken.items())
        raise FloatingPointError(f"training has diverged: in step {step + 1} {what}")


@torch.no_grad()
def _share_statistics(networks: Networks, accelerator: "Accelerator") -> None:
    """Averages batch-norm statistics over the processes, so that the state is the same in all of them."""
    if accelerator.num_processes > 1:
        for network in networks.trained.values():
            for buffer in network.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(accelerator.reduce(buffer, "mean"))


@torch.no_grad()
def _measure(networks: Networks, batch: Batch, losses: dict[str, dict[str, Tensor]]) -> dict[str, Any]:
    _, codes = batch.generated
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
