"""A bound on the files that people drop on the page, which Gradio keeps for a while and does not count."""

import asyncio
import os
from pathlib import Path

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

UPLOAD = "/ui/gradio_api/upload"
ROOM = 1 << 30  # bytes
KEEP_UPLOADS = 900  # seconds that a dropped file lies on the server, for a second start with other settings


class UploadRoom:
    """ASGI middleware that answers 507 to an upload while the files of others fill `room` bytes.

    It looks before it lets a file in, so uploads at the same time may exceed it by what they bring.
    """

    def __init__(self, app: ASGIApp, folder: Path | None = None, room: int = ROOM) -> None:
        self.app, self.folder, self.room = app, folder, room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == UPLOAD:
            taken = await asyncio.to_thread(size, self.folder or upload_folder())
            if taken >= self.room:
                sentence = "the server has no room for another picture: try again in some minutes"
                await JSONResponse({"error": sentence}, 507, {"connection": "close"})(scope, receive, send)
                return
        await self.app(scope, receive, send)


def upload_folder() -> Path:
    """Where Gradio keeps what is dropped; `serve` gives each server a folder of its own."""
    from gradio.utils import get_upload_folder  # seconds, and the server has imported it by now

    return Path(get_upload_folder())


def size(folder: Path) -> int:
    """The bytes of all files below a folder, some of which may go meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue  # its time was over
    return total
