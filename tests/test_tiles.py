"""Tiles cover a picture and blend without seams; the result depends neither on the workers nor on the order."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from sparsegen.pictures.picture import Picture
from sparsegen.restoration import tiles
from sparsegen.restoration.kinds import check_damage
from sparsegen.restoration.plan import plan
from sparsegen.restoration.restore import Restoration, run, run_checked
from sparsegen.restoration.settings import Task
from sparsegen.restoration.tiles import OVERLAP, TILE, WHOLE, Unfinished, estimate, run_tiled

HISTORY = np.zeros(1, [("iteration", "i4"), ("loss", "f4"), ("statistic", "f4"), ("density", "f4", (1,))])


def smooth(height: int, width: int, noise: float = 0.0) -> Picture:
    rows, columns = np.mgrid[:height, :width] / 40
    pixels = 0.5 + 0.2 * np.sin(rows[..., None] + columns[..., None] + np.arange(3))
    pixels += np.random.default_rng(0).normal(0, 1, pixels.shape) * noise
    return Picture(np.clip(pixels, 0, 1).astype(np.float32))


def enlarged(picture: Picture, by: int) -> Picture:
    image = torch.from_numpy(picture.pixels.transpose(2, 0, 1).copy())[None]
    image = F.interpolate(image, scale_factor=by, mode="bicubic").clamp(0, 1)
    return Picture(image[0].permute(1, 2, 0).numpy())


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Task, Picture]]:
    """Replaces the fit by one that returns its input, enlarged for upscale; yields the arguments of its calls."""
    fitted = []

    def answer(task: Task, picture: Picture, *_: object) -> Restoration[Picture]:
        fitted.append((task, picture))
        return Restoration(enlarged(picture, task.by) if task.by else picture, HISTORY, "", 10, 10, 1.0)

    monkeypatch.setattr(tiles, "run_checked", answer)
    return fitted


def known(mask: Picture) -> np.ndarray:
    return check_damage(Task.of(kind="inpaint"), mask)


def holes(height: int, width: int, where: tuple[slice, slice]) -> Picture:
    pixels = np.zeros((height, width, 1), np.float32)
    pixels[where] = 1
    return Picture(pixels)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 300), st.integers(1, 300), st.integers(16, 128))
def test_windows_sum_to_1_in_every_pixel(data: st.DataObject, height: int, width: int, tile: int) -> None:
    overlap = data.draw(st.integers(0, tile // 3))
    total, shape = np.zeros((height, width, 1)), set()
    for each in plan(height, width, tile, overlap):
        assert each.window.min() >= 0 and each.window.shape == total[each.region].shape
        total[each.region] += each.window
        shape.add(each.window.shape)
    assert np.abs(total - 1).max() < 1e-6
    ((rows, columns, _),) = shape  # all of one size
    assert min(height, tile // 2) <= rows <= tile and min(width, tile // 2) <= columns <= tile


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(129, 5000), st.integers(16, 128))
def test_neighbors_share_at_least_the_overlap(data: st.DataObject, length: int, tile: int) -> None:
    overlap = data.draw(st.integers(0, tile // 3))
    spans = [each.columns for each in plan(1, length, tile, overlap)]
    assert (spans[0].start, spans[-1].stop) == (0, length)
    for a, b in zip(spans, spans[1:], strict=False):
        assert a.stop - b.start == a.fall == b.rise >= overlap


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"), [(16, 16, 1, 1), (17, 4000, 1, 18), (4000, 3000, 18, 14)]
)
def test_pictures_of_all_sizes_are_covered_by_the_fewest_tiles(
    height: int, width: int, rows: int, columns: int
) -> None:
    cut = plan(height, width, TILE, OVERLAP)
    assert len(cut) == rows * columns
    assert (cut[-1].rows.stop, cut[-1].columns.stop) == (height, width)
    # each tile adds at most TILE - OVERLAP pixels, so one tile fewer would not reach the end
    assert (rows - 1) * (TILE - OVERLAP) + OVERLAP < max(height, OVERLAP + 1)
    assert (columns - 1) * (TILE - OVERLAP) + OVERLAP < max(width, OVERLAP + 1)


@pytest.mark.parametrize(("tile", "overlap"), [(64, 22), (64, -1), (0, 0)])
def test_an_overlap_of_more_than_a_third_is_refused(tile: int, overlap: int) -> None:
    with pytest.raises(ValueError, match=f"got {overlap} for tiles of {tile}: use"):
        plan(100, 100, tile, overlap)


@pytest.mark.parametrize(
    "given_", [{"kind": "denoise"}, {"kind": "upscale", "by": 4}, {"kind": "upscale", "by": 2},
               {"kind": "deblur", "kernel": "gaussian:1.6"}]
)  # fmt: skip
def test_tiles_are_placed_where_they_were_cut_out(fits: list, given_: dict) -> None:
    task, picture = Task.of(**given_), smooth(101, 75, noise=0.1)
    outcome = run_tiled(task, picture, check_damage(task), tile=64, overlap=16)
    expected = enlarged(picture, task.by or 1) if task.by else picture
    assert len(fits) > 1
    np.testing.assert_allclose(outcome.image.pixels, expected.pixels, atol=1e-5)
    assert outcome.stopped_because == f"all {len(fits)} tiles are done"


def test_a_blur_is_inverted_with_its_reach_around_every_tile(fits: list) -> None:
    task = Task.of(kind="deblur", kernel="gaussian:3")
    run_tiled(task, smooth(150, 40), check_damage(task), tile=96, overlap=16)
    cut = plan(150, 40, 96 - 2 * 9, 16)
    heights = [
        tile.rows.stop - tile.rows.start + (9 if i in (0, len(cut) - 1) else 18) for i, tile in enumerate(cut)
    ]
    assert [picture.pixels.shape[0] for _, picture in fits] == heights
    assert max(heights) <= 96


def test_a_tile_brighter_than_its_neighbor_shows_no_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    count = iter(range(100))

    def tinted(task: Task, picture: Picture, *_: object) -> Restoration[Picture]:
        return Restoration(Picture(picture.pixels + 0.2 * (next(count) % 2)), HISTORY, "", 10, 10, 1.0)

    monkeypatch.setattr(tiles, "run_checked", tinted)
    flat = Picture(np.full((64, 176, 1), 0.4, np.float32))
    restored = run_tiled(Task.of(sigma=10), flat, tile=64, overlap=16).image.pixels
    assert restored.max() - restored.min() > 0.19
    steepest = 0.2 * np.pi / 2 / 16  # of a squared sine over 16 pixels
    assert np.abs(np.diff(restored, axis=1)).max() < 1.05 * steepest


def test_every_tile_estimates_its_noise_and_has_its_own_seed(fits: list) -> None:
    picture = smooth(100, 100, noise=0.1)
    run_tiled(Task.of(seed=3), picture, tile=64, overlap=16)
    assert {task.sigma for task, _ in fits} == {None}
    assert len({task.seed for task, _ in fits}) == len(fits) == 4
    others = [task.seed for task, _ in fits]
    fits.clear()
    run_tiled(Task.of(seed=4), picture, tile=64, overlap=16)
    assert not {task.seed for task, _ in fits} & set(others)


def test_a_tile_without_holes_is_unchanged_or_denoised_if_there_is_noise(fits: list) -> None:
    picture, mask = smooth(64, 176, noise=0.1), holes(64, 176, np.s_[20:30, 10:20])
    run_tiled(Task.of(kind="inpaint"), picture, known(mask), tile=64, overlap=16)
    assert [task.kind for task, _ in fits] == ["inpaint"]
    fits.clear()
    run_tiled(Task.of(kind="inpaint", sigma=20), picture, known(mask), tile=64, overlap=16)
    assert [task.kind for task, _ in fits] == ["inpaint", "denoise", "denoise", "denoise"]


def test_a_tile_with_few_known_pixels_gets_a_larger_margin(fits: list) -> None:
    picture, mask = smooth(200, 200), holes(200, 200, np.s_[55:148, 55:148])
    outcome = run_tiled(Task.of(kind="inpaint"), picture, known(mask), tile=64, overlap=0)
    # tiles of 50 grow in steps of 6, until a quarter of the pixels is known
    assert [fitted.pixels.shape[0] for _, fitted in fits] == [62, 62, 62, 74]
    assert np.abs(outcome.image.pixels - picture.pixels).max() < 1e-6


def test_transparent_pixels_of_a_mask_are_known_also_in_tiles(fits: list[tuple[Task, Picture]]) -> None:
    """The mask is a stroke on a separate layer, white everywhere, as saved by image editors."""
    picture, stroke = smooth(64, 176, noise=0.1), holes(64, 176, np.s_[20:30, 10:20])
    mask = Picture(np.ones((64, 176, 1), np.float32), alpha=0.5 * stroke.pixels[..., 0])
    run_tiled(Task.of(kind="inpaint"), picture, known(mask), tile=64, overlap=16)
    ((task, _),) = fits  # the other tiles have no hole
    assert task.kind == "inpaint"


def test_a_kernel_that_is_larger_than_the_picture_is_refused_before_any_work(
    fits: list[tuple[Task, Picture]],
) -> None:
    kernel = Picture(np.ones((31, 31, 1), np.float32))
    with pytest.raises(ValueError, match="smaller than the blur kernel of 31 x 31"):
        task = Task.of(kind="deblur", kernel="file")
        run_tiled(task, smooth(20, 176), check_damage(task, None, kernel, (20, 176)), tile=64, overlap=16)
    assert not fits


@pytest.mark.parametrize(
    ("where", "message"),
    [(np.s_[10:150, 10:150], r"only \d+ of \d+ pixels are known.*use larger tiles, e.g. of \d+,"),
     (np.s_[:0], "every pixel is known")],
)  # fmt: skip
def test_a_mask_with_too_few_known_pixels_in_a_tile_is_refused_before_any_work(
    fits: list, where: tuple[slice, slice], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        mask = known(holes(200, 200, where))
        run_tiled(Task.of(kind="inpaint"), smooth(200, 200), mask, tile=64, overlap=16)
    assert not fits


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tile": 63}, "tile.*from 64"),
        ({"tile": 64, "overlap": 22}, "overlap.*to 21"),
        ({"workers": 0}, "workers.*from 1"),
        ({"threads": 0}, "threads.*from 1"),
    ],
)
def test_settings_out_of_range_are_refused(fits: list, wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_tiled(Task.of(), smooth(100, 100), **wrong)
    assert not fits


def test_a_picture_of_one_tile_is_fitted_as_a_whole() -> None:
    task, picture = Task.of(iterations=12), smooth(40, 70, noise=0.1)
    outcome = run_tiled(task, picture)
    assert picture.pixels[..., 0].size <= WHOLE
    np.testing.assert_array_equal(outcome.image.pixels, run(task, picture).image.pixels)


def test_the_sum_does_not_depend_on_which_tile_ends_first() -> None:
    task, picture = Task.of(sigma=25), smooth(130, 130, noise=0.1)
    jobs = tiles._jobs(task, picture, None, 64, 16)
    reports = [
        tiles._Report(job.index, job.observed() + 0.1 * job.index, 10, 0, 1.0, 0.1, HISTORY, 10, True)
        for job in jobs
    ]
    sums = []
    for order in (reports, reports[::-1]):
        tally = tiles._Tally(task, picture, jobs, 2)
        for report in order:
            tally.add_report(report)
        assert tally.added == len(jobs)
        sums.append(tally.pixels())
    np.testing.assert_array_equal(*sums)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_time_left_is_estimated_from_finished_tiles(workers: int) -> None:
    task, picture = Task.of(sigma=25), smooth(64, 176)
    jobs = tiles._jobs(task, picture, None, 64, 16)
    tally = tiles._Tally(task, picture, jobs, workers)
    under_way = tiles._Report(1, jobs[1].observed(), 50, 60, 5.0, 0.3)
    tally.add_report(under_way)
    assert tally.progress().seconds_left == pytest.approx(0.1 * (60 + 3 * 110) / workers)
    tally.add_report(tiles._Report(0, jobs[0].observed(), 200, 0, 20.0, 0.1, HISTORY, 180, True))
    progress = tally.progress()
    assert progress.seconds_left == pytest.approx(0.1 * (150 + 2 * 200) / workers)
    assert (progress.iteration, progress.finished, progress.tiles) == (250, 1, 4)
    assert progress.statistic == pytest.approx(0.2)


def test_the_estimate_counts_tiles_workers_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "_expected_seconds", lambda job, device: 60.0)
    monkeypatch.setattr(tiles, "processors", lambda: 4)
    task, picture = Task.of(sigma=25), Picture(np.zeros((4000, 3000, 3), np.float32))
    one, four, eight = (estimate(task, picture, workers) for workers in (1, 4, 8))
    assert one.tiles == four.tiles == 18 * 14
    assert one.seconds == pytest.approx(60 * one.tiles)
    assert one.seconds == pytest.approx(4 * four.seconds)
    assert four.seconds == eight.seconds  # there are four processors
    assert 1e9 < one.memory_bytes < four.memory_bytes < eight.memory_bytes < 1e10
    pairs, fours = (estimate(replace(task, ensemble_size=n), picture, threads=4).memory_bytes for n in (2, 4))
    # the activations of parallel members add up
    assert fours - one.memory_bytes == 3 * (pairs - one.memory_bytes) > 0
    assert estimate(replace(task, ensemble_size=4), picture).memory_bytes == one.memory_bytes


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (
            Task.of(sigma=25),
            lambda found: 200 < found < 600,
        ),  # a tile of 64 x 64 takes less than one of 128 x 128
        (Task.of(sigma=25, iterations=60), lambda found: found == 60),
        (Task.of(preset="paper"), lambda found: found == Task.of(preset="paper").settings.iterations),
    ],
    ids=["stops", "few", "paper"],
)
def test_an_estimate_is_measured(task, expected, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def paced(*args: object) -> None:
        """Runs a real fit in which each iteration takes 7 s by the clock."""
        *given_, callback, device = args

        def answer(progress: object) -> bool:
            monkeypatch.setattr(tiles, "perf_counter", lambda: 7.0 * progress.iteration)
            asked.append(callback(progress))
            return asked[-1]

        run_checked(*given_, answer, device)

    monkeypatch.setattr(tiles, "run_checked", paced)
    found = estimate(task, smooth(64, 112, noise=0.1), tile=64, overlap=16)
    assert asked == [False] * 5 + [True]
    assert found.tiles == 2 and expected(round(found.seconds / 7 / 2))


def test_workers_give_the_same_bytes_as_one_thread_and_no_seams() -> None:
    task, picture, seen = Task.of(iterations=60), smooth(112, 112, noise=0.1), []
    alone = run_tiled(task, picture, tile=64, overlap=16, callback=seen.append)
    together = run_tiled(task, picture, tile=64, overlap=16, workers=2)
    np.testing.assert_array_equal(alone.image.pixels, together.image.pixels)
    np.testing.assert_array_equal(alone.history, together.history)
    assert alone.iterations == 60 and alone.stopped_because == "all 4 tiles are done"
    assert [p.iteration for p in seen] == sorted(p.iteration for p in seen)
    assert seen[-1].fraction == 1 and seen[0].fraction < 1
    np.testing.assert_array_equal(seen[-1].picture().pixels, alone.image.pixels)
    for axis in (0, 1):
        jumps = np.abs(np.diff(alone.image.pixels, axis=axis)).mean((1 - axis, 2))
        borders = [47, 63]  # from the last pixel of one tile, or before the first, to the next
        assert jumps[borders].mean() < 1.5 * np.delete(jumps, borders).mean()


def test_the_result_of_a_stopped_run_consists_of_the_tiles_so_far() -> None:
    picture = smooth(64, 64 + 5 * 48, noise=0.1)
    outcome = run_tiled(
        Task.of(sigma=25), picture, tile=64, overlap=16, workers=2, callback=lambda now: now.iteration > 0
    )
    assert outcome.stopped_because.startswith("the callback stopped it: of 6 tiles, 0 are done, ")
    assert outcome.iterations < 600  # of thousands
    np.testing.assert_allclose(outcome.image.pixels[:, 160:], picture.pixels[:, 160:], atol=1e-6)
    assert np.abs(outcome.image.pixels[:, :40] - picture.pixels[:, :40]).mean() > 0.01


def test_after_a_worker_is_killed_half_as_many_fit_the_remaining_tiles(
    caplog: pytest.LogCaptureFixture,
) -> None:
    picture, killed, finished = smooth(64, 64 + 5 * 48, 0.1), [], []
    task = Task.of(sigma=25, iterations=12)
    about = {"tile": 64, "overlap": 16, "threads": 1}

    def kill(progress: object) -> None:
        finished.append(progress.finished)
        if progress.finished and not killed:
            workers = [child for child in multiprocessing.active_children() if "Manager" not in child.name]
            os.kill(workers[0].pid, signal.SIGKILL)
            killed.append(workers[0])

    outcome = run_tiled(task, picture, workers=2, callback=kill, **about)
    assert killed and not multiprocessing.active_children()
    assert re.search(
        r"worker process was killed.*; [2-5] of 6 tiles start again, 1 at once instead of 2", caplog.text
    )
    assert outcome.stopped_because == f"all {finished[-1]} tiles are done"
    assert min(finished[finished.index(1) :]) >= 1, "tiles that were finished before the kill are kept"
    unharmed = run_tiled(task, picture, workers=1, **about)
    assert (outcome.image.pixels == unharmed.image.pixels).all()


def failing(fits: list, fail: set[int], monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Makes the fits of the numbers `fail` fail, each `times` times."""
    answer, failed = tiles.run_checked, {number: 0 for number in fail}
    order: list[int] = []

    def run(task: Task, *rest: object) -> Restoration[Picture]:
        if task.seed not in order:
            order.append(task.seed)
        number = order.index(task.seed)
        if failed.get(number, times) < times:
            failed[number] += 1
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return answer(task, *rest)

    monkeypatch.setattr(tiles, "run_checked", run)


