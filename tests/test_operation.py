"""Operation of a server: logs, metrics, health, and recovery when one of its processes is killed."""

import asyncio
import contextlib
import http.client
import json
import logging
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from server import (
    SERVE,
    Server,
    free_port,
    running_server,  # noqa: F401
    small_models,  # noqa: F401
    start,
    until,
)
from starlette.types import Receive, Scope, Send

from sparsegen.service import metrics
from sparsegen.service.http import restoration, serve
from sparsegen.service.http.readiness import Health
from sparsegen.service.jobs import places, pool
from sparsegen.service.jobs.errors import FileError, NoWorker, RedisDown, StoreError, StoreFull
from sparsegen.service.jobs.store import open_store
from sparsegen.service.logs import JsonFormatter, SafeFormatter, identify

RECOVERY = 60.0  # seconds; about 7 on an idle machine, where 15 are promised, and this one may be busy
NOT_ON_WINDOWS = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def http_worker(server: Server) -> psutil.Process:
    """The process that answers the requests of a server."""
    children = psutil.Process(server.process.pid).children(recursive=True)
    (worker,) = [child for child in children if serve.HTTP_WORKER in child.cmdline()]
    return worker


def series(server: Server) -> set[tuple]:
    """The series of requests in /metrics: name and labels."""
    text = server.ask("GET", "/metrics")[2].decode()
    return {
        (sample.name, *sorted(sample.labels.items()))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "request" in sample.name
    }


def ask_for_strange_things(server: Server) -> list[str]:
    """Sends requests with distinct paths or methods, and returns the ids among them."""
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


