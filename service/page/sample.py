"""The Sample tab: draw images, set their sparsity, and inspect the code of one image."""

import json
import secrets
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import gradio as gr  # noqa: TID253 (the page is Gradio; the endpoint imports it when the server starts)
import numpy as np

from sparsegen.common.checks import check_integer
from sparsegen.pictures import images
from sparsegen.service.models import Model
from sparsegen.service.page import catalog, inspector, link, markup
from sparsegen.service.page.handlers import BROWSER_INTEGER, detail, show_errors, whole
from sparsegen.service.page.static import read_static
from sparsegen.service.prefix import prefix_of
from sparsegen.service.sampling import MAX_COUNT
from sparsegen.zoo import card, noise
from sparsegen.zoo.k_range import KRange, resolve

ANY = -1  # the class of each image is drawn from the seed
INSPECTOR = """## Code inspector
Select an image above to see where its code is dense and which atoms it consists of. Then switch atoms off and
compare."""
LISTING = """## Models, best first
The distance compares generated images with the training images; lower is better."""
OPENED = 15  # components that an address sets


def tab(blocks: gr.Blocks, models: Mapping[str, Model], asks_token: bool, http_api: bool = True) -> None:
    """Builds the Sample tab, and connects it to the samplers."""
    handlers = Handlers(models, asks_token, http_api)
    ranked = sorted(models.values(), key=catalog.merit)
    first, choices = ranked[0], [(catalog.title(model), model.name) for model in ranked]
    with gr.Row(elem_id="sampling"):
        with gr.Column(scale=2, min_width=280, elem_id="settings"):
            name = gr.Dropdown(choices, value=first.name, label="Model (type to search)", elem_id="model")
            column = gr.Radio(**columns(first, models), label="Regularizer", elem_id="column")
            label = gr.Dropdown(**class_choice(first), label="Class", elem_id="class")
            with gr.Row():
                seed = gr.Number(
                    0, label="Seed", precision=0, minimum=0, maximum=BROWSER_INTEGER, elem_id="seed"
                )
                dice = gr.Button("New seed", min_width=130, scale=0, elem_id="dice")
            count = gr.Slider(1, MAX_COUNT, 16, step=1, label="Images", elem_id="count")
            compare = gr.Checkbox(label="Compare with a second setting", elem_id="compare")
            with gr.Column(visible=False) as second:
                other = gr.Dropdown(choices, value=first.name, label="Second model", elem_id="other")
                k_other = gr.Slider(**slider(first, 0) | {"label": "k of the second"}, elem_id="k_other")
            facts = gr.HTML(elem_id="facts")
        with gr.Column(scale=3, min_width=280, elem_id="view"):
            head = gr.HTML(markup.head(first), js_on_load=read_static("head.js"), elem_id="head")
            with gr.Column(elem_id="sparsity"):
                k_1 = gr.Slider(**slider(first, 0), elem_id="k1")
                apart = gr.Checkbox(
                    label="Set k of Γ2 separately", visible=projected_levels(first) > 1, elem_id="apart"
                )
                k_2 = gr.Slider(**slider(first, 1) | {"visible": False}, elem_id="k2")
            gallery = gr.HTML(js_on_load=read_static("pick.js"), elem_id="gallery")
            share = gr.HTML(js_on_load=read_static("share.js"), elem_id="share")
    elsewhere = "The same pixels from Python and over HTTP" if http_api else "The same pixels from Python"
    with gr.Accordion(elsewhere, open=False, elem_id="calls"):
        python = gr.Code(language="python", label="Python", interactive=False, elem_id="python")
        if http_api:
            call = gr.Code(language="shell", label="HTTP", interactive=False, elem_id="curl")
        else:
            call = gr.Code(language="python", label="gradio_client", interactive=False, elem_id="client")
    with gr.Accordion("Model card", open=False, elem_id="card"):
        facts_of_model = gr.Markdown(card.measured(first.config))
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
    anchor = gr.Textbox(visible=False)

    chosen = [name, label, seed, count, k_1, apart, k_2, index]
    compared = [compare, other, k_other]
    model_parts = [name, column, label, k_1, apart, k_2, head, facts_of_model]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    named = quiet | {"api_visibility": "undocumented"}  # callable by name; `api` has the documented ones
    draw: dict[str, Any] = {
        "fn": handlers.draw,
        "inputs": [*chosen, *compared],
        "outputs": [gallery, facts],
    }
    # After the images, since the browser takes longer for them.
    calls: dict[str, Any] = {
        "fn": handlers.calls,
        "inputs": [*chosen, *compared],
        "outputs": [python, call, share],
    }
    look: dict[str, Any] = {"fn": handlers.look, "inputs": chosen, "outputs": [inside, atoms, loss]}

    def redraw(event: gr.events.Dependency) -> None:
        event.then(**draw, **quiet).then(**look, **quiet).then(**calls, **quiet)

    for choice in (name, label, other):
        # Selects the text, so that typing replaces it and searches the list.
        choice.focus(None, js=read_static("select.js"), **quiet)
    blocks.load(
        handlers.open,
        anchor,
        [*model_parts, seed, count, index, *compared, second],
        js="() => [location.hash]",
        **quiet,
    ).then(**draw, **named, api_name="draw").then(**look, **named, api_name="look").then(
        **calls, **named, api_name="calls"
    ).then(handlers.list_models, name, listing, **quiet)
    live = [label.input, seed.input, k_1.input, k_2.input, index.input, k_other.input]
    gr.on(live, **draw, trigger_mode="always_last", **quiet).then(**look, **quiet).then(**calls, **quiet)
    redraw(count.input(handlers.fit, [count, index], index, trigger_mode="always_last", **quiet))
    redraw(dice.click(handlers.roll, None, seed, **quiet))
    choose: dict[str, Any] = {"fn": handlers.choose, "outputs": model_parts}
    redraw(name.input(**choose, inputs=[name, label], **named, api_name="choose"))
    redraw(column.input(**choose, inputs=[column, label], **quiet))
    redraw(listing.pick(handlers.choose_listed, label, model_parts, **quiet))
    redraw(apart.input(handlers.part, [name, apart, k_1], [k_1, k_2], **quiet))
    redraw(compare.input(handlers.compare, [compare, name, k_1], [second, other, k_other], **quiet))
    redraw(other.input(handlers.choose_other, other, k_other, **quiet))
    redraw(gallery.pick(handlers.pick, None, index, **quiet))
    atoms.toggle(handlers.switch, chosen, loss, trigger_mode="always_last", **quiet)


