"""Shared parts of the handlers of the page: error messages and conversion of numbers."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any

import gradio as gr  # noqa: TID253 (the page is Gradio; the endpoint imports it when the server starts)

from sparsegen.service.jobs.errors import Busy, StoreError
from sparsegen.service.uploads import NoRoom

logger = logging.getLogger(__name__)

BROWSER_INTEGER = 2**53 - 1  # the largest integer that JavaScript represents exactly with its neighbors
SENTENCES = (TypeError, ValueError, FloatingPointError, FileNotFoundError, ImportError, Busy, NoRoom)


class Page(gr.Blocks):
    """Blocks that answer an invalid value with one sentence and one log line.

    Clients can send any value; Gradio would log a traceback for each invalid one.
    """

    async def preprocess_data(self, *arguments: Any, **options: Any) -> Any:
        try:
            return await super().preprocess_data(*arguments, **options)
        except Exception as error:  # components raise various errors for invalid values
            logger.info("a value of the page was refused: %s", type(error).__name__)
            sentence = "a field is empty or invalid: correct it, or reload the page"
            if isinstance(error, gr.Error):
                sentence = error.message
            raise gr.Error(sentence, print_exception=False) from None


def detail(event: gr.EventData, name: str) -> object:
    """The value `name` that the script of the page sent with an event.

    Raises:
        ValueError: If it is missing.
    """
    try:
        return getattr(event, name)
    except (AttributeError, TypeError):
        raise ValueError(f"the event has no {name!r}: reload the page") from None


@contextmanager
def errors_shown() -> Iterator[None]:
    """Makes the page show the messages of expected errors, not only "Error"."""
    try:
        yield
    except StoreError as error:
        logger.error("%s", error)
        raise gr.Error(error.public, print_exception=False) from None
    except SENTENCES as error:
        raise gr.Error(str(error), print_exception=False) from None


def show_errors(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a handler with `errors_shown`."""

    @wraps(handler)
    def wrapped(*arguments: object) -> Any:
        with errors_shown():
            return handler(*arguments)

    @wraps(handler)
    async def awaited(*arguments: object) -> Any:
        with errors_shown():
            return await handler(*arguments)

    return awaited if iscoroutinefunction(handler) else wrapped


def whole(number: object) -> object:
    """Converts whole floats to int; browsers may send integers as floats."""
    return int(number) if isinstance(number, float) and number.is_integer() else number
