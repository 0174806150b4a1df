"""The limits of the server that an operator may change, each by an environment variable."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields


def _limit(default: float, low: float, high: float, meaning: str) -> float:
    return field(default=default, metadata={"low": low, "high": high, "meaning": meaning})


@dataclass(frozen=True)
class Options:
    """The limits. The variable of `job_hours` is SPARSEGEN_JOB_HOURS, and so on."""

    job_hours: float = _limit(
        8, 0.01, 10_000, "hours of a worker that one restoration may be expected to take"
    )
    job_memory_gb: float = _limit(4, 0.9, 10_000, "gigabytes that one restoration may be expected to take")
    job_deadline_hours: float = _limit(12, 0.0001, 10_000, "hours after which a running restoration is ended")
    jobs_per_client: int = _limit(4, 1, 10_000, "restorations of one client that wait or run at once")
    results_mb: int = _limit(
        4096, 64, 1_000_000, "megabytes of all restorations that have ended, the oldest of which then go"
    )
    decoders: int = _limit(3, 1, 64, "processes that decode uploaded pictures")
    decoder_mb: int = _limit(512, 256, 100_000, "megabytes of address space of such a process")
    decoder_seconds: int = _limit(10, 1, 3600, "processor seconds that one picture may take to decode")
    uploads_mb: int = _limit(2048, 64, 1_000_000, "megabytes of all uploads together in the temporary folder")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Options":
        """Reads the variables; what is not set, or empty, has its default.

        Raises: ValueError that names the variable, its range and its value.
        """
        given = {each.name: environment.get(variable(each.name)) for each in fields(cls)}
        return cls(**{each.name: _read(each, given[each.name]) for each in fields(cls) if given[each.name]})


def variable(name: str) -> str:
    """The environment variable of a limit."""
    return f"SPARSEGEN_{name.upper()}"


def _read(option, text: str) -> float:
    low, high = option.metadata["low"], option.metadata["high"]
    try:
        value = option.type(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:  # false for NaN, too
        kind = "an integer" if option.type is int else "a number"
        raise ValueError(
            f"{variable(option.name)} is {kind} from {low} to {high:,}: {option.metadata['meaning']}; "
            f"got {text[:40]!r}"
        )
    return value
