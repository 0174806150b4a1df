"""A worker: a process that runs restoration jobs, one at a time. The only part of the service that needs torch."""

import logging
import math
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from sparsegen.common.devices import AUTO, find_device
from sparsegen.pictures.picture import Picture
from sparsegen.restoration.settings import Task, rename_settings
from sparsegen.service.jobs.calibration import Calibration, set_threads
from sparsegen.service.jobs.decoding import decoders
from sparsegen.service.jobs.errors import StoreError
from sparsegen.service.jobs.store import HEARTBEAT_EVERY, STORED_PIXELS, Claim, Store, open_store
from sparsegen.service.logs import set_up_logs
from sparsegen.service.settings import ServiceSettings

if TYPE_CHECKING:
    from sparsegen.restoration.restore import Restoration, TaskProgress

    Callback = Callable[[TaskProgress], bool | None]
    Run = Callable[[Task, Picture, Picture | None, Picture | None, Callback | None], Restoration[Picture]]

logger = logging.getLogger("sparsegen.service.jobs.worker")  # __name__ is __main__ in a worker

POLL_EVERY = 0.5  # seconds, as the following
REPORT_EVERY = 0.5
SHOW_EVERY = 2.0
SHOW_SHARE = 0.05  # maximum share of the time for previews: encoding a PNG of a megapixel is slow
SWEEP_EVERY = 60.0
CURVE = 200  # points
PATIENCE = 10.0  # seconds until the forced exit after the server has ended
READABLE = (
    ValueError,
    TypeError,
    ImportError,
    FloatingPointError,
)  # errors whose messages are shown to the client


