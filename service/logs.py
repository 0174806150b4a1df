"""Log lines without job ids, and without line breaks from requests; as text, or as one JSON object per line.

The id of a job gives access to its picture, and more people can read a log. A fingerprint replaces the id; the same
id has the same fingerprint.
"""

import copy
import hashlib
import json
import logging
import re
import secrets
from contextvars import ContextVar
from datetime import UTC, datetime

from sparsegen.service.settings import ServiceSettings

JOB_ID = re.compile(
    r"(?<!trace=)(?<!\"trace_id\": \")(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])"
)  # BentoML adds trace ids
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
TRACE = re.compile(r"trace=([0-9a-f]+),span=([0-9a-f]+)")
GIVEN_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)

request_id: ContextVar[str] = ContextVar("request_id", default="")  # of the request that is being answered


def identify(given: str | None) -> str:
    """The id of a request: the given X-Request-ID if it is well-formed, else a new one."""
    return given if given and GIVEN_ID.fullmatch(given) else secrets.token_hex(8)


class SafeFormatter(logging.Formatter):
    """Formats like another formatter, but replaces job ids and escapes control characters of messages."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self.inner = inner

    def format(self, record: logging.LogRecord) -> str:
        record = copy.copy(record)
        record.msg, record.args = CONTROL.sub(_escaped, record.getMessage()), None
        if request_id.get() and not isinstance(self.inner, JsonFormatter):
            record.msg = f"{record.msg} request={request_id.get()}"
        return JOB_ID.sub(_fingerprint, self.inner.format(record))


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON; `fields` of the record are added to it."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        if request_id.get():
            line["request_id"] = request_id.get()
        if found := TRACE.search(getattr(record, "trace_msg", "")):  # added by BentoML
            line |= {"trace_id": found[1], "span_id": found[2]}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line | getattr(record, "fields", {}), ensure_ascii=False)


def set_up_logs() -> None:
    """Sets the log level of this package to INFO, and makes all existing handlers use a `SafeFormatter`.

    The setting `log_format` selects text or JSON.
    """
    as_json = ServiceSettings.from_environment().log_format == "json"
    logging.getLogger("sparsegen").setLevel(logging.INFO)
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    for handler in {handler for logger in loggers for handler in getattr(logger, "handlers", [])}:
        if not isinstance(handler.formatter, SafeFormatter):
            inner = JsonFormatter() if as_json else handler.formatter or logging.Formatter()
            handler.setFormatter(SafeFormatter(inner))


def _fingerprint(found: re.Match[str]) -> str:
    return f"#{hashlib.sha256(found[0].encode()).hexdigest()[:8]}"


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
