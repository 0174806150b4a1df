"""The restoration workers of a server: processes that are started, restarted and ended by it.

The HTTP worker of BentoML runs them, so they are the same under `sparsegen serve`, `bentoml serve` and in a bento.
"""

import logging
import math
import os
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import sparsegen
from sparsegen.service.jobs.calibration import WORKERS

logger = logging.getLogger(__name__)

MODULE = "sparsegen.service.jobs.worker"
PATIENCE = (
    6.0  # seconds between asking a worker to end and killing it; a container gives ten to all processes
)
RESTART_AFTER = 5.0  # minimum seconds between the starts of a worker and its successor
LOOK_EVERY = 0.2  # seconds


class WorkerPool:
    """Restoration workers. Each reads a pipe that closes when this process ends, even if it is killed.

    Args:
        count: Number of workers; 0: none.
        variables: The environment of the workers; by default that of this process.
    """

    def __init__(self, count: int, variables: Mapping[str, str] = os.environ) -> None:
        self._variables = _with_package({**variables, WORKERS: str(count)})
        self._workers: list[subprocess.Popen[bytes] | None] = [None] * count
        self._started, self._pause = [-math.inf] * count, [RESTART_AFTER] * count
        self._ended: dict[int, float] = {}  # when a worker was seen to have ended as asked, by its process id
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._supervise, name="workers", daemon=True)

    def start(self) -> None:
        """Starts the workers, and restarts those that end, from a thread, until `stop`."""
        self._look()
        self._thread.start()

    def restart_dead(self) -> None:
        """Starts workers that are not running; the pause doubles, up to 60 s, while a worker ends at once.

        A worker that was asked to end is replaced RESTART_AFTER seconds later: BentoML asks all processes of a server
        to end before it calls `stop`.
        """
        now = time.monotonic()
        for index, worker in enumerate(self._workers):
            age = now - self._started[index]
            if age < self._pause[index] or (worker is not None and worker.poll() is None):
                continue
            if worker is not None:
                if worker.returncode == 0 and now - self._ended.setdefault(worker.pid, now) < RESTART_AFTER:
                    continue
                self._ended.pop(worker.pid, None)
                logger.warning("a worker ended with exit code %d: restarting it", worker.returncode)
                _close_stdin(worker)
                at_once = age < 2 * self._pause[index]
                self._pause[index] = min(2 * self._pause[index], 60) if at_once else RESTART_AFTER
            self._workers[index] = subprocess.Popen(
                [sys.executable, "-m", MODULE],
                stdin=subprocess.PIPE,
                env=self._variables,
                start_new_session=True,  # Ctrl-C reaches only the server, which then stops them
            )
            self._started[index] = now

    def stop(self) -> None:
        """Asks the workers to return their jobs to the queue and end; kills them after PATIENCE seconds."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        workers = [worker for worker in self._workers if worker is not None]
        for worker in workers:
            _close_stdin(worker)
        until = time.monotonic() + PATIENCE
        for worker in workers:
            try:
                worker.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()

    def _supervise(self) -> None:
        while not self._stopping.wait(LOOK_EVERY):
            self._look()

    def _look(self) -> None:
        try:
            self.restart_dead()
        except OSError as error:  # e.g. too many processes; retried
            logger.error("a worker cannot be started: %s", error)


def _with_package(variables: dict[str, str]) -> dict[str, str]:
    """Lets a new interpreter import this package, which a bento does not install."""
    folder = str(Path(sparsegen.__file__).parent.parent)
    if folder == sysconfig.get_path("purelib"):
        return variables
    found = [path for path in (variables.get("PYTHONPATH"), folder) if path]
    return variables | {"PYTHONPATH": os.pathsep.join(found)}


def _close_stdin(process: subprocess.Popen[bytes]) -> None:
    """Asks a worker to end; it reads the pipe at its standard input."""
    if process.stdin is not None:
        process.stdin.close()
