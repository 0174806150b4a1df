"""Decodes uploads in processes with limits: a small file may need gigabytes, or exploit a bug in a decoder."""

import atexit
import io
import json
import logging
import math
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np

from sparsegen.pictures.picture import MIN_SIDE, Picture
from sparsegen.service.jobs.decoder import ERRORS
from sparsegen.service.jobs.errors import Busy
from sparsegen.service.settings import ServiceSettings

logger = logging.getLogger(__name__)

DECODER = "sparsegen.service.jobs.decoder"
MAX_WAITING = 8  # pictures that wait for a decoder
PER_CLIENT = 2  # pictures of a client that are decoded or wait
MAX_HEAD = 1 << 20  # bytes of the JSON line before a picture, mostly notes
MAX_SENTENCE = 500
MAX_PROFILE = 32 << 20  # bytes of a color profile
START = 10.0  # seconds to start a decoder; usually less than one
READS = 200  # pictures after which a decoder is replaced, because its memory fragments
# The variables that a decoder gets; others may contain passwords.
INHERITED = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "LANG", "LC_ALL")
SINGLE = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TIFFFILE_NUM_THREADS", "MALLOC_ARENA_MAX"), "1"
)  # each thread takes address space, which is limited


class DecodersBusy(Busy):
    """All decoders are busy, and too many pictures wait, or one has waited too long."""

    status = 503

    def __init__(self, sentence: str) -> None:
        super().__init__(f"{sentence}: retry in a moment", 2)

    @classmethod
    def at(cls, limit: int, whose: str = "") -> "DecodersBusy":
        return cls(f"{limit} pictures{whose} are waiting to be read, which is the limit")


class _Gone(Exception):
    """A decoder ended, or sent an invalid answer."""


