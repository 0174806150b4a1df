"""The components of the Sample tab, without their events."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr  # noqa: TID253 (the page is Gradio; the endpoint imports it when the server starts)

from sparsegen.service.models import Model
from sparsegen.service.page import catalog, markup
from sparsegen.service.page.handlers import BROWSER_INTEGER
from sparsegen.service.page.static import read_static
from sparsegen.service.sampling import MAX_COUNT
from sparsegen.zoo import card
from sparsegen.zoo.k_range import KRange

ANY = -1  # the class of each image is drawn from the seed
INSPECTOR = """## Code inspector
Select an image above to see where its code is dense and which atoms it consists of. Then switch atoms off and
compare."""
LISTING = """## Models, best first
The distance compares generated images with the training images; lower is better."""


@dataclass(frozen=True)
class Settings:
    """The column of the settings. `second` holds those of a second setting."""

    name: gr.Dropdown
    column: gr.Radio
    label: gr.Dropdown
    seed: gr.Number
    dice: gr.Button
    count: gr.Slider
    compare: gr.Checkbox
    second: gr.Column
    other: gr.Dropdown
    k_other: gr.Slider
    facts: gr.HTML


@dataclass(frozen=True)
class View:
    """The column of the images, with the sliders of k above them."""

    head: gr.HTML
    k_1: gr.Slider
    apart: gr.Checkbox
    k_2: gr.Slider
    gallery: gr.HTML
    share: gr.HTML


@dataclass(frozen=True)
class Details:
    """What follows below: calls from elsewhere, the model card, the code inspector and the list of models."""

    python: gr.Code
    call: gr.Code
    card: gr.Markdown
    index: gr.Number
    inside: gr.HTML
    atoms: gr.HTML
    loss: gr.HTML
    listing: gr.HTML


def layout(models: Mapping[str, Model], http_api: bool) -> tuple[Settings, View, Details]:
    """Builds the components, for the best of the models."""
    ranked = sorted(models.values(), key=catalog.merit)
    with gr.Row(elem_id="sampling"):
        with gr.Column(scale=2, min_width=280, elem_id="settings"):
            settings = _settings(ranked, models)
        with gr.Column(scale=3, min_width=280, elem_id="view"):
            view = _view(ranked[0])
    return settings, view, _details(ranked[0], http_api)


def _settings(ranked: Sequence[Model], models: Mapping[str, Model]) -> Settings:
    first, choices = ranked[0], [(catalog.title(model), model.name) for model in ranked]
    name = gr.Dropdown(choices, value=first.name, label="Model (type to search)", elem_id="model")
    column = gr.Radio(**columns(first, models), label="Regularizer", elem_id="column")
    label = gr.Dropdown(**class_choice(first), label="Class", elem_id="class")
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=BROWSER_INTEGER, elem_id="seed")
        dice = gr.Button("New seed", min_width=130, scale=0, elem_id="dice")
    count = gr.Slider(1, MAX_COUNT, 16, step=1, label="Images", elem_id="count")
    compare = gr.Checkbox(label="Compare with a second setting", elem_id="compare")
    with gr.Column(visible=False) as second:
        other = gr.Dropdown(choices, value=first.name, label="Second model", elem_id="other")
        k_other = gr.Slider(**slider(first, 0) | {"label": "k of the second"}, elem_id="k_other")
    facts = gr.HTML(elem_id="facts")
    return Settings(name, column, label, seed, dice, count, compare, second, other, k_other, facts)


def _view(first: Model) -> View:
    head = gr.HTML(markup.head(first), js_on_load=read_static("head.js"), elem_id="head")
    with gr.Column(elem_id="sparsity"):
        k_1 = gr.Slider(**slider(first, 0), elem_id="k1")
        apart = gr.Checkbox(
            label="Set k of Γ2 separately", visible=projected_levels(first) > 1, elem_id="apart"
        )
        k_2 = gr.Slider(**slider(first, 1) | {"visible": False}, elem_id="k2")
    gallery = gr.HTML(js_on_load=read_static("pick.js"), elem_id="gallery")
    share = gr.HTML(js_on_load=read_static("share.js"), elem_id="share")
    return View(head, k_1, apart, k_2, gallery, share)


def _details(first: Model, http_api: bool) -> Details:
    elsewhere = "The same pixels from Python and over HTTP" if http_api else "The same pixels from Python"
    with gr.Accordion(elsewhere, open=False, elem_id="calls"):
        python = gr.Code(language="python", label="Python", interactive=False, elem_id="python")
        if http_api:
            call = gr.Code(language="shell", label="HTTP", interactive=False, elem_id="curl")
        else:
            call = gr.Code(language="python", label="gradio_client", interactive=False, elem_id="client")
    with gr.Accordion("Model card", open=False, elem_id="card"):
        facts = gr.Markdown(card.measured(first.config))
    gr.Markdown(INSPECTOR)
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            index = gr.Number(
                0,
                label="Image (the first is 0)",
                precision=0,
                minimum=0,
                maximum=MAX_COUNT - 1,
                elem_id="index",
            )
            inside = gr.HTML(elem_id="inside")
        with gr.Column(scale=3, min_width=280):
            atoms = gr.HTML(js_on_load=read_static("toggle.js"), elem_id="atoms")
            loss = gr.HTML(elem_id="loss")
    gr.Markdown(LISTING)
    listing = gr.HTML(js_on_load=read_static("choose.js"), elem_id="models")
    return Details(python, call, facts, index, inside, atoms, loss, listing)


def projected_levels(model: Model) -> int:
    return len(model.sampler.k_ranges)


def columns(model: Model, models: Mapping[str, Model]) -> dict[str, Any]:
    """The settings of the choice among the regularizers of a network; hidden if there is only one."""
    alike = [name for name, one in models.items() if catalog.network(one) == catalog.network(model)]
    choices = [(name.rpartition(".")[2], name) for name in alike]
    return {"choices": choices, "value": model.name, "visible": len(alike) > 1}


def class_choice(model: Model, label: object = ANY) -> dict[str, Any]:
    """The settings of the choice of a class; hidden if the model is unconditional."""
    choices = [("any", ANY), *((called, number) for number, called in enumerate(model.classes))]
    known = label in range(len(model.classes))
    return {"choices": choices, "value": label if known else ANY, "visible": bool(model.classes)}


def slider(model: Model, place: int) -> dict[str, Any]:
    """The settings of the slider for the k of one level; hidden if the model does not have this level."""
    if place >= projected_levels(model):
        return {"minimum": 1, "maximum": 2, "value": 1, "step": 1, "visible": False, "label": "k", "info": ""}
    rest = model.sampler.k_ranges[place:]
    limit = min(k_range.limit for k_range in rest)
    return {
        "minimum": 1,
        "maximum": limit,
        "value": rest[0].k,
        "step": 1,
        "visible": True,
        "label": "Sparsity (k)" if place == 0 else "k of Γ2",
        "info": meaning(rest),
    }


def meaning(k_ranges: Sequence[KRange]) -> str:
    """The description of a slider that sets k for these levels."""
    levels = " and ".join(f"Γ{k_range.level}" for k_range in k_ranges)
    return f"Non-zeros kept per {k_ranges[0].unit} of {levels}; trained with {k_ranges[0].k:,}."
