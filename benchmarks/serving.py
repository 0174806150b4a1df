"""Speed, latency, overload and memory of the service, each beside its own reference in the same run.

    python -m benchmarks.serving [--minutes 30] [--requests 20000] [--model dcgan.ml] [--quick]

Starts `sparsegen serve` and asks it over HTTP from this machine, so the client takes a part of the processors. Writes
records/serving.json unless --quick is given.
"""

import argparse
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import count as numbers
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.machine import processor, versions
from sparsegen.common.files import write_json
from sparsegen.common.hardware import processors
from sparsegen.export.runtime import open_sampler
from sparsegen.pictures import images

RECORDS = Path(__file__).parent / "records" / "serving.json"
IMAGES = 64  # of a request whose speed is compared with that of onnxruntime
CLIENTS, FLOOD = 32, 256
GOALS = {
    "images/s over HTTP by images/s of onnxruntime, 64 images a request": "at least 0.9",
    "p95 by p50 of 32 clients, 1 image a request": "at most 3",
    "p95 of one client during a restoration, by p95 without": "at most 2",
    "largest memory by memory after 1,000 requests": "flat",
    "answers to 256 concurrent clients besides 200, 429 and 503": "0",
    "refusals without Retry-After": "0",
}
Answer = tuple[int, float, bool]  # status, seconds, whether there is a Retry-After


class Server:
    """A running `sparsegen serve`."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        variables = {"SPARSEGEN_JOBS": str(folder / "jobs.sqlite"), "SPARSEGEN_CLIENT_REQUESTS": str(CLIENTS)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sparsegen", "serve", "--port", str(self.port)],
            env=os.environ | variables,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._end = time.monotonic() + 120
        while not self._is_ready():
            if time.monotonic() > self._end or self.process.poll() is not None:
                raise RuntimeError("the server does not start: run sparsegen serve to see why")
            time.sleep(0.2)

    def _is_ready(self) -> bool:
        try:
            return self.connect().ask("GET", "/readyz")[0] == 200
        except OSError:
            return False

    def connect(self) -> "Client":
        return Client(self.port)

    def memory(self) -> int:
        """Bytes of the HTTP worker; the restoration worker and the decoders are left out."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return max(
            (each.memory_info().rss for each in children if "_bentoml_impl.worker.service" in each.cmdline()),
            default=0,
        )

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


