"""The Encode tab: the sparse code of a visitor's picture, its atoms, and the picture without some of them."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr  # noqa: TID253 (the page is Gradio; the endpoint imports it when the server starts)
import numpy as np

from sparsegen.common.checks import check_integer
from sparsegen.pictures import images
from sparsegen.service import encoding
from sparsegen.service.clients import client_of
from sparsegen.service.encoding import ITERATIONS, MAX_ITERATIONS
from sparsegen.service.jobs.orders import Turns
from sparsegen.service.models import Model
from sparsegen.service.page import catalog, inspector, markup
from sparsegen.service.page.handlers import detail, show_errors, whole
from sparsegen.service.page.restoration import dropped_files
from sparsegen.service.page.restoration_layout import SHOWN, dropped, thumbnails
from sparsegen.service.page.sample import read_atoms
from sparsegen.service.page.sample_layout import slider
from sparsegen.service.page.static import read_static

INTRODUCTION = """The way back, from a picture to its **sparse code**: the code is searched whose image under the
dictionaries of the model is nearest to your picture. The center square is resized to the images of the model. Then
switch atoms off, or change the sparsity."""


class Found(NamedTuple):
    """What the tab remembers of a picture.  Shape: Γ1 (C, H', W'), pixels uint8 (H, W, 3)."""

    model: str
    code_1: np.ndarray
    pixels: np.ndarray


def tab(models: Mapping[str, Model], turns: Callable[[], Turns]) -> None:
    """Builds the Encode tab, and connects it to the models."""
    handlers = Handlers(models, turns)
    ranked = sorted(models.values(), key=catalog.merit)
    gr.Markdown(INTRODUCTION)
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            examples = gr.HTML(thumbnails(), js_on_load=read_static("pick.js"), elem_id="encode_examples")
            image = dropped("Your picture", "encode_image")
            choices = [(catalog.title(model), model.name) for model in ranked]
            model = gr.Dropdown(
                choices, value=ranked[0].name, label="Model (type to search)", elem_id="encode_model"
            )
            k = gr.Slider(**slider(ranked[0], 0), elem_id="encode_k")
            iterations = gr.Slider(
                10, MAX_ITERATIONS, ITERATIONS, step=10, label="Iterations",
                info="Steps of the search; more come nearer.",
                elem_id="encode_iterations",
            )  # fmt: skip
        with gr.Column(scale=3, min_width=280):
            pictures = gr.HTML(elem_id="encoded")
            inside = gr.HTML(elem_id="encoded_inside")
    atoms = gr.HTML(js_on_load=read_static("toggle.js"), elem_id="encoded_atoms")
    loss = gr.HTML(elem_id="encoded_loss")
    found = gr.State()
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    search: dict[str, Any] = {
        "fn": handlers.search,
        "inputs": [image, model, k, iterations],
        "outputs": [pictures, inside, atoms, loss, found],
        **quiet,
        "show_progress": "minimal",
    }
    examples.pick(handlers.pick_picture, None, image, **quiet)
    model.focus(None, js=read_static("select.js"), **quiet)
    model.input(handlers.limit_k, model, k, **quiet).then(**search)
    gr.on([image.change, k.release, iterations.release], trigger_mode="always_last", **search)
    atoms.toggle(handlers.switch_off, found, loss, trigger_mode="always_last", **quiet)


class Handlers:
    """The event handlers of the tab."""

    def __init__(self, models: Mapping[str, Model], turns: Callable[[], Turns]) -> None:
        self.models, self.turns = models, turns

    @show_errors
    def pick_picture(self, event: gr.EventData) -> str:
        """Selects an example instead of a dropped file."""
        index = check_integer(
            "example", detail(event, "index"), 0, len(SHOWN) - 1, "the picture, the first being 0"
        )
        return str(SHOWN[index].image_path)

    @show_errors
    def limit_k(self, name: object) -> dict[str, Any]:
        """Updates the slider of k for another model."""
        if not isinstance(name, str) or name not in self.models:
            raise ValueError(f"no model {name!r}: the models are {', '.join(self.models)}")
        return gr.update(**slider(self.models[name], 0))

    @show_errors
    async def search(
        self, image: Path | None, model: object, k: object, iterations: object, request: gr.Request
    ) -> tuple[object, ...]:
        """Searches the code of a picture; returns the pictures, the density, the atoms, and what to remember."""
        if image is None:
            return "", "", "", "", None
        values = {"model": str(model), "iterations": str(whole(iterations))}
        has_k = str(model) in self.models and self.models[str(model)].sampler.k_ranges
        values |= {"k": str(whole(k))} if has_k else {}
        with dropped_files():
            content = await asyncio.to_thread(image.read_bytes)
        async with self.turns().of(client_of(request)):
            order = await asyncio.to_thread(encoding.order, {"image": content, **values}, self.models)
        return await asyncio.to_thread(_shown, order)

    @show_errors
    def switch_off(self, found: Found | None, event: gr.EventData) -> str:
        """Draws the picture from its code without the atoms that are switched off."""
        if found is None:
            raise ValueError("there is no code: drop a picture again")
        sampler = self.models[found.model].sampler
        off = read_atoms(event, sampler.code_shapes[0][0])
        if not off:
            return markup.HINT
        after = sampler.synthesize(inspector.without(found.code_1, off)[None])
        return markup.loss(found.pixels, images.to_uint8(after)[0], off)


def _shown(order: encoding.EncodeOrder) -> tuple[object, ...]:
    found = order.run().encoding
    sampler, pixels = order.model.sampler, found.reconstruction[0]
    codes = [code[0] for code in found.codes]
    return (
        markup.encoded(order.pixels[0], pixels, float(found.psnr[0]), codes),
        markup.inside(
            pixels, codes, sampler.k_ranges, order.k, "from the code", f"{order.model.name}-encoded"
        ),
        markup.atoms(codes[0], sampler.dictionary()),
        markup.HINT,
        Found(order.model.name, codes[0], pixels),
    )
