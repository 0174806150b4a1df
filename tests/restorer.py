"""A worker process that imitates slow restorations: python restorer.py STORE TRACE.

Each line of TRACE is an iteration: process, seed of the job, iteration. The seed selects the behavior of a job.
"""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sparsegen.pictures.picture import Picture
from sparsegen.restoration.settings import Task
from sparsegen.service.jobs import store as jobs
from sparsegen.service.jobs import worker

LEASE, HEARTBEAT_EVERY = 4.0, 0.4  # seconds; those of the product would make the tests slow
ITERATION = 0.02
REFUSED, BROKEN, SLOW = 13, 14, 15  # seeds


@dataclass
class Progress:
    iteration: int
    iterations: int
    restored: Picture
    started: float = field(default_factory=time.monotonic)

    @property
    def statistic(self) -> float:
        return 1 / self.iteration

    @property
    def best_iteration(self) -> int:
        return self.iteration

    @property
    def fraction(self) -> float:
        return self.iteration / self.iterations

    @property
    def seconds(self) -> float:
        return self.iteration * ITERATION

    @property
    def seconds_left(self) -> float:
        return (self.iterations - self.iteration) * ITERATION

    def picture(self) -> Picture:
        return self.restored


@dataclass
class Restoration:
    image: Picture
    stopped_because: str
    iterations: int
    seconds: float


def run(
    task: Task,
    picture: Picture,
    mask: Picture | None,
    kernel: Picture | None,
    callback: Callable,
    trace: Callable = lambda line: None,
) -> Restoration:
    """Inverts the picture, in as many steps as the `iterations` of the task."""
    if task.seed == REFUSED:
        raise ValueError("a picture of this seed is refused")
    if task.seed == BROKEN:
        raise ZeroDivisionError("secret")
    restored, last = picture.with_pixels(1 - picture.pixels), task.iterations or 3
    iteration = 0
    for iteration in range(1, last + 1):
        time.sleep(ITERATION * (10 if task.seed == SLOW else 1))
        trace(f"{os.getpid()} {task.seed} {iteration}\n")
        if "--sleepy" in sys.argv and iteration == 5:
            os.kill(os.getpid(), signal.SIGSTOP)
        if callback(Progress(iteration, last, restored)):
            return Restoration(restored, "it was asked to", iteration, iteration * ITERATION)
    return Restoration(restored, "the iterations are over", last, last * ITERATION)


def start(where: str, trace: Path, *options: str) -> subprocess.Popen:
    """Starts such a worker."""
    command = [sys.executable, __file__, where, str(trace), *options]
    return subprocess.Popen(command, stdin=subprocess.PIPE)


def lines(trace: Path) -> list[tuple[int, int, int]]:
    """The iterations so far: process, seed, iteration."""
    if not trace.exists():
        return []
    return [tuple(map(int, line.split())) for line in trace.read_text().splitlines()]


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    assert "torch" not in sys.modules
    jobs.LEASE, worker.HEARTBEAT_EVERY = LEASE, HEARTBEAT_EVERY
    with open(sys.argv[2], "a", buffering=1) as file:
        sys.exit(
            worker.work(
                sys.argv[1],
                lambda *asked: run(*asked, trace=file.write),
                until_stdin_closes="--leash" in sys.argv,
            )
        )