@dataclass(frozen=True)
class Choice:
    """The settings of the page: `count` images of a seed; the image at `index` is inspected.

    `label` is the class of all images; None: drawn from the seed, or the model is unconditional.
    """

    model: Model
    seed: int
    count: int
    k: list[int]
    index: int
    label: int | None = None

    def run(self, first: int, count: int) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        sampler = self.model.sampler
        z, labels = noise.z(count, sampler.z_dim, self.seed, first), self._labels(first, count)
        return sampler.run(z, self.k or None, labels=labels)

    def classes(self, first: int, count: int) -> list[str]:
        """The name of the class of each image; "" if the model is unconditional."""
        labels = self._labels(first, count)
        return [""] * count if labels is None else [self.model.classes[label] for label in labels]

    @property
    def file(self) -> str:
        """The name of a file with these images, without its extension."""
        k = "".join(f"-k{value}" for value in dict.fromkeys(self.k))
        return f"{self.model.name}-seed{self.seed}{k}"

    def called(self) -> str:
        """Its model and k, for people."""
        k = ", ".join(map(str, dict.fromkeys(self.k)))
        return f"{self.model.name}, k = {k}" if k else self.model.name

    def _labels(self, first: int, count: int) -> np.ndarray | None:
        sampler = self.model.sampler
        return noise.labels(count, sampler.classes, self.seed, self.label, sampler.class_names, first)


