"""The service without `sparsegen serve`: run by `bentoml serve`, from the package and from a built bento."""

import ast
import io
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from conftest import ROOT
from PIL import Image
from server import Server, small_models, start, until  # noqa: F401 (one is a fixture)

from sparsegen.service.http.serve import HTTP_WORKER, SERVICE
from sparsegen.service.jobs import pool
from sparsegen.service.uploads import UPLOAD

NOT_ON_WINDOWS = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
BENTOML = [sys.executable, "-m", "bentoml"]
# Without Python's finder of the editable install, which knows the checkout.
WITHOUT_CHECKOUT = (
    "import sys; sys.meta_path[:] = [f for f in sys.meta_path if '__editable__' not in str(f)]; "
    "sys.path[:] = [p for p in sys.path if not p.endswith('src')]"
)


def processes(server: Server, module: str) -> list[psutil.Process]:
    """The processes of a server that run a module."""
    found = []
    for child in psutil.Process(server.process.pid).children(recursive=True):
        try:
            if module in child.cmdline():
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def picture(side: int) -> bytes:
    content = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(content, "png")
    return content.getvalue()


def submit(server: Server, **texts: str) -> str:
    response = httpx.post(f"{server.url}/restore", files={"image": picture(32)}, data=texts, timeout=60)
    assert response.status_code == 202, response.text
    return response.json()["id"]


def state(server: Server, job: str) -> dict:
    try:
        return httpx.get(f"{server.url}/restore/{job}", timeout=60).json()
    except httpx.TransportError:  # it is being restarted
        return {"status": None, "iteration": None}


def ready(server: Server) -> bool:
    try:
        return server.ask("GET", "/readyz")[0] == 200
    except OSError:
        return False


@pytest.fixture
def direct(models: Path, tmp_path: Path) -> Iterator[Server]:  # noqa: F811
    """A server that was started by BentoML's own command."""
    command = [*BENTOML, "serve", SERVICE, "--host", "127.0.0.1", "--port"]
    home = {"BENTOML_HOME": str(tmp_path / "bentoml"), "SPARSEGEN_ALLOW_HOST": "localhost"}
    server = start(tmp_path / "run", models, command, "", **home)
    try:
        yield server.wait_until_ready()
    finally:
        server.stop()


@NOT_ON_WINDOWS
def test_bentoml_serve_runs_a_worker_that_survives_kills_and_ends_with_it(direct):
    (worker,) = processes(direct, pool.MODULE)
    assert "sparsegen_workers 1.0" in direct.ask("GET", "/metrics")[2].decode()
    job = submit(direct, iterations="100000", ensemble_size="1")
    assert until(lambda: (state(direct, job)["iteration"] or 0) > 0, True, 120)

    worker.kill()
    worker.wait(20)
    assert until(lambda: len(processes(direct, pool.MODULE)), 1) == 1
    (second,) = processes(direct, pool.MODULE)
    assert second != worker and "a worker ended with exit code -9: restarting it" in direct.log.read_text()

    (http_worker,) = processes(direct, HTTP_WORKER)
    http_worker.kill()
    assert until(lambda: second.is_running() and second.status() != psutil.STATUS_ZOMBIE, False) is False
    assert until(lambda: ready(direct), True, 120)
    (third,) = processes(direct, pool.MODULE)
    short = submit(direct, iterations="2", ensemble_size="1")
    assert state(direct, job)["status"] in ("waiting", "running")  # it was put back
    httpx.delete(f"{direct.url}/restore/{job}", timeout=60)
    assert until(lambda: state(direct, short)["status"], "done", 120) == "done"

    everything = [*psutil.Process(direct.process.pid).children(recursive=True)]
    assert third in everything
    direct.process.send_signal(signal.SIGTERM)
    direct.process.wait(30)
    assert psutil.wait_procs(everything, timeout=15)[1] == []


