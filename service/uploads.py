"""The room in the temporary folder for uploads: those that arrive, their copies, and what the page keeps."""

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
KEEP_UPLOADS = 900  # seconds that a dropped file lies on the server, for a second start with other settings
COPIES = 2  # of a body that arrives: as it came, and its files, which the parser of the form writes apart
SPARE = 32 << 20  # bytes that stay free on the disk, for others that need the temporary folder
LOOK_EVERY = 1.0  # seconds


class NoRoom(Exception):
    """There is no room for more uploads now."""


class Room:
    """Counts the bytes of all uploads together, against `limit` and the free space of the disk.

    A body is counted before it arrives, by the length it announces, or else as it arrives: many at the same time do
    not exceed the limit, and of too many the first are taken.

    Args:
        limit: bytes; by default the option `uploads_mb`.
        folder: where Gradio keeps what is dropped on the page.
        share: how much of the limit one client may take.
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
        """Measures what is kept and what is free, at most once in LOOK_EVERY seconds."""
        async with self._look:
            if time.monotonic() - self._looked >= LOOK_EVERY:
                self._kept, self._free = await asyncio.to_thread(self._measure)
                self._looked = time.monotonic()

    def take(self, size: int, client: str = "") -> None:
        """Counts `size` more bytes of a body.

        Raises: NoRoom; then nothing was counted.
        """
        arriving, own = self._arriving + COPIES * size, self._clients[client] + COPIES * size
        if self._kept + arriving > self.limit or arriving > self._free - SPARE:
            raise NoRoom("the server has no room for another upload: try again in some minutes")
        if own > self.limit * self._share:
            raise NoRoom(
                f"your uploads take {own >> 20} MB of the server's room, and more is not allowed: try later"
            )
        self._arriving, self._clients[client] = arriving, own

    def give_back(self, size: int, client: str = "", stays: bool = False) -> None:
        """Counts `size` bytes less: their request has ended.

        What `stays` is measured before the next is counted, and counts for its client for KEEP_UPLOADS seconds.
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
    """Where Gradio keeps what is dropped; `serve` gives each server a folder of its own."""
    from gradio.utils import get_upload_folder  # seconds, and the server has imported it by now

    return Path(get_upload_folder())


def used(folder: Path) -> int:
    """The bytes that a folder takes on the disk: whole blocks, and its folders. Files may go meanwhile."""
    total = 0
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            try:
                status = os.lstat(os.path.join(parent, name))
            except FileNotFoundError:
                continue  # its time was over
            total += max(status.st_size, 512 * getattr(status, "st_blocks", 0))
    return total
