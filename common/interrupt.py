"""Ctrl-C as a question that a loop asks between its steps, so that no step is cut in half."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stop_on_interrupt(tell: Callable[[], object] = lambda: None) -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether Ctrl-C (or SIGTERM) came; a second Ctrl-C interrupts at once.

    Args:
        tell: Called when the first comes, since what is at work may take a while to hear of it.
    """
    stopped = False

    def note(number: int, frame: object) -> None:
        nonlocal stopped
        if stopped:
            raise KeyboardInterrupt
        stopped = True
        tell()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
