"""The expected time of a restoration, and its limits of time and memory, checked before it is accepted."""

import math

import numpy as np

from sparsegen.restoration.settings import SMALLEST, Task
from sparsegen.service.jobs.errors import Busy
from sparsegen.service.settings import ServiceSettings, variable

# Processor seconds per unit of effort: the median of the 168 runs of table 3 with the fast preset.
DEFAULT_PACE = 1.27e-6
# Choice: the measured pace is clipped to these bounds where requests are refused, so that jobs that end early or late
# cannot make the estimates of others much too low or too high.
PACES = (DEFAULT_PACE / 4, DEFAULT_PACE * 4)
LEAST_NOISE, LEAST_DETAIL = 1.0, 0.02  # gray levels; share of the variance of the noise


def expected_seconds(effort: float, pace: float | None) -> float:
    """Estimated seconds of a task with this effort.

    Args:
        pace: Measured seconds per unit of effort (`Store.pace`); None if no job was measured yet.
    """
    return effort * (DEFAULT_PACE if pace is None else pace)


def expected_effort(task: Task, height: int, width: int, noise: float, detail: float) -> float:
    """Estimated effort of a task whose result has this size; for denoising, it depends on the picture.

    Args:
        noise, detail: As `measure_content` returned them.
    """
    iterations = None
    if task.stops_by_noise:
        bound = math.inf if task.sigma is None else task.sigma
        pixels = max(height, SMALLEST) * max(width, SMALLEST)
        iterations = expected_iterations(min(noise, bound), detail, pixels)
    return task.effort(height, width, iterations)


def expected_iterations(noise: float, detail: float, pixels: int) -> float:
    """The typical last iteration of a denoising with the preset fast, higher for weaker noise and finer structure.

    Fitted to the median runs of table 3 on 9 crops of 128 x 128 and 256 x 256, with noise of 15, 25 and 50 gray levels,
    and to 13 pictures of 64 x 64 and 96 x 96. These ended after 0.71 to 1.51 times this number, and 17 other denoisings
    of such small pictures after 0.67 to 1.36 times (`benchmarks/records/denoising_lengths.jsonl`).

    Args:
        noise, detail: As `measure_content` returns them; `noise` may be reduced to a known bound.
    """
    noise = max(noise, LEAST_NOISE)
    variance = max(detail**2 - noise**2, LEAST_DETAIL * noise**2)
    growth: float = 5.9 * noise**-0.89 * pixels**0.63 * variance**0.29
    return growth


def measure_content(pixels: np.ndarray) -> tuple[float, float]:
    """The standard deviation of the noise, and the strength of the finest structure with the noise, in gray levels.

    The noise is estimated from the finest diagonal details (Haar). The strength is the root mean square of the
    horizontal and vertical ones.

    Choice: simpler than `restoration.stopping.estimate_sigma`, which needs torch; only an expected time depends on it.

    Shape: (H, W, C) in [0, 1].
    """
    height, width = (side - side % 2 for side in pixels.shape[:2])
    even, odd = 255 * pixels[:height:2, :width], 255 * pixels[1:height:2, :width]
    left, right = even[:, ::2], even[:, 1::2]
    below_left, below_right = odd[:, ::2], odd[:, 1::2]
    diagonal = (left - right - below_left + below_right) / 2
    across, down = (
        (left - right + below_left - below_right) / 2,
        (left + right - below_left - below_right) / 2,
    )
    noise = float(np.median(np.abs(diagonal))) / 0.6745
    return noise, math.sqrt(float((across**2).mean() + (down**2).mean()) / 2)


def check_budget(
    task: Task, height: int, width: int, effort: float, pace: float | None, settings: ServiceSettings
) -> None:
    """Checks the expected hours and gigabytes of a task whose result has this size.

    Args:
        effort, pace: As in `expected_seconds`.

    Raises:
        ValueError: With the estimate, the limit and the remedy.
    """
    clipped = None if pace is None else max(pace, PACES[0])
    hours = _limited_seconds(effort, clipped) / 3600
    gigabytes = task.memory(height, width) / 1e9
    if hours > settings.job_hours:
        raise ValueError(
            f"the restoration would take about {hours:.3g} hours, and the limit is {settings.job_hours:g}: use fewer "
            f"iterations, a smaller picture or ensemble, or the preset fast; the operator can raise "
            f"{variable('job_hours')}"
        )
    if gigabytes > settings.job_memory_gb:
        raise ValueError(
            f"the restoration would take about {gigabytes:.3g} GB of memory, and the limit is "
            f"{settings.job_memory_gb:g} GB: use a smaller picture or ensemble, or the preset fast; the operator can "
            f"raise {variable('job_memory_gb')}"
        )


def check_wait(
    kind: str, effort: float, pace: float | None, ahead: float, seconds: float, longest: float
) -> None:
    """Checks that a client that waits for a task can expect it in time.

    Args:
        effort, pace: As in `expected_seconds`.
        ahead: Expected seconds until the task starts.
        seconds: The seconds that the client waits.
        longest: The seconds that it may wait at most.

    Raises:
        ValueError: With the estimate, the limit and the remedy, if the task takes too long.
        Busy: If it takes too long only because of the tasks before it.
    """
    expected = _limited_seconds(effort, pace)
    about = f"{kind} would take about {expected:.0f} seconds"
    if expected > seconds:
        longer = f"set max_seconds to up to {longest:g}, and the timeout of the client to more; "
        raise ValueError(
            f"{about}, and this request waits for {seconds:g}: {longer if expected <= longest else ''}use fewer "
            "iterations or a smaller picture, or submit a job with POST /restore"
        )
    if expected + ahead > seconds:
        raise Busy(
            f"{about} after {ahead:.0f} seconds for the restorations before it, and this request waits for "
            f"{seconds:g}: retry later, or submit a job with POST /restore",
            expected + ahead - seconds,
        )


def _limited_seconds(effort: float, pace: float | None) -> float:
    """The expected seconds, with an upper bound for the pace."""
    return expected_seconds(effort, None if pace is None else min(pace, PACES[1]))
