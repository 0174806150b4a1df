"""What can be asked of a restoration, as data: presets, sparsities, tasks. Needs no torch, since services check it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Protocol

from sparsegen.common.checks import check_integer, check_real
from sparsegen.common.hardware import processors
from sparsegen.common.names import known_names
from sparsegen.restoration.kinds import check_settings, find_kind
from sparsegen.zoo.noise import check_seed


@dataclass(frozen=True)
class Widths:
    """The channels of an hourglass, per scale from the finest to the coarsest.

    `down` are those of the codes Γ1…ΓK, `up` those of the decoder, `skip` those of the connections between
    them. `padding` is "reflect", as in the original, or "zeros", which is faster.
    """

    down: tuple[int, ...]
    up: tuple[int, ...]
    skip: tuple[int, ...]
    padding: str = "reflect"

    def __post_init__(self) -> None:
        if not len(self.down) == len(self.up) == len(self.skip) > 0:
            raise ValueError(
                f"down, up and skip hold one number of channels per scale; got {len(self.down)}, {len(self.up)} "
                f"and {len(self.skip)} scales"
            )
        if min(self.down + self.up + self.skip) < 1:
            raise ValueError(f"channels are counted from 1; got {self.down}, {self.up}, {self.skip}")
        if self.padding not in ("reflect", "zeros"):
            raise ValueError(f"padding is reflect or zeros; got {self.padding!r}")

    @property
    def multiple(self) -> int:
        """What height and width must be a multiple of, so that every scale halves them evenly."""
        return 2 ** len(self.down)


class Averaging(Protocol):
    """How much of output t, from the second on, goes into the average of all outputs so far: 0 to 1."""

    def share(self, iteration: int) -> float: ...


@dataclass(frozen=True)
class Exponential:
    """The same share always, whence the outputs of the last 1 / (1 - decay) iterations count most.

    The average starts as the first output, as the original has it, and is rid of that only by and by.
    """

    decay: float

    def share(self, iteration: int) -> float:
        return 1 - self.decay


@dataclass(frozen=True)
class Polynomial:
    """A share of (1 + power) / (t + power): the last 1 / (1 + power) of all outputs so far count most.

    The polynomial-decay averaging of Shamir & Zhang (2013). The window grows with the number of iterations that a
    picture takes, which an exponential average would have to be told.
    """

    power: float

    def share(self, iteration: int) -> float:
        return (1 + self.power) / (iteration + self.power)


@dataclass(frozen=True)
class Preset:
    """How an hourglass is fitted to an observation.

    Attributes:
        inputs: Channels of z, which is uniform in [0, 0.1].
        jitter: Standard deviation of the noise that is added to z anew in each iteration.
        averaging: How the outputs of all iterations become an image.
        iterations: The end, unless it is stopped before.
        max_psnr_drop: Decibels; if the fit to the observation falls by more, the last good state is taken up again.
        snapshot_every: Iterations from one such state to the next.
        ensemble_size: Hourglasses, each fitted by itself from its own start; the result is their mean.
        cost: Processor time that an hourglass takes for a pixel and an iteration, to that of the fast preset.
        pixel_bytes: Of activations and gradients, that an hourglass takes for a pixel.
        mixed_precision: Compute in bfloat16 where the processor has it, channels last.
        stops: Whether it stops by itself, and returns the best it saw in place of the last.
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
    # Of no influence on the result, so they are left out of what campaigns know their records by.
    cost: float = field(default=1.0, repr=False)
    pixel_bytes: float = field(default=1400, repr=False)


PRESETS = {
    "fast": Preset(
        Widths((64, 128, 128, 128), (8, 16, 32, 64), (4,) * 4, "zeros"),
        inputs=8,
        betas=(0.9, 0.9),
        ensemble_size=2,
    ),
    "paper": Preset(
        Widths((128,) * 5, (128,) * 5, (4,) * 5),
        averaging=Exponential(0.99),
        snapshot_every=1,
        mixed_precision=False,
        stops=False,
        cost=8.5,  # benchmarks/dip.py, 128 x 128: the fast preset in bfloat16, this one in float32
        pixel_bytes=12_000,  # reckoned from the channels, not measured
    ),
}


@dataclass(frozen=True)
class Sparsity:
    """What is asked of every code: a budget of non-zeros in each `unit`, or a penalty.

    `unit` is "needle" for L0,∞, "code" for L0, None for no projection; `density` the non-zeros over the entries
    of a unit; `penalty` is times the mean magnitude of a code.
    """

    unit: str | None = None
    density: float = 1.0
    penalty: float = 0.0


# Choice: the paper gives neither k nor a weight. On two crops of 128 x 128 (lena, f16; seed 0) densities of 0.125, 0.25
# and 0.5 gave averages within 0.12 dB of each other, of L0,∞ as of L0. The penalty is some per cent of the loss.
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
SMALLEST = 64  # sides of the network's image, cut off from it: the coarsest code needs some pixels for its batch norm
WORKER_BYTES = 850e6  # of a process that restores: torch, its kernels, the compiler; measured on an AMD EPYC
LOSSES = {"mse": "squared, for noise of all sorts", "l1": "absolute, for outliers such as salt and pepper"}


OLD_NAMES = {"members": "ensemble_size"}  # of settings, which version 0.2 still reads


