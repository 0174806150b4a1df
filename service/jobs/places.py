"""Where jobs are kept: a file, or the URL of a Redis, which may hold a password and must not be shown with it."""

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
    """A URL without user, password and options; only its scheme where it cannot be read for certain."""
    scheme = url.partition("://")[0]
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port is not None else ""
    except ValueError:
        return f"{scheme}://…"
    if "@" in parts.path + parts.query + parts.fragment:  # a password with /, ? or # in it
        return f"{scheme}://…"
    hidden = "…@" if "@" in parts.netloc else ""
    return f"{scheme}://{hidden}{parts.hostname or ''}{port}{parts.path}"


def has_password(url: str) -> bool:
    """Whether a URL may hold a password, before its host or as an option."""
    return "://" in url and ("@" in url or "password" in unquote(url))


def check_redis_url(url: str) -> None:
    """Raises: ValueError, which shows nothing of a password, if the URL cannot be read for certain."""
    if public(url).endswith("://…"):
        raise ValueError(
            f"the URL of Redis ({public(url)}) cannot be read: in user and password write %25 for %, %2F for /, %3A "
            "for :, %3F for ?, %23 for # and %40 for @"
        )


def default_place() -> str:
    """What the environment variable SPARSEGEN_JOBS says, else a file in the user's folder for states.

    Raises:
        StoreError: Where none of the variables is set and the user has no home folder.
    """
    if own := os.environ.get(ENVIRONMENT):
        return own
    shared = os.environ.get("XDG_STATE_HOME", "")
    try:
        folder = Path(shared) if os.path.isabs(shared) else Path.home() / ".local" / "state"
    except RuntimeError as error:
        raise StoreError(f"no home folder to keep jobs in: set {ENVIRONMENT} to a file") from error
    return str(folder / "sparsegen" / "jobs.sqlite")
