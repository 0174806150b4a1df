"""The settings of restorations: presets, sparsities, tasks. Does not import torch, since the service checks tasks."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, Protocol

from sparsegen.common.checks import check_integer, check_real
from sparsegen.common.hardware import processors
from sparsegen.common.names import known_names
from sparsegen.restoration.kinds import check_settings, find_kind
from sparsegen.zoo.noise import check_seed

Padding = Literal["reflect", "zeros"]


@dataclass(frozen=True)
class Widths:
    """The channels of an hourglass, per scale from the finest to the coarsest.

    `down` are those of the codes Γ1…ΓK, `up` those of the decoder, `skip` those of the connections between
    them. `padding` is "reflect", as in the original, or "zeros", which is faster.
    """

    down: tuple[int, ...]
    up: tuple[int, ...]
    skip: tuple[int, ...]
    padding: Padding = "reflect"

    def __post_init__(self) -> None:
        if not len(self.down) == len(self.up) == len(self.skip) > 0:
            raise ValueError(
                f"down, up and skip must have one number of channels per scale; got {len(self.down)}, "
                f"{len(self.up)} and {len(self.skip)} numbers"
            )
        if min(self.down + self.up + self.skip) < 1:
            raise ValueError(f"channels must be at least 1; got {self.down}, {self.up}, {self.skip}")
        if self.padding not in ("reflect", "zeros"):
            raise ValueError(f"padding must be reflect or zeros; got {self.padding!r}")

    @property
    def multiple(self) -> int:
        """The number that must divide height and width, since every scale halves them."""
        return 1 << len(self.down)


class Averaging(Protocol):
    """Averages the outputs of a fit: average(t) = (1 - share(t)) average(t - 1) + share(t) output(t)."""

    def share(self, iteration: int) -> float:
        """The weight of the output of an iteration from 2 on, 0 to 1."""


@dataclass(frozen=True)
class Exponential:
    """A constant share of 1 - decay: the last 1 / (1 - decay) outputs have the largest weights.

    As in the original, the average starts with the first output, whose weight decays slowly.
    """

    decay: float

    def share(self, iteration: int) -> float:
        return 1 - self.decay


@dataclass(frozen=True)
class Polynomial:
    """A share of (1 + power) / (t + power): the last 1 / (1 + power) of all outputs have the largest weights.

    This is the polynomial-decay averaging of Shamir & Zhang (2013). Its window grows with the number of iterations; the
    window of an exponential average is fixed.
    """

    power: float

    def share(self, iteration: int) -> float:
        return (1 + self.power) / (iteration + self.power)


# Time of an iteration that does not depend on the size, in pixels of the preset fast. In the runs of table 3, an
# iteration at 256 x 256 took 2.1 times as long as one at 128 x 128, and one at 64 x 64 took 0.55 times as long.
OVERHEAD = 20_000


@dataclass(frozen=True)
class Preset:
    """How an hourglass is fitted to an observation.

    Attributes:
        inputs: Channels of z, which is uniform in [0, 0.1].
        jitter: Standard deviation of the new noise that is added to z in each iteration.
        averaging: How the outputs of the iterations are averaged.
        iterations: Maximum number of iterations.
        max_psnr_drop: In dB; if the PSNR to the observation drops by more, the last good state is restored.
        snapshot_every: Iterations between two saved states.
        ensemble_size: Number of networks, each with its own initialization; the result is their mean.
        cost: Processor time of a network per pixel and iteration, relative to the preset fast, without OVERHEAD.
        pixel_bytes: Bytes of activations and gradients of a network per pixel.
        mixed_precision: Compute in bfloat16 if the processor supports it, with channels last.
        stops: Whether a stopping rule ends the fit and selects the best average.
        filter_share: In denoising with a stopping rule, the weight of the collaborative filter (`FilterPreset`) in the
            result, 0 to 1; the rest is that of the networks.
        tiles: Whether large pictures are cut into tiles, each with networks of its own.
    """

    widths: Widths
    inputs: int = 32
    jitter: float = 1 / 30
    learning_rate: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    averaging: Averaging = Polynomial(3)
    iterations: int = 3000
    max_psnr_drop: float = 5.0
    snapshot_every: int = 10
    ensemble_size: int = 1
    mixed_precision: bool = True
    stops: bool = True
    tiles: ClassVar[bool] = True
    overhead: ClassVar[float] = OVERHEAD
    # The records are those of the networks alone.
    filter_share: float = field(default=0.0, repr=False)
    # These do not influence the result, so the repr that identifies records of campaigns omits them.
    cost: float = field(default=1.0, repr=False)
    pixel_bytes: float = field(default=1400, repr=False)

    @property
    def uses_sigma(self) -> bool:
        """Whether denoising depends on the standard deviation of the noise: its stopping rule does."""
        return self.stops

    def check(self, task: "Task") -> None:
        """A network has all settings of a task."""


@dataclass(frozen=True)
class FilterPreset:
    """Collaborative filtering (`collaborative`) instead of a network: in seconds, and only for noise.

    Attributes: Those of `Preset` with the same meaning; an iteration is a hundredth of the work.
    """

    iterations: int = 100
    ensemble_size: int = 1
    stops: bool = False
    cost: float = 0.08  # 10 microseconds per pixel on an AMD EPYC
    pixel_bytes: float = 320  # measured with 1.5 megapixels
    overhead: ClassVar[float] = 1_000
    uses_sigma: ClassVar[bool] = True
    tiles: ClassVar[bool] = False

    def check(self, task: "Task") -> None:
        """Raises: ValueError if the task has a setting of networks."""
        for name in ("regularizer", "density", "loss", "iterations", "ensemble_size"):
            if (value := getattr(task, name)) != getattr(Task, name):
                raise ValueError(
                    f"the preset {task.preset} fits no network, so {name} has no effect; got {value!r}: omit it, or "
                    f"use the preset fast"
                )


PRESETS: dict[str, Preset | FilterPreset] = {
    "fast": Preset(
        Widths((64, 128, 128, 128), (8, 16, 32, 64), (4,) * 4, "zeros"),
        inputs=8,
        betas=(0.9, 0.9),
        ensemble_size=2,
        filter_share=0.6,
    ),
    "paper": Preset(
        Widths((128,) * 5, (128,) * 5, (4,) * 5),
        averaging=Exponential(0.99),
        snapshot_every=1,
        mixed_precision=False,
        stops=False,
        cost=18,  # benchmarks/dip.py, 128 x 128: 8.7 times the fast preset in bfloat16, this one in float32
        pixel_bytes=12_000,  # computed from the channels, not measured
    ),
    "quick": FilterPreset(),
}


@dataclass(frozen=True)
class Sparsity:
    """The constraint on every code: a number of non-zeros per `unit`, or a penalty.

    Attributes:
        unit: "needle" for L0,∞, "code" for L0, None for no projection.
        density: Non-zeros over entries of a unit.
        penalty: Weight in the loss of the mean magnitude of each code.
    """

    unit: str | None = None
    density: float = 1.0
    penalty: float = 0.0


# Choice: the paper gives neither k nor a weight. On two crops of 128 x 128 (lena, f16; seed 0), densities of 0.125,
# 0.25 and 0.5 gave averages within 0.12 dB of each other, for L0,∞ and for L0. The penalty is a few percent of the
# loss.
SPARSITIES = {
    "baseline": Sparsity(),
    "l0_inf": Sparsity("needle", 0.25),
    "l0": Sparsity("code", 0.25),
    "l1": Sparsity(penalty=1e-4),
}
MAX_SIGMA = 255  # gray levels
MAX_ITERATIONS = 100_000
MAX_ENSEMBLE = 8
MAX_THREADS = 1024
MAX_TILE = 4096  # pixels of the result along a side
MAX_WORKERS = 61  # Windows cannot wait for more processes
SMALLEST = (
    64  # sides of the network's output before cropping; the batch norm of the coarsest code needs some pixels
)
WORKER_BYTES = 850e6  # of a process that restores: torch, its kernels, the compiler; measured on an AMD EPYC
LOSSES = {"mse": "squared, for noise in general", "l1": "absolute, for outliers such as salt and pepper"}


OLD_NAMES = {"members": "ensemble_size"}  # of settings; version 0.2 still accepts them


@dataclass(frozen=True)
class Task:
    """The restoration of one picture. `Task.of` creates a checked task.

    Attributes:
        density: Share of non-zeros in a code; None: that of the regularizer.
        sigma: Upper bound of the standard deviation of the noise in gray levels, 0 to 255; None: estimated.
        iterations, ensemble_size: None: those of the preset.
        by: The factor of upscale, 2 or 4.
        kernel: The kernel of deblur: "gaussian:SIGMA", or "file" if a picture of the kernel is given.
    """

    kind: str = "denoise"
    preset: str = "fast"
    regularizer: str = "l0_inf"
    density: float | None = None
    sigma: float | None = None
    loss: str = "mse"
    seed: int = 0
    iterations: int | None = None
    ensemble_size: int | None = None
    by: int | None = None
    kernel: str | None = None

    @classmethod
    def of(cls, **given: Any) -> "Task":
        """Creates a task of these settings and checks it.

        Raises:
            TypeError, ValueError: With the value, the allowed values and, for names, similar ones.
        """
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                raise ValueError(
                    f"unknown setting {name!r}; the settings are {known_names(str(name), known)}"
                )
        task = cls(**given)
        find_kind(task.kind)
        for name, table in (("preset", PRESETS), ("regularizer", SPARSITIES), ("loss", LOSSES)):
            value = getattr(task, name)
            if not isinstance(value, str) or value not in table:
                raise ValueError(f"{name} must be one of {known_names(str(value), table)}; got {value!r}")
        check_seed(task.seed)
        if task.sigma is not None:
            check_real(
                "sigma", task.sigma, 0, MAX_SIGMA, "the standard deviation of the noise in gray levels of 255"
            )
        if task.density is not None:
            check_real("density", task.density, 0, 1, "the share of non-zeros in a code")
            if SPARSITIES[task.regularizer].unit is None:
                raise ValueError(f"the regularizer {task.regularizer} has no density: omit it")
            if task.density == 0:
                raise ValueError("density must be above 0; got 0")
        if task.iterations is not None:
            check_integer(
                "iterations", task.iterations, 1, MAX_ITERATIONS, "the maximum number of iterations"
            )
        if task.ensemble_size is not None:
            check_integer(
                "ensemble_size",
                task.ensemble_size,
                1,
                MAX_ENSEMBLE,
                "the number of networks averaged",
            )
        check_settings(task)
        if task.preset not in (presets := find_kind(task.kind).presets):
            raise ValueError(
                f"{task.kind} has no preset {task.preset}: use the preset {' or '.join(presets)}"
            )
        PRESETS[task.preset].check(task)
        return task

    @property
    def settings(self) -> Preset | FilterPreset:
        """The preset, with the settings that the task overrides."""
        own = {name: getattr(self, name) for name in ("iterations", "ensemble_size")}
        return replace(
            PRESETS[self.preset], **{name: value for name, value in own.items() if value is not None}
        )

    @property
    def factor(self) -> int:
        """Ratio of the sides of the image to those of the observation."""
        return self.by or 1

    @property
    def stops_by_noise(self) -> bool:
        """Whether `NoiseFitRule` is the stopping rule: in denoising with the loss mse."""
        return find_kind(self.kind).only_noise and self.settings.stops and self.loss == "mse"

    @property
    def sigma_warning(self) -> str:
        """The warning that sigma has no effect, if it is given and has none; else empty."""
        kind = find_kind(self.kind)
        denoises = kind.only_noise and self.settings.uses_sigma and self.loss == "mse"
        if self.sigma is None or denoises or kind.keeps_known:
            return ""
        return "sigma has no effect here: only denoising with the presets fast and quick and the loss mse uses it"

    def effort(self, height: int, width: int, iterations: float | None = None) -> float:
        """Estimated work for a result of this size, which orders jobs in a queue.

        Unit: the work of a network of the preset fast per pixel and iteration; its duration depends on the machine.
        Each iteration has the work of `overhead` pixels more.

        Args:
            iterations: The number of iterations, if it is known.
        """
        pixels, settings = max(height, SMALLEST) * max(width, SMALLEST), self.settings
        if iterations is None:
            iterations = math.inf
            if self.stops_by_noise:
                sigma = 25 if self.sigma is None else max(self.sigma, 1)
                iterations = typical_iterations(sigma / 255, pixels)
        work: float = min(iterations, settings.iterations) * settings.ensemble_size
        return work * (settings.cost * pixels + settings.overhead)

    def memory(self, height: int, width: int) -> float:
        """Peak bytes of a process for a result of this size, all networks of the ensemble in parallel."""
        return WORKER_BYTES + self.settings.ensemble_size * self.settings.pixel_bytes * height * width


def rename_settings(given: Mapping[str, object]) -> tuple[dict[str, object], list[str]]:
    """Replaces old names of settings by the present ones; returns the settings, and a warning for each old name.

    Raises:
        ValueError: If a setting is given under both names.
    """
    settings, warnings = dict(given), []
    for old, new in OLD_NAMES.items():
        if old in settings:
            if new in settings:
                raise ValueError(f"{old} is the old name of {new}, and both are given: give only {new}")
            settings[new] = settings.pop(old)
            warnings.append(f"{old} is now called {new}; the old name will be removed in the next version")
    return settings, warnings


def typical_iterations(sigma: float, pixels: int) -> float:
    """The typical last iteration of the preset fast, which is higher for weaker noise and for larger images.

    Fitted to the 137 runs of table 3 on crops of 128 x 128 and 256 x 256 with noise of 15, 25 and 50 gray levels; they
    ended after 0.5 to 1.7 times this number. Other sizes are extrapolated.

    Args:
        sigma: Root mean square of the noise's standard deviation, in units of the image in [0, 1].
    """
    growth: float = (pixels / 128**2) ** 0.7
    return 640 * (25 / 255 / sigma) * growth


def fair_threads(ensemble_size: int, fits: int = 1) -> int:
    """The number of torch threads for each of `fits` parallel fits of `ensemble_size` networks on this machine.

    Choice: half of the cores, or more if each network needs one. A fit runs thousands of short steps, and each step
    lasts as long as its slowest thread: with another program on one of two cores, two threads ran 1 iteration per
    second at 128 x 128, and one thread 17. The networks synchronize only once per iteration, so they may use all cores,
    also on a server.
    """
    cores, fits = processors(), max(1, fits)
    return max(1, max(cores // 2, min(ensemble_size * fits, cores)) // fits)
