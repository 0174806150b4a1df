"""Limits the bytes of uploads in the temporary folder: incoming bodies, their copies, and the files of the page."""

import asyncio
import math
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from sparsegen.service.settings import ServiceSettings

UPLOAD = "/ui/gradio_api/upload"
KEEP_UPLOADS = 900  # seconds that a dropped file is kept, e.g. for a second start with other settings
COPIES = 2  # of an incoming body: the raw body, and the files that the form parser writes
SPARE = 32 << 20  # bytes that stay free on the disk for other users of the temporary folder
LOOK_EVERY = 1.0  # seconds


class NoRoom(Exception):
    """The limit for uploads is reached."""


class Room:
    """Counts the bytes of all uploads against `limit` and the free space of the disk.

    A body is counted before it arrives if it announces its length, else as it arrives. So concurrent uploads do not
    exceed the limit, and the first ones are accepted.

    Args:
        limit: Bytes; by default the setting `uploads_mb`.
        folder: Where Gradio keeps the files that are dropped on the page.
        share: Maximum share of the limit per client, 0 to 1.
    """

    def __init__(
        self,
        limit: int | None = None,
        folder: Callable[[], Path] | None = None,
        share: float = 0.25,
    ) -> None:
        self.limit = ServiceSettings.from_environment().uploads_mb << 20 if limit is None else limit
        self._folder = folder or upload_folder
        self._arriving = self._kept = 0
        self._share = share
        self._clients: Counter[str] = Counter()
        self._free, self._looked = math.inf, -math.inf
        self._look = asyncio.Lock()

    async def look(self) -> None:
        """Measures the bytes kept and the bytes free, at most once per LOOK_EVERY seconds."""
        async with self._look:
            if time.monotonic() - self._looked >= LOOK_EVERY:
                self._kept, self._free = await asyncio.to_thread(self._measure)
                self._looked = time.monotonic()

    def take(self, size: int, client: str = "") -> None:
        """Counts `size` more bytes of a body.

        Raises: NoRoom, without counting anything.
        """
        arriving, own = self._arriving + COPIES * size, self._clients[client] + COPIES * size
        if self._kept + arriving > self.limit or arriving > self._free - SPARE:
            raise NoRoom("the server has no room for another upload: retry in a few minutes")
        if own > self.limit * self._share:
            raise NoRoom(
                f"your uploads would take {own >> 20} MB, which is more than one client may use: retry later"
            )
        self._arriving, self._clients[client] = arriving, own

    def give_back(self, size: int, client: str = "", stays: bool = False) -> None:
        """Releases `size` bytes when their request has ended.

        With `stays`, the files remain: they are measured before the next upload, and count for their client for
        KEEP_UPLOADS seconds.
        """
        self._arriving -= COPIES * size
        if stays:
            self._looked = -math.inf
            asyncio.get_running_loop().call_later(KEEP_UPLOADS, self._forget, size, client)
        else:
            self._forget(size, client)

    def _forget(self, size: int, client: str) -> None:
        self._clients[client] -= COPIES * size
        if not self._clients[client]:
            del self._clients[client]

    def _measure(self) -> tuple[int, int]:
        return used(self._folder()), shutil.disk_usage(tempfile.gettempdir()).free


def upload_folder() -> Path:
    """The folder where Gradio keeps dropped files; `serve` gives each server its own."""
    from gradio.utils import get_upload_folder  # takes seconds; the server has imported it by now

    return Path(get_upload_folder())


def used(folder: Path) -> int:
    """The bytes that a folder takes on the disk, in whole blocks. Files may be removed meanwhile."""
    total = 0
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            try:
                status = os.lstat(os.path.join(parent, name))
            except FileNotFoundError:
                continue  # removed meanwhile
            total += max(status.st_size, 512 * getattr(status, "st_blocks", 0))
    return total
