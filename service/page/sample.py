"""The Sample tab: draw images, set their sparsity, and inspect the code of one image."""

import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import gradio as gr  # noqa: TID253 (the page is Gradio; the endpoint imports it when the server starts)

from sparsegen.common.checks import check_integer
from sparsegen.pictures import images
from sparsegen.service.models import Model
from sparsegen.service.page import catalog, inspector, link, markup
from sparsegen.service.page.choice import Choice, address, client_call, curl_call, link_to, python_call
from sparsegen.service.page.handlers import BROWSER_INTEGER, detail, show_errors, whole
from sparsegen.service.page.sample_layout import (
    ANY,
    class_choice,
    columns,
    layout,
    meaning,
    projected_levels,
    slider,
)
from sparsegen.service.page.static import read_static
from sparsegen.service.sampling import MAX_COUNT
from sparsegen.zoo import card, noise
from sparsegen.zoo.k_range import resolve

OPENED = 15  # components that an address sets


def tab(blocks: gr.Blocks, models: Mapping[str, Model], asks_token: bool, http_api: bool = True) -> None:
    """Builds the Sample tab, and connects it to the samplers."""
    handlers = Handlers(models, asks_token, http_api)
    s, v, d = layout(models, http_api)
    anchor = gr.Textbox(visible=False)
    chosen = [s.name, s.label, s.seed, s.count, v.k_1, v.apart, v.k_2, d.index]
    compared = [s.compare, s.other, s.k_other]
    model_parts = [s.name, s.column, s.label, v.k_1, v.apart, v.k_2, v.head, d.card]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    named = quiet | {"api_visibility": "undocumented"}  # callable by name; `api` has the documented ones
    draw: dict[str, Any] = {
        "fn": handlers.draw,
        "inputs": [*chosen, *compared],
        "outputs": [v.gallery, s.facts],
    }
    # After the images, since the browser takes longer for them.
    calls: dict[str, Any] = {
        "fn": handlers.calls,
        "inputs": [*chosen, *compared],
        "outputs": [d.python, d.call, v.share],
    }
    look: dict[str, Any] = {"fn": handlers.look, "inputs": chosen, "outputs": [d.inside, d.atoms, d.loss]}

    def redraw(event: gr.events.Dependency) -> None:
        event.then(**draw, **quiet).then(**look, **quiet).then(**calls, **quiet)

    for choice in (s.name, s.label, s.other):
        # Selects the text, so that typing replaces it and searches the list.
        choice.focus(None, js=read_static("select.js"), **quiet)
    blocks.load(
        handlers.open,
        anchor,
        [*model_parts, s.seed, s.count, d.index, *compared, s.second],
        js="() => [location.hash]",
        **quiet,
    ).then(**draw, **named, api_name="draw").then(**look, **named, api_name="look").then(
        **calls, **named, api_name="calls"
    ).then(handlers.list_models, s.name, d.listing, **quiet)
    live = [s.label.input, s.seed.input, v.k_1.input, v.k_2.input, d.index.input, s.k_other.input]
    gr.on(live, **draw, trigger_mode="always_last", **quiet).then(**look, **quiet).then(**calls, **quiet)
    redraw(s.count.input(handlers.fit, [s.count, d.index], d.index, trigger_mode="always_last", **quiet))
    redraw(s.dice.click(handlers.roll, None, s.seed, **quiet))
    choose: dict[str, Any] = {"fn": handlers.choose, "outputs": model_parts}
    redraw(s.name.input(**choose, inputs=[s.name, s.label], **named, api_name="choose"))
    redraw(s.column.input(**choose, inputs=[s.column, s.label], **quiet))
    redraw(d.listing.pick(handlers.choose_listed, s.label, model_parts, **quiet))
    redraw(v.apart.input(handlers.part, [s.name, v.apart, v.k_1], [v.k_1, v.k_2], **quiet))
    redraw(
        s.compare.input(handlers.compare, [s.compare, s.name, v.k_1], [s.second, s.other, s.k_other], **quiet)
    )
    redraw(s.other.input(handlers.choose_other, s.other, s.k_other, **quiet))
    redraw(v.gallery.pick(handlers.pick, None, d.index, **quiet))
    d.atoms.toggle(handlers.switch, chosen, d.loss, trigger_mode="always_last", **quiet)


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
        off = read_atoms(event, sampler.code_shapes[0][0])
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


def read_atoms(event: gr.EventData, count: int) -> list[int]:
    """Reads the atoms to switch off, of `count` atoms.  Raises: TypeError, ValueError."""
    given = detail(event, "off")
    if not isinstance(given, list):
        raise ValueError(f"the atoms to switch off must be a list of numbers; got {str(given)[:40]!r}")
    return [check_integer("atom", whole(atom), 0, count - 1, "a filter of D1") for atom in given]


def _index(index: object, count: int) -> int:
    """The index of an image, limited to the last of `count` images."""
    given = check_integer("index", whole(index), 0, MAX_COUNT - 1, "the image, the first being 0")
    return min(given, count - 1)
