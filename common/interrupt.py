"""Ctrl-C as a flag that a loop checks between its steps, so that steps are not interrupted."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stop_on_interrupt(on_first: Callable[[], object] = lambda: None) -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether Ctrl-C or SIGTERM was received; a second one interrupts at once.

    Args:
        on_first: Called on the first signal, because the current step may take a while.
    """
    stopped = False

    def note(number: int, frame: object) -> None:
        nonlocal stopped
        if stopped:
            raise KeyboardInterrupt
        stopped = True
        on_first()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
