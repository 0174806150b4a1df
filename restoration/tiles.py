"""Restores large pictures in overlapping tiles: one fit per tile, in parallel processes, blended without seams.

The memory and time of a fit are proportional to its number of pixels, and the capacity of a network is limited. The
parent process holds the picture and the sum of the tiles; a worker holds one tile.
"""

import logging
import math
import queue
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from math import inf
from queue import Queue
from threading import Event
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from sparsegen.common.checks import check_integer
from sparsegen.common.devices import find_device
from sparsegen.common.hardware import processors
from sparsegen.pictures.picture import MIN_SIDE, Picture
from sparsegen.restoration.operators import Damage
from sparsegen.restoration.plan import Span, Tile, plan
from sparsegen.restoration.restore import (
    Restoration,
    TaskProgress,
    history_dtype,
    make_operator,
    run_checked,
    to_pixels,
    to_tensor,
)
from sparsegen.restoration.settings import (
    MAX_THREADS,
    MAX_TILE,
    MAX_WORKERS,
    SMALLEST,
    WORKER_BYTES,
    Task,
)
from sparsegen.restoration.workers import single_worker, start_workers

logger = logging.getLogger(__name__)

WHOLE = 512 * 512  # pixels of the result up to which a picture is fitted as a whole
TILE, OVERLAP = 256, 32  # pixels of the result along a side
WAIT = 0.2  # seconds between two polls of the workers
REPORT_EVERY = 1.0  # seconds between two reports of a worker, each with its image
MIN_KNOWN = 500  # pixels around a hole; the stopping rule holds out ten of these, and fewer are not reliable
MIN_KNOWN_SHARE = 0.25  # Choice: of the pixels around a hole, or half of the share in the whole picture

MANAGER_BYTES = 50e6  # peak resident memory, measured on an AMD EPYC


@dataclass(frozen=True)
class TiledProgress:
    """The state of a tiled restoration.

    Attributes:
        iteration: Sum over the tiles.
        finished, tiles: Number of finished tiles and of tiles to fit.
        statistic: Mean over the tiles.
        seconds_left: Estimated from the measured time of an iteration and from the iterations of finished tiles;
            infinite before the first report.
    """

    iteration: int
    finished: int
    tiles: int
    statistic: float | None
    seconds: float
    seconds_left: float
    compose: Callable[[], Picture]

    @property
    def fraction(self) -> float:
        """The estimated share of finished work, 0 to 1."""
        return self.seconds / max(self.seconds + self.seconds_left, 1e-9)

    def picture(self) -> Picture:
        """The result so far; tiles that have not started show the observation."""
        return self.compose()


@dataclass(frozen=True)
class Estimate:
    """Expected cost of a restoration: number of fits, wall-clock seconds, peak memory of all processes in bytes."""

    tiles: int
    seconds: float
    memory_bytes: int


@dataclass(frozen=True, eq=False)
class _Job:
    """The task of one tile.

    Attributes:
        tile: The region in the result.
        crop: The region of the tile in the restored part.
        picture, damage: The part of the observation and of the mask, with margins.
    """

    index: int
    tile: Tile
    crop: tuple[slice, slice]
    task: Task
    picture: Picture
    damage: Damage | None
    idle: bool = False  # nothing to restore

    @property
    def by(self) -> int:
        return self.task.factor

    @property
    def pixels(self) -> int:
        """Number of pixels of the restored part."""
        height, width = self.picture.pixels.shape[:2]
        return height * width * self.by**2

    def observed(self) -> np.ndarray:
        """The tile before the restoration: the observation, enlarged bicubically for upscale."""
        pixels = self.picture.pixels
        if self.by > 1:
            image = F.interpolate(to_tensor(self.picture), scale_factor=self.by, mode="bicubic")
            pixels = to_pixels(image.clamp(0, 1))
        return pixels[self.crop]


@dataclass(frozen=True, eq=False)
class _Report:
    """The state of a tile as a worker reports it; the last report has a history.

    Attributes:
        pixels: Without margins; empty once they have been added to the sum.
        iterations_left: An estimate.
        complete: Whether the fit was not stopped from outside.
    """

    index: int
    pixels: np.ndarray
    iteration: int
    iterations_left: float
    seconds: float
    statistic: float | None
    history: np.ndarray | None = None
    best_iteration: int = 0
    complete: bool = False


