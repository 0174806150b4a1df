"""The Gradio page: its tabs, and its place in the application."""

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from html import escape
from itertools import islice
from types import MappingProxyType
from typing import TypeVar

import gradio as gr  # noqa: TID253 (the page is Gradio; the endpoint imports it when the server starts)
from fastapi import FastAPI
from jinja2 import ChoiceLoader, DictLoader

from sparsegen.service.clients import client_of
from sparsegen.service.jobs.orders import MAX_UPLOAD, Turns
from sparsegen.service.jobs.store import Store
from sparsegen.service.models import Model
from sparsegen.service.page import api, encoding, markup, restoration, restoration_layout, sample, words
from sparsegen.service.page.events import MAX_EVENTS
from sparsegen.service.page.handlers import Page
from sparsegen.service.page.static import read_static
from sparsegen.service.uploads import Room

# The colors of Soft, with the contrast that WCAG 2 asks for: 4.5 for text, 3 for the borders of controls.
THEME = gr.themes.Soft(primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["monospace"]).set(
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
    block_title_text_color="*neutral_800",
    block_title_text_color_dark="*neutral_100",
    block_title_background_fill="transparent",
    block_title_background_fill_dark="transparent",
    block_title_padding="0",
    block_label_text_color="*neutral_800",
    block_label_text_color_dark="*neutral_100",
    block_label_background_fill="transparent",
    block_label_background_fill_dark="transparent",
    checkbox_border_color="*neutral_500",
    checkbox_border_color_dark="*neutral_400",
    input_border_color="*neutral_500",
    input_border_color_dark="*neutral_500",
    color_accent="*primary_700",
    slider_color="*primary_600",
    slider_color_dark="*primary_500",
    checkbox_label_background_fill_selected="*primary_700",
    checkbox_label_background_fill_selected_dark="*primary_700",
    checkbox_label_text_color_selected="white",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover_dark="*primary_800",
    link_text_color="*primary_700",
    link_text_color_dark="*primary_300",
)
LOOK = {
    "theme": THEME,
    "css": read_static("page.css"),
    "footer_links": [],
    "run_history": False,
    "max_file_size": MAX_UPLOAD,
    "allowed_paths": [str(restoration_layout.EXAMPLES)],
    "ssr_mode": False,
}
TEMPLATE = "frontend/index.html"  # of Gradio
MAX_SESSIONS = 256  # visitors whose answers, settings and upload states are kept


Key = TypeVar("Key")
Value = TypeVar("Value")


class Latest(dict[Key, Value]):
    """A dict that keeps the latest MAX_SESSIONS items, and those in use.

    Args:
        make: Makes missing items; without it they raise a KeyError.
        in_use: Returns the few keys that must not be removed.
    """

    def __init__(
        self,
        make: Callable[[], Value] | None = None,
        in_use: Callable[[], Collection[Key]] = tuple,
    ) -> None:
        super().__init__()
        self._make, self._in_use = make, in_use

    def __missing__(self, key: Key) -> Value:
        if self._make is None:
            raise KeyError(key)
        self[key] = self._make()
        return self[key]

    def __setitem__(self, key: Key, value: Value) -> None:
        super().__setitem__(key, value)
        if (extra := len(self) - MAX_SESSIONS) > 0:
            kept = {key, *self._in_use()}
            for old in list(islice((one for one in self if one not in kept), extra)):
                del self[old]


