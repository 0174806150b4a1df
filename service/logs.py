"""Log lines without the ids of jobs and without line breaks of others.

Whoever knows the id of a job may fetch its picture, and a log is read by more people than that. In its place stands a
fingerprint, the same for the same id.
"""

import copy
import hashlib
import logging
import re

JOB_ID = re.compile(r"(?<!trace=)(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")  # BentoML adds traces
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class SafeFormatter(logging.Formatter):
    """Formats as another formatter does, with each id replaced, and with control characters of messages escaped."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self.inner = inner

    def format(self, record: logging.LogRecord) -> str:
        record = copy.copy(record)
        record.msg, record.args = CONTROL.sub(_escaped, record.getMessage()), None
        return JOB_ID.sub(_fingerprint, self.inner.format(record))


def set_up_logs() -> None:
    """Shows what this package logs from INFO on, and makes all present handlers use a `SafeFormatter`."""
    logging.getLogger("sparsegen").setLevel(logging.INFO)
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    for handler in {handler for logger in loggers for handler in getattr(logger, "handlers", [])}:
        if not isinstance(handler.formatter, SafeFormatter):
            handler.setFormatter(SafeFormatter(handler.formatter or logging.Formatter()))


def _fingerprint(found: re.Match[str]) -> str:
    return f"#{hashlib.sha256(found[0].encode()).hexdigest()[:8]}"


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
