"""What the handlers of the page share: whatever goes wrong is told there in one sentence, and numbers are read."""

import logging
from collections.abc import Callable
from functools import wraps

import gradio as gr  # noqa: TID253 (the page is Gradio; the endpoint imports it when the server starts)

from sparsegen.service.jobs import Busy, StoreError

logger = logging.getLogger(__name__)

BROWSER_INTEGER = 2**53 - 1  # the last integer up to which a browser counts in ones
SENTENCES = (TypeError, ValueError, FloatingPointError, FileNotFoundError, ImportError, Busy)


def told(handler: Callable) -> Callable:
    """Shows what is wrong with a value, a file or the server on the page, in place of "Error"."""

    @wraps(handler)
    def wrapped(*arguments: object) -> object:
        try:
            return handler(*arguments)
        except StoreError as error:
            logger.error("%s", error)
            raise gr.Error(error.public, print_exception=False) from None
        except SENTENCES as error:
            raise gr.Error(str(error), print_exception=False) from None

    return wrapped


def whole(number: object) -> object:
    """Numbers come from a browser as floats, too."""
    return int(number) if isinstance(number, float) and number.is_integer() else number
