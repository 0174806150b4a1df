"""Measures the pace of restorations on this machine, before the first job does: a short fit in a process of its own.

The process ends after it, so that an idle worker does not keep PyTorch in memory. It prints the seconds and the effort.
"""

import logging
import os
import statistics
import subprocess
import sys
import time
from types import TracebackType

import numpy as np

from sparsegen.pictures.picture import from_array
from sparsegen.restoration.settings import Task, fair_threads
from sparsegen.service.jobs.errors import StoreError
from sparsegen.service.jobs.store import Store
from sparsegen.service.settings import ServiceSettings

logger = logging.getLogger(__name__)

COMMAND = [sys.executable, "-m", "sparsegen.service.jobs.calibration"]
WORKERS = "SPARSEGEN_WORKERS"  # the environment variable with the number of workers on this machine
IDLE = 5.0  # seconds until a worker without jobs starts the measurement; a server is busy when it starts
SIDE = 96  # pixels
WARM_UP, MEASURED = 5, 20  # iterations


class Calibration:
    """The measurement of a worker. It runs while the worker has no job, and only if the pace is not known."""

    def __init__(self, store: Store) -> None:
        self._store, self._start_at, self._done = store, time.monotonic() + IDLE, False
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Calibration":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def look(self) -> None:
        """Starts the measurement if it is due, and stores its result when it has ended."""
        if self._done or time.monotonic() < self._start_at:
            return
        try:
            if self._process is None:
                self._done = self._store.pace() is not None
                if not self._done:
                    self._process = subprocess.Popen(
                        COMMAND,
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE,
                        text=True,
                    )
            elif self._process.poll() is not None:
                self._done = True
                self._finish(self._process)
        except StoreError as error:
            logger.warning("the pace of restorations is not stored: %s", error)

    def stop(self) -> None:
        """Ends the measurement; it starts again when the worker is idle."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
        self._start_at = time.monotonic() + IDLE

    def _finish(self, process: subprocess.Popen[str]) -> None:
        printed, errors = process.communicate()
        self._process = None
        if process.returncode != 0:
            reason = (errors.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
            logger.warning("the pace of restorations cannot be measured: %s", reason)
            return
        seconds, effort = map(float, printed.split())
        self._store.calibrate(seconds, effort)
        logger.info("the pace of restorations is %.2g seconds per million units", 1e6 * seconds / effort)


def set_threads(ensemble_size: int) -> None:
    """Sets the threads of torch for a fit in one of the workers, unless OMP_NUM_THREADS does."""
    import torch  # takes seconds and memory

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(fair_threads(ensemble_size, int(os.environ.get(WORKERS, 1))))


def measure() -> tuple[float, float]:
    """The seconds of MEASURED iterations, from their median, and their effort."""
    from sparsegen.restoration.restore import run

    task = Task.of(iterations=WARM_UP + MEASURED)
    set_threads(task.settings.ensemble_size)
    picture = from_array(np.random.default_rng(0).random((SIDE, SIDE, 3), np.float32))
    ends: list[float] = []
    device = ServiceSettings.from_environment().device
    run(task, picture, callback=lambda progress: ends.append(progress.seconds), device=device)
    durations = np.diff(ends)[WARM_UP - 1 :]
    return MEASURED * statistics.median(map(float, durations)), task.effort(SIDE, SIDE, MEASURED)


if __name__ == "__main__":
    print(*measure())