def run_tiled(
    task: Task,
    picture: Picture,
    damage: Damage | None = None,
    callback: Callable[[TiledProgress | TaskProgress], bool | None] | None = None,
    workers: int = 1,
    tile: int | None = None,
    overlap: int = OVERLAP,
    threads: int = 1,
    device: str | torch.device | None = None,
) -> Restoration[Picture]:
    """Runs a task like `restore.run`, but tile by tile; a picture of one tile is restored as a whole.

    The seed of a tile is a function of the seed of the task and of the tile's index, so the result is the same for any
    number of workers.

    Choice: in inpainting, a tile without holes is unchanged, or denoised if the task has a sigma above 0. A tile with
    too few known pixels around its holes is fitted with a margin of up to half a tile on every side.

    Args:
        damage: The result of `check_damage` for this task and a picture of this size.
        callback: Called a few times per second, from the start; when it returns True, all fits end within an
            iteration. The result then consists of finished tiles, the best so far of unfinished ones, and the
            observation elsewhere.
        workers: Number of processes. They import the main module, which needs the guard __name__ == "__main__"
            (see multiprocessing); 1: a thread of this process. If tiles fail or a process is killed, half as many
            processes fit the remaining tiles, and a warning is logged.
        tile: The longest side of a tile in pixels of the result; None: `TILE`, or the whole picture if it has
            up to `WHOLE` pixels. Tiles are larger if the margins leave too little of them. The preset quick has no
            tiles.
        overlap: Minimum overlap of neighbors in pixels of the result, in addition to the reach of the operator.
        threads: Number of threads of each worker. The last digits of the result depend on it.
        device: "auto" or None: an accelerator if there is one, else the CPU. All workers use the same.

    Raises:
        TypeError, ValueError: Before any work.
        Unfinished: With the outcome if tiles fail with one worker.

    Returns: An outcome whose `iterations`, `best_iteration` and `history` are means over the fitted tiles.
    """
    _check_workers(workers, threads)
    jobs = _jobs(task, picture, damage, tile, overlap)
    if len(jobs) == 1:
        return run_checked(task, picture, damage, callback, device)
    place = str(find_device(device))  # before any work; a worker finds it again
    tally = _Tally(task, picture, jobs, workers)
    while failure := _fit_remaining(tally, callback, threads, place):
        left, before = len(tally.left()), tally.workers
        reason = _reason(failure)
        if before == 1:
            raise Unfinished(
                f"{left} of {tally.fitted} tiles failed and are unchanged: {reason}", tally.outcome()
            ) from failure
        tally.workers = before // 2
        logger.warning(
            "%s; %d of %d tiles start again, %d at once instead of %d",
            reason, left, tally.fitted, tally.workers, before,
        )  # fmt: skip
    return tally.outcome()


class Unfinished(RuntimeError):
    """Some tiles could not be restored; `outcome` shows the observation there and the other tiles restored."""

    def __init__(self, sentence: str, outcome: Restoration[Picture]) -> None:
        super().__init__(sentence)
        self.outcome = outcome


def _fit_remaining(
    tally: "_Tally", callback: Callable[[TiledProgress], bool | None] | None, threads: int, device: str
) -> BaseException | None:
    """Fits the remaining tiles until all are done or the callback returns True; returns the error of a failed tile."""
    failure: BaseException | None = None
    with start_workers(tally.workers, threads) as (executor, stop, reports):
        try:
            pending = {executor.submit(_work, job, stop, reports, device) for job in tally.left()}
        except BrokenProcessPool as error:  # before all jobs were submitted
            return error
        while pending:
            done, pending = wait(pending, WAIT, FIRST_COMPLETED)
            for report in _drain(reports):  # after the wait, so that the last report of a tile is last
                tally.add_report(report)
            for future in done:
                if problem := future.exception():
                    failure = problem
                elif final := future.result():
                    tally.add_report(final)
            if callback and not stop.is_set() and callback(tally.progress()):
                stop.set()
        return failure if tally.left() and not stop.is_set() else None


def _reason(failure: BaseException) -> str:
    if isinstance(failure, BrokenProcessPool):
        return "a worker process was killed, most likely for lack of memory"
    return " ".join(str(failure).split()) or type(failure).__name__


