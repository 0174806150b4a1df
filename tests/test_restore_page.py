"""The Restore tab: its handlers with a store and an imitated worker, and its requests to the server."""

import asyncio
import base64
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import fader
import numpy as np
import pytest
from conftest import ROOT
from gradio import Error
from gradio.data_classes import FileData
from PIL import Image
from server import running_server, small_models  # noqa: F401 (fixtures)

from pictures import encoded
from sparsegen.service.http import restoration
from sparsegen.service.jobs import orders, worker
from sparsegen.service.jobs.errors import StoreError
from sparsegen.service.jobs.store import MAX_WAITING, Store, open_store
from sparsegen.service.page import markup, restoration_layout
from sparsegen.service.page import restoration as restore_page
from sparsegen.service.settings import ServiceSettings

EXAMPLE = restoration_layout.EXAMPLES / "noisy.jpg"
ADVANCED = {
    "preset": "fast",
    "regularizer": "l0_inf",
    "ensemble_size": 0,
    "sigma": 0,
    "seed": 0.0,
    "loss": "mse",
}


def png(value: int = 90, side: int = 24) -> bytes:
    return encoded(Image.new("RGB", (side, side), (value, 20, 200)))


def mask(side: int = 24) -> bytes:
    image = Image.new("L", (side, side))
    image.paste(255, (3, 3, 9, 9))
    return encoded(image)


def visitor(host: str = "192.0.2.1") -> SimpleNamespace:
    """A request from this address."""
    return SimpleNamespace(client=SimpleNamespace(host=host))


