"""The fit of an hourglass to one observation: the loop of the Deep Image Prior (Ulyanov et al., 2018; eq. 4).

    min over θ of loss(A(G_θ(z)), y),   Γ1…ΓK of G_θ(z) sparse

z is fixed noise, A the operator, y the observation. The prior is the network itself: it fits the image before it fits
the noise. So the fit stops in between, and averages the outputs of its iterations.

Results depend on the random initialization of θ and z, so a fit also averages several networks, the members of an
ensemble.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import fmean as mean
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsegen.common.hardware import has_bfloat16
from sparsegen.restoration.hourglass import Hourglass
from sparsegen.restoration.operators import Operator, declared
from sparsegen.restoration.settings import SMALLEST, Preset, Sparsity
from sparsegen.restoration.stopping import StoppingRule
from sparsegen.zoo.projections import GlobalProjection, NeedleProjection

EVALUATE_EVERY = 10  # iterations between two evaluations of the stopping rule
Loss = Callable[[Tensor], Tensor]  # of each residual


@dataclass(frozen=True)
class Progress:
    """The state of a fit after an iteration. `loss`, `output`, `average` and `density` are means over the members.

    Attributes:
        output, average: The output and the running average of the outputs, (1, C, H, W) in [0, 1].
        image: The result so far.
        statistic: The latest value of the stopping rule, smaller is better; None without a rule.
        best_iteration: The iteration of the smallest statistic; None without a rule.
        density: Share of non-zeros in Γ1…ΓK at the latest evaluation.
        seconds_left: An estimate.
        looked: Whether the stopping rule was evaluated in this iteration.
    """

    iteration: int
    loss: float
    output: Tensor
    average: Tensor
    image: Tensor
    statistic: float | None
    best_iteration: int | None
    density: tuple[float, ...]
    seconds: float
    seconds_left: float
    looked: bool

    @property
    def fraction(self) -> float:
        """The estimated share of finished work, 0 to 1."""
        return self.seconds / max(self.seconds + self.seconds_left, 1e-9)


class Fit:
    """Fits the networks of an ensemble to one observation; iterating over it runs the fit.

    All randomness is a function of the seed. It is drawn on the CPU, except for the jitter, which also depends on the
    kind of device. `image` is the result so far, None before the first iteration: the average with the smallest
    statistic, or the latest average without a stopping rule. The rule is evaluated on the average over iterations and
    members, so all members stop together.

    Args:
        observation: (1, C', h, w) in [0, 1].
        operator: From the image to the observation, differentiable; the members call it from several threads.
        shape: Shape (C, H, W) of the image; None: as the operator defines it, else that of the observation.
        make_rule: Makes the stopping rule from a random generator and the ensemble size, after the check of the
            operator. The rule selects the best average and, if the preset stops, the last iteration.

    Raises:
        ValueError: Before any work if the output of the operator has no gradient, or not the shape or the device of
            the observation.
        FloatingPointError: In an iteration whose loss is not finite.
    """

    def __init__(
        self,
        observation: Tensor,
        preset: Preset,
        sparsity: Sparsity,
        loss: Loss = torch.square,
        operator: Callable[[Tensor], Tensor] | None = None,
        make_rule: Callable[[torch.Generator, int], StoppingRule] | None = None,
        seed: int = 0,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        self.observation, self.preset, self.loss = observation, preset, loss
        self.operator = declared(operator).to(observation.device)
        shape = tuple(shape or self.operator.image_shape(observation.shape)[1:])
        _check_operator(self.operator, shape, observation)
        rule_seed, starts = seeds(seed, preset.ensemble_size)
        random = torch.Generator().manual_seed(rule_seed)  # on the CPU: the same numbers for every device
        self.rule = make_rule(random, preset.ensemble_size) if make_rule else None
        self.members = [Member(preset, sparsity, shape, observation.device, *start) for start in starts]
        self.best = Best(self.rule.patience if self.rule else 0)
        self.image: Tensor | None = None
        self.stopped_because = ""

    def __iter__(self) -> Iterator[Progress]:
        on_cpu = (
            self.observation.device.type == "cpu"
        )  # an accelerator runs the members one after another anyway
        with parallel_map(len(self.members) if on_cpu else 1) as each:
            yield from self._iterate(each)

    def _iterate(self, each: Callable[..., Iterator[Any]]) -> Iterator[Progress]:
        rule, best, started = self.rule, self.best, perf_counter()
        averages: Tensor | None = None
        density: tuple[float, ...] = ()
        statistic: float | None = None
        targets = rule.targets if rule else [self.observation] * len(self.members)
        last = self.preset.iterations
        self.stopped_because = f"all {last} iterations are done"
        for iteration in range(1, last + 1):
            looked = iteration % EVALUATE_EVERY == 0 or iteration in (1, last)
            steps = each(partial(self._step, iteration, looked), self.members, targets)
            losses, parts, densities = zip(*steps, strict=True)
            outputs, share = torch.cat(parts), self.preset.averaging.share(iteration)
            averages = outputs if averages is None else averages.lerp_(outputs, share)
            average, improved = averages.mean(0, keepdim=True), rule is None
            if looked:
                density = tuple(map(mean, zip(*densities, strict=True)))
                if rule:
                    statistic = self._evaluate(rule, averages, average)
                    improved = best.update(statistic, iteration)
            if improved:  # always in the first iteration
                self.image = image = average
            if rule and self.preset.stops:
                ends = min(last, best.patience_ends)
                expected = min(last, best.expected_end(iteration, rule.typical))
            else:
                ends, expected = last, last
            seconds = perf_counter() - started
            yield Progress(
                iteration,
                mean(losses),
                outputs.mean(0, keepdim=True),
                average,
                image,
                statistic,
                best.iteration if rule else None,
                density,
                seconds,
                seconds / iteration * (expected - iteration),
                looked,
            )
            if ends <= iteration < last:
                self.stopped_because = f"the stop statistic was best at iteration {best.iteration}"
                return

    def _step(
        self, iteration: int, looked: bool, member: "Member", target: Tensor
    ) -> tuple[float, Tensor, tuple[float, ...]]:
        """Runs a step of a member; the densities of its codes are counted if the rule is evaluated."""
        weight = self.rule.weight if self.rule else None

        def misfit(output: Tensor) -> Tensor:
            losses = self.loss(self.operator(output) - target)
            return losses.mean() if weight is None else (losses * weight).sum() / weight.sum()

        fit, output, codes = member.step(iteration, misfit)
        return fit, output, _densities(codes) if looked else ()

    @torch.no_grad()
    def _evaluate(self, rule: StoppingRule, averages: Tensor, average: Tensor) -> float:
        return rule(averages, self.operator(average))


class Member:
    """One network of the ensemble with its own weights, z, jitter and optimizer.

    Args:
        shape: Of the image, (C, H, W).
    """

    def __init__(
        self,
        preset: Preset,
        sparsity: Sparsity,
        shape: tuple[int, ...],
        device: torch.device,
        weights_seed: int,
        jitter_seed: int,
    ) -> None:
        self.preset, self.sparsity, self.shape = preset, sparsity, shape
        multiple = preset.widths.multiple
        self.size = [max(SMALLEST, -(-side // multiple) * multiple) for side in shape[1:]]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(
                weights_seed
            )  # not `torch.manual_seed`, which seeds all devices
            network = Hourglass(preset.widths, self._projection, preset.inputs, shape[0])
            self.network = network.to(device, torch.float32)
            z = torch.rand(1, preset.inputs, *self.size, dtype=torch.float32) / 10
        self.random = torch.Generator(device).manual_seed(jitter_seed)
        self.z = z.to(device)
        if preset.mixed_precision:
            self.network.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), lr=preset.learning_rate, betas=preset.betas, fused=True
        )
        self.good = LastGood(preset.max_psnr_drop)

    @torch.enable_grad()
    def step(self, iteration: int, misfit: Callable[[Tensor], Tensor]) -> tuple[float, Tensor, list[Tensor]]:
        """Takes an optimization step; returns the misfit, the image (1, C, H, W) and the codes before the step.

        Raises:
            FloatingPointError: If the misfit is not finite.
        """
        output, codes = self._forward()
        loss = misfit(output)
        fit = float(loss.detach())  # the only wait for an accelerator in most iterations
        if self.good.has_diverged(fit):
            self.good.restore(self.network, self.optimizer)
            output, codes = self._forward()
            loss = misfit(output)
            fit = float(loss.detach())
        if not math.isfinite(fit):
            raise FloatingPointError(
                f"the loss is {fit} in iteration {iteration}: the operator must return finite values for "
                f"images in [0, 1]; if it does, try another seed"
            )
        if (iteration - 1) % self.preset.snapshot_every == 0:
            self.good.take(fit, self.network, self.optimizer)
        if self.sparsity.penalty:
            loss = loss + self.sparsity.penalty * sum(code.float().abs().mean() for code in codes)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimizer.step()
        return fit, output.detach(), [code.detach() for code in codes]

    def _forward(self) -> tuple[Tensor, list[Tensor]]:
        """Returns the image of z with new jitter, and its codes."""
        noise = torch.randn(self.z.shape, generator=self.random, device=self.z.device, dtype=self.z.dtype)
        z = torch.add(self.z, noise, alpha=self.preset.jitter)
        if self.preset.mixed_precision:  # randn into this format would be several times slower
            z = z.contiguous(memory_format=torch.channels_last)
        with self._precision():
            output, codes = self.network(z)
        return output[..., : self.shape[1], : self.shape[2]].contiguous(), codes

    def _projection(self, level: int, channels: int) -> nn.Module:
        height, width = (side >> level for side in self.size)
        match self.sparsity.unit:
            case "needle":
                return NeedleProjection(max(1, round(self.sparsity.density * channels)))
            case "code":
                return GlobalProjection(max(1, round(self.sparsity.density * channels * height * width)))
        return nn.Identity()

    def _precision(self) -> AbstractContextManager[None]:
        kind = self.z.device.type
        return torch.autocast(
            kind, torch.bfloat16, enabled=self.preset.mixed_precision and has_bfloat16(kind)
        )


class Best:
    """The iteration with the smallest statistic so far (0 before the first), and when a fit stops after it.

    Choice: a patience of at least 60 iterations, since the statistic is noisy. A longer patience costs time but no
    quality, since the best average is kept.
    """

    least = 60

    def __init__(self, patience: float) -> None:
        self.patience, self.statistic, self.iteration = patience, math.inf, 0

    def update(self, statistic: float, iteration: int) -> bool:
        """Returns whether this statistic is the first or the smallest so far."""
        better = self.iteration == 0 or statistic < self.statistic
        if better:
            self.statistic, self.iteration = statistic, iteration
        return better

    @property
    def patience_ends(self) -> int:
        """The iteration at which the fit stops, unless a better average is found before."""
        return self.iteration + max(self.least, math.ceil(self.patience * self.iteration))

    def expected_end(self, iteration: int, typical: float) -> float:
        """The expected last iteration: `typical` while the statistic improves, then gradually `patience_ends`.

        Choice: if it still improves after `typical`, the fit is expected to take a fifth longer.
        """
        waited = (iteration - self.iteration) / (self.patience_ends - self.iteration)
        later = max(typical, 1.2 * self.iteration) - self.patience_ends
        return self.patience_ends + max(0.0, 1 - waited) * max(0.0, later)


class LastGood:
    """The state that is restored when the fit diverges: the parameters and the moments of Adam.

    The original restores the parameters only, and continues with the gradient of the diverged state.
    """

    def __init__(self, max_psnr_drop: float) -> None:
        self.growth, self.loss = 10 ** (max_psnr_drop / 10), math.inf
        self.state: tuple[dict[str, Any], dict[str, Any]] | None = None

    def has_diverged(self, loss: float) -> bool:
        """Whether the loss is not finite, or has grown by more than `max_psnr_drop` dB since the state was taken."""
        return self.state is not None and not loss <= self.growth * self.loss

    def take(self, loss: float, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.loss = loss
        self.state = copy.deepcopy((network.state_dict(), optimizer.state_dict()))

    def restore(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if self.state is None:
            raise RuntimeError("no state has been taken, so none can be restored")
        parameters, moments = copy.deepcopy(self.state)
        network.load_state_dict(parameters)
        optimizer.load_state_dict(moments)


@contextmanager
def parallel_map(count: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """Yields a `map` that runs up to `count` calls in parallel; the threads of torch are divided among them.

    Inside the context, threads that other code starts get the same reduced number of torch threads.

    Choice: members run in parallel before a member gets several threads. Measured on two cores at 128 x 128, two
    threads make one hourglass 1.14 times as fast; two hourglasses in parallel are 1.75 times as fast.
    """
    threads = torch.get_num_threads()
    abreast = min(count, threads)
    if abreast == 1:
        yield map
        return
    try:
        with ThreadPoolExecutor(abreast, "member", torch.set_num_threads, (threads // abreast,)) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(threads)  # the pool has also changed it for later threads


def seeds(seed: int, ensemble_size: int) -> tuple[int, list[tuple[int, int]]]:
    """Independent seeds of the stopping rule, and of the weights and the jitter of each member.

    The seeds of the first members do not depend on the ensemble size.
    """
    numbers = np.random.SeedSequence(seed).generate_state(1 + 2 * ensemble_size, np.uint64) >> np.uint64(1)
    weights, jitter, rule_seed, *more = map(int, numbers)
    return rule_seed, [(weights, jitter), *zip(more[::2], more[1::2], strict=True)]


def _densities(codes: Sequence[Tensor]) -> tuple[float, ...]:
    """The share of non-zeros of each code, with one transfer from the device."""
    counts = torch.stack([code.count_nonzero() for code in codes]).cpu().tolist()
    return tuple(count / code.numel() for count, code in zip(counts, codes, strict=True))


@torch.enable_grad()
def _check_operator(operator: Operator, shape: tuple[int, ...], observation: Tensor) -> None:
    """Applies an operator to an image of this shape.

    Raises:
        ValueError: If its output has not the shape or the device of the observation, or no gradient.
    """
    trial = torch.full((1, *shape), 0.5, device=observation.device, requires_grad=True)
    observed = operator(trial)
    if not isinstance(observed, Tensor) or observed.shape != observation.shape:
        got = tuple(observed.shape) if isinstance(observed, Tensor) else type(observed).__name__
        raise ValueError(
            f"the operator maps an image {(1, *shape)} to {got}, but the observation is "
            f"{tuple(observation.shape)}: give the shape of the image (shape=...), or another operator"
        )
    if observed.device != observation.device:
        raise ValueError(
            f"the operator maps an image on {observation.device} to {observed.device}: let it compute on the device of "
            f"its argument, or give device={str(observed.device)!r}"
        )
    if not observed.requires_grad:
        raise ValueError("the output of the operator has no gradient: use differentiable operations of torch")
