"""A process that decodes uploaded pictures within limits: python -m sparsegen.service.jobs.decoder MB SECONDS.

It reads requests from standard input, writes answers to standard output, and ends when standard input closes. Both
are a line of JSON followed by bytes, never pickle: a picture may exploit a bug in a decoder, and the answers of such
a process must not run code in the server.
"""

import json
import os
import sys
from typing import IO, Any

from sparsegen.pictures.picture import Picture, TooLarge
from sparsegen.pictures.reading import read_picture

ERRORS = {kind.__name__: kind for kind in (TooLarge, ImportError, ValueError)}  # the subclass first


def limit(megabytes: int) -> None:
    """Limits the address space, written files and core dumps of this process. No effect on Windows."""
    if sys.platform == "win32":
        return
    import resource

    for what, amount in (
        (resource.RLIMIT_AS, megabytes << 20),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (amount, amount))


def limit_next(seconds: int) -> None:
    """Limits the processor seconds from now on; then the kernel kills this process. No effect on Windows."""
    if sys.platform == "win32":
        return
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (round(usage.ru_utime + usage.ru_stime) + 1 + seconds, hard))


def answer(request: dict[str, Any], content: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """Decodes one picture; returns the head of the answer and the bytes that follow it."""
    try:
        picture = read_picture(content, request["name"], request["max_pixels"], request["min_side"])
        picture = picture.reduced(request["reduce_to"])
    except tuple(ERRORS.values()) as error:
        if isinstance(error.__cause__, MemoryError):
            sys.exit("out of memory")  # `decoding` reports the limit
        kind = next(name for name, kind in ERRORS.items() if isinstance(error, kind))
        return {"error": kind, "sentence": str(error)}, []
    return pack(picture)


def pack(picture: Picture) -> tuple[dict[str, Any], list[bytes]]:
    """Converts a picture to a head and bytes; the reverse is `decoding._Decoder._unpack`."""
    head = {
        "shape": picture.pixels.shape,
        "alpha": None if picture.alpha is None else picture.alpha.dtype.str,
        "icc": None if picture.icc is None else len(picture.icc),
        "depth": picture.depth,
        "mode": picture.mode,
        "notes": picture.notes,
    }
    alpha = b"" if picture.alpha is None else picture.alpha.tobytes()
    return head, [picture.pixels.tobytes(), alpha, picture.icc or b""]


def main(megabytes: int, seconds: int, requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answers requests until `requests` ends."""
    limit(megabytes)
    while line := requests.readline():
        request = json.loads(line)
        content = requests.read(request["size"])
        limit_next(seconds)
        head, parts = answer(request, content)
        answers.write(json.dumps(head).encode() + b"\n")
        for part in parts:
            answers.write(part)
        answers.flush()


if __name__ == "__main__":
    with os.fdopen(0, "rb") as source, os.fdopen(os.dup(1), "wb") as sink:
        os.dup2(2, 1)  # output of a decoder must not mix with the answers
        main(int(sys.argv[1]), int(sys.argv[2]), source, sink)