class Curve:
    """The statistic by iteration, thinned evenly to at most CURVE points."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float]] = []
        self._stride, self._seen = 1, 0
        self._last: float | None = None

    def add(self, iteration: int, statistic: float | None) -> None:
        """Adds a point; an unchanged statistic is not a new measurement, and is skipped."""
        if statistic is None or not math.isfinite(statistic) or statistic == self._last:
            return
        self._last = statistic
        if self._seen % self._stride == 0:
            self.points.append((iteration, float(statistic)))
            if len(self.points) > CURVE:
                self.points, self._stride = self.points[::2], 2 * self._stride
        self._seen += 1


class Reporter:
    """The callback of an attempt: reports progress, and stops the fit if needed, at the latest after `deadline` s.

    An unreachable store does not stop the work. If another worker takes over meanwhile, the first result is kept.
    """

    def __init__(self, store: Store, claim: Claim, stopped: list[int], deadline: float = math.inf) -> None:
        self.store, self.claim, self.stopped = store, claim, stopped
        self.expires, self.expired = time.monotonic() + deadline, False
        self.curve = Curve()
        self.facts: dict[str, Any] = {}
        self.lost = self.left = False  # lost: taken over or canceled; left: the worker must stop
        self._report_at = self._show_at = 0.0

    def __call__(self, progress: "TaskProgress") -> bool:
        self.curve.add(progress.iteration, progress.statistic)
        self.facts = {
            "iteration": progress.iteration,
            "fraction": round(progress.fraction, 4),
            "seconds": round(progress.seconds, 2),
            "best_iteration": progress.best_iteration,
            "history": self.curve.points,
        }
        if self.stopped:
            self.left = True
            return True
        try:
            self.lost = not self.store.holds(self.claim)
            if not self.lost:
                self._report(progress)
        except StoreError as error:
            logger.warning("job %s continues without a report: %s", self.claim.id, error)
        self.expired = time.monotonic() >= self.expires
        return self.lost or self.expired

    def _report(self, progress: "TaskProgress") -> None:
        now = time.monotonic()
        if now >= self._report_at:
            self._report_at = now + REPORT_EVERY
            left = round(progress.seconds_left, 1) if math.isfinite(progress.seconds_left) else None
            self.store.report(self.claim, self.facts | {"seconds_left": left})
        if now >= self._show_at:
            self.store.show(self.claim, progress.picture().encode(".png"))
            spent = time.monotonic() - now
            self._show_at = now + max(SHOW_EVERY, spent / SHOW_SHARE)


def work(
    where: str | None = None, run: "Run | None" = None, once: bool = False, until_stdin_closes: bool = False
) -> int:
    """Runs jobs until SIGINT or SIGTERM, which returns the current job to the queue; returns the exit code 0.

    Args:
        where: A Redis URL or a SQLite file; by default `default_place`.
        run: The function that runs a job; by default `sparsegen.restoration.restore.run`, imported for the first job,
            on the device of the settings.
        once: End after one job, or at once if there is none.
        until_stdin_closes: End when standard input closes, that is, when the parent process has ended.

    Raises:
        StoreError, ValueError: If the store cannot be opened, a setting of the environment is invalid, the device
            does not exist, or the result of a job cannot be stored. The job is then run again.
    """
    settings = ServiceSettings.from_environment()
    hours = settings.job_deadline_hours
    if settings.device not in (AUTO, "cpu"):
        find_device(settings.device)  # imports torch, which a worker otherwise does for its first job
    store = open_store(where)
    name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    with stop_signals() as stopped, heartbeats(store, name), Calibration(store) as calibration:
        if until_stdin_closes:
            threading.Thread(target=_await_end_of_stdin, args=[stopped], daemon=True).start()
        sweep_at = 0.0
        while not stopped:
            claim = None
            try:
                if time.monotonic() >= sweep_at:
                    sweep_at = time.monotonic() + SWEEP_EVERY
                    store.sweep()
                claim = store.claim(name)
            except StoreError as error:
                logger.warning("cannot read jobs, retrying: %s", error)
                _pause(5, stopped)
            if claim is not None:
                calibration.stop()
                run_job(store, claim, run or _restore, stopped, hours)
            if once:
                break
            if claim is None:
                calibration.look()
                _pause(POLL_EVERY, stopped)
    store.close()
    return 0


def run_job(store: Store, claim: Claim, run: "Run", stopped: list[int], hours: float = math.inf) -> None:
    """Runs a job for at most `hours`, and writes its end to the store.

    Raises:
        StoreError: If the end cannot be written.
    """
    logger.info("job %s, attempt %d", claim.id, claim.attempt)
    report = Reporter(store, claim, stopped, hours * 3600)
    try:
        files = {
            name: decoders().read(content, name, STORED_PIXELS, min_side=1)
            for name, content in claim.files.items()
        }
        settings, _ = rename_settings(
            claim.record["task"]
        )  # a server of the previous version may have queued it
        task = Task.of(**settings)
        outcome = run(task, files["image"], files.get("mask"), files.get("kernel"), report)
        if report.lost:
            with suppress(StoreError):  # `sweep` removes it later
                store.withdraw(claim)
        elif not report.left:
            late = f"the deadline of {hours:g} hours was reached: this is the best picture so far"
            facts = report.facts | {
                "iteration": outcome.iterations,
                "fraction": 1.0,
                "seconds": round(outcome.seconds, 2),
                "stopped_because": late if report.expired else outcome.stopped_because,
            }
            result = outcome.image.encode(".png")
            # With the actual number of iterations, which differs from the expected one by a factor of 1.5 or more.
            height, width = outcome.image.pixels.shape[:2]
            effort = task.effort(height, width, outcome.iterations)
            _insist(lambda: store.finish(claim, result, facts, effort), stopped)
    except StoreError:
        raise
    except Exception as error:  # any error ends only this job, with a message for its client
        sentence = str(error)
        if not isinstance(error, READABLE):
            logger.exception("job %s failed", claim.id)
            sentence = (
                f"the restoration failed ({type(error).__name__}): the log of the worker has the details"
            )
        _insist(lambda: store.fail(claim, sentence, report.facts), stopped)
    if report.left:
        store.give_back(claim)
        logger.info("job %s is back in the queue, because this worker stops", claim.id)


@contextmanager
def heartbeats(store: Store, name: str) -> Iterator[None]:
    """Sends heartbeats from a thread meanwhile, because an iteration may take longer than the lease."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT_EVERY):
            try:
                store.heartbeat(name)
            except StoreError as error:
                logger.warning("cannot send a heartbeat: %s", error)

    store.heartbeat(name)
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        with suppress(StoreError):  # the heartbeat expires
            store.leave(name)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in the yielded list, instead of ending the process."""
    stopped: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: stopped.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _insist(write: Callable[[], bool], stopped: list[int]) -> None:
    """Writes the end of a job, with retries, because hours of work may depend on it.

    Raises:
        StoreError: After half a minute, or earlier if the worker must stop.
    """
    for pause in (1, 2, 4, 8, 16):
        try:
            write()
            return
        except StoreError as error:
            logger.warning("cannot write the end of a job, retrying: %s", error)
            _pause(pause, stopped)
    write()


def _restore(
    task: Task,
    picture: Picture,
    mask: Picture | None,
    kernel: Picture | None,
    callback: "Callback | None",
) -> "Restoration[Picture]":
    from sparsegen.restoration.restore import run  # imports torch, so only for the first job

    set_threads(task.settings.ensemble_size)
    return run(task, picture, mask, kernel, callback, ServiceSettings.from_environment().device)


def _pause(seconds: float, stopped: list[int]) -> None:
    end = time.monotonic() + seconds
    while not stopped and time.monotonic() < end:
        time.sleep(0.05)


def _await_end_of_stdin(stopped: list[int]) -> None:
    while os.read(0, 1024):  # not sys.stdin, whose lock a waiting thread would hold at exit
        pass
    stopped.append(signal.SIGTERM)
    time.sleep(PATIENCE)
    os._exit(1)  # an iteration takes too long; another worker runs the job again


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s worker %(process)d: %(message)s")
    set_up_logs()
    try:
        code = work(until_stdin_closes=True)
    except (StoreError, ValueError) as failure:
        sys.exit(f"worker: {failure}")
    decoders().close()
    logging.shutdown()
    os._exit(
        code
    )  # Python would take a second of processor time to remove torch, and the server waits for this
