"""The files in deploy/: each is checked by its own tool, and what they describe runs as plain processes."""

import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import redis_server
import restorer
from conftest import ROOT
from PIL import Image
from server import Server, free_port, start, until
from server import small_models as models  # noqa: F401 (a fixture)

DEPLOY = ROOT / "deploy"
NGINX = shutil.which("nginx")
SERVE = "import sys; from sparsegen.service.http.serve import serve; sys.exit(serve(port=int(sys.argv[1]), workers=0))"


@pytest.mark.parametrize(
    "command",
    [
        ["hadolint", "Dockerfile"],
        ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml"],
        ["kubernetes-validate", "--strict", "kubernetes/sparsegen.yaml"],
    ],
    ids=lambda command: command[0],
)
def test_the_tool_of_each_file_accepts_it(command: list[str]) -> None:
    tool = Path(sys.executable).parent / command[0]
    run = subprocess.run([tool, *command[1:]], cwd=DEPLOY, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def adapted(ports: list[int], port: int) -> str:
    """The configuration of nginx, with servers on these ports of this machine."""
    servers = "".join(f"server 127.0.0.1:{server};" for server in ports)
    text, count = re.subn(r"server server:3000;", servers, (DEPLOY / "nginx.conf").read_text())
    assert count == 2
    return text.replace("listen 8080;", f"listen {port};")


@dataclass
class Topology:
    """What compose.yaml describes: Redis, two servers, three workers, and nginx where it is installed."""

    folder: Path
    models: Path
    stack: ExitStack
    redis_port: int = field(default_factory=free_port)
    front_port: int = field(default_factory=free_port)

    def start(self) -> None:
        self.url = f"redis://127.0.0.1:{self.redis_port}"
        self.redis = self.start_redis()
        self.servers = [self.start_server(name) for name in ("one", "two")]
        self.workers = [restorer.start(self.url, self.folder / "trace") for _ in range(3)]
        for worker in self.workers:
            self.stack.callback(self.end, worker)
        self.fronts = cycle(self.servers)
        if NGINX:
            path = self.folder / "nginx.conf"
            path.write_text(adapted([server.port for server in self.servers], self.front_port))
            options = f"daemon off; pid {self.folder}/nginx.pid; error_log {self.folder}/nginx.log;"
            self.stack.callback(self.end, subprocess.Popen([NGINX, "-c", path, "-g", options]))
        for server in self.servers:
            server.wait_until_ready()

    def start_redis(self) -> subprocess.Popen[bytes]:
        """Starts Redis with the options of compose.yaml."""
        command = re.search(r"command: \[redis-server, (.*)\]", (DEPLOY / "compose.yaml").read_text())
        assert command
        options = [option.strip('"') for option in command[1].split(", ")]
        process = redis_server.start(self.folder, self.redis_port, *options)
        self.stack.callback(self.end, process)
        return process

    def start_server(self, name: str) -> Server:
        server = start(
            self.folder / name,
            self.models,
            [sys.executable, "-c", SERVE],
            SPARSEGEN_JOBS=self.url,
            SPARSEGEN_JOBS_PER_CLIENT="16",
        )
        self.stack.callback(server.stop)
        return server

    def ask(self, method: str, path: str, **content: object) -> httpx.Response:
        """Sends a request to nginx, or where it is not installed to a server that answers, in turn."""
        for _ in self.servers:
            port = self.front_port if NGINX else next(self.fronts).port
            try:
                return httpx.request(method, f"http://127.0.0.1:{port}{path}", timeout=60, **content)
            except httpx.ConnectError:
                continue
        raise AssertionError("nothing answers")

    def kill_server(self, server: Server) -> None:
        """Kills all processes of a server at once, as the loss of its machine does."""
        processes = psutil.Process(server.process.pid).children(recursive=True)
        server.process.kill()
        for process in processes:
            process.kill()
        server.process.wait()
        psutil.wait_procs(processes)

    @staticmethod
    def end(process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        process.communicate(timeout=20)


@pytest.fixture
def topology(models: Path, tmp_path: Path) -> Iterator[Topology]:  # noqa: F811
    with ExitStack() as stack:
        made = Topology(tmp_path, models, stack)
        made.start()
        yield made


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
def test_jobs_survive_the_loss_of_a_worker_of_redis_and_of_a_server(topology: Topology) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "png")

    def submit(seed: int) -> str:
        response = topology.ask(
            "POST",
            "/restore",
            files={"image": encoded.getvalue()},
            data={"seed": str(seed), "iterations": "100"},
        )
        assert response.status_code == 202, response.text
        return response.json()["id"]

    def state(job: str) -> str:
        response = topology.ask("GET", f"/restore/{job}")
        return response.json()["status"] if response.status_code == 200 else f"{response.status_code}"

    jobs = [submit(seed) for seed in range(6)]
    trace = topology.folder / "trace"
    assert until(lambda: len({process for process, *_ in restorer.lines(trace)}), 3) == 3
    topology.workers[0].kill()
    topology.redis.kill()
    topology.redis.wait()
    topology.redis = topology.start_redis()
    topology.kill_server(topology.servers[0])

    jobs.append(submit(6))  # the other server takes it
    assert until(lambda: {state(job) for job in jobs}, {"done"}, 120) == {"done"}
    second = topology.start_server("one again").wait_until_ready()
    for job in jobs:
        for base in (f"http://127.0.0.1:{second.port}", topology.servers[1].url):
            content = httpx.get(f"{base}/restore/{job}/result").content
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), 255 - pixels)
    seeds = {seed for _, seed, iteration in restorer.lines(trace) if iteration == 100}
    assert seeds == set(range(7))


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_nginx_spreads_the_api_and_keeps_a_visitor_of_the_page_at_one_server(topology: Topology) -> None:
    def request(path: str) -> None:
        for _ in range(8):
            assert topology.ask("GET", path).status_code == 200

    def hits(path: str) -> list[int]:
        return [server.log.read_text().count(f" GET {path.rstrip('/')} ") for server in topology.servers]

    request("/models")
    assert until(lambda: min(hits("/models")) > 0, True) is True
    request("/ui/")
    assert until(lambda: sorted(hits("/ui/")), [0, 8]) == [0, 8]
