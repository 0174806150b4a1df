"""Log lines without job ids, and without line breaks from requests.

The id of a job gives access to its picture, and more people can read a log. A fingerprint replaces the id; the same
id has the same fingerprint.
"""

import copy
import hashlib
import logging
import re

JOB_ID = re.compile(r"(?<!trace=)(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")  # BentoML adds trace ids
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class SafeFormatter(logging.Formatter):
    """Formats like another formatter, but replaces job ids and escapes control characters of messages."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self.inner = inner

    def format(self, record: logging.LogRecord) -> str:
        record = copy.copy(record)
        record.msg, record.args = CONTROL.sub(_escaped, record.getMessage()), None
        return JOB_ID.sub(_fingerprint, self.inner.format(record))


def set_up_logs() -> None:
    """Sets the log level of this package to INFO, and makes all existing handlers use a `SafeFormatter`."""
    logging.getLogger("sparsegen").setLevel(logging.INFO)
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    for handler in {handler for logger in loggers for handler in getattr(logger, "handlers", [])}:
        if not isinstance(handler.formatter, SafeFormatter):
            handler.setFormatter(SafeFormatter(handler.formatter or logging.Formatter()))


def _fingerprint(found: re.Match[str]) -> str:
    return f"#{hashlib.sha256(found[0].encode()).hexdigest()[:8]}"


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
