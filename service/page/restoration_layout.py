"""The components of the Restore tab, without their events, and its example pictures."""

from dataclasses import dataclass
from pathlib import Path

import gradio as gr  # noqa: TID253 (the page is Gradio; the endpoint imports it when the server starts)
from gradio.components import Component  # noqa: TID253
from gradio.data_classes import FileData  # noqa: TID253

from sparsegen.pictures.reading import read_picture
from sparsegen.restoration.damage import FACTORS, MAX_BLUR
from sparsegen.restoration.kinds import SERVED
from sparsegen.restoration.settings import LOSSES, MAX_ENSEMBLE, MAX_SIGMA, PRESETS, SPARSITIES, Task
from sparsegen.service.jobs.orders import MAX_PIXELS
from sparsegen.service.page import markup
from sparsegen.service.page.handlers import BROWSER_INTEGER
from sparsegen.service.page.static import read_static

EXAMPLES = Path(__file__).parent / "examples"  # drawn by benchmarks/restore_examples.py
INTRODUCTION = """A network is fitted to your picture alone (a *sparse Deep Image Prior*). It learns structure before
noise, its codes are kept **sparse**, and the fit is stopped before it reproduces the noise. The
expected time is shown before the start. For noise, the preset *quick* takes seconds and has no network."""
PRESET_LABELS = {
    "fast": "fast: automatic stopping, minutes",
    "paper": "paper: the settings of the paper, hours",
    "quick": "quick: no network, only for noise, seconds",
}


@dataclass(frozen=True)
class Example:
    """An example picture and the settings of its restoration."""

    caption: str
    image: str
    kind: str
    mask: str | None = None
    sigma: float = 0

    @property
    def image_path(self) -> Path:
        return EXAMPLES / self.image

    @property
    def mask_path(self) -> Path | None:
        return None if self.mask is None else EXAMPLES / self.mask


SHOWN = (
    Example("Still life, noisy", "noisy.jpg", "denoise", sigma=25),
    Example("Harbor, dark", "dark.jpg", "denoise"),
    Example("Postcard, holes", "damaged.jpg", "inpaint", "damaged-mask.png"),
    Example("Butterfly, small", "small.png", "upscale"),
)


@dataclass(frozen=True)
class Advanced:
    """The advanced settings, in the order of the arguments of the handlers."""

    preset: gr.Dropdown
    regularizer: gr.Dropdown
    ensemble_size: gr.Dropdown
    sigma: gr.Number
    seed: gr.Number
    loss: gr.Dropdown

    def inputs(self) -> list[Component]:
        return [self.preset, self.regularizer, self.ensemble_size, self.sigma, self.seed, self.loss]


@dataclass(frozen=True)
class Order:
    """The column of the order: the picture, what to do, and the settings."""

    examples: gr.HTML
    image: gr.File
    kind: gr.Radio
    holes: gr.Column
    mask: gr.File
    by: gr.Radio
    blur: gr.Slider
    advanced: Advanced
    expected: gr.HTML
    start: gr.Button
    cancel: gr.Button


@dataclass(frozen=True)
class Progress:
    """The column of the pictures before and after, and of the state of the job."""

    stage: gr.HTML
    panel: gr.HTML


def layout() -> tuple[Order, Progress]:
    """Builds the components."""
    gr.Markdown(INTRODUCTION)
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            order = _order()
        with gr.Column(scale=3, min_width=280):
            stage = gr.HTML(
                html_template=read_static("stage.html"),
                js_on_load=read_static("stage.js"),
                before=None,
                after=None,
                job="",
                done=False,
                elem_id="stage",
            )
            panel = gr.HTML(elem_id="panel")
    return order, Progress(stage, panel)


def _order() -> Order:
    examples = gr.HTML(thumbnails(), js_on_load=read_static("pick.js"), elem_id="examples")
    image = dropped(f"Your picture, up to {MAX_PIXELS / 1e6:g} megapixel", "image")
    kinds = [(kind.label, name) for name, kind in SERVED.items()]
    kind = gr.Radio(kinds, value=Task.kind, label="What to do", elem_id="kind")
    with gr.Column(visible=False) as holes:
        mask = dropped("Mask, white in the holes", "mask")
    factors = [(f"× {factor}", factor) for factor in FACTORS]
    by = gr.Radio(factors, value=FACTORS[0], label="Factor", visible=False, elem_id="by")
    label = "Blur: σ of a Gaussian, in pixels"
    blur = gr.Slider(0.5, MAX_BLUR, 1.6, step=0.1, label=label, visible=False, elem_id="blur")
    advanced = _advanced()
    expected = gr.HTML(elem_id="expected")
    with gr.Row():
        start = gr.Button("Start", variant="primary", elem_id="start")
        cancel = gr.Button("Cancel", variant="stop", visible=False, elem_id="cancel")
    return Order(examples, image, kind, holes, mask, by, blur, advanced, expected, start, cancel)


def dropped(label: str, elem_id: str) -> gr.File:
    """A place to drop a file; handlers get its path. The file is kept for KEEP_UPLOADS seconds.

    Choice: `preprocess` is replaced, because Gradio writes a .pyi file next to the module of a subclass. A handler must
    change only the value of the component, else Gradio restores the original, which reads the whole file into memory.
    """
    file = gr.File(label=label, type="binary", height=110, elem_id=elem_id)

    def preprocess(payload: FileData | None) -> Path | None:
        return None if payload is None else Path(payload.path)

    file.preprocess = preprocess  # type: ignore[method-assign, assignment]  # see "Choice"
    return file


def _advanced() -> Advanced:
    with gr.Accordion("Advanced", open=False, elem_id="advanced"):
        preset = gr.Dropdown(
            [(PRESET_LABELS.get(name, name), name) for name in PRESETS], value=Task.preset, label="Preset"
        )
        regularizer = gr.Dropdown(
            list(SPARSITIES), value=Task.regularizer, label="Regularizer", info="Constraint on the codes."
        )
        ensemble_size = gr.Dropdown(
            [("the preset's", 0), *range(1, MAX_ENSEMBLE + 1)],
            value=0,
            label="Networks",
            info="Number of networks averaged; run time grows linearly.",
            elem_id="ensemble_size",
        )
        sigma = gr.Number(
            0,
            label="Noise σ",
            info="Standard deviation in gray levels, 0 to 255; 0: estimated.",
            minimum=0,
            maximum=MAX_SIGMA,
            elem_id="sigma",
        )
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=BROWSER_INTEGER)
        loss = gr.Dropdown(
            [(f"{name}: {meaning}", name) for name, meaning in LOSSES.items()], value=Task.loss, label="Loss"
        )
    return Advanced(preset, regularizer, ensemble_size, sigma, seed, loss)


def thumbnails() -> str:
    """The examples as buttons."""
    return markup.examples(
        [(example.caption, read_picture(EXAMPLES / example.image).pixels) for example in SHOWN]
    )
