"""What the handlers of the page share: whatever goes wrong is told there in one sentence, and numbers are read."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any

import gradio as gr  # noqa: TID253 (the page is Gradio; the endpoint imports it when the server starts)

from sparsegen.service.jobs.errors import Busy, StoreError

logger = logging.getLogger(__name__)

BROWSER_INTEGER = 2**53 - 1  # the last integer up to which a browser counts in ones
SENTENCES = (TypeError, ValueError, FloatingPointError, FileNotFoundError, ImportError, Busy)


class Page(gr.Blocks):
    """Blocks that tell a visitor in one sentence that a value cannot be used, and the log in one line.

    Anybody may send any value, and Gradio logs a traceback for each.
    """

    async def preprocess_data(self, *arguments: Any, **options: Any) -> Any:
        try:
            return await super().preprocess_data(*arguments, **options)
        except Exception as error:  # whatever a component raises for what it cannot read
            logger.info("a value of the page was refused: %s", type(error).__name__)
            sentence = "a field is empty, or its value does not fit: correct it, or load the page anew"
            if isinstance(error, gr.Error):
                sentence = error.message
            raise gr.Error(sentence, print_exception=False) from None


def detail(event: gr.EventData, name: str) -> object:
    """What the script of the page says about an event.

    Raises:
        ValueError: If it does not say that.
    """
    try:
        return getattr(event, name)
    except (AttributeError, TypeError):
        raise ValueError(f"the event says nothing of {name!r}: load the page anew") from None


@contextmanager
def _errors_shown() -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        logger.error("%s", error)
        raise gr.Error(error.public, print_exception=False) from None
    except SENTENCES as error:
        raise gr.Error(str(error), print_exception=False) from None


def show_errors(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Shows what is wrong with a value, a file or the server on the page, in place of "Error"."""

    @wraps(handler)
    def wrapped(*arguments: object) -> Any:
        with _errors_shown():
            return handler(*arguments)

    @wraps(handler)
    async def awaited(*arguments: object) -> Any:
        with _errors_shown():
            return await handler(*arguments)

    return awaited if iscoroutinefunction(handler) else wrapped


def whole(number: object) -> object:
    """Numbers come from a browser as floats, too."""
    return int(number) if isinstance(number, float) and number.is_integer() else number