@ON_LINUX
def test_a_server_listens_only_on_its_own_port(server):
    """BentoML's arbiter would accept commands of every user of the machine at two further ports."""
    own = psutil.Process(server.process.pid)
    connections = [
        connection
        for process in (own, *own.children(recursive=True))
        for connection in process.net_connections("all")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {connection.laddr.port for connection in connections} == {server.port}


def test_metrics_are_labeled_by_route_templates(server):
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


@pytest.mark.parametrize(
    ("outcome", "status"), [(None, 499), (asyncio.CancelledError(), 499), (RuntimeError(), 500)]
)
def test_a_request_without_an_answer_is_counted_by_its_reason(outcome, status):
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if outcome:
            raise outcome

    counter = metrics.REQUESTS.labels("GET", "other", status)
    before = counter._value.get()
    scope = {"type": "http", "method": "GET", "path": "/nothing", "client": None, "headers": []}
    with contextlib.suppress(RuntimeError, asyncio.CancelledError):
        asyncio.run(metrics.Traffic(app, [])(scope, None, None))
    assert counter._value.get() == before + 1


def test_the_log_has_one_line_per_request_without_ids(server):
    ids = ask_for_strange_things(server)
    assert until(lambda: " DELETE /restore/{job_id} 404 " in server.log.read_text(), True)
    log = server.log.read_text().lower()
    assert not [job for job in ids if job in log]


def test_a_request_cannot_forge_a_log_line(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", "/models/%0A%0D%1B%5B31m%E2%80%A8forged%20line%0Aforged")
    assert connection.getresponse().status == 404
    connection.close()
    server.ask("GET", "/models")
    assert until(lambda: " GET /models 200 " in server.log.read_text(), True)
    assert "forged" not in server.log.read_text()


def test_log_lines_contain_no_ids_and_no_line_breaks():
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


def answer_of(server: Server, path: str, **headers: str) -> tuple[int, str]:
    """The status and the request id of an answer to a GET."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request(
            "GET", path, headers={name.replace("_", "-"): text for name, text in headers.items()}
        )
        response = connection.getresponse()
        return response.status, response.headers["X-Request-ID"]
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/models", {}, 200),
        ("/nothing", {}, 404),
        ("/models", {"Host": "evil.example"}, 421),
        ("/ui/", {}, 200),
    ],
    ids=str,
)
def test_an_answer_has_the_id_of_its_request_which_the_log_contains(server, path, headers, status):
    given = f"my.request-{uuid.uuid4()}"
    assert answer_of(server, path, X_Request_ID=given, **headers) == (status, given)
    assert until(lambda: f"request={given}" in server.log.read_text(), True)
    got, made = answer_of(server, path, **headers)
    assert got == status and re.fullmatch("[0-9a-f]{16}", made)
    assert until(lambda: f"request={made}" in server.log.read_text(), True)
    assert answer_of(server, path, **headers)[1] != made


@pytest.mark.parametrize("given", ["", "a b", "a" * 65, "ä", "{}", "a\tb"])
def test_an_ill_formed_request_id_is_replaced(given):
    assert re.fullmatch("[0-9a-f]{16}", identify(given))


def test_a_request_id_like_the_id_of_a_job_is_logged_as_a_fingerprint(server):
    given = uuid.uuid4().hex
    assert answer_of(server, "/models", X_Request_ID=given) == (200, given)
    server.ask("GET", "/models")
    assert until(lambda: re.search(r"request=#[0-9a-f]{8} ", server.log.read_text()) is not None, True)
    assert given not in server.log.read_text()


def test_a_record_as_json_is_one_line_without_job_ids():
    job, trace = uuid.uuid4().hex, "0af7651916cd43dd8448eb211c80319c"
    try:
        raise ValueError(job)
    except ValueError:
        trouble = sys.exc_info()
    record = logging.LogRecord("sparsegen.x", logging.ERROR, "", 0, "of %s\nforged", (job,), trouble)
    record.fields, record.trace_msg = {"status": 500}, f" (trace={trace},span=b7ad6b7169203331,sampled=1)"
    (line,) = SafeFormatter(JsonFormatter()).format(record).splitlines()
    found = json.loads(line)
    assert job not in line and "\\nforged" in found["message"]
    assert found["level"] == "ERROR" and found["status"] == 500 and found["trace_id"] == trace
    assert found["exception"].startswith("Traceback") and "#" in found["exception"]


def test_the_age_of_the_oldest_waiting_job_is_measured_until_it_is_claimed(queue, monkeypatch):
    store = queue()
    assert store.oldest_waiting() == 0 and store.outcomes() == {"done": 0, "failed": 0, "canceled": 0}
    store.heartbeat("A")
    first = store.submit({}, {"image": b"1"})
    store.submit({}, {"image": b"2"})
    now = store.clock()
    monkeypatch.setattr(store, "clock", lambda: now + 10)
    assert store.oldest_waiting() == pytest.approx(10, abs=1)
    claim = store.claim("A")
    assert claim.id == first["id"] and store.oldest_waiting() > 9  # of the second
    store.finish(claim, b"result", {"seconds": 1.0})
    store.delete(first["id"])
    store.cancel(store.claim("A").id)
    assert store.oldest_waiting() == 0 and store.outcomes() == {"done": 1, "failed": 0, "canceled": 1}


@ON_LINUX
def test_the_http_worker_writes_no_memory_mapped_file(server):
    """A write to such a map kills the process once the disk is full."""
    server.ask("GET", "/models"), server.ask("GET", "/metrics")
    maps = Path(f"/proc/{http_worker(server).pid}/maps").read_text().splitlines()
    written = [line.split(maxsplit=5)[5] for line in maps if line.split()[1] == "rw-s"]
    # SQLite writes to each page of its own map through the file first, so it gets an error if the disk is full.
    assert [name for name in written if os.path.isfile(name) and not name.endswith(".sqlite-shm")] == []


def tree(server: Server) -> dict[str, psutil.Process]:
    """The processes of a server by role."""
    kinds = {serve.BENTO: "arbiter", serve.HTTP_WORKER: "http worker", pool.MODULE: "restoration worker"}
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
    """A server whose processes tests may kill, in its own temporary folder."""
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
    """Waits until a server has all of its processes and reports that it is ready."""

    def whole() -> bool:
        try:
            return (
                len(tree(server)) == 4
                and "The page:" in server.log.read_text()
                and server.ask("GET", "/readyz")[0] == 200
            )
        except (OSError, http.client.HTTPException):
            return False

    assert until(whole, True, seconds), server.log.read_text()
    return tree(server)


@NOT_ON_WINDOWS
@pytest.mark.parametrize("kind", ["arbiter", "http worker", "restoration worker"])
def test_a_killed_process_is_restarted_with_a_log_line(killable, kind):
    before, lines = wait_until_whole(killable, 30), len(killable.log.read_text().splitlines())
    before[kind].kill()
    assert until(lambda: alive([before[kind]]), []) == []
    after = wait_until_whole(killable, RECOVERY)
    assert after[kind].pid != before[kind].pid
    assert killable.sample(model="dcgan-8.ml", count=1)
    if kind == "arbiter":  # its worker, which held the port, ended with it
        assert not alive([before["http worker"]])
    log = killable.log.read_text().splitlines()[lines:]
    assert any(" ended" in line and "restarting" in line for line in log)


@NOT_ON_WINDOWS
@pytest.mark.parametrize(
    "kinds", [["sparsegen serve"], ["sparsegen serve", "arbiter"]], ids=["the first", "the first two"]
)
def test_all_processes_end_and_the_port_is_free_after_the_first_was_killed(models, tmp_path, kinds):
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
def test_the_folder_of_a_server_is_private_and_the_next_server_removes_that_of_a_killed_one(
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


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[restoration.Jobs]:
    """The jobs of a server that was started with one worker; only the test sends heartbeats."""
    monkeypatch.setenv("SPARSEGEN_JOBS", str(tmp_path / "jobs.sqlite"))
    monkeypatch.setenv("SPARSEGEN_WORKERS", "1")
    queue = restoration.Jobs()
    yield queue
    queue.close()


def problem(queue: restoration.Jobs) -> str | None:
    """The problem that a server reports after one check."""
    health = Health()

    async def look_once() -> None:
        task = asyncio.create_task(restoration._look_after(queue, health))
        while health.problem and "starting" in health.problem:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(asyncio.wait_for(look_once(), 30))
    return health.problem


def test_a_server_is_ready_with_a_live_worker_and_a_writable_file(queue):
    queue().heartbeat("A")
    assert problem(queue) is None


def test_a_server_without_a_live_worker_is_not_ready_unless_it_was_started_without(queue, monkeypatch):
    assert "no worker is running (no heartbeat within 15 seconds)" in problem(queue)
    monkeypatch.setenv("SPARSEGEN_WORKERS", "0")
    assert problem(queue) is None


def test_a_server_whose_file_of_jobs_cannot_be_written_is_not_ready_and_names_no_path(queue, monkeypatch):
    queue().heartbeat("A")
    readonly = sqlite3.OperationalError("attempt to write a readonly database")
    monkeypatch.setattr(queue().jobs.storage, "incr", Mock(side_effect=readonly))
    assert problem(queue) == FileError.public
    assert FileError.public.startswith("the file of the jobs cannot be") and "/" not in FileError.public


def test_a_server_with_an_unreachable_redis_is_not_ready_and_names_no_address(queue, monkeypatch):
    monkeypatch.setenv("SPARSEGEN_JOBS", f"redis://x:secret@127.0.0.1:{free_port()}")
    assert problem(queue) == RedisDown.public
    assert not re.search(r"secret|127\.0\.0\.1", RedisDown.public)


def test_a_server_whose_store_never_answers_is_not_ready(monkeypatch):
    health, now = Health(), time.monotonic()
    health.see(None)
    assert health.problem is None
    monkeypatch.setattr("time.monotonic", lambda: now + 61)
    assert health.problem == "the job store has not answered for 61 seconds"


def test_a_full_disk_is_reported_instead_of_missing_heartbeats(queue, monkeypatch):
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorcode = sqlite3.SQLITE_FULL
    with pytest.raises(NoWorker):
        queue().check_room()
    monkeypatch.setattr(queue().jobs.storage, "incr", Mock(side_effect=full))
    with pytest.raises(StoreFull, match="the disk is full"):
        queue().check_room()
    assert problem(queue) == StoreFull.public


def test_readyz_reports_a_problem_and_recovers_while_livez_stays_ok(killable):
    worker = wait_until_whole(killable, 30)["restoration worker"]
    worker.suspend()  # it is alive, so it is not restarted, but sends no heartbeat
    try:
        answer = until(lambda: killable.ask("GET", "/readyz")[0], 503, 40)
        status, kind, body = killable.ask("GET", "/readyz")
        assert (answer, status, kind) == (503, 503, "application/json")
        assert json.loads(body)["error"].startswith("no worker is running (no heartbeat within 15 seconds)")
        assert killable.ask("GET", "/livez")[0] == killable.ask("GET", "/healthz")[0] == 200
    finally:
        worker.resume()
    assert until(lambda: killable.ask("GET", "/readyz")[0], 200, 15) == 200


@ON_LINUX
def test_a_full_temporary_folder_kills_no_process(models, tmp_path):
    """The folder is a small file system, in a mount namespace that ends with the server."""
    (folder := tmp_path / "tmp").mkdir()
    mount = 'mount -t tmpfs -o size=16m none "$TMPDIR" && exec "$@"'
    inside = ["unshare", "-rm", "sh", "-c", mount, "sh"]
    if subprocess.run([*inside, "true"], env={**os.environ, "TMPDIR": str(folder)}, check=False).returncode:
        pytest.skip("namespaces of mounts are not allowed here")
    command = [*inside, sys.executable, "-c", SERVE]
    server = start(tmp_path / "run", models, command, "", TMPDIR=str(folder))
    try:
        server.wait_until_ready()
        before = wait_until_whole(server, 30)
        seen = Path(f"/proc/{server.process.pid}/root{folder}")
        with pytest.raises(OSError, match="No space left"), (seen / "ballast").open("wb", 0) as ballast:
            while True:
                ballast.write(bytes(4096))
        for number in range(400):  # each would have been a new entry of BentoML's metrics
            server.ask("GET", f"/nothing/{number}/{'x' * 1000}")
        assert server.sample(model="dcgan-8.ml", count=4)
        assert server.ask("GET", "/metrics")[0] == 200
        assert alive(before.values()) == list(before.values())
    finally:
        server.stop()


SECRETS = [
    "redis://:{}@host:6379/0",
    "redis://user:{}@host:6379/0",
    "redis://host:6379/0?password={}",
    "redis://host:6379/0?db=0&password={}",
    "unix:///run/redis.sock?password={}",
    "unix://user:{}@/run/redis.sock",
]


@pytest.mark.parametrize(
    "secret", ["secret", "sec/secret", "s?secret", "s#secret", "s@secret", "s:secret", "1/secret@x"]
)
@pytest.mark.parametrize("url", SECRETS)
def test_no_part_of_a_password_of_redis_is_shown(url, secret):
    given = url.format(secret)
    assert places.has_password(given)
    assert "secret" not in places.public(given)
    with pytest.raises(StoreError) as caught:
        open_store(given)
    assert "secret" not in str(caught.value) + caught.value.public


@pytest.mark.parametrize(
    "option", ["secret=1", "socket_timeout=secret", "db=secret", "health_check_interval=secret"]
)
def test_an_invalid_option_of_redis_is_reported_without_its_value(option):
    with pytest.raises(StoreError, match="has an unknown option or an invalid value") as caught:
        open_store(f"redis://127.0.0.1:1/0?{option}")
    assert "secret" not in str(caught.value)


def test_a_place_without_a_password_is_shown_unchanged():
    for place in ("redis://host:6379/0", "rediss://queue.example", "unix:///run/redis.sock"):
        assert places.public(place) == place and not places.has_password(place)
        places.check_redis_url(place)
    assert not places.has_password("folder@home/jobs.sqlite")


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_a_password_is_refused_as_an_argument_and_not_repeated(command):
    run = subprocess.run(
        [sys.executable, "-m", "sparsegen", command, "--jobs", "redis://:secret@127.0.0.1:1"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2 and "set the environment variable SPARSEGEN_JOBS" in run.stderr
    assert "secret" not in run.stdout + run.stderr
