"""What an operator sees of a server, and what becomes of it when one of its processes is killed."""

import contextlib
import http.client
import logging
import os
import re
import sys
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from server import (
    Server,
    running_server,  # noqa: F401
    small_models,  # noqa: F401
    start,
    until,
)

from sparsegen.service import serve
from sparsegen.service.logs import SafeFormatter

RECOVERY = 15.0  # seconds from the death of a process until all works again, or all is gone
NOT_ON_WINDOWS = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def http_worker(server: Server) -> psutil.Process:
    """The process that answers the requests of a server."""
    children = psutil.Process(server.process.pid).children(recursive=True)
    (worker,) = [child for child in children if serve.HTTP_WORKER in child.cmdline()]
    return worker


def series(server: Server) -> set[tuple]:
    """What /metrics counts of requests: name and labels of each series."""
    text = server.ask("GET", "/metrics")[2].decode()
    return {
        (sample.name, *sorted(sample.labels.items()))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "request" in sample.name
    }


def ask_for_strange_things(server: Server) -> list[str]:
    """Sends requests of which each has a path or a method of its own, and returns the ids among them."""
    ids = [uuid.uuid4().hex for _ in range(8)]
    for job in ids:
        for method, path in [
            ("GET", f"/restore/{job}"),
            ("GET", f"/restore/{job}/result"),
            ("GET", f"/restore/{job}/preview?{job}"),
            ("DELETE", f"/restore/{job}"),
            ("GET", f"/nothing/{job}"),
            ("GET", f"/ui/nothing/{job}"),
            ("GET", f"/static_content/{job}"),
            (f"M{job}".upper(), f"/restore/{job}"),
        ]:
            server.ask(method, path)
    return ids


def test_metrics_have_templates_for_labels_and_no_series_for_each_request(server):
    ask_for_strange_things(server)
    series(server)  # is counted itself once it has ended
    before = series(server)
    ids = ask_for_strange_things(server)
    assert series(server) == before
    metrics = server.ask("GET", "/metrics")[2].decode()
    assert not [job for job in ids if job in metrics.lower()]
    endpoints = {dict(labels)["endpoint"] for _, *labels in before}
    assert {"/restore/{job_id}", "/restore/{job_id}/result", "/ui", "other"} <= endpoints
    assert all("/nothing" not in endpoint for endpoint in endpoints)


def test_the_log_has_a_line_for_each_request_and_no_id(server):
    ids = ask_for_strange_things(server)
    assert until(lambda: " DELETE /restore/{job_id} 404 " in server.log.read_text(), True)
    log = server.log.read_text().lower()
    assert not [job for job in ids if job in log]


