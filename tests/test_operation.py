"""What an operator sees of a server, and what becomes of it when one of its processes is killed."""

import http.client
import logging
import os
import re
import sys
import uuid
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from server import (
    Server,
    running_server,  # noqa: F401
    small_models,  # noqa: F401
    until,
)

from sparsegen.service import serve
from sparsegen.service.logs import SafeFormatter

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