class Handlers:
    """The event handlers of the tab."""

    def __init__(self, models: Mapping[str, Model], asks_token: bool = False, http_api: bool = True) -> None:
        self.models, self.asks_token, self.http_api = models, asks_token, http_api

    # Gradio passes the values of the components one by one, hence the long signatures.
    @show_errors
    def draw(
        self,
        model: object,
        label: Any,
        seed: object,
        count: object,
        k_1: object,
        apart: object,
        k_2: object,
        index: object,
        compare: object,
        other: object,
        k_other: object,
    ) -> tuple[str, ...]:
        """Draws the images of a seed, or of two settings side by side; returns them and their density."""
        shown = self._choice(model, label, seed, count, k_1, apart, k_2, index)
        sides = [shown, self._other(shown, other, k_other)] if compare else [shown]
        drawn, densities = [], []
        for side in sides:
            image, codes = side.run(0, side.count)
            pixels, classes = images.to_uint8(image), side.classes(0, side.count)
            drawn.append((side.called(), markup.tiles(pixels, side.index, classes)))
            densities.append((side.called(), markup.facts(codes, side.model.sampler.k_ranges, side.k)))
        return markup.sides(drawn), markup.sides(densities)

    @show_errors
    def calls(
        self,
        model: object,
        label: Any,
        seed: object,
        count: object,
        k_1: object,
        apart: object,
        k_2: object,
        index: object,
        compare: object,
        other: object,
        k_other: object,
        request: gr.Request,
    ) -> tuple[str, ...]:
        """Returns the calls for the same pixels elsewhere, and the link to these settings."""
        shown = self._choice(model, label, seed, count, k_1, apart, k_2, index)
        sides = [shown, self._other(shown, other, k_other)] if compare else [shown]
        return (
            python_call(shown),
            curl_call(shown, address(request), self.asks_token)
            if self.http_api
            else client_call(shown, address(request)),
            markup.share(link_to(sides), [side.file for side in sides]),
        )

    @show_errors
    def look(
        self,
        model: object,
        label: Any,
        seed: object,
        count: object,
        k_1: object,
        apart: object,
        k_2: object,
        index: object,
    ) -> tuple[str, ...]:
        """Inspects one image: the density per needle, and its most used atoms."""
        shown = self._choice(model, label, seed, count, k_1, apart, k_2, index)
        image, codes = shown.run(shown.index, 1)
        pixels, inspected, sampler = (
            images.to_uint8(image)[0],
            [code[0] for code in codes],
            shown.model.sampler,
        )
        (called,) = shown.classes(shown.index, 1)
        name = f"{shown.file}-{shown.index}"
        figures = markup.inside(pixels, inspected, sampler.k_ranges, shown.k, called, name)
        return figures, markup.atoms(inspected[0], sampler.dictionary()), markup.HINT

    @show_errors
    def switch(
        self,
        model: object,
        label: Any,
        seed: object,
        count: object,
        k_1: object,
        apart: object,
        k_2: object,
        index: object,
        event: gr.EventData,
    ) -> str:
        """Draws the inspected image without the atoms that are switched off."""
        shown = self._choice(model, label, seed, count, k_1, apart, k_2, index)
        sampler = shown.model.sampler
        last = sampler.code_shapes[0][0] - 1
        given = detail(event, "off")
        if not isinstance(given, list):
            raise ValueError(f"the atoms to switch off must be a list of numbers; got {str(given)[:40]!r}")
        off = [check_integer("atom", whole(atom), 0, last, "a filter of D1") for atom in given]
        if not off:
            return markup.HINT
        image, codes = shown.run(shown.index, 1)
        after = sampler.synthesize(inspector.without(codes[0][0], off)[None])
        return markup.loss(images.to_uint8(image)[0], images.to_uint8(after)[0], off)

    def roll(self) -> int:
        return secrets.randbelow(2**32)

    @show_errors
    def choose(self, name: object, label: object) -> tuple[object, ...]:
        """Updates the settings for another model; the class is kept if the model has it."""
        model = self._model(name)
        return (
            gr.update(value=model.name),
            gr.update(**columns(model, self.models)),
            gr.update(**class_choice(model, label)),
            gr.update(**slider(model, 0)),
            gr.update(value=False, visible=projected_levels(model) > 1),
            gr.update(**slider(model, 1) | {"visible": False}),
            markup.head(model),
            card.measured(model.config),
        )

    @show_errors
    def choose_listed(self, label: object, event: gr.EventData) -> tuple[object, ...]:
        """Updates the settings for the model that was selected in the list."""
        return self.choose(detail(event, "model"), label)

    @show_errors
    def list_models(self, name: object) -> str:
        return catalog.listing(self.models, self._model(name).name)

    @show_errors
    def compare(self, compare: bool, name: object, k_1: object) -> tuple[object, ...]:
        """Shows the second setting, at first the same model with half of k, or hides it."""
        model = self._model(name)
        settings = slider(model, 0) | {"label": "k of the second"}
        if projected_levels(model):
            settings["value"] = max(1, check_integer("k", whole(k_1), 1, settings["maximum"], "k") // 2)
        return gr.update(visible=bool(compare)), model.name, gr.update(**settings)

    @show_errors
    def choose_other(self, other: object) -> dict[str, Any]:
        """Updates the slider of the second setting for another model."""
        return gr.update(**slider(self._model(other), 0) | {"label": "k of the second"})

    def open(self, anchor: object) -> tuple[object, ...]:
        """Updates all settings from the address of the page; see `link_to`."""
        given = link.read(anchor)
        if "model" not in given:
            return (gr.skip(),) * OPENED
        try:
            return self._opened(given)
        except (TypeError, ValueError) as error:
            gr.Warning(f"The link cannot be opened: {str(error)[:300]}")
            return (gr.skip(),) * OPENED

    def _opened(self, given: Mapping[str, str]) -> tuple[object, ...]:
        def number(name: str, default: int) -> int:
            return int(given.get(name) or default)

        model, label = self._model(given["model"]), number("class", ANY)
        count = noise.check_count(number("count", 16), MAX_COUNT)
        seed = check_integer("seed", number("seed", 0), 0, BROWSER_INTEGER, "the seed of the noise")
        k_given = [int(value) for value in given["k"].split(",")] if given.get("k") else None
        k = resolve(k_given[0] if k_given and len(k_given) == 1 else k_given, model.sampler.k_ranges)
        apart = len(set(k)) > 1
        parts = list(self.choose(model.name, label))
        for place, value in enumerate(k):
            parts[3 + 2 * place] = gr.update(**slider(model, place) | {"value": value})
        if len(k) > 1:
            shown = slider(model, 0) | {"value": k[0]}
            parts[3] = gr.update(**shown | ({"info": meaning(model.sampler.k_ranges[:1])} if apart else {}))
            parts[4] = gr.update(value=apart, visible=True)
            parts[5] = gr.update(**slider(model, 1) | {"value": k[1], "visible": apart})
        compare = "with" in given
        other = self._model(given["with"]) if compare else model
        settings = slider(other, 0) | {"label": "k of the second"}
        if compare and projected_levels(other):
            settings["value"] = resolve(number("with_k", settings["value"]), other.sampler.k_ranges)[0]
        return (
            *parts,
            seed,
            count,
            _index(number("image", 0), count),
            compare,
            other.name,
            gr.update(**settings),
            gr.update(visible=compare),
        )

    @show_errors
    def part(self, model: object, apart: bool, k_1: object) -> tuple[dict[str, Any], dict[str, Any]]:
        """Shows the slider for Γ2, with the value of Γ1, or hides it."""
        both = self._model(model).sampler.k_ranges
        return gr.update(info=meaning(both[:1] if apart else both)), gr.update(visible=apart, value=k_1)

    @show_errors
    def fit(self, count: object, index: object) -> int:
        """Limits the index to the images that are drawn."""
        return _index(index, noise.check_count(whole(count), MAX_COUNT))

    @show_errors
    def pick(self, event: gr.EventData) -> int:
        """Selects the clicked image."""
        return _index(detail(event, "index"), MAX_COUNT)

    def _model(self, name: object) -> Model:
        if not isinstance(name, str) or name not in self.models:
            raise ValueError(f"no model {name!r}: the models are {', '.join(self.models)}")
        return self.models[name]

    def _other(self, shown: Choice, name: object, k: Any) -> Choice:
        """The second setting: another model or k, with the same seed, count and class if the model has it."""
        model, given = self._model(name), cast(Any, whole(k))
        k_values = resolve(given if projected_levels(model) else None, model.sampler.k_ranges)
        same = shown.label is not None and shown.label < len(model.classes)
        return replace(shown, model=model, k=k_values, label=shown.label if same else None)

    def _choice(
        self,
        name: object,
        label: Any,
        seed: object,
        count: object,
        k_1: object,
        apart: object,
        k_2: object,
        index: object,
    ) -> Choice:
        model = self._model(name)
        label = None if label == ANY else label
        given: list[Any] = [whole(k_1), whole(k_2 if apart else k_1)][: projected_levels(model)]
        images_drawn = noise.check_count(whole(count), MAX_COUNT)
        k = resolve(given or None, model.sampler.k_ranges)
        seed = noise.check_seed(whole(seed))
        return Choice(model, seed, images_drawn, k, _index(index, images_drawn), label)


def _index(index: object, count: int) -> int:
    """The index of an image, limited to the last of `count` images."""
    given = check_integer("index", whole(index), 0, MAX_COUNT - 1, "the image, the first being 0")
    return min(given, count - 1)


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


def link_to(sides: Sequence[Choice]) -> str:
    """The part of an address that opens the page with these settings; see `Handlers.open`."""
    shown = sides[0]
    settings: dict[str, object] = {
        "model": shown.model.name,
        "seed": shown.seed,
        "k": ",".join(map(str, dict.fromkeys(shown.k) if len(set(shown.k)) == 1 else shown.k)) or None,
        "class": shown.label,
        "count": shown.count,
        "image": shown.index or None,
    }
    for other in sides[1:]:
        settings |= {"with": other.model.name, "with_k": other.k[0] if other.k else None}
    return link.fragment("sample", settings)


def address(request: gr.Request) -> str:
    """The address of this server, as used by the browser."""
    headers = request.headers
    server = headers.get("origin") or f"http://{headers.get('host', '127.0.0.1:3000')}"
    return server + prefix_of(headers)


def python_call(shown: Choice) -> str:
    k = f", k={shown.k}" if shown.k else ""
    labels = "" if shown.label is None else f", labels={shown.label}"
    size = shown.model.sampler.image_size
    return (
        "from sparsegen.export.runtime import open_sampler\n\n"
        f"pixels = open_sampler({shown.model.source!r}).sample({shown.count}, seed={shown.seed}{k}{labels})"
        f"  # uint8 ({shown.count}, {size}, {size}, 3)"
    )


def client_call(shown: Choice, server: str) -> str:
    """The call of the endpoint /sample of the page."""
    given = {"model": shown.model.name, "count": shown.count, "seed": shown.seed}
    given |= {"k": shown.k} if shown.k else {}
    given |= {} if shown.label is None else {"labels": shown.label}
    arguments = ", ".join(f"{name}={value!r}" for name, value in given.items())
    return (
        "from gradio_client import Client\n\n"
        f'files = Client({server + "/"!r}).predict({arguments}, api_name="/sample")'
    )


def curl_call(shown: Choice, server: str, asks_token: bool) -> str:
    set_here = {"k": shown.k or None, "labels": shown.label}
    body = {
        "model": shown.model.name,
        "count": shown.count,
        "seed": shown.seed,
        **{name: value for name, value in set_here.items() if value is not None},
        "format": "npy",
    }
    token = "  -H 'Authorization: Bearer TOKEN' \\\n" if asks_token else ""
    return (
        f"curl {shlex.quote(server + '/sample')} -H 'Content-Type: application/json' \\\n{token}"
        f"  -d {shlex.quote(json.dumps(body))} -o pixels.npy"
    )