@dataclass(frozen=True)
class Task:
    """What is to be done to one picture; made by `Task.of`, which checks it.

    `sigma` is the standard deviation of the noise in gray levels of 255, which it nowhere exceeds, None if that is not
    known. `by` is of upscale, `kernel` of deblur: "gaussian:SIGMA", or "file" where a picture of the kernel comes
    along.
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
    def of(cls, **given: object) -> "Task":
        """Checks a task.

        Raises: TypeError, ValueError, each naming the value, what is allowed and, of names, the near ones.
        """
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                raise ValueError(f"no setting {name!r}: there are {known_names(str(name), known)}")
        task = cls(**given)
        find_kind(task.kind)
        for name, table in (("preset", PRESETS), ("regularizer", SPARSITIES), ("loss", LOSSES)):
            value = getattr(task, name)
            if not isinstance(value, str) or value not in table:
                raise ValueError(f"{name} is one of {known_names(str(value), table)}; got {value!r}")
        check_seed(task.seed)
        if task.sigma is not None:
            check_real(
                "sigma", task.sigma, 0, MAX_SIGMA, "the standard deviation of the noise in gray levels of 255"
            )
        if task.density is not None:
            check_real("density", task.density, 0, 1, "the share of non-zeros in a code")
            if SPARSITIES[task.regularizer].unit is None:
                raise ValueError(f"the regularizer {task.regularizer} has no density: leave density out")
            if task.density == 0:
                raise ValueError("density is above 0: a code without non-zeros holds no picture; got 0")
        if task.iterations is not None:
            check_integer("iterations", task.iterations, 1, MAX_ITERATIONS, "the end, unless it stops before")
        if task.ensemble_size is not None:
            check_integer(
                "ensemble_size",
                task.ensemble_size,
                1,
                MAX_ENSEMBLE,
                "the number of networks averaged",
            )
        check_settings(task)
        return task

    @property
    def settings(self) -> Preset:
        """Those of the preset, with what the task says in place of them."""
        own = {name: getattr(self, name) for name in ("iterations", "ensemble_size")}
        return replace(
            PRESETS[self.preset], **{name: value for name, value in own.items() if value is not None}
        )

    @property
    def factor(self) -> int:
        """How many times as wide and as high as the observation the image is."""
        return self.by or 1

    @property
    def stops_by_noise(self) -> bool:
        """Whether it stops by how much of the noise was fitted, as it does where there is nothing but noise."""
        return find_kind(self.kind).only_noise and self.settings.stops and self.loss == "mse"

    @property
    def sigma_warning(self) -> str:
        """The note that sigma has no effect, if it is given and has none; else empty."""
        if self.sigma is None or self.stops_by_noise or find_kind(self.kind).keeps_known:
            return ""
        return "sigma changes nothing here: only denoising with preset fast and loss mse makes use of it"

    def effort(self, height: int, width: int) -> float:
        """About how much work a result of so many pixels is: what others have to wait for in a queue.

        Unit: what the fast hourglass takes for a pixel and an iteration; how long that is depends on the machine.
        """
        pixels, settings, iterations = max(height, SMALLEST) * max(width, SMALLEST), self.settings, math.inf
        if self.stops_by_noise:
            sigma = 25 if self.sigma is None else max(self.sigma, 1)
            iterations = typical_iterations(sigma / 255, pixels)
        return min(iterations, settings.iterations) * pixels * settings.ensemble_size * settings.cost

    def memory(self, height: int, width: int) -> float:
        """Bytes that a process takes at its peak for a result of so many pixels, all members computed at once."""
        return WORKER_BYTES + self.settings.ensemble_size * self.settings.pixel_bytes * height * width


def rename_settings(given: Mapping[str, object]) -> tuple[dict[str, object], list[str]]:
    """Replaces old names of settings by the present ones; returns the settings, and a warning for each old name.

    Raises: ValueError if a setting is given under both names.
    """
    settings, warnings = dict(given), []
    for old, new in OLD_NAMES.items():
        if old in settings:
            if new in settings:
                raise ValueError(f"{old} is the old name of {new}, and both are given: give {new} only")
            settings[new] = settings.pop(old)
            warnings.append(f"{old} is now called {new}; the old name will be removed in the next version")
    return settings, warnings


def typical_iterations(sigma: float, pixels: int) -> float:
    """After how many iterations the fast preset stops as a rule: more of them for weaker noise, and for larger images.

    Fitted to the 137 runs of table 3 on crops of 128 x 128 and 256 x 256 with noise of 15, 25 and 50 gray levels, which
    took 0.5 to 1.7 times as many. Beyond their sizes it is a guess.

    Args:
        sigma: Root mean square of the noise's standard deviation, in units of the image in [0, 1].
    """
    return 640 * (25 / 255 / sigma) * (pixels / 128**2) ** 0.7


def fair_threads(ensemble_size: int, fits: int = 1) -> int:
    """The threads of torch for each of some fits side by side on this machine, which have so many members.

    Choice: half of the cores, or all if it takes them to give each member one. For an hourglass does thousands of short
    steps, each of which waits for its slowest thread: where another program wanted one of two cores, two threads did 1
    iteration a second at 128 x 128, and one thread 17. Members wait for each other but once an iteration, so they may
    have all cores, and share them with a server.
    """
    cores, fits = processors(), max(1, fits)
    return max(1, max(cores // 2, min(ensemble_size * fits, cores)) // fits)