def mount(
    app: FastAPI,
    models: Mapping[str, Model],
    jobs: Callable[[], Store],
    room: Callable[[], Room],
    asks_token: bool = False,
    http_api: bool = True,
) -> tuple[Callable[[], Counter[str]], frozenset[int], Collection[str]]:
    """Adds the page to an application, at /ui.

    Args:
        room: Returns the room for the files of answers, which they share with uploads.
        asks_token: Whether the server requires a token; the page then shows API calls with a token.
        http_api: Whether the application has POST /sample; otherwise the page shows calls of gradio_client.

    Returns: A function that counts the waiting and running events per client (`client_of`); the numbers of the
        functions that events may call; and the sessions for which Gradio has messages.
    """
    use_own_tags()
    pages = {"API": "../docs"} if http_api else {}
    blocks = page(models, jobs, lambda: app.state.turns, room, asks_token, http_api, pages)
    # Twice the limit of the guard, which simultaneous requests may exceed. All events pass the queue.
    blocks.queue(max_size=2 * MAX_EVENTS, api_open=False)
    gr.mount_gradio_app(app, blocks, path="/ui", **LOOK)
    # `launch` would set it; without it Gradio does not check the paths in requests.
    blocks.has_launched = True

    def busy() -> set[str]:
        return {event.session_hash for event in blocks._queue.event_ids_to_events.values()}

    # Unfetched answers stay until newer ones replace them; the 2,000 of Gradio may take a gigabyte. Gradio would also
    # remove sessions with waiting events, which stops the queue for all visitors.
    blocks._queue.pending_messages_per_session = Latest(asyncio.Queue, busy)  # type: ignore[assignment]  # in place of an LRUCache
    blocks._queue.pending_event_ids_session = Latest(set, busy)
    # The settings of a visitor take 120 kB; Gradio keeps 10,000 of them, and the states of all uploads.
    blocks.state_holder.capacity = MAX_SESSIONS
    uploads = gr.routes.file_upload_statuses
    uploads._statuses = Latest()
    uploads._signals = Latest(asyncio.Event)  # type: ignore[assignment]  # in place of a defaultdict

    def queued() -> Counter[str]:
        return Counter(client_of(event.request) for event in blocks._queue.event_ids_to_events.values())

    numbers = frozenset(number for number, function in blocks.fns.items() if function.fn is not None)
    return queued, numbers, blocks._queue.pending_messages_per_session


def page(
    models: Mapping[str, Model],
    jobs: Callable[[], Store],
    turns: Callable[[], Turns],
    room: Callable[[], Room],
    asks_token: bool = False,
    http_api: bool = True,
    pages: Mapping[str, str] = MappingProxyType({}),
) -> gr.Blocks:
    """Builds the page and its endpoints, and connects them to the samplers and the restoration jobs.

    Each tab has its own address, #sample, #encode and #restore; see `link` for settings. Each job has #restore=ID.

    Args:
        pages: The addresses of other pages of this server, by their titles.
    """
    with Page(title="sparsegen", analytics_enabled=False, delete_cache=restoration.SWEEP_UPLOADS) as blocks:
        gr.HTML(markup.banner(pages))
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Sample", id="sample"):
                sample.tab(blocks, models, asks_token, http_api)
            with gr.Tab("Encode", id="encode"):
                encoding.tab(models, turns)
            with gr.Tab("Restore", id="restore"):
                restoration.tab(blocks, tabs, jobs, turns)
        with gr.Accordion("Terms", open=False, elem_id="terms"):
            gr.HTML(markup.terms())
        api.register(models, jobs, turns, room)
    return blocks


def use_own_tags() -> None:
    """Replaces the title, description and picture that Gradio's page shows in previews of links by those of this page.

    Choice: the template is changed when it is loaded, because Gradio has no setting for most of these tags.
    """
    environment = gr.routes.templates.env
    original = environment.loader
    if original is None or isinstance(original, ChoiceLoader):  # done before
        return
    source, *_ = original.get_source(environment, TEMPLATE)
    own = read_static("tags.html").replace("DESCRIPTION", escape(words.DESCRIPTION))
    source = source.replace('href="/manifest.json"', 'href="../manifest.json"')
    source = re.sub(r'<meta\s+(property="og:|name="(twitter:|description"))[^>]*>', "", source)
    environment.loader = ChoiceLoader(
        [DictLoader({TEMPLATE: source.replace("<head>", f"<head>{own}", 1)}), original]
    )
