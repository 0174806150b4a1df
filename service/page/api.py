"""The endpoints of the page for programs: `gradio_client.Client(url).predict(api_name="/sample")`.

Every argument has a default. Pictures are files, which the server keeps for KEEP_UPLOADS seconds.
"""

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import gradio as gr  # noqa: TID253 (the page is Gradio; the endpoint imports it when the server starts)
import numpy as np
from gradio.data_classes import FileData  # noqa: TID253
from gradio.processing_utils import save_bytes_to_cache  # noqa: TID253

from sparsegen.pictures import images
from sparsegen.restoration.settings import Task
from sparsegen.service import encoding
from sparsegen.service.clients import client_of
from sparsegen.service.encoding import ITERATIONS
from sparsegen.service.jobs import orders
from sparsegen.service.jobs.store import LIVE, Store
from sparsegen.service.models import Model
from sparsegen.service.page.catalog import merit
from sparsegen.service.page.events import stored
from sparsegen.service.page.handlers import errors_shown, show_errors, whole
from sparsegen.service.page.restoration import dropped_files
from sparsegen.service.page.restoration_layout import SHOWN
from sparsegen.service.sampling import SampleOrder, SampleRequest, draw
from sparsegen.service.uploads import Room, upload_folder

POLL_EVERY = 1.0  # seconds
BLOCK = 4096  # bytes; a file takes whole blocks, and one for its folder


def register(
    models: Mapping[str, Model],
    jobs: Callable[[], Store],
    turns: Callable[[], orders.Turns],
    room: Callable[[], Room],
) -> None:
    """Adds the endpoints /models, /sample, /encode and /restore to the page that is being built."""
    endpoints = Endpoints(models, jobs, turns, room)
    gr.api(endpoints.models, api_name="models")
    gr.api(endpoints.sample, api_name="sample")
    gr.api(endpoints.encode, api_name="encode")
    # No limit here: the job store limits the unfinished restorations.
    gr.api(endpoints.restore, api_name="restore", concurrency_limit=None)


