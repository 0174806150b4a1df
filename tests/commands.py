"""What the command line returns in the process of a test; the fixture `sparsegen` runs it."""

from collections.abc import Callable
from typing import NamedTuple


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


CLI = Callable[..., Done]


def assert_refused(done: Done, *says: str) -> None:
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("sparsegen: ")
    for text in says:
        assert text in done.stderr