class Decoders:
    """A pool of decoder processes, which are started on demand and reused.

    Up to `settings.decoders` pictures are decoded in parallel; MAX_WAITING more wait.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings
        self._slots = threading.BoundedSemaphore(settings.decoders)
        self._places = threading.BoundedSemaphore(settings.decoders + MAX_WAITING)
        self._idle: list[_Decoder] = []  # append and pop are atomic
        self._clients: Counter[str] = Counter()
        self._lock = threading.Lock()

    def read(
        self,
        source: bytes | Path,
        name: str,
        max_pixels: int,
        min_side: int = MIN_SIDE,
        client: str = "",
        reduce_to: int | None = None,
    ) -> Picture:
        """Reads a picture within the limits, like `pictures.reading.read_picture`, with the same errors.

        Args:
            source: Content of a file, or path of a file of the server, which is opened here, not in the decoder.
            client: The sender, who may have PER_CLIENT pictures at once; "": only MAX_WAITING applies.
            reduce_to: Maximum number of pixels of the answer, to which a larger picture is reduced.

        Raises:
            DecodersBusy: If too many wait.
            ValueError: If the limits are exceeded.
        """
        with self._slot(client):
            decoder = self._idle.pop() if self._idle else _Decoder(self._settings)
            try:
                picture = decoder.read(source, name, max_pixels, min_side, reduce_to or max_pixels)
            except _Gone:
                decoder.end()
                raise ValueError(
                    f"{name} takes more than {self._settings.decoder_seconds} seconds or "
                    f"{self._settings.decoder_mb} MB to decode, the limits of this server: save it as a plain PNG"
                ) from None
            except tuple(ERRORS.values()):
                self._put_back(decoder)
                raise
            except BaseException:
                decoder.end()
                raise
            self._put_back(decoder)
            return picture

    def close(self) -> None:
        """Ends the idle decoders; busy ones are ended by the call that uses them."""
        while self._idle:
            self._idle.pop().end()

    def _put_back(self, decoder: "_Decoder") -> None:
        if decoder.reads < READS:
            self._idle.append(decoder)
        else:
            decoder.end()

    @contextmanager
    def _slot(self, client: str) -> Iterator[None]:
        with self._lock:
            if client and self._clients[client] >= PER_CLIENT:
                raise DecodersBusy.at(PER_CLIENT, " of yours")
            if not self._places.acquire(blocking=False):
                raise DecodersBusy.at(MAX_WAITING)
            self._clients[client] += 1
        try:
            with self._slots:
                yield
        finally:
            with self._lock:
                self._places.release()
                self._clients[client] -= 1
                if not self._clients[client]:
                    del self._clients[client]


def patience(settings: ServiceSettings) -> float:
    """Seconds of real time after which a decoder is killed; the kernel limits only processor time."""
    return START + 3 * settings.decoder_seconds


class _Decoder:
    """One decoder process, and the exchange of messages with it."""

    def __init__(self, settings: ServiceSettings) -> None:
        self.reads = 0
        self._patience = patience(settings)
        environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-m", DECODER, str(settings.decoder_mb), str(settings.decoder_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # decoders may print content of pictures
            env=environment | SINGLE,
            start_new_session=True,  # Ctrl-C reaches only the server; its end closes standard input
        )
        self._requests, self._answers = _pipes(self._process)

    def read(
        self, source: bytes | Path, name: str, max_pixels: int, min_side: int, reduce_to: int
    ) -> Picture:
        """Raises: _Gone if the process ends or its answer is invalid; else the errors of `read_picture`."""
        self.reads += 1
        watchdog = threading.Timer(self._patience, self._process.kill)
        watchdog.start()
        try:
            with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
                request = {
                    "name": name,
                    "max_pixels": max_pixels,
                    "min_side": min_side,
                    "reduce_to": reduce_to,
                }
                self._ask(file, request | {"size": file.seek(0, os.SEEK_END)})
            head = json.loads(self._answers.readline(MAX_HEAD))
            if "error" not in head:
                return self._unpack(head, reduce_to)
        except (BrokenPipeError, KeyError, TypeError, ValueError) as error:
            logger.warning("a decoder is replaced: %s, exit code %s", type(error).__name__, self.end())
            raise _Gone from error
        finally:
            watchdog.cancel()
        raise ERRORS.get(head["error"], ValueError)(str(head["sentence"])[:MAX_SENTENCE])

    def _ask(self, file: IO[bytes], request: dict[str, Any]) -> None:
        file.seek(0)
        self._requests.write(json.dumps(request).encode() + b"\n")
        shutil.copyfileobj(file, self._requests)
        self._requests.flush()

    def _unpack(self, head: dict[str, Any], max_pixels: int) -> Picture:
        """Reverses `decoder.pack`.  Raises: KeyError, TypeError, ValueError for an invalid or too large picture."""
        height, width, channels = head["shape"]
        if not (0 < height * width <= max_pixels and channels in (1, 3)):
            raise ValueError(f"a decoder answered with pixels of {head['shape']}")
        if head["alpha"] not in (None, "|u1", "<u2", ">u2", "<f2", "<f4", "<f8"):
            raise ValueError(f"a decoder answered with alpha of {head['alpha']}")
        pixels = self._array((height, width, channels), "<f4")
        alpha = None if head["alpha"] is None else self._array((height, width), head["alpha"])
        icc = None if head["icc"] is None else bytes(self._take(min(head["icc"], MAX_PROFILE)))
        notes = tuple(str(note) for note in head["notes"])
        return Picture(pixels, alpha, int(head["depth"]), str(head["mode"]), notes, icc)

    def _array(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        count = math.prod(shape)
        return np.frombuffer(self._take(count * np.dtype(dtype).itemsize), dtype).reshape(shape)

    def _take(self, size: int) -> bytearray:
        """Reads `size` bytes of the answer.  Raises: ValueError if the process ends before."""
        taken = bytearray(size)
        if self._answers.readinto(taken) != size:
            raise ValueError("a decoder ended in the middle of its answer")
        return taken

    def end(self) -> int:
        """Kills the process, and returns its exit code."""
        self._process.kill()
        for pipe in (self._requests, self._answers):
            with suppress(OSError):  # unwritten bytes
                pipe.close()
        return self._process.wait()


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], io.BufferedReader]:
    """The pipes of a process.  Raises: TypeError if it was started without them."""
    if process.stdin is None or not isinstance(process.stdout, io.BufferedReader):
        raise TypeError("a decoder must have buffered pipes at its standard input and output")
    return process.stdin, process.stdout


@cache
def decoders() -> Decoders:
    """The pool of this process, with the limits of its environment."""
    pool = Decoders(ServiceSettings.from_environment())
    atexit.register(pool.close)
    return pool
