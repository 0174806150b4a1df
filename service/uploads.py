"""The room in the temporary folder for uploads: those that arrive, their copies, and what the page keeps."""

import asyncio
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sparsegen.service.options import Options

UPLOAD = "/ui/gradio_api/upload"
KEEP_UPLOADS = 900  # seconds that a dropped file lies on the server, for a second start with other settings
COPIES = 2  # of a body that arrives: as it came, and its files, which the parser of the form writes apart
SPARE = 32 << 20  # bytes that stay free on the disk, for others that need the temporary folder
LOOK_EVERY = 1.0  # seconds


class NoRoom(Exception):
    """There is no room for more uploads now."""


class Room:
    """Counts the bytes of all uploads together, against `limit` and the free space of the disk.

    Bodies are counted as they arrive, not by what they announce, so that many at the same time do not exceed it.

    Args:
        limit: bytes; by default the option `uploads_mb`.
        folder: where Gradio keeps what is dropped on the page.
    """

    def __init__(self, limit: int | None = None, folder: Callable[[], Path] | None = None) -> None:
        self.limit = Options.from_environment().uploads_mb << 20 if limit is None else limit
        self._folder = folder or upload_folder
        self._arriving = self._kept = 0
        self._free, self._looked = math.inf, -math.inf
        self._look = asyncio.Lock()

    async def look(self) -> None:
        """Measures what is kept and what is free, at most once in LOOK_EVERY seconds."""
        async with self._look:
            if time.monotonic() - self._looked >= LOOK_EVERY:
                self._kept, self._free = await asyncio.to_thread(self._measure)
                self._looked = time.monotonic()

    def take(self, size: int) -> None:
        """Counts `size` more bytes of a body.

        Raises: NoRoom; then nothing was counted.
        """
        arriving = self._arriving + COPIES * size
        if self._kept + arriving > self.limit or arriving > self._free - SPARE:
            raise NoRoom
        self._arriving = arriving

    def give_back(self, size: int, stays: bool = False) -> None:
        """Counts `size` bytes less: their request has ended. What `stays` is measured before the next is counted."""
        self._arriving -= COPIES * size
        if stays:
            self._looked = -math.inf

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