@pytest.fixture(scope="module")
def bento(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The tag of a bento, built as `make bento` does, but without the package index; and its BENTOML_HOME."""
    folder = tmp_path_factory.mktemp("bento")
    target = folder / "build" / "bento"
    shutil.copytree(ROOT / "src" / "sparsegen", target / "sparsegen", ignore=shutil.ignore_patterns("*.pyc"))
    (target / "README.md").write_bytes((ROOT / "README.md").read_bytes())
    text = (ROOT / "bentofile.yaml").read_text()
    assert "lock_packages: true" in text
    (folder / "bentofile.yaml").write_text(text.replace("lock_packages: true", "lock_packages: false"))
    home = {"BENTOML_HOME": str(folder / "home"), "BENTOML_DO_NOT_TRACK": "True"}
    build = [*BENTOML, "build", "--bentofile", "bentofile.yaml", "--output", "tag", "build/bento"]
    built = subprocess.run(
        build, cwd=folder, env=os.environ | home, capture_output=True, text=True, timeout=300
    )
    assert built.returncode == 0, built.stderr
    return re.search(r"__tag__:(\S+)", built.stdout)[1], folder / "home"


def test_a_bento_declares_what_it_imports(bento):
    tag, home = bento
    source = home / "bentos" / tag.replace(":", "/") / "src"
    assert not list(source.glob("*/training/*")) and not list(source.rglob("*.pyc"))
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from importlib.metadata import packages_distributions\n"
        "import sparsegen, sparsegen.service.http.endpoint, sparsegen.service.page.app\n"
        "import sparsegen.service.jobs.worker, sparsegen.restoration.restore, numba\n"
        "own = {name for name, m in sys.modules.items() if name.startswith('sparsegen')}\n"
        "assert sparsegen.__file__.startswith(sys.argv[1]), sparsegen.__file__\n"
        "print(*sorted(own))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(source)], capture_output=True, text=True, cwd=home, timeout=300
    )
    assert run.returncode == 0, run.stderr
    used = set()
    for name in run.stdout.split():
        path = source / Path(*name.split("."))
        path = file if (file := path.with_suffix(".py")).exists() else path / "__init__.py"
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = (
                    [alias.name for alias in node.names]
                    if isinstance(node, ast.Import)
                    else [node.module or ""]
                )
                used |= {module.partition(".")[0] for module in modules}
    used -= {"sparsegen", "__future__", *sys.stdlib_module_names}
    declared = re.findall(r"^    - ([\w-]+)>=", (ROOT / "bentofile.yaml").read_text(), re.M)
    names = {name.replace("-", "_") for name in declared} | {"PIL"}
    # Dependencies of bentoml, fastapi and gradio that every installation of these has.
    names |= {
        "annotated_types",
        "anyio",
        "h11",
        "jinja2",
        "pydantic",
        "pydantic_core",
        "starlette",
        "uvicorn",
    }
    assert used <= names
    assert {"torch", "lazy_loader"} <= used


def test_a_bento_serves_and_restores_elsewhere_without_the_checkout(bento, models, tmp_path):  # noqa: F811
    tag, home = bento
    command = [*BENTOML, "serve", tag, "--host", "127.0.0.1", "--port"]
    (temporary := tmp_path / "tmp").mkdir()
    environment = {
        "TMPDIR": str(temporary),
        "BENTOML_HOME": str(home),
        "SPARSEGEN_JOBS": str(tmp_path / "volume" / "jobs.sqlite"),
        "SPARSEGEN_SYNC_SECONDS": "120",
    }
    server = start(tmp_path / "elsewhere", models, command, WITHOUT_CHECKOUT, **environment)
    try:
        server.wait_until_ready()
        npy = server.sample(model="dcgan-8.ml", count=2, format="npy")
        assert np.load(io.BytesIO(npy)).shape == (2, 32, 32, 3)
        job = submit(server, iterations="3", ensemble_size="1")
        assert until(lambda: state(server, job)["status"], "done", 180) == "done"
        result = httpx.get(f"{server.url}/restore/{job}/result", timeout=60).content
        assert Image.open(io.BytesIO(result)).size == (32, 32)
        direct = httpx.post(
            f"{server.url}/denoise", files={"image": picture(32)}, data={"iterations": "3"}, timeout=150
        )
        assert direct.status_code == 200 and Image.open(io.BytesIO(direct.content)).size == (32, 32)
        assert (tmp_path / "volume" / "jobs.sqlite").exists()
        body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\npixels\r\n--x--\r\n'
        status, _, _ = server.ask("POST", UPLOAD, body, "multipart/form-data; boundary=x")
        (upload,) = temporary.rglob("a.png")
        folder = temporary / upload.relative_to(temporary).parts[0]
        assert status == 200 and folder.stat().st_mode & 0o777 == 0o700  # other users must not read it
        (worker,) = processes(server, pool.MODULE)
        assert str(home) in worker.environ()["PYTHONPATH"]
    finally:
        server.stop()
    assert not upload.exists()
