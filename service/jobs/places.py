"""Places of the job store: a file, or the URL of a Redis, whose password must not be shown."""

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sparsegen.service.jobs.errors import StoreError

ENVIRONMENT = "SPARSEGEN_JOBS"
REDIS = re.compile(r"(redis|rediss|unix)://")


def is_redis(place: str) -> bool:
    return REDIS.match(place) is not None


def public(url: str) -> str:
    """A URL without user, password and options; only its scheme if the URL is ambiguous."""
    scheme = url.partition("://")[0]
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port is not None else ""
    except ValueError:
        return f"{scheme}://…"
    if "@" in parts.path + parts.query + parts.fragment:  # a password that contains /, ? or #
        return f"{scheme}://…"
    hidden = "…@" if "@" in parts.netloc else ""
    return f"{scheme}://{hidden}{parts.hostname or ''}{port}{parts.path}"


def has_password(url: str) -> bool:
    """Whether a URL may contain a password, before its host or as an option."""
    return "://" in url and ("@" in url or "password" in unquote(url))


def check_redis_url(url: str) -> None:
    """Raises: ValueError, without the password, if the URL is ambiguous."""
    if public(url).endswith("://…"):
        raise ValueError(
            f"the URL of Redis ({public(url)}) is ambiguous: in user and password, write %25 for %, %2F for /, %3A "
            "for :, %3F for ?, %23 for # and %40 for @"
        )


def default_place() -> str:
    """The value of the environment variable SPARSEGEN_JOBS, else a file in the user's state folder (XDG).

    Raises:
        StoreError: If neither SPARSEGEN_JOBS nor XDG_STATE_HOME is set and the user has no home folder.
    """
    if own := os.environ.get(ENVIRONMENT):
        return own
    shared = os.environ.get("XDG_STATE_HOME", "")
    try:
        folder = Path(shared) if os.path.isabs(shared) else Path.home() / ".local" / "state"
    except RuntimeError as error:
        raise StoreError(
            f"there is no home folder for the file of the jobs: set {ENVIRONMENT} to a file"
        ) from error
    return str(folder / "sparsegen" / "jobs.sqlite")