def test_if_tiles_fail_the_others_are_restored(fits: list, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(fits, {1}, monkeypatch, times=9)
    picture = smooth(64, 160)
    with pytest.raises(Unfinished, match="1 of 3 tiles failed and are unchanged: .*allocate") as caught:
        run_tiled(Task.of(sigma=25), picture, tile=64, overlap=16)
    assert len(fits) == 2
    assert np.abs(caught.value.outcome.image.pixels - picture.pixels).max() < 1e-6
    assert caught.value.outcome.iterations == 10


def test_a_callback_can_stop_before_any_tile_has_started() -> None:
    seen = []

    def ask(progress: tiles.TiledProgress) -> bool:
        seen.append((progress.iteration, progress.finished, progress.fraction, progress.seconds_left))
        return True

    picture = smooth(64, 160)
    outcome = run_tiled(Task.of(sigma=25), picture, tile=64, overlap=16, workers=2, callback=ask)
    assert seen == [(0, 0, 0.0, float("inf"))]
    assert outcome.iterations == 0 and outcome.stopped_because.startswith("the callback stopped it")
    assert np.allclose(outcome.image.pixels, picture.pixels, atol=1e-6)


def test_no_process_is_left_when_the_parent_is_killed() -> None:
    script = """
import numpy as np
from sparsegen.pictures.picture import Picture
from sparsegen.restoration.settings import Task
from sparsegen.restoration.tiles import run_tiled

if __name__ == "__main__":
    picture = Picture(np.full((64, 160, 3), 0.5, np.float32))
    show = lambda _: print("at work", flush=True)
    run_tiled(Task.of(sigma=25), picture, tile=64, overlap=16, workers=2, callback=show)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "at work\n"
    children = psutil.Process(parent.pid).children(recursive=True)
    assert len(children) >= 3  # two workers, the manager, and helpers of multiprocessing
    parent.kill()
    parent.communicate()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
