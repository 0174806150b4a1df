"""Limits for the time and memory of a restoration, checked before it is accepted."""

from sparsegen.restoration.settings import Task
from sparsegen.service.settings import ServiceSettings, variable

# Processor seconds per unit of effort: the median of the 168 runs of table 3 with the fast preset.
DEFAULT_PACE = 2.1e-6
# Choice: the measured pace is clipped to these bounds, so that jobs that end early or late cannot make the estimates of
# others much too low or too high.
PACES = (DEFAULT_PACE / 4, DEFAULT_PACE * 4)


def expected_seconds(task: Task, height: int, width: int, pace: float | None) -> float:
    """Estimated seconds of a task whose result has this size.

    Args:
        pace: Measured seconds per unit of effort (`Store.pace`); None if no job was measured yet.
    """
    return task.effort(height, width) * (DEFAULT_PACE if pace is None else pace)


def check_budget(task: Task, height: int, width: int, pace: float | None, settings: ServiceSettings) -> None:
    """Checks the expected hours and gigabytes of a task whose result has this size.

    Args:
        pace: As in `expected_seconds`.

    Raises:
        ValueError: With the estimate, the limit and the remedy.
    """
    clipped = None if pace is None else min(max(pace, PACES[0]), PACES[1])
    hours = expected_seconds(task, height, width, clipped) / 3600
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
