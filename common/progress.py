"""The types of progress callbacks and of progress bars that a caller supplies."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

OnProgress = Callable[[int, int], object]  # called with the images done and the total
# Called with a title and the total, or None. It yields a function of the amount done and, once known, the total.
ProgressBar = Callable[[str, int | None], AbstractContextManager[Callable[..., object]]]


@contextmanager
def no_progress_bar(title: str, total: int | None) -> Iterator[Callable[..., object]]:
    """A progress bar that shows nothing."""
    yield lambda done, total=None: None
