"""File locations, and writing that never leaves a partial file after a full disk or a killed process."""

import errno
import json
import logging
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Folder for files that can be computed again: $SPARSEGEN_CACHE, or sparsegen in $XDG_CACHE_HOME or ~/.cache.

    Does not create it: `atomic_write` creates folders when it writes.

    Raises:
        RuntimeError: If none of the variables is set and the user has no home folder.
    """
    if own := os.environ.get("SPARSEGEN_CACHE"):
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(shared):  # a relative one is to be ignored (XDG base directory specification)
        return Path(shared) / "sparsegen"
    try:
        return Path.home() / ".cache" / "sparsegen"
    except RuntimeError as error:
        raise RuntimeError(
            "there is no home folder for the cache: set SPARSEGEN_CACHE to a folder"
        ) from error


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, and replaces `path` by it at the end of the block.

    Readers see the complete old file or the complete new one. If anything fails, the old file is unchanged and the
    temporary file is deleted. Missing folders are created. The target of a symbolic link is replaced, not the link.

    Raises:
        OSError: With `path`, also if safetensors reports a full disk by its own exception.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name[:64]}.{secrets.token_hex(4)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        try:
            mode = (target if target.is_file() else temporary).stat().st_mode
            yield temporary
            temporary.chmod(mode & 0o777)  # safetensors makes files that only their owner can read
            _flush(temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        if (number := _error_number(error)) is None and isinstance(error, SafetensorError):
            raise
        kept = "nothing was written, a file that was there before is unchanged"
        if number is None:  # numpy does not set it on a full disk
            raise OSError(f"{path}: {error}; {kept}") from error
        raise OSError(number, f"{os.strerror(number)}; {kept}", str(path)) from error
    _flush_folder(target.parent)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yields a new folder beside `path`, and replaces `path` by it at the end of the block.

    If anything fails, the old folder is unchanged and the new one is deleted. After a killed process, the next call
    deletes or restores the remaining folders; their names are always the same.
    """
    target = Path(os.path.realpath(path))
    temporary, old = (target.with_name(f".{target.name[:64]}.{part}") for part in ("partial", "old"))
    if old.exists() and not target.exists():
        os.replace(old, target)
    for left in (temporary, old):
        shutil.rmtree(left, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if target.exists():
            os.replace(target, old)
        os.replace(temporary, target)
    finally:
        if old.exists() and not target.exists():
            os.replace(old, target)
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)


def write_json(path: str | Path, obj: Any) -> None:
    """Writes `obj` as indented UTF-8 JSON, atomically; bytes of file names that are not UTF-8 as \\udcXX escapes.

    Raises:
        ValueError: On NaN and infinities, which are not JSON (write None).
        TypeError: On types that JSON lacks. Both name the path and are raised before writing.
    """
    try:
        text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise type(error)(f"cannot write {path}: {error}") from error
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def _error_number(error: OSError | SafetensorError) -> int | None:
    """The errno behind an exception; safetensors gives it as text, "(os error 28)"."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"os error (\d+)", str(error))
    return int(found[1]) if found else None


def _flush(path: Path) -> None:
    """Waits until the file is on the disk; a full disk may be reported only here."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Makes a rename durable across a power failure, where the system supports it (not Windows)."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EACCES):
            raise
    finally:
        os.close(handle)


def check_writable(path: str | Path) -> None:
    """Checks before any work that a file can be written at `path`, or in it if it is a folder.

    Raises:
        OSError: With the path and the reason.
    """
    target = Path(os.path.realpath(path))
    folder = target if target.is_dir() else next(parent for parent in target.parents if parent.exists())
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{folder} is a file, not a folder", str(path))
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise type(error)(error.errno, f"cannot be written: {error.strerror}", str(path)) from error


def check_utf8(path: str | Path) -> None:
    """Checks the path of a model: safetensors, onnx and onnxruntime open UTF-8 paths only.

    Raises:
        ValueError: With the path and the remedy.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{path} is not a UTF-8 path, and safetensors and ONNX files need one: rename the file or folder"
        ) from None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads JSON lines and skips a line that was not written completely."""
    records = []
    for number, line in enumerate(
        path.read_text("utf-8", errors="replace").splitlines() if path.exists() else [], 1
    ):
        try:
            records.append(json.loads(line))
        except ValueError:
            logger.warning("%s: line %d is incomplete and was skipped", path, number)
    return records


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Appends a JSON line, after a line break if the last line is incomplete, and waits for the disk."""
    with path.open("a+b") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        start = b"" if file.read() in (b"", b"\n") else b"\n"
        file.write(start + json.dumps(record).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