class Endpoints:
    """The functions of the endpoints; Gradio reads their arguments, types and descriptions."""

    def __init__(
        self,
        models: Mapping[str, Model],
        jobs: Callable[[], Store],
        turns: Callable[[], orders.Turns],
        room: Callable[[], Room],
    ) -> None:
        self._models = {model.name: model for model in sorted(models.values(), key=merit)}
        self._jobs, self._turns, self._room = jobs, turns, room

    def models(self) -> list[dict[str, Any]]:
        """Lists the models, best first: regularizer, ranges of k, classes, training and evaluation."""
        return [model.describe() for model in self._models.values()]

    @show_errors
    async def sample(
        self,
        request: gr.Request,
        model: str | None = None,
        count: int = 16,
        seed: int = 0,
        k: int | list[int] | None = None,
        labels: int | str | list[int | str] | None = None,
        format: Literal["png", "grid", "npy"] = "png",  # noqa: A002 (the name in POST /sample)
    ) -> list[FileData]:
        """Draws images. The same arguments give the same pixels, bit for bit.

        Parameters:
            model: A name of /models; None: the first.
            count: Number of images, 1 to 64.
            seed: Seed of the noise, 0 to 2^64 - 1.
            k: Sparsity, one number or one per level; None: the k of training.
            labels: Classes, by number or name, one for all images or one per image; None: drawn from the seed.
            format: png: one file per image; grid: one PNG with all images; npy: one uint8 array.
        """
        wanted = {"model": model or next(iter(self._models)), "count": whole(count), "seed": whole(seed)}
        asked = SampleRequest.parse(wanted | {"k": k, "labels": labels, "format": format})
        files = await asyncio.to_thread(lambda: _draw(asked.resolve(self._models), asked.format))
        return await self._keep(files, client_of(request))

    @show_errors
    async def encode(
        self,
        request: gr.Request,
        image: FileData | None = None,
        model: str | None = None,
        k: int | list[int] | None = None,
        iterations: int = ITERATIONS,
        mask: FileData | None = None,
    ) -> list[FileData]:
        """Finds the sparse code of a picture: the image of the code as a PNG, and the codes as a NumPy archive.

        Parameters:
            image: A picture, whose center square is resized to the images of the model; None: an example of the page.
            model: A name of /models; None: the first.
            k: Sparsity, one number or one per level; None: the k of training.
            iterations: Steps of the search, 1 to 500.
            mask: A picture of the same size, white in the holes and black elsewhere.
        """
        paths = {"image": _path(image) or SHOWN[-1].image_path, "mask": _path(mask)}
        given: dict[str, object] = {
            "model": model or next(iter(self._models)),
            "iterations": whole(iterations),
        }
        if k is not None:
            given["k"] = ",".join(str(whole(each)) for each in (k if isinstance(k, list) else [k]))
        async with self._turns().of(client_of(request)):
            order = await asyncio.to_thread(lambda: encoding.order(given | _read(paths), self._models))
        found = await asyncio.to_thread(order.run)
        files = {f"{order.model.name}-encoded.png": found.png(), f"{order.model.name}-codes.npz": found.npz()}
        return await self._keep(files, client_of(request))

    async def restore(
        self,
        request: gr.Request,
        image: FileData | None = None,
        kind: str = Task.kind,
        sigma: float | None = None,
        mask: FileData | None = None,
        by: int = 2,
        kernel: str = "gaussian:1.6",
        preset: str = Task.preset,
        regularizer: str = Task.regularizer,
        density: float | None = None,
        loss: str = Task.loss,
        seed: int = Task.seed,
        iterations: int | None = None,
        ensemble_size: int | None = None,
    ) -> AsyncIterator[FileData | None]:
        """Restores a picture: the result is a PNG. This takes minutes; until then, the intermediate results are None.

        The job is removed at the end, and if the client cancels or disconnects.

        Parameters:
            image: A picture; None: the example of the page for this kind.
            kind: denoise, inpaint, upscale or deblur.
            sigma: Standard deviation of the noise in gray levels, 0 to 255; None: estimated.
            mask: For inpaint: a picture of the same size, white in the holes and black elsewhere.
            by: For upscale: the factor, 2 or 4.
            kernel: For deblur: gaussian:SIGMA, with SIGMA in pixels.
            preset: fast, paper, or quick (only for noise).
            regularizer: Constraint on the codes.
            density: Share of non-zeros in a code, 0 to 1; None: that of the regularizer.
            loss: mse or l1.
            seed: Seed of the fit.
            iterations: Maximum number of iterations; None: that of the preset.
            ensemble_size: Number of networks averaged; None: that of the preset.
        """
        with errors_shown():
            asked = {"kind": kind, "preset": preset, "regularizer": regularizer, "loss": loss, "seed": seed}
            asked |= {"sigma": sigma, "density": density}
            asked |= {"iterations": iterations, "ensemble_size": ensemble_size}
            asked |= {"by": by} if kind == "upscale" else {}
            asked |= {"kernel": kernel} if kind == "deblur" else {}
            paths = {"image": _path(image), "mask": _path(mask)}
            if image is None:
                example = next((example for example in SHOWN if example.kind == kind), None)
                if example is None:
                    raise ValueError(
                        f"image is missing, and {str(kind)[:40]!r} has no example: give a picture"
                    )
                paths |= {"image": example.image_path, "mask": example.mask_path}
                asked["sigma"] = sigma or example.sigma or None
            given = {name: whole(value) for name, value in asked.items() if value is not None}
            client, store = client_of(request), await asyncio.to_thread(self._jobs)
            async with self._turns().of(client):
                job = await asyncio.to_thread(_submit, store, given, paths, client)
            try:
                while (status := await asyncio.to_thread(store.status, job)) and status["status"] in LIVE:
                    yield None
                    await asyncio.sleep(POLL_EVERY)
                content = await asyncio.to_thread(store.result, job)
                if content is None:
                    raise ValueError((status and status["error"]) or "the restoration was canceled")
                (file,) = await self._keep({"restored.png": content}, client)
                yield file
            finally:
                await asyncio.to_thread(_remove, store, job)

    async def _keep(self, files: Mapping[str, bytes], client: str) -> list[FileData]:
        """Writes files to the folder that the page serves; they count for their client like uploads.

        Raises: NoRoom.
        """
        room, size = self._room(), sum(2 * BLOCK + len(content) for content in files.values())
        await room.look()
        room.take(size, client)
        try:
            return await asyncio.to_thread(_write, files)
        finally:
            room.give_back(size, client, stays=True)


# Gradio takes the type of the answers from here, and the annotation must be that of a generator.
Endpoints.restore.__annotations__["return"] = FileData


def _draw(asked: SampleOrder, form: str) -> dict[str, bytes]:
    """The files of a request for samples, by name."""
    pixels, stem = draw(asked.model.sampler, asked.rows()), f"{asked.model.name}-{asked.seed}"
    if form == "grid":
        return {f"{stem}.png": images.png(images.grid(pixels))}
    if form == "npy":
        buffer = io.BytesIO()
        np.save(buffer, pixels)
        return {f"{stem}.npy": buffer.getvalue()}
    return {f"{stem}-{index:02d}.png": images.png(each) for index, each in enumerate(pixels)}


def _path(file: object) -> Path | None:
    """The path of an uploaded file.  Raises: Refused, for any other."""
    if file is None:
        return None
    return stored(file.get("path") if isinstance(file, dict) else file, upload_folder())


def _submit(store: Store, given: dict[str, object], paths: Mapping[str, Path | None], client: str) -> str:
    """Submits a job; returns its id."""
    orders.check_room(store, client)  # before the files are read
    status, _ = orders.order(store, given, _read(paths), client)
    return status["id"]


def _read(paths: Mapping[str, Path | None]) -> dict[str, bytes]:
    """The contents of the given files."""
    with dropped_files():
        return {name: path.read_bytes() for name, path in paths.items() if path is not None}


def _remove(store: Store, job: str) -> None:
    """Removes a job and its pictures, whether or not it has ended."""
    store.delete(job)  # cancels it if it has not ended
    store.delete(job)


def _write(files: Mapping[str, bytes]) -> list[FileData]:
    folder = str(upload_folder())
    return [FileData(path=save_bytes_to_cache(content, name, folder)) for name, content in files.items()]