def is_tiled(task: Task, shape: tuple[int, ...], tile: int | None = None) -> bool:
    """Whether `run_tiled` divides a picture of shape (H, W, C) into several tiles."""
    height, width = shape[0] * task.factor, shape[1] * task.factor
    if not task.settings.tiles:
        return False
    return height * width > WHOLE if tile is None else max(height, width) > tile


def estimate(
    task: Task,
    picture: Picture,
    workers: int = 1,
    damage: Damage | None = None,
    tile: int | None = None,
    overlap: int = OVERLAP,
    threads: int = 1,
    device: str | torch.device | None = None,
) -> Estimate:
    """Estimates the cost of `run_tiled` from the measured time of an iteration; same arguments.

    The time is that of the expected iterations of the largest tile; a fit that stops early may take half or twice as
    many. Parallel workers are assumed to be as fast as a single one if there are processors for all of them.
    """
    _check_workers(workers, threads)
    tiles = _jobs(task, picture, damage, tile, overlap)
    jobs = [job for job in tiles if not job.idle]
    largest = max(jobs, key=lambda job: job.pixels)
    if len(tiles) == 1:
        threads = torch.get_num_threads()  # `run` uses those of this process
    with single_worker(threads) as executor:
        seconds = executor.submit(_expected_seconds, largest, device).result() / largest.pixels
    abreast = min(workers, len(jobs), max(1, processors() // threads))
    seconds *= sum(job.pixels for job in jobs) / abreast
    memory = peak_memory(task, picture.pixels.shape, largest.pixels, min(workers, len(jobs)), threads)
    return Estimate(len(jobs), seconds, memory)


def peak_memory(task: Task, shape: tuple[int, ...], pixels: int, workers: int, threads: int) -> int:
    """Estimates the peak memory of all processes in bytes.

    Args:
        shape: (H, W, C) of the picture.
        pixels: Pixels of the result of the largest tile with its margins.
    """
    fit = task.settings.pixel_bytes * pixels * min(task.settings.ensemble_size, threads)
    # the picture, the sum of the tiles, their composition and its clipped copy, all float32
    memory = WORKER_BYTES + 4 * math.prod(shape) * (1 + 3 * task.factor**2)
    return int(memory + (fit if workers == 1 else MANAGER_BYTES + workers * (WORKER_BYTES + fit)))


class _Tally:
    """The sum of the tiles so far, and the estimate of the remaining time.

    Sums of floats depend on the order, so tiles are added in the order of the plan.
    """

    def __init__(self, task: Task, picture: Picture, jobs: list[_Job], workers: int) -> None:
        self.picture, self.jobs = picture, jobs
        self.fitted = sum(not job.idle for job in jobs)
        self.workers = min(workers, self.fitted)
        last = jobs[-1].tile
        self.sum = np.zeros((last.rows.stop, last.columns.stop, picture.pixels.shape[2]), np.float32)
        self.added, self.started = 0, perf_counter()
        self.reports: dict[int, _Report] = {}

    def left(self) -> list[_Job]:
        """The jobs that are not complete."""
        return [job for job in self.jobs if not self._is_complete(job)]

    def add_report(self, report: _Report) -> None:
        self.reports[report.index] = report
        while self.added < len(self.jobs) and self._is_complete(self.jobs[self.added]):
            self._add(self.jobs[self.added], self.sum)
            if added := self.reports.get(self.added):
                self.reports[self.added] = replace(added, pixels=np.empty(0, np.float32))
            self.added += 1

    def pixels(self) -> np.ndarray:
        """The result so far.  Shape: float32 (H, W, C) of the result."""
        total = self.sum.copy()
        for job in self.jobs[self.added :]:
            self._add(job, total)
        return total

    def progress(self) -> TiledProgress:
        reports = list(self.reports.values())
        if not reports:
            return self._progress(0, 0, None, inf)
        ended: list[float] = [report.iteration for report in reports if report.complete]
        totals = ended or [report.iteration + report.iterations_left for report in reports]
        expected = float(np.mean(totals))
        left = expected * (self.fitted - len(reports))
        left += sum(max(expected - r.iteration, r.iterations_left) for r in reports if not r.complete)
        done = sum(report.iteration for report in reports)
        pace = sum(report.seconds for report in reports) / done
        abreast = max(1, min(self.workers, self.fitted - len(ended)))
        statistics = [report.statistic for report in reports if report.statistic is not None]
        statistic = float(np.mean(statistics)) if statistics else None
        return self._progress(done, len(ended), statistic, float(left * pace / abreast))

    def _progress(
        self, iteration: int, finished: int, statistic: float | None, seconds_left: float
    ) -> TiledProgress:
        return TiledProgress(
            iteration,
            finished,
            self.fitted,
            statistic,
            perf_counter() - self.started,
            seconds_left,
            lambda: self.picture.with_pixels(self.pixels()),
        )

    def outcome(self) -> Restoration[Picture]:
        self.reports = {  # sorted, since means depend on the order
            index: report for index, report in sorted(self.reports.items()) if report.history is not None
        }
        reports = list(self.reports.values())
        return Restoration(
            self.picture.with_pixels(self.pixels()),
            _mean_history([report.history for report in reports if report.history is not None]),
            self._stopped_because(),
            round(np.mean([report.iteration for report in reports] or [0])),
            round(np.mean([report.best_iteration for report in reports] or [0])),
            perf_counter() - self.started,
        )

    def _stopped_because(self) -> str:
        begun, complete = len(self.reports), sum(report.complete for report in self.reports.values())
        if complete == self.fitted:
            return f"all {complete} tiles are done"
        return (
            f"the callback stopped it: of {self.fitted} tiles, {complete} are done, {begun - complete} partly, and "
            f"{self.fitted - begun} not started"
        )

    def _is_complete(self, job: _Job) -> bool:
        return job.idle or (job.index in self.reports and self.reports[job.index].complete)

    def _add(self, job: _Job, total: np.ndarray) -> None:
        report = self.reports.get(job.index)
        total[job.tile.region] += job.tile.window * (report.pixels if report else job.observed())


class _Reporter:
    """Reports the state of a tile to the parent every `REPORT_EVERY` seconds; stops the fit if `stop` is set."""

    def __init__(self, job: _Job, stop: Event, reports: Queue[Any]) -> None:
        self.job, self.stop, self.reports = job, stop, reports
        self.due, self.asked = perf_counter(), False

    def __call__(self, progress: TaskProgress) -> bool:
        if perf_counter() >= self.due:
            with suppress(queue.Full):  # the parent is busy and receives a later report
                self.reports.put_nowait(astuple(self._report(progress)))
            self.due = perf_counter() + REPORT_EVERY
        self.asked = self.stop.is_set()
        return self.asked

    def _report(self, progress: TaskProgress) -> _Report:
        return _Report(
            self.job.index,
            progress.picture().pixels[self.job.crop],
            progress.iteration,
            progress.seconds_left / progress.seconds * progress.iteration,
            progress.seconds,
            progress.statistic,
        )


def _work(job: _Job, stop: Event, reports: Queue[Any], device: str) -> _Report | None:
    """Fits a tile in a worker; returns None if `stop` was set before it started."""
    if stop.is_set():
        return None
    reporter = _Reporter(job, stop, reports)
    outcome = run_checked(job.task, job.picture, job.damage, reporter, device)
    statistic = float(outcome.history["statistic"][-1])
    return _Report(
        job.index,
        outcome.image.pixels[job.crop],
        outcome.iterations,
        0,
        outcome.seconds,
        None if np.isnan(statistic) else statistic,
        outcome.history,
        outcome.best_iteration,
        complete=not reporter.asked,
    )


def _drain(reports: Queue[Any]) -> list[_Report]:
    """Returns the received reports, oldest first."""
    drained = []
    with suppress(queue.Empty):
        while True:
            drained.append(_Report(*reports.get_nowait()))
    return drained


def _jobs(task: Task, picture: Picture, damage: Damage | None, tile: int | None, overlap: int) -> list[_Job]:
    """Checks a task and divides it into the tasks of its tiles."""
    height, width = picture.pixels.shape[:2]
    operator = make_operator(task, damage)
    sides = max(height, width), 0
    if task.settings.tiles:
        sides = _sides(height, width, task.factor, operator.reach, tile, overlap)
    tiles = plan(height, width, *sides)
    if operator.known is None or len(tiles) == 1:
        return [
            _job(index, place, operator.reach, task, picture, damage) for index, place in enumerate(tiles)
        ]
    known = operator.known.numpy() > 0
    wanted = min(MIN_KNOWN_SHARE, float(known.mean()) / 2)  # a mask may be sparse everywhere
    jobs = []
    for index, place in enumerate(tiles):
        if known[place.region].all():
            own = replace(task, kind="denoise")
            jobs.append(_job(index, place, operator.reach, own, picture, None, idle=not task.sigma))
        else:
            margin = _surroundings(known, place, wanted)
            piece = known[place.grown(margin, height, width)]
            jobs.append(_job(index, place, margin, task, picture, piece))
    return jobs


def _job(
    index: int,
    tile: Tile,
    margin: int,
    task: Task,
    picture: Picture,
    damage: Damage | None,
    idle: bool = False,
) -> _Job:
    """The task of a tile with a margin around it and its own seed. Pixels are views until they are sent.

    Args:
        damage: That of this tile.
    """
    by, (height, width) = task.factor, picture.pixels.shape[:2]
    region = tile.grown(margin, height, width)
    crop = _inside(tile.rows, region[0], by), _inside(tile.columns, region[1], by)
    seed = int(np.random.SeedSequence((task.seed, index)).generate_state(1)[0])
    task = replace(task, seed=seed)
    return _Job(index, tile.times(by), crop, task, Picture(picture.pixels[region]), damage, idle)


def _inside(span: Span, region: slice, by: int) -> slice:
    """The range of a span within a region that contains it, enlarged by a factor."""
    return slice((span.start - region.start) * by, (span.stop - region.start) * by)


def _sides(height: int, width: int, by: int, reach: int, tile: int | None, overlap: int) -> tuple[int, int]:
    """The side of a tile and the overlap, in pixels of the observation and without margins."""
    meaning = "the longest side of a tile, in pixels of the result"
    side = TILE if tile is None else check_integer("tile", tile, SMALLEST, MAX_TILE, meaning)
    check_integer("overlap", overlap, 0, side // 3, f"the shared pixels of tiles of {side} pixels")
    if tile is None and height * width * by**2 <= WHOLE:
        return max(height, width), 0
    side, overlap = side // by, overlap // by
    if max(height, width) <= side:
        return side, overlap
    return max(side - 2 * reach, 3 * overlap, reach + 1, MIN_SIDE), overlap


def _surroundings(known: np.ndarray, tile: Tile, wanted: float) -> int:
    """The smallest margin around a tile with which enough pixels are known.

    Args:
        wanted: Minimum share of known pixels.

    Raises:
        ValueError: If a margin of half a tile is not enough.
    """
    side = max(tile.rows.stop - tile.rows.start, tile.columns.stop - tile.columns.start)
    for margin in range(0, side // 2 + 1, side // 8):
        around = known[tile.grown(margin, *known.shape)]
        if around.sum() >= max(MIN_KNOWN, wanted * around.size):
            return margin
    raise ValueError(
        f"a hole is too large for its tile: around row {tile.rows.start}, column {tile.columns.start} only "
        f"{around.sum()} of {around.size} pixels are known, and at least "
        f"{max(MIN_KNOWN, round(wanted * around.size))} are needed: use larger tiles, e.g. of {2 * side}, or "
        f"scale the picture down"
    )


def _mean_history(histories: list[np.ndarray]) -> np.ndarray:
    """The mean over tiles, row by row; a finished tile repeats its last row. Empty without histories."""
    if not histories:
        return np.zeros(0, history_dtype(0))
    mean = max(histories, key=len).copy()
    rows = np.arange(len(mean))
    for name in ("loss", "statistic", "density"):
        mean[name] = np.mean([h[name][np.minimum(rows, len(h) - 1)] for h in histories], axis=0)
    return mean


def _expected_seconds(job: _Job, device: str | torch.device | None) -> float:
    """Duration of a fit: expected iterations times the median time of three iterations, after three for warm-up."""
    times: list[float] = []
    expected = 0.0

    def measure(progress: TaskProgress) -> bool:
        nonlocal expected
        times.append(perf_counter())
        expected = progress.iteration * (1 + progress.seconds_left / progress.seconds)
        return len(times) == 6

    task = replace(job.task, iterations=max(6, job.task.settings.iterations))
    run_checked(task, job.picture, job.damage, measure, device)
    return expected * float(np.median(np.diff(times)[-3:]))


def _check_workers(workers: int, threads: int) -> None:
    check_integer("workers", workers, 1, MAX_WORKERS, "the number of processes")
    check_integer("threads", threads, 1, MAX_THREADS, "the number of threads of each worker")
