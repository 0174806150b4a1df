"""A real server in a separate process, for the tests of the endpoint, the page and the browser."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import CLASSES, warmed

from sparsegen.export.onnx_file import bundle
from sparsegen.zoo.spec import ModelSpec

# Imported when Python starts: blocks imports of torch, and records every attempt.
NO_TORCH = """
import os, sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch" or name.startswith("torch."):
            if "sparsegen.service.jobs.calibration" not in sys.orig_argv:  # of a worker; reports that it cannot measure
                with open(os.environ["TORCH_IMPORTS"], "a") as file:
                    file.write(name + chr(10))
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
sys.meta_path.insert(0, NoTorch())
"""
SERVE = "import sys; from sparsegen.service.http.serve import serve; sys.exit(serve(port=int(sys.argv[1])))"


@dataclass
class Server:
    """A running server: its address, process and log."""

    port: int
    process: subprocess.Popen
    log: Path
    models: Path
    torch_imports: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, method: str, path: str, body: object = None, content_type: str | None = "application/json"
    ) -> tuple[int, str, bytes]:
        """Sends a request, in chunks if its body is an iterator; returns status, content type and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            headers = {} if content_type is None else {"Content-Type": content_type}
            connection.request(method, path, body, headers, encode_chunked=isinstance(body, Iterator))
            response = connection.getresponse()
            return response.status, response.headers.get("Content-Type", ""), response.read()
        finally:
            connection.close()

    def sample(self, **request: object) -> bytes:
        status, _, body = self.ask("POST", "/sample", json.dumps(request))
        assert status == 200, body
        return body

    def wait_until_ready(self, seconds: float = 120) -> "Server":
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.process.poll() is None:
            try:
                if self.ask("GET", "/readyz")[0] == 200:
                    return self
            except OSError:
                pass
            time.sleep(0.1)
        raise AssertionError(
            f"the server is not ready (exit code {self.process.poll()}):\n{self.log.read_text()}"
        )

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(30)


def until(ask: Callable[[], object], wanted: object, seconds: float = 60) -> object:
    """Polls until the answer is the wanted one or the time is over; returns the last answer."""
    end = time.monotonic() + seconds
    while (got := ask()) != wanted and time.monotonic() < end:
        time.sleep(0.05)
    return got


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(
    folder: Path, models: Path, command: list[str] | None = None, start_up: str = NO_TORCH, **environment: str
) -> Server:
    """Starts a server of `models` in `folder`; `command` gets the port as its last argument."""
    folder.mkdir()
    (folder / "python").mkdir()
    (folder / "python" / "sitecustomize.py").write_text(start_up)
    server_environment = {
        **os.environ,
        "SPARSEGEN_MODELS": str(models),
        "SPARSEGEN_JOBS": str(folder / "jobs.sqlite"),
        "PYTHONPATH": str(folder / "python"),
        "TORCH_IMPORTS": str(folder / "torch"),
        "BENTOML_DO_NOT_TRACK": "True",
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    port, log = free_port(), folder / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [*(command or [sys.executable, "-c", SERVE]), str(port)],
            cwd=folder,
            env=server_environment,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    return Server(port, process, log, models, folder / "torch")


def make_models(folder: Path) -> Path:
    """Small untrained models with different images: three regularizers, and a conditional residual network."""
    for name in ("dcgan-8.baseline", "dcgan-8.l0", "dcgan-8.ml", "sagan-8.ml"):
        torch.manual_seed(0)
        generator = warmed(ModelSpec.parse(name).generator())
        generator.config = {"license": "apache-2.0"}
        if generator.classes:
            generator.config["class_names"] = CLASSES
        else:
            with torch.no_grad():
                generator.stages[0].conv.weight *= 20
        path = generator.save_pretrained(folder / generator.spec.name, training={"steps": 3})
        bundle(path)
    return folder


_shared: dict[
    str, object
] = {}  # the fixtures below are imported by several modules, and each has its own instances


@pytest.fixture(scope="session", name="models")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the small models."""
    if "models" not in _shared:
        torch.set_num_threads(1)
        _shared["models"] = make_models(tmp_path_factory.mktemp("served"))
    return _shared["models"]


@pytest.fixture(scope="session", name="server")
def running_server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the small models, in whose process torch cannot be imported; one for all tests."""
    if "server" not in _shared:
        _shared["server"] = start(tmp_path_factory.mktemp("server") / "run", models)
    yield _shared["server"].wait_until_ready()
    assert _shared["server"].stop() == 0
