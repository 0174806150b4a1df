"""A worker like restorer.py whose picture changes, and is best before the end: python fader.py STORE."""

import math
import subprocess
import sys
from collections.abc import Callable

import restorer

from sparsegen.pictures.picture import Picture
from sparsegen.restoration.settings import Task
from sparsegen.service.jobs import worker

BEST = 0.7  # of the iterations


class Fading(restorer.Progress):
    """From the picture to its negative; `statistic` falls to the best iteration, and rises again."""

    given: Picture

    @property
    def statistic(self) -> float:
        return 0.01 + math.log(self.fraction / BEST) ** 2

    @property
    def best_iteration(self) -> int:
        return min(self.iteration, round(BEST * self.iterations))

    def picture(self) -> Picture:
        share = self.fraction
        return self.given.with_pixels((1 - share) * self.given.pixels + share * self.restored.pixels)


def run(
    task: Task, picture: Picture, mask: Picture | None, kernel: Picture | None, callback: Callable
) -> restorer.Restoration:
    """Runs for 200 iterations (a few seconds), and ten times as long for inpaint, so that there is time to cancel."""

    def told(progress: restorer.Progress) -> bool | None:
        fading = Fading(progress.iteration, progress.iterations, progress.restored)
        fading.given = picture
        return callback(fading)

    iterations = 2000 if task.kind == "inpaint" else 200
    asked = Task.of(kind="denoise", seed=task.seed, iterations=iterations)
    return restorer.run(asked, picture, mask, kernel, told)


def start(where: str) -> subprocess.Popen:
    """Starts such a worker, which ends with this process."""
    return subprocess.Popen([sys.executable, __file__, where], stdin=subprocess.PIPE)


if __name__ == "__main__":
    worker.SHOW_EVERY = 0.5
    sys.exit(worker.work(sys.argv[1], run, until_stdin_closes=True))