class Tab:
    """The handlers, called like by the page, and their answers."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.folder = store, folder
        self.handlers = restore_page.Handlers(lambda: store, lambda: orders.Turns(ServiceSettings()))

    def drop(self, name: str, content: bytes) -> Path:
        (self.folder / name).write_bytes(content)
        return self.folder / name

    def start(
        self, image=None, mask=None, kind="denoise", by=2, blur=1.6, host="192.0.2.1", **advanced
    ) -> str:
        image = self.drop("image", png() if image is None else image)
        mask = None if mask is None else self.drop("mask", mask)
        settings = (ADVANCED | advanced).values()
        job, _ = asyncio.run(self.handlers.start(image, mask, kind, by, blur, *settings, visitor(host)))
        return job

    def look(self, job: str, seen: str = "") -> SimpleNamespace:
        panel, stage, seen, timer, start, cancel = self.handlers.look(job, seen)
        return SimpleNamespace(
            panel=panel,
            after=stage.get("after"),
            done=stage.get("done"),
            seen=seen,
            asks_again=timer.active,
            start=start["visible"],
            cancel=cancel["visible"],
        )

    def work(self, see: Callable[[int], None] = lambda iteration: None) -> None:
        """Runs the first waiting job in this process, and calls `see` after each iteration."""

        def run(task, picture, mask, kernel, callback):
            def told(progress):
                stop = callback(progress)
                see(progress.iteration)
                return stop

            return fader.run(task, picture, mask, kernel, told)

        worker.run_job(self.store, self.store.claim("w"), run, [])


@pytest.fixture(name="tab")
def tab_with_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tab]:
    monkeypatch.setattr(fader.restorer, "ITERATION", 0.002)
    monkeypatch.setattr(worker, "REPORT_EVERY", 0.02)
    monkeypatch.setattr(worker, "SHOW_EVERY", 0.02)
    store = open_store(str(tmp_path / "jobs.sqlite"))
    store.heartbeat("w")
    yield Tab(store, tmp_path)
    store.close()


def test_the_page_shows_a_job_that_waits_runs_and_is_done(tab):
    first, second = tab.start(), tab.start()
    waiting = tab.look(second)
    assert "position 2 in the queue" in waiting.panel and waiting.after is None
    assert waiting.asks_again and waiting.cancel and not waiting.start

    seen = []
    tab.work(lambda iteration: seen.append(tab.look(first)) if iteration in (80, 199) else None)
    early, late = seen
    for running in seen:
        assert "Restoring" in running.panel and "left" in running.panel and "<polyline" in running.panel
        assert running.asks_again and running.cancel and not running.start
    assert early.after.startswith("data:image/png;base64,") and early.after != late.after and not late.done

    done = tab.look(first)
    assert done.done and "the iterations are over" in done.panel
    assert base64.b64decode(done.after.partition("base64,")[2]) == tab.store.result(first)
    assert tab.look(first, done.seen).after is None  # the picture is sent once
    assert "best, 140" in done.panel and ">200<" in done.panel
    assert not done.asks_again and done.start and not done.cancel and done.after != late.after


def test_cancel_frees_the_worker_and_keeps_the_last_picture(tab):
    job = tab.start(seed=5)
    ended = []

    def see(iteration: int) -> None:
        ended.append(iteration)
        if iteration == 20:
            tab.handlers.cancel(job)

    tab.work(see)
    assert ended[-1] in (20, 21)
    canceled = tab.look(job)
    assert (
        "Canceled" in canceled.panel and canceled.after is None and not canceled.asks_again and canceled.start
    )
    assert not canceled.done


@pytest.mark.parametrize(
    ("given", "task"),
    [
        ({}, {"kind": "denoise", "sigma": None, "seed": 0}),
        ({"sigma": 12.5, "seed": 3.0, "loss": "l1"}, {"sigma": 12.5, "seed": 3, "loss": "l1"}),
        ({"kind": "inpaint", "mask": mask()}, {"kind": "inpaint", "by": None, "kernel": None}),
        ({"kind": "upscale", "by": 4}, {"kind": "upscale", "by": 4}),
        ({"kind": "deblur", "blur": 2.1}, {"kernel": "gaussian:2.1", "by": None}),
        (
            {"preset": "paper", "regularizer": "l1"},
            {"preset": "paper", "regularizer": "l1", "ensemble_size": None},
        ),
        ({"ensemble_size": 4}, {"ensemble_size": 4}),
        ({"mask": b"left over from before"}, {"kind": "denoise"}),
    ],
    ids=str,
)
def test_the_chosen_settings_become_the_task(tab, given, task):
    tab.start(**given)
    record = tab.store.claim("w").record
    assert record["task"].items() >= task.items()
    assert ("mask" in record["files"]) == (task.get("kind") == "inpaint")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"image": b"no picture"}, "the image"),
        ({"image": png(side=8)}, "at least 16"),
        ({"kind": "inpaint"}, "the mask is missing"),
        ({"kind": "inpaint", "mask": mask(20)}, "20 x 20"),
        ({"kind": "upscale", "image": png(side=900)}, "1,000,000"),
        ({"kind": "deblur", "blur": 11}, "gaussian"),
        ({"regularizer": "l2"}, "l0_inf"),
        ({"seed": -1}, "seed"),
        ({"seed": None}, "seed must be an integer"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_invalid_settings_are_reported_in_a_sentence(tab, given, words):
    with pytest.raises(Error, match=re.escape(words)) as told:
        tab.start(**given)
    assert "\n" not in str(told.value.message)
    assert tab.store.counts() == (0, 0)


def test_a_missing_picture_worker_or_room_is_reported_with_a_remedy(tab):
    with pytest.raises(Error, match="drop one, or pick an example"):
        asyncio.run(tab.handlers.start(None, None, "denoise", 2, 1.6, *ADVANCED.values(), visitor()))
    tab.store.leave("w")
    with pytest.raises(Error, match="start one with `sparsegen worker`"):
        tab.start()
    tab.store.heartbeat("w")
    for number in range(MAX_WAITING):
        tab.start(host=f"192.0.2.{number}")
    with pytest.raises(Error, match="retry later"):
        tab.start(host="198.51.100.1")


def test_unfinished_jobs_are_limited_per_visitor(tab):
    for _ in range(ServiceSettings().jobs_per_client):
        job = tab.start()
    with pytest.raises(Error, match="4 jobs of yours are unfinished, .* cancel one"):
        tab.start()
    tab.start(host="192.0.2.2")
    tab.handlers.cancel(job)
    tab.start()


def test_slow_pictures_of_one_visitor_do_not_block_others(tab):
    async def test() -> None:
        turns, settings = orders.Turns(ServiceSettings()), ADVANCED.values()
        handlers = restore_page.Handlers(lambda: tab.store, lambda: turns)
        asked = tab.drop("image", png()), None, "denoise", 2, 1.6, *settings
        async with turns.of("192.0.2.1"):  # as if it were being read
            more = [asyncio.create_task(handlers.start(*asked, visitor())) for _ in range(4)]
            async with asyncio.timeout(15):
                job, _ = await asyncio.create_task(handlers.start(*asked, visitor("192.0.2.2")))
                with pytest.raises(Error, match="4 pictures of yours are waiting"):
                    await more[3]
            assert tab.store.status(job)["status"] == "waiting" and tab.store.counts() == (1, 0)
        assert len({job for job, _ in await asyncio.gather(*more[:3])}) == 3

    asyncio.run(test())


def test_a_restoration_beyond_the_budget_is_refused_on_the_page(tab, monkeypatch):
    monkeypatch.setenv("SPARSEGEN_JOB_HOURS", "0.01")
    with pytest.raises(Error, match="about 0.0992 hours, and the limit is 0.01: use fewer iterations"):
        tab.start(preset="paper", image=png(side=33))


@pytest.mark.parametrize("job", ["0" * 32, "../../etc/passwd", "<b>"])
def test_the_address_of_an_unknown_job_is_explained(tab, job):
    unknown = tab.look(job)
    assert "There is no job" in unknown.panel and "<b>" not in unknown.panel
    assert not unknown.asks_again and unknown.start


def test_an_unreachable_store_is_reported_in_the_panel_and_polled_again():
    def jobs() -> Store:
        raise StoreError("jobs cannot be stored in /there: set SPARSEGEN_JOBS to another file")

    handlers = restore_page.Handlers(jobs, lambda: orders.Turns(ServiceSettings()))
    panel, _, _, timer, *_ = handlers.look("0" * 32)
    assert StoreError.public in panel and "/there" not in panel and timer.active
    with pytest.raises(Error, match=StoreError.public):
        asyncio.run(handlers.start(EXAMPLE, None, "denoise", 2, 1.6, *ADVANCED.values(), visitor()))


@pytest.mark.parametrize(
    ("anchor", "tab_opened", "job"),
    [("", None, ""), ("#sample", None, ""), ("#restore", "restore", ""), ("#restore=abc", "restore", "abc")],
)
def test_the_address_of_the_page_opens_a_tab_or_a_job(tab, anchor, tab_opened, job):
    tabs, found = tab.handlers.find(anchor)
    assert getattr(tabs, "selected", None) == tab_opened and found == job


def test_a_picture_dropped_while_a_job_runs_does_not_replace_it(tab):
    job = tab.start()
    image = tab.drop("image", png(200))
    kept, _, stage, _ = tab.handlers.take(image, job, visitor())
    assert kept != "" and "before" not in stage
    tab.handlers.cancel(job)
    cleared, panel, stage, _ = tab.handlers.take(image, job, visitor())
    assert (cleared, panel, stage["before"]["width"], stage["after"]) == ("", "", 24, None)


def test_the_expected_time_follows_the_picture_the_settings_and_the_queue(tab):
    *_, size = tab.handlers.take(tab.drop("image", png(200)), "", visitor())
    assert size.split()[:2] == ["24", "24"]

    def expect(size="128 128 25.0 35.0", kind="denoise", by=2, sigma=0, **changed):
        return tab.handlers.expect(size, kind, by, 1.6, *(ADVANCED | {"sigma": sigma} | changed).values())

    # 971 iterations of two networks with 128 x 128 + 20,000 pixels at the default of 1.27e-6 s: 90 s.
    assert "about <b>90 s</b> (70 s to 2 min)." in expect()
    assert "about <b>3 min</b>" in expect(sigma=12.5)
    assert expect("128 128 12.5 35.0") == expect(sigma=12.5)
    assert "about <b>2 min</b>" in expect("128 128 25.0 60.0")  # finer structure
    # All 3,000 iterations of 256 x 256 + 20,000 pixels: 652 s.
    assert "at most about <b>11 min</b>, often less." in expect(kind="upscale")
    tab.start()
    assert "1 restoration is ahead" in expect()
    assert expect(size="") == "" and expect(size="<b>") == ""


@pytest.mark.parametrize("index", range(len(restoration_layout.SHOWN)))
def test_every_example_can_be_restored_with_its_settings(tab, index):
    image, holes, kind, by, sigma = tab.handlers.pick(SimpleNamespace(index=index))
    files = [None if path is None else Path(path).read_bytes() for path in (image, holes)]
    assert all(len(content) <= 40 << 10 for content in files if content)
    job = tab.start(*files, kind=kind, by=by, sigma=sigma)
    assert tab.store.status(job)["notes"] == []


def test_the_examples_are_part_of_the_package_and_of_the_bento():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "examples/*" in data["sparsegen.service.page"]
    assert "  - /sparsegen/service/page/examples/*\n" in (ROOT / "bentofile.yaml").read_text()
    named = {name for example in restoration_layout.SHOWN for name in (example.image, example.mask) if name}
    assert named == {path.name for path in restoration_layout.EXAMPLES.iterdir()}


def test_an_expired_upload_must_be_dropped_again(tab, tmp_path):
    file = restoration_layout.dropped("Picture", "image")
    gone = file.preprocess(FileData(path=str(tmp_path / "gone.png")))
    assert gone == tmp_path / "gone.png"
    with pytest.raises(Error, match="drop or pick it again"):
        tab.handlers.take(gone, "", visitor())
    with pytest.raises(Error, match="drop or pick it again"):
        asyncio.run(tab.handlers.start(gone, None, "denoise", 2, 1.6, *ADVANCED.values(), visitor()))


def status(**known: object) -> dict:
    return restoration_status() | known


def restoration_status() -> dict:
    empty = dict.fromkeys(restoration.STATUS["required"])
    return empty | {"id": "0" * 32, "status": "running", "history": [], "notes": []}


def test_texts_of_a_job_are_escaped():
    said = markup.progress(status(status="failed", error="<script>a</script>", notes=["<img src=x>"]))
    assert "<script>" not in said and "<img" not in said and "&lt;script&gt;" in said


@pytest.mark.parametrize("lift", [0, -5], ids=["logarithmic", "linear"])
def test_the_curve_marks_the_best_iteration_at_its_lowest_point(lift):
    iterations = np.arange(10, 110, 10)
    history = [(int(i), float((i - 70) ** 2 + 1 + lift)) for i in iterations]
    drawn = markup.curve(history, 70)
    points = [tuple(map(float, pair.split(","))) for pair in re.search('points="(.*?)"', drawn)[1].split()]
    left, top = map(float, re.search(r'class="best" style="left:(.*?)%;top:(.*?)%"', drawn).groups())
    lowest = max(points, key=lambda point: point[1])  # SVG counts from the top
    assert len(points) == 10 and (left, top) == pytest.approx(lowest, abs=0.01)
    assert left == pytest.approx(100 * 60 / 90, abs=0.01) and ("logarithmic" in drawn) == (lift == 0)
    assert markup.curve(history[:1], 10) == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (754, "12 min 34 s"), (7320, "2 h 02 min")],
)
def test_durations_are_formatted(seconds, words):
    assert markup.duration(seconds) == words


def test_only_the_upload_address_accepts_large_files(server):
    def post(path: str, size: int) -> int:
        body = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        body += bytes(size) + b"\r\n--b--\r\n"
        return server.ask("POST", path, body, "multipart/form-data; boundary=b")[0]

    assert post("/ui/gradio_api/upload", 2 << 20) == 200
    assert post("/ui/gradio_api/upload", orders.MAX_UPLOAD + 1) == 413
    assert post("/ui/gradio_api/run/predict", 2 << 20) == 413
    assert post("/ui/gradio_api/process_recording", 10) == 404