def test_a_request_cannot_forge_a_line_of_the_log(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", "/models/%0A%0D%1B%5B31m%E2%80%A8forged%20line%0Aforged")
    assert connection.getresponse().status == 404
    connection.close()
    server.ask("GET", "/models")
    assert until(lambda: " GET /models 200 " in server.log.read_text(), True)
    assert "forged" not in server.log.read_text()


def test_whatever_logs_an_id_or_a_line_break_writes_neither():
    job = uuid.uuid4().hex
    try:
        raise ValueError(job)
    except ValueError:
        trouble = sys.exc_info()
    record = logging.LogRecord(
        "any", logging.ERROR, "", 0, "Exception on %s [%s]", (f"/restore/{job}\nforged", "\x1b[1m"), trouble
    )
    lines = SafeFormatter(logging.Formatter("%(levelname)s %(message)s")).format(record).splitlines()
    assert not [line for line in lines if job in line]
    assert re.fullmatch(r"ERROR Exception on /restore/#[0-9a-f]{8}\\nforged \[\\x1b\[1m\]", lines[0])
    assert lines[1].startswith("Traceback") and re.fullmatch(r"ValueError: #[0-9a-f]{8}", lines[-1])


@ON_LINUX
def test_the_http_worker_writes_to_no_file_through_a_memory_map(server):
    """A write to such a map kills the process once the disk is full."""
    server.ask("GET", "/models"), server.ask("GET", "/metrics")
    maps = Path(f"/proc/{http_worker(server).pid}/maps").read_text().splitlines()
    written = [line.split(maxsplit=5)[5] for line in maps if line.split()[1] == "rw-s"]
    # SQLite writes to each page of its own map through the file first, so it is told of a full disk.
    assert [name for name in written if os.path.isfile(name) and not name.endswith(".sqlite-shm")] == []


def tree(server: Server) -> dict[str, psutil.Process]:
    """The processes of a server by what they are."""
    kinds = {serve.BENTO: "arbiter", serve.HTTP_WORKER: "http worker", serve.RESTORER: "restoration worker"}
    own = psutil.Process(server.process.pid)
    found = {"sparsegen serve": own}
    for child in own.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            words = child.cmdline()
            found |= {kind: child for module, kind in kinds.items() if module in words}
    return found


def alive(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture(scope="module")
def killable(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose processes may be killed, in a temporary folder of its own."""
    folder = tmp_path_factory.mktemp("killable")
    (folder / "tmp").mkdir()
    server = start(folder / "run", models, start_up="", TMPDIR=str(folder / "tmp"))
    try:
        yield server.wait_until_ready()
    finally:
        processes = list(tree(server).values()) if server.process.poll() is None else []
        server.stop()
        for process in alive(processes):
            process.kill()


def wait_until_whole(server: Server, seconds: float) -> dict[str, psutil.Process]:
    """Waits until a server has all its processes and is ready."""

    def whole() -> bool:
        try:
            return len(tree(server)) == 4 and server.ask("GET", "/readyz")[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    assert until(whole, True, seconds), server.log.read_text()
    return tree(server)


@NOT_ON_WINDOWS
@pytest.mark.parametrize("kind", ["arbiter", "http worker", "restoration worker"])
def test_all_works_again_after_a_process_was_killed_and_the_log_says_so(killable, kind):
    before, lines = wait_until_whole(killable, 30), len(killable.log.read_text().splitlines())
    before[kind].kill()
    assert until(lambda: alive([before[kind]]), []) == []
    after = wait_until_whole(killable, RECOVERY)
    assert after[kind].pid != before[kind].pid
    assert killable.sample(model="dcgan-8.ml", count=1)
    if kind == "arbiter":  # its worker, which held the port, is gone with it
        assert not alive([before["http worker"]])
    log = killable.log.read_text().splitlines()[lines:]
    assert any(" ended" in line and ("again" in line or "takes its place" in line) for line in log)


@NOT_ON_WINDOWS
@pytest.mark.parametrize(
    "kinds", [["sparsegen serve"], ["sparsegen serve", "arbiter"]], ids=["the first", "the first two"]
)
def test_all_is_gone_after_the_first_process_was_killed_and_the_port_is_free(models, tmp_path, kinds):
    (tmp_path / "tmp").mkdir()
    server = start(tmp_path / "run", models, start_up="", TMPDIR=str(tmp_path / "tmp"))
    processes = []
    try:
        server.wait_until_ready()
        processes = wait_until_whole(server, 30)
        for kind in kinds:
            processes[kind].kill()
        server.process.wait(10)
        assert until(lambda: alive(processes.values()), [], RECOVERY) == []
        serve.check_port("127.0.0.1", server.port)
    finally:
        for process in alive(processes.values() if processes else []):
            process.kill()
        server.stop()


@NOT_ON_WINDOWS
def test_the_folder_of_a_server_is_private_and_that_of_a_killed_one_is_removed_by_the_next(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    killed, young = tmp_path / f"{serve.FOLDER}killed", tmp_path / f"{serve.FOLDER}young"
    for folder in (killed, young):
        folder.mkdir()
        (folder / serve.LOCK).touch()
    (killed / "picture.png").touch()
    os.utime(killed / serve.LOCK, (0, 0))
    with serve.private_folder() as first:
        assert Path(first).stat().st_mode & 0o777 == 0o700
        os.utime(Path(first) / serve.LOCK, (0, 0))
        with serve.private_folder() as second:
            assert not killed.exists()
            assert {path.name for path in tmp_path.iterdir()} == {
                Path(first).name,
                Path(second).name,
                young.name,
            }
    assert [path.name for path in tmp_path.iterdir()] == [young.name]
