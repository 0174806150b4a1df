"""The Restore tab: submits a picture for restoration, and shows the progress and the result.

The jobs are those of POST /restore, in the same store. A worker process runs them, so they continue when the page is
closed. The page polls their status, and gets each picture once, inside the answer: it needs no other address.
"""

import asyncio
import base64
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr  # noqa: TID253 (the page is Gradio; the endpoint imports it when the server starts)

from sparsegen.common.checks import check_integer
from sparsegen.pictures.picture import Picture
from sparsegen.restoration.damage import FACTORS
from sparsegen.restoration.settings import (
    Task,
)
from sparsegen.service.clients import client_of
from sparsegen.service.jobs import orders
from sparsegen.service.jobs.budget import expected_effort, expected_seconds, measure_content
from sparsegen.service.jobs.decoding import decoders
from sparsegen.service.jobs.errors import StoreError
from sparsegen.service.jobs.orders import MAX_PIXELS
from sparsegen.service.jobs.store import JOB_NOT_FOUND, LIVE, Status, Store
from sparsegen.service.page import link, markup
from sparsegen.service.page.handlers import detail, show_errors, whole
from sparsegen.service.page.restoration_layout import SHOWN, layout
from sparsegen.service.page.static import read_static
from sparsegen.service.uploads import KEEP_UPLOADS

SWEEP_UPLOADS = (60, KEEP_UPLOADS)  # seconds between checks of Gradio, and the age of files that it removes
ASK_EVERY = 1.5  # seconds


def tab(
    blocks: gr.Blocks, tabs: gr.Tabs, jobs: Callable[[], Store], turns: Callable[[], orders.Turns]
) -> None:
    """Builds the Restore tab, and connects it to the jobs."""
    handlers = Handlers(jobs, turns)
    o, p = layout()
    # seen: the job and picture on the stage
    job, anchor, seen, size = (gr.Textbox(visible=False) for _ in range(4))
    timer = gr.Timer(ASK_EVERY, active=False)

    asked: list[Any] = [o.kind, o.by, o.blur, *o.advanced.inputs()]
    given = [o.image, o.mask, *asked]
    shown_by_look = [p.panel, p.stage, seen, timer, o.start, o.cancel]
    # No limit and no queue: these calls take milliseconds, and must not wait for sampling or submissions.
    quiet: dict[str, Any] = {
        "show_progress": "hidden",
        "api_visibility": "private",
        "queue": False,
        "concurrency_limit": None,
    }
    look: dict[str, Any] = {"fn": handlers.look, "inputs": [job, seen], "outputs": shown_by_look, **quiet}
    o.examples.pick(handlers.pick, None, [o.image, o.mask, o.kind, o.by, o.advanced.sigma], **quiet)
    o.kind.change(handlers.choose, o.kind, [o.holes, o.by, o.blur], **quiet)
    o.image.change(handlers.take, [o.image, job], [job, p.panel, p.stage, size], **quiet).then(
        None, job, None, js=read_static("address.js")
    )
    gr.on(
        [part.change for part in (size, *asked)],
        handlers.expect,
        [size, *asked],
        o.expected,
        trigger_mode="always_last",
        **quiet,
    )
    # No limit here: `Turns` limits submissions, per client.
    o.start.click(
        handlers.start,
        given,
        [job, p.stage],
        concurrency_limit=None,
        show_progress="hidden",
        api_visibility="private",
    ).success(**look).then(None, job, None, js=read_static("address.js")).then(
        None, None, None, js=read_static("show.js")
    )
    o.cancel.click(handlers.cancel, job, None, **quiet).then(**look)
    timer.tick(**look)
    # The script listens to clicks: the event of gr.Tab also fires on load, before the address is read.
    blocks.load(handlers.find, anchor, [tabs, job], js=read_static("addresses.js"), **quiet).then(**look)