class Client:
    """One connection."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        self.body = b""

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """Sends a request; the status is 0 if the server closes the connection."""
        begin = time.perf_counter()
        try:
            self.connection.request(method, path, body, headers)
            response = self.connection.getresponse()
            self.body = response.read()
        except (ConnectionError, http.client.HTTPException):
            self.connection.close()  # the next request opens another
            return 0, time.perf_counter() - begin, False
        return response.status, time.perf_counter() - begin, response.headers["Retry-After"] is not None

    def sample(self, model: str, count: int, seed: int) -> Answer:
        body = json.dumps({"model": model, "count": count, "seed": seed, "format": "npy"}).encode()
        return self.ask("POST", "/sample", body, **{"Content-Type": "application/json"})


def together(clients: int, seconds: float, act: Callable[[int, Iterator[int]], list[Answer]]) -> list[Answer]:
    """Runs clients in threads, each with a counter that ends with the time."""
    end = time.monotonic() + seconds

    def until_end() -> Iterator[int]:
        for number in numbers():
            if time.monotonic() > end:
                return
            yield number

    with ThreadPoolExecutor(clients) as pool:
        parts = list(pool.map(lambda index: act(index, until_end()), range(clients)))
    return [answer for part in parts for answer in part]


def ask_samples(
    server: Server, model: str, clients: int, count: int, seconds: float
) -> tuple[list[Answer], float]:
    """Returns the answers to clients that ask without a pause, and the seconds that it took."""

    def act(index: int, turns: Iterator[int]) -> list[Answer]:
        client = server.connect()
        return [client.sample(model, count, seed=1000 * index + turn) for turn in turns]

    begin = time.monotonic()
    return together(clients, seconds, act), time.monotonic() - begin


def throughput(server: Server, model: str, seconds: float, turns: int) -> dict[str, float]:
    """Images a second of onnxruntime in threads and over HTTP, in turns; the median of the ratios."""
    samplers, threads = [open_sampler(model) for _ in range(processors())], processors()

    def draw(index: int, rounds: Iterator[int]) -> list[Answer]:
        return [(len(samplers[index].sample(IMAGES, seed=turn)), 0.0, False) for turn in rounds]

    ratios, raw, served = [], [], []
    for _ in range(turns):
        begin = time.monotonic()
        drawn = together(threads, seconds, draw)
        raw.append(sum(images for images, _, _ in drawn) / (time.monotonic() - begin))
        answers, elapsed = ask_samples(server, model, threads, IMAGES, seconds)
        served.append(IMAGES * sum(status == 200 for status, _, _ in answers) / elapsed)
        ratios.append(served[-1] / raw[-1])
    return {
        "onnxruntime": float(np.median(raw)),
        "http": float(np.median(served)),
        "ratio": float(np.median(ratios)),
    }


def latency(answers: list[Answer], elapsed: float) -> dict[str, float]:
    """Milliseconds of the successful answers."""
    taken = [1000 * seconds for status, seconds, _ in answers if status == 200]
    p50, p95, p99 = np.percentile(taken, [50, 95, 99])
    return {"requests/s": len(taken) / elapsed, "p50": p50, "p95": p95, "p99": p99, "p95/p50": p95 / p50}


@contextmanager
def restoring(server: Server) -> Iterator[None]:
    """Runs a restoration for the length of a `with` block."""
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    boundary = "benchmark"
    parts = {'name="preset"': b"paper", 'name="image"; filename="noise.png"': images.png(noise)}
    body = b"".join(
        f"--{boundary}\r\nContent-Disposition: form-data; {name}\r\n\r\n".encode() + content + b"\r\n"
        for name, content in parts.items()
    )
    client, kind = server.connect(), f"multipart/form-data; boundary={boundary}"
    status, _, _ = client.ask(
        "POST", "/restore", body + f"--{boundary}--\r\n".encode(), **{"Content-Type": kind}
    )
    job = json.loads(client.body).get("id")
    if status != 202:
        raise RuntimeError(f"the restoration was refused with {status}: {client.body!r:.200}")
    while client.ask("GET", f"/restore/{job}") and json.loads(client.body)["status"] == "waiting":
        time.sleep(0.2)
    try:
        yield
    finally:
        server.connect().ask("DELETE", f"/restore/{job}")  # that of `client` was closed meanwhile


def flood(server: Server, model: str, seconds: float) -> dict[str, Any]:
    """The answers to many clients with large requests."""
    answers, _ = ask_samples(server, model, FLOOD, IMAGES, seconds)
    statuses = Counter(status for status, _, _ in answers)
    return {
        "statuses": {str(status): number for status, number in sorted(statuses.items())},
        "others": sum(number for status, number in statuses.items() if status not in (200, 429, 503)),
        "without Retry-After": sum(status in (429, 503) and not after for status, _, after in answers),
    }


def endurance(server: Server, model: str, minutes: float, requests: int) -> dict[str, Any]:
    """Memory of the HTTP worker while four clients ask for 1 to 16 images, with a pause to fill the minutes."""
    done, pause = numbers(1), 4 * 60 * minutes / requests
    early, trace, stop = Event(), [], Event()

    def act(index: int, turns: Iterator[int]) -> list[Answer]:
        client, answers = server.connect(), []
        for turn in turns:
            begin = time.monotonic()
            answers.append(client.sample(model, 1 + (7 * turn + index) % 16, seed=turn))
            total = next(done)
            if total == 1000:
                early.set()
            if total % max(1, requests // 200) == 0:
                trace.append((total, server.memory()))
            if total >= requests or stop.is_set():
                stop.set()
                break
            time.sleep(max(0.0, pause - (time.monotonic() - begin)))
        return answers

    begin = time.monotonic()
    answers = together(4, 60 * (minutes + 60), act)
    first = next(memory for total, memory in trace if total >= min(1000, requests // 2))
    late = [memory for total, memory in trace if total >= min(1000, requests // 2)]
    return {
        "minutes": (time.monotonic() - begin) / 60,
        "requests": len(answers),
        "failed": sum(status != 200 for status, _, _ in answers),
        "MB after 1,000": first / 1e6,
        "MB largest": max(late) / 1e6,
        "MB at the end": late[-1] / 1e6,
        "ratio": max(late) / first,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="dcgan.ml")
    parser.add_argument("--minutes", type=float, default=30, help="length of the memory test")
    parser.add_argument("--requests", type=int, default=20_000, help="requests of the memory test")
    parser.add_argument("--quick", action="store_true", help="a minute in all, without a record")
    options = parser.parse_args()
    seconds, turns = (2.0, 2) if options.quick else (10.0, 5)
    minutes, requests = (0.2, 400) if options.quick else (options.minutes, options.requests)
    with TemporaryDirectory() as folder:
        server = Server(Path(folder))
        try:
            ask_samples(server, options.model, 2, 16, 2)  # warm
            result: dict[str, Any] = {"throughput": throughput(server, options.model, seconds, turns)}
            result["many clients"] = latency(*ask_samples(server, options.model, CLIENTS, 1, 2 * seconds))
            before, during = [], []
            for _ in range(turns):
                before.append(latency(*ask_samples(server, options.model, 1, 1, seconds)))
                with restoring(server):
                    during.append(latency(*ask_samples(server, options.model, 1, 1, seconds)))
            result["alone"] = {name: float(np.median([each[name] for each in before])) for name in before[0]}
            result["during a restoration"] = {
                name: float(np.median([each[name] for each in during])) for name in during[0]
            }
            ratios = [late["p95"] / early["p95"] for early, late in zip(before, during, strict=True)]
            result["during a restoration"]["ratio"] = float(np.median(ratios))
            result["flood"] = flood(server, options.model, seconds)
            result["memory"] = endurance(server, options.model, minutes, requests)
        finally:
            server.stop()
    show(result)
    if not options.quick:
        head = {
            "date": datetime.now(UTC).date().isoformat(),
            "hardware": processor(),
            "processors": processors(),
        }
        write_json(RECORDS, {**head, "versions": versions(), "model": options.model, **result})


def rows(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What was measured, its goal and its figure."""
    figures = (
        f"{result['throughput']['ratio']:.2f}",
        f"{result['many clients']['p95/p50']:.2f}",
        f"{result['during a restoration']['ratio']:.2f}",
        f"{result['memory']['ratio']:.2f} ({result['memory']['MB after 1,000']:.0f} MB after 1,000 requests, at most "
        f"{result['memory']['MB largest']:.0f} MB in {result['memory']['requests']:,} requests and "
        f"{result['memory']['minutes']:.0f} minutes)",
        str(result["flood"]["others"]),
        str(result["flood"]["without Retry-After"]),
    )
    return [(what, goal, figure) for (what, goal), figure in zip(GOALS.items(), figures, strict=True)]


def show(result: dict[str, Any]) -> None:
    table = Table("", "goal", "measured")
    for row in rows(result):
        table.add_row(*row)
    Console().print(table)
    Console().print_json(json.dumps(result))


if __name__ == "__main__":
    main()
