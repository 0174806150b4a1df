"""No process sends reports or stores an identifier, tested in a fresh home without our settings."""

import io
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from server import (
    SERVE,
    Server,
    small_models,  # noqa: F401
    start,
    until,
)

import sparsegen

UNSET = [
    part for name in sparsegen.NO_TRACKING for part in ("-u", name)
]  # the tests themselves have set them
UPLOAD_AFTER = 12.0  # seconds; onnxruntime's first upload comes about 10 s after its import
LIBRARY = "from sparsegen.export.runtime import open_sampler; open_sampler('dcgan.ml').sample(1)"
CLI = "import sys; from sparsegen.__main__ import main; main()"
NETWORK = re.compile(r"AF_INET6?\b")
LOOPBACK = re.compile(r'"127\.|"::1"|"::ffff:127\.')

tracer = shutil.which("strace")


def kept(home: Path) -> list[str]:
    """Files below a home folder, except the job queue, which the user asked for."""
    files = (str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())
    return sorted(name for name in files if not name.startswith(".local/state/sparsegen/"))


@pytest.mark.parametrize(
    "arguments",
    [["-c", LIBRARY], ["-c", CLI, "export", "dcgan.ml", "--out", "exported.onnx"]],
    ids=["library", "export"],
)
def test_processes_write_nothing_to_the_users_home(arguments: list[str], tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = {**os.environ, "HOME": str(home), "SPARSEGEN_CACHE": str(tmp_path / "cache")}
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME", *sparsegen.NO_TRACKING):
        environment.pop(name, None)
    subprocess.run([sys.executable, *arguments], cwd=tmp_path, env=environment, check=True, timeout=120)
    assert kept(home) == []


def test_a_setting_of_the_user_is_kept(tmp_path: Path) -> None:
    name = "HF_HUB_DISABLE_TELEMETRY"
    script = f"import os, sparsegen; print(os.environ[{name!r}])"
    run = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, name: "0"}, capture_output=True, text=True
    )
    assert run.stdout == "0\n"


@pytest.fixture(scope="module")
def traced(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """A server with its worker in a fresh home, and the file that lists its system calls to the network."""
    if tracer is None:
        pytest.skip("strace is not installed")
    folder = tmp_path_factory.mktemp("private")
    (home := folder / "home").mkdir()
    trace = folder / "trace"
    calls = "trace=connect,sendto,sendmsg,sendmmsg"
    command = ["env", *UNSET, "-u", "XDG_CACHE_HOME", "-u", "XDG_DATA_HOME"]
    command += [tracer, "-D", "-f", "--seccomp-bpf", "-qq", "-e", calls, "-o", str(trace)]
    command += [sys.executable, "-c", SERVE]
    server = start(folder / "run", models, command, "", HOME=str(home), SPARSEGEN_CACHE=str(folder / "cache"))
    try:
        yield server.wait_until_ready(), trace
    finally:
        server.stop()


def test_a_server_and_its_worker_make_no_lookups_send_nothing_and_keep_no_files(
    traced: tuple[Server, Path],
) -> None:
    server, trace = traced
    began = time.monotonic()
    server.sample(model="dcgan-8.ml", count=1)
    assert server.ask("GET", "/ui/")[0] == 200
    assert restore(server) == "done"
    time.sleep(max(0.0, began + UPLOAD_AFTER - time.monotonic()))
    outside = [
        line
        for line in trace.read_text(errors="replace").splitlines()
        if NETWORK.search(line) and not LOOPBACK.search(line)
    ]
    assert outside == []
    assert kept(trace.parent / "home") == []


def restore(server: Server) -> str:
    """Restores a small picture, and returns the final state."""
    import httpx

    buffer = io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(buffer, "PNG")
    with httpx.Client(base_url=server.url, timeout=60) as client:
        answer = client.post(
            "/restore", files={"image": buffer.getvalue()}, data={"iterations": "2", "ensemble_size": "1"}
        )
        assert answer.status_code == 202, answer.text
        path = f"/restore/{answer.json()['id']}"
        return until(lambda: client.get(path).json()["status"], "done")