class Handlers:
    """The event handlers of the tab."""

    def __init__(self, jobs: Callable[[], Store], turns: Callable[[], orders.Turns]) -> None:
        self.jobs, self.turns = jobs, turns

    @show_errors
    def pick(self, event: gr.EventData) -> tuple[str, str | None, str, int, float]:
        """Selects an example instead of a dropped file, with its settings."""
        index = check_integer(
            "example", detail(event, "index"), 0, len(SHOWN) - 1, "the picture, the first being 0"
        )
        example = SHOWN[index]
        mask = None if example.mask_path is None else str(example.mask_path)
        return str(example.image_path), mask, example.kind, FACTORS[0], example.sigma

    def choose(self, kind: str) -> tuple[dict[str, Any], ...]:
        """Shows the additional inputs of a kind of restoration."""
        return tuple(gr.update(visible=kind == wanting) for wanting in ("inpaint", "upscale", "deblur"))

    @show_errors
    def take(self, image: Path | None, job: str, request: gr.Request) -> tuple[object, object, object, str]:
        """Shows a dropped picture, unless an unfinished job is shown; returns its size for `expect`, too."""
        watched = self._status(job) if job else None
        if image is None:
            return gr.skip(), gr.skip(), gr.skip(), ""
        with dropped_files():
            picture = decoders().read(image, "the picture", MAX_PIXELS, client=client_of(request))
        height, width = picture.pixels.shape[:2]
        noise, detail = measure_content(picture.pixels)
        size = f"{height} {width} {noise:.1f} {detail:.1f}"
        if watched and watched["status"] in LIVE:
            return gr.skip(), gr.skip(), gr.skip(), size
        return "", "", gr.update(before=shown(picture), after=None, done=False), size

    @show_errors
    def expect(
        self,
        size: object,
        kind: str,
        by: int,
        blur: float,
        preset: str,
        regularizer: str,
        ensemble_size: int,
        sigma: float | None,
        seed: object,
        loss: str,
    ) -> str:
        """Estimates the time of a restoration with these settings.

        Args:
            size: Height, width, noise and detail of the picture, as returned by `take`.
        """
        known = re.fullmatch(r"(\d{1,5}) (\d{1,5}) (\d{1,3}\.\d) (\d{1,3}\.\d)", str(size))
        if known is None:
            return ""
        task = Task.of(**requested(kind, by, blur, preset, regularizer, ensemble_size, sigma, seed, loss))
        height, width = (int(side) * task.factor for side in known.groups()[:2])
        effort = expected_effort(task, height, width, float(known[3]), float(known[4]))
        try:
            store = self.jobs()
            seconds, (ahead, wait) = expected_seconds(effort, store.pace()), store.ahead()
        except StoreError:  # Start shows the error
            return ""
        early = task.settings.stops and not task.stops_by_noise
        return markup.expected(seconds, ahead, wait, early)

    # Gradio passes the values of the components one by one, hence the long signature.
    @show_errors
    async def start(
        self,
        image: Path | None,
        mask: Path | None,
        kind: str,
        by: int,
        blur: float,
        preset: str,
        regularizer: str,
        ensemble_size: int,
        sigma: float | None,
        seed: object,
        loss: str,
        request: gr.Request,
    ) -> tuple[str, dict[str, Any]]:
        """Submits a job; returns its id and the given picture."""
        if image is None:
            raise ValueError("there is no picture: drop one, or pick an example")
        if kind == "inpaint" and mask is None:
            raise ValueError(
                "the mask is missing: drop a picture that is white in the holes and black elsewhere"
            )
        asked = requested(kind, by, blur, preset, regularizer, ensemble_size, sigma, seed, loss)
        given = {name: str(value) for name, value in asked.items()}
        paths = {"image": image} | ({"mask": mask} if mask is not None and kind == "inpaint" else {})
        client = client_of(request)
        async with self.turns().of(client):
            return await asyncio.to_thread(self._order, given, paths, client)

    def _order(
        self, given: dict[str, str], paths: dict[str, Path], client: str
    ) -> tuple[str, dict[str, Any]]:
        store = self.jobs()
        orders.check_room(store, client)  # before the files are read
        with dropped_files():
            files = {name: path.read_bytes() for name, path in paths.items()}
        status, picture = orders.order(store, given, files, client)
        return status["id"], gr.update(before=shown(picture), after=None, done=False)

    def look(self, job: str, seen: str = "") -> tuple[object, ...]:
        """Updates the panel, the pictures, the timer and the buttons from the status of a job.

        Args:
            seen: The job and the checksum of the picture that the stage shows; a picture is sent once.
        """
        if not job:
            return "", gr.skip(), gr.skip(), *buttons(live=False)
        try:
            status = self._status(job)
            preview = self.jobs().preview(job) if status is not None else None
        except StoreError as error:  # shown in the panel, not as a pop-up at each tick
            kept = (gr.skip(), gr.skip())
            return markup.notice(error.public), *kept, gr.Timer(active=True), gr.skip(), gr.skip()
        if status is None:
            return (markup.notice(JOB_NOT_FOUND.format(job[:40])), gr.skip(), gr.skip(), *buttons(live=False))
        done = status["status"] == "done"
        now_seen = f"{job}:{done:d}:{zlib.crc32(preview):08x}" if preview else seen
        stage = gr.skip()
        if preview and now_seen != seen:
            stage = gr.update(after=data_url(preview), job=job, done=done)
        return markup.progress(status), stage, now_seen, *buttons(status["status"] in LIVE)

    @show_errors
    def cancel(self, job: str) -> None:
        """Cancels the job."""
        if job:
            self.jobs().cancel(job)

    def find(self, anchor: str | None) -> tuple[object, str]:
        """Opens the tab or job in the address of the page."""
        given = link.read(anchor)
        tab = next((name for name in ("restore", "encode") if name in given), None)
        return gr.Tabs(selected=tab) if tab else gr.skip(), given.get("restore", "")

    def _status(self, job: object) -> Status | None:
        return self.jobs().status(str(job))


def requested(
    kind: str,
    by: int,
    blur: float,
    preset: str,
    regularizer: str,
    ensemble_size: int,
    sigma: float | None,
    seed: object,
    loss: str,
) -> dict[str, Any]:
    """The settings of a task from the values of the components; only those that the kind uses."""
    asked: dict[str, Any] = {
        "kind": kind,
        "preset": preset,
        "regularizer": regularizer,
        "seed": whole(seed),
        "loss": loss,
    }
    asked |= {"ensemble_size": ensemble_size} if ensemble_size else {}
    asked |= {"sigma": sigma} if sigma and kind == "denoise" else {}
    asked |= {"by": by} if kind == "upscale" else {}
    asked |= {"kernel": f"gaussian:{blur:g}"} if kind == "deblur" else {}
    return asked


@contextmanager
def dropped_files() -> Iterator[None]:
    """Replaces the error of a missing file by one that explains why it is missing."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(
            f"the picture was removed: the server keeps uploads for {KEEP_UPLOADS // 60} minutes; drop or pick it again"
        ) from None


def buttons(live: bool) -> tuple[gr.Timer, dict[str, Any], dict[str, Any]]:
    """The timer, active while the job is live, and the visibility of Start and Cancel."""
    return gr.Timer(active=live), gr.update(visible=not live), gr.update(visible=live)


def shown(picture: Picture) -> dict[str, Any]:
    """A picture for the stage, as a PNG of 8 bits in a data URL."""
    height, width = picture.pixels.shape[:2]
    return {"url": data_url(replace(picture, depth=8).encode(".png")), "width": width, "height": height}


def data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
