"""Requests of untrusted clients to a running server, and its answers."""

import asyncio
import errno
import http.client
import json
import os
import re
import subprocess
import sys
import urllib.parse
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from answers import sentence
from PIL import Image
from server import Server, running_server, small_models  # noqa: F401 (two are fixtures)

from pictures import encoded
from sparsegen.service.errors import Refused
from sparsegen.service.http.guards import Login
from sparsegen.service.http.limits import MAX_FILES
from sparsegen.service.page import events

API = events.API
SECRET = "the-secret-of-the-machine"
FILE = {"meta": {"_type": "gradio.FileData"}}


@pytest.fixture(scope="module")
def dependencies(server: Server) -> list[dict]:
    return json.loads(server.ask("GET", "/ui/config")[2])["dependencies"]


@pytest.fixture(scope="module")
def taking_a_file(server: Server, dependencies: list[dict]) -> int:
    """The index of the handler for dropped pictures."""
    components = json.loads(server.ask("GET", "/ui/config")[2])["components"]
    (image,) = [part["id"] for part in components if part["props"].get("elem_id") == "image"]
    (index,) = [one["id"] for one in dependencies if [image, "change"] in map(list, one["targets"])]
    return index


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Path]:
    """A pipe that shows whether it was opened."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    yield path
    with pytest.raises(OSError) as nobody:
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    assert nobody.value.errno == errno.ENXIO


def upload(server: Server, content: bytes, name: str = "a.png") -> str:
    head = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    body = head.encode() + content + b"\r\n--b--\r\n"
    status, _, answer = server.ask("POST", f"{API}/upload", body, "multipart/form-data; boundary=b")
    assert status == 200, answer
    (path,) = json.loads(answer)
    return path


def event(server: Server, address: str, **body: object) -> tuple[int, str]:
    """Sends an event of the page, waits for the answer of the queue if there is one, and returns all output."""
    session = uuid.uuid4().hex
    status, _, answer = server.ask("POST", address, json.dumps({"session_hash": session, **body}))
    if status == 200 and b"event_id" in answer:
        path = f"{API}/queue/data?session_hash={session}"
        if "/call/" in address:
            path = f"{address}/{json.loads(answer)['event_id']}"
        answer += server.ask("GET", path)[2]
    return status, answer.decode()


def shapes(path: str) -> dict[str, object]:
    """References to a file that Gradio reads or has read in earlier versions."""
    return {
        "file": {"path": path, **FILE},
        "no mark": {"path": path},
        "file address": {"path": f"file://{path}", **FILE},
        "url": {"path": "a.png", "url": f"file://{path}", **FILE},
        "name alone": {"orig_name": path, **FILE},
        "stream": {"path": path, "is_stream": True, **FILE},
        "nested": [{"a": [{"path": path, **FILE}]}],
        "within": {"image": {"path": path, **FILE}, "other": 1},
        "encoded": {"path": urllib.parse.quote(path, safe=""), **FILE},
        "relative": {"path": f"../../../../../../../../..{path}", **FILE},
        "twice": {"path": {"path": path, **FILE}, **FILE},
    }


@pytest.mark.parametrize("route", ["queue/join", "run/predict"])
def test_no_path_of_a_request_is_opened_whatever_its_shape(server, taking_a_file, pipe, route):
    for name, value in shapes(str(pipe)).items():
        status, answer = event(server, f"{API}/{route}", fn_index=taking_a_file, data=[value, None])
        assert status == 403, (name, answer)
        assert "opens no other" in sentence(answer.encode())


@pytest.mark.parametrize("where", ["data", "event_data"])
def test_no_handler_reads_a_file_that_was_not_uploaded(server, dependencies, tmp_path, where):
    (tmp_path / "secret").write_text(SECRET)
    value = {"path": str(tmp_path / "secret"), **FILE}
    for handler in dependencies:
        body = {"data": [None] * len(handler["inputs"]), "fn_index": handler["id"]}
        body[where] = [value] * max(len(handler["inputs"]), 1) if where == "data" else value
        status, answer = event(server, f"{API}/run/predict", **body)
        assert status == (403 if handler["backend_fn"] else 400) and SECRET not in answer


@pytest.mark.parametrize("name", ["find", "find/", "v2/find", "restore", "draw", "look", "choose"])
@pytest.mark.parametrize("route", ["call", "api", "run"])
def test_handlers_have_no_address_of_their_own(server, pipe, route, name):
    status, answer = event(server, f"{API}/{route}/{name}", data=[{"path": str(pipe), **FILE}])
    assert status == 404 and sentence(answer.encode())


OTHER_ROUTES = [
    ("POST", "component_server"),
    ("POST", "stream/1"),
    ("POST", "process_recording"),
    ("POST", "vibe-code/"),
    ("POST", "vibe-edit/"),
    ("POST", "run-history/connect"),
    ("GET", "vibe-code"),
    ("GET", "proxy=http://127.0.0.1:1/"),
    ("GET", "custom_component/1/client/component/..%2f..%2fa"),
    ("GET", "deep_link?session_hash=a"),
    ("GET", "dev/reload"),
    ("GET", "runs"),
    ("GET", "queue/status"),
    ("GET", "file/etc/passwd"),
    ("GET", "nosuch"),
]


@pytest.mark.parametrize(("method", "route"), OTHER_ROUTES)
def test_unused_routes_of_gradio_are_not_found(server, method, route):
    status, _, answer = server.ask(method, f"{API}/{route}", b"{}" if method == "POST" else None)
    assert status == 404 and sentence(answer)


@pytest.mark.parametrize("route", ["monitoring", "monitoring/summary", "login", "svelte/a.js", "pwa_icon"])
def test_unused_pages_of_gradio_are_not_found(server, route):
    assert server.ask("GET", f"/ui/{route}")[0] == 404


@pytest.mark.parametrize(
    "prefix", ["", "/", "file://", "http://127.0.0.1:1", "http://169.254.169.254", "..%2f..%2f", "%2e%2e/"]
)
def test_a_file_that_was_not_uploaded_cannot_be_fetched(server, pipe, prefix):
    for path in (f"{prefix}{pipe}", f"{prefix}{urllib.parse.quote(str(pipe), safe='')}"):
        status, _, answer = server.ask("GET", f"{API}/file={path}")
        assert status == 403 and sentence(answer), path


def test_only_uploaded_files_are_read(server, taking_a_file, tmp_path):
    picture = encoded(Image.new("RGB", (24, 20), (200, 10, 30)))
    path = upload(server, picture)
    call = {"fn_index": taking_a_file}
    value = {"path": path, "url": f"http://other.example/{path}", "orig_name": "../../b", "size": 1, **FILE}
    for route in ("run/predict", "queue/join"):
        status, answer = event(server, f"{API}/{route}", **call, data=[value, None])
        assert status == 200 and re.search(r'"width": ?24', answer), answer
    assert server.ask("GET", f"{API}/file={path}")[2] == picture

    folder = Path(path).parent
    (tmp_path / "secret").write_text(SECRET)
    for name, target in {"link.png": tmp_path / "secret", "inside.png": Path(path)}.items():
        (folder / name).symlink_to(target)
    beside = Path(path).parents[2] / "beside"
    beside.write_text(SECRET)
    tries = ["link.png", "inside.png", ".", "../../beside", "../" * 20 + str(tmp_path / "secret")]
    for way in [*(f"{folder}/{name}" for name in tries), str(beside), f"{path}\0", "", "x" * 10_000]:
        status, answer = event(server, f"{API}/run/predict", **call, data=[{"path": way, **FILE}, None])
        assert status == 403 and SECRET not in answer, way
        way = urllib.parse.quote(way[:2000])
        assert server.ask("GET", f"{API}/file={way}")[0] in (403, 404)


@pytest.mark.parametrize("name", ["../../a.png", "..%2fa.png", "/etc/cron.d/a", "a\\..\\b.png"])
def test_an_upload_is_kept_in_its_own_folder_whatever_its_name(server, name):
    path = upload(server, name.encode(), name)
    assert server.ask("GET", f"{API}/file={urllib.parse.quote(path)}")[2] == name.encode()


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/urandom", "/proc/self/environ", "/proc/self/fd/0"])
def test_a_request_cannot_freeze_the_server(server, taking_a_file, device):
    status, _ = event(server, f"{API}/run/predict", fn_index=taking_a_file, data=[{"path": device}, None])
    assert status == 403
    assert server.ask("GET", "/livez")[0] == 200


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"null", b"{", b"\xff", b"[" * 60_000, b'{"data": ' + b"[" * 400 + b"]" * 400 + b"}"]
)
def test_an_invalid_event_of_the_page_is_refused(server, body):
    for path in events.EVENTS:
        status, _, answer = server.ask("POST", path, body)
        assert status == 400 and sentence(answer)


def test_gradio_gets_the_checked_value_of_a_repeated_key(tmp_path):
    body = b'{"data": [1], "data": [2], "batched": true, "request": {}}'
    assert events.read_event(body, handlers=[]) == {"data": [2]}
    plain = {"data": [{"index": 3}, "a", None, [1.5]], "event_data": {"off": [1, 2]}, "fn_index": 4}
    assert events.clean(plain, tmp_path) == plain
    with pytest.raises(Refused, match="opens no other"):
        events.clean({"data": [{"url": "http://127.0.0.1"}]}, tmp_path)


@pytest.mark.parametrize("name", ["draw", "look", "choose", "start", "models", "sample", "restore"])
def test_no_event_bypasses_the_queue(server, dependencies, name):
    (handler,) = [one for one in dependencies if one["api_name"] == name]
    status, answer = event(
        server, f"{API}/run/predict", fn_index=handler["id"], data=[None] * len(handler["inputs"])
    )
    assert status == 404 and "queue" in answer


@pytest.mark.parametrize("name", ["session_hash", "event_id"])
@pytest.mark.parametrize("value", ["a" * 65, "a b", ["a"], {"a": 1}])
def test_ids_in_events_are_short(server, name, value):
    for path in events.EVENTS:
        body = {"session_hash": "a", "fn_index": 0, "data": []} | {name: value}
        status, _, answer = server.ask("POST", path, json.dumps(body))
        assert status == 400 and "at most 64" in sentence(answer)


@pytest.mark.parametrize("number", ["99", "-1", "true", '"2"', "1e999", "2.0", "null", "[0]"])
@pytest.mark.parametrize("route", ["queue/join", "run/predict"])
def test_an_unknown_function_is_refused_with_one_log_line(server, route, number):
    before = len(server.log.read_text().splitlines())
    body = f'{{"session_hash": "a", "data": [], "fn_index": {number}}}'
    status, _, answer = server.ask("POST", f"{API}/{route}", body)
    assert status == 400 and ("JSON object" if number == "1e999" else "no function") in sentence(
        answer
    )  # not valid JSON
    assert len(server.log.read_text().splitlines()) - before < 5


STRANGE = [None, "x", -5, 1e30, True, [1], {"a": 1}]


@pytest.mark.parametrize(
    "name",
    ["draw", "look", "choose", "fit", "pick", "switch", "part", "take", "start", "find", "sample", "restore"],
)
def test_invalid_values_are_reported_in_a_sentence_without_a_traceback(server, dependencies, name):
    number, inputs = next((one["id"], one["inputs"]) for one in dependencies if one["api_name"] == name)
    tries = [[], [0] * (len(inputs) + 1), *([value] * len(inputs) for value in STRANGE)]
    for data in tries:
        for told in (None, {}, {"index": "x", "off": 3}, {"index": 999, "off": [[]]}):
            status, answer = event(server, events.JOIN, fn_index=number, data=data, event_data=told)
            assert status == 200 and '"msg":"process_completed"' in answer, (data, answer)
            assert "object" not in answer or "'EventData' object" not in answer
    log = server.log.read_text()
    assert "Traceback" not in log and "was refused: " in log


def test_a_function_without_a_server_part_is_not_called(server, dependencies):
    number = next(one["id"] for one in dependencies if not one["backend_fn"])
    status, answer = event(server, f"{API}/run/predict", fn_index=number, data=[])
    assert status == 400 and "no function" in answer


def test_text_that_cannot_be_encoded_is_refused(server, dependencies):
    (handler,) = [one for one in dependencies if one["api_name"] == "choose"]
    before = len(server.log.read_text().splitlines())
    status, answer = event(server, events.JOIN, fn_index=handler["id"], data=["\ud800", -1])
    assert status == 400 and sentence(answer.encode())
    assert len(server.log.read_text().splitlines()) - before < 5


@pytest.mark.parametrize(
    ("method", "address"),
    [
        ("POST", "upload?upload_id={}"),
        ("GET", "upload_progress?upload_id={}"),
        ("GET", "queue/data?session_hash={}"),
    ],
)
def test_ids_of_a_query_are_short(server, method, address):
    form = 'multipart/form-data; boundary="b"'
    for value in ("a" * 65, "a" * 50_000, "a%20b", "%00"):
        path = f"{API}/{address.format(value)}"
        status, _, answer = server.ask(method, path, b"" if method == "POST" else None, form)
        assert status == 400 and "at most 64" in sentence(answer)
    assert events.ids(b"__theme=dark&deep_link=a&session_hash=a-b&upload_id=c") == (
        b"session_hash=a-b&upload_id=c"
    )
    with pytest.raises(Refused, match="32"):
        events.ids(b"a=1&" * 33)


def test_the_number_of_files_in_an_upload_is_limited(server):
    def form(count: int) -> bytes:
        part = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n%d\r\n'
        return b"".join(part % number for number in range(count)) + b"--b--\r\n"

    for boundary in ("b", '"b"', "b; charset=utf-8"):
        kind = f"multipart/form-data; boundary={boundary}"
        status, _, answer = server.ask("POST", f"{API}/upload", form(MAX_FILES), kind)
        assert status == 200 and len(json.loads(answer)) == MAX_FILES
        status, _, answer = server.ask("POST", f"{API}/upload", form(MAX_FILES + 1), kind)
        assert status == 413 and "files" in sentence(answer)


def test_requests_that_crash_gradio_are_answered_without_a_traceback(server, dependencies):
    (roll,) = [one["id"] for one in dependencies if one["api_name"] == "roll"]
    before = server.log.read_text().count("Traceback")
    status, kind, answer = server.ask("GET", f"{API}/queue/data?session_hash=nobody")
    assert status == 200 and kind.startswith("text/event-stream") and b'"session_not_found": true' in answer
    form = f"multipart/form-data; boundary={'b' * 257}"
    for path in (f"{API}/upload", "/restore"):
        status, _, answer = server.ask("POST", path, b"--b", form)
        assert status == 400 and "boundary" in sentence(answer)
    for path in ("/ui/assets/", "/ui/static/", "/static_content/"):
        assert server.ask("GET", path + "a" * 300)[0] == 404
    for number in ("NaN", "-Infinity", "1e999"):
        event = f'{{"fn_index": {roll}, "data": 1, "event_data": [{number}]}}'
        assert server.ask("POST", f"{API}/run/predict", event)[0] == 400
    assert server.log.read_text().count("Traceback") == before


def test_a_disconnect_during_a_login_is_not_an_error():
    sent = []

    async def send(message: dict) -> None:
        sent.append(message)

    parts = iter(
        [{"type": "http.request", "body": b"token=", "more_body": True}, {"type": "http.disconnect"}]
    )

    async def receive() -> dict:
        return next(parts)

    scope = {"type": "http", "method": "POST", "path": "/ui", "headers": []}
    asyncio.run(Login(None, "0123456789abcdef")(scope, receive, send))
    assert sent == []


VISITORS = """
import asyncio
import sys
from pathlib import Path
import gradio as gr
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sparsegen.service.page import app as app_of_page
from sparsegen.service.models import open_models
app_of_page.MAX_SESSIONS = 3
app = FastAPI()
app_of_page.mount(app, open_models(Path(sys.argv[1]))[0], lambda: None, lambda: None)
(blocks,) = [route.app.get_blocks() for route in app.routes if hasattr(getattr(route, "app", None), "get_blocks")]
client, form = TestClient(app), {"files": b"a"}
for number in range(8):
    event = {"fn_index": int(sys.argv[2]), "data": ["inpaint"], "session_hash": f"s{number}"}
    assert client.post(f"{sys.argv[4]}/run/predict", json=event).status_code == 200
    event = {"fn_index": int(sys.argv[3]), "data": [], "session_hash": f"s{number}"}
    assert client.post(f"{sys.argv[4]}/queue/join", json=event).status_code == 200
    assert client.post(f"{sys.argv[4]}/upload?upload_id=u{number}", files=form).status_code == 200
uploads, queue = gr.routes.file_upload_statuses, blocks._queue
kept = [blocks.state_holder.session_data, queue.pending_event_ids_session, queue.pending_messages_per_session]
print([len(some) for some in [*kept, uploads._statuses, uploads._signals]])
for waiting in queue.event_queue_per_concurrency_id:
    queue.broadcast_estimations(waiting)  # to all whose events wait; if it fails, the queue stops for good
for waiting in list(queue.event_ids_to_events):
    asyncio.run(queue.remove_from_queue(waiting))
assert client.post(f"{sys.argv[4]}/queue/join", json=event | {"session_hash": "last"}).status_code == 200
print([len(some) for some in kept])
"""


def test_the_data_that_the_page_keeps_of_visitors_is_bounded(server, dependencies):
    (choose,) = [one["id"] for one in dependencies if one["api_name"] == "choose_2"]
    (roll,) = [one["id"] for one in dependencies if one["api_name"] == "roll"]
    arguments = [str(server.models), str(choose), str(roll), API]
    run = subprocess.run(
        [sys.executable, "-c", VISITORS, *arguments], capture_output=True, text=True, timeout=120
    )
    assert run.stdout == "[3, 8, 8, 3, 3]\n[3, 3, 3]\n", run.stderr  # sessions with waiting events are kept


WITHOUT_GUARDS = """
import logging
logging.basicConfig(level=logging.INFO)
import sys
from pathlib import Path
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sparsegen.service.page import app as app_of_page
from sparsegen.service.models import open_models
models, handler, path, address = sys.argv[1:]
app = FastAPI()
app_of_page.mount(app, open_models(Path(models))[0], lambda: None, lambda: None)
value = {"path": path, "meta": {"_type": "gradio.FileData"}}
answer = TestClient(app).post(address, json={"fn_index": int(handler), "data": [value, None]})
print(answer.status_code)
"""


def test_gradio_also_checks_paths_behind_the_guards(server, taking_a_file, pipe):
    arguments = [server.models, str(taking_a_file), pipe, f"{API}/run/predict"]
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_GUARDS, *arguments], capture_output=True, text=True, timeout=60
    )
    assert run.stdout == "500\n", run.stderr
    assert "refused: InvalidPathError" in run.stderr


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/sample", "OPTIONS, POST"),
        ("/models", "GET, OPTIONS"),
        (f"/restore/{'0' * 32}", "DELETE, GET, OPTIONS"),
    ],
)
def test_options_lists_every_method_of_an_address(server, path, allowed):
    for method, expected in (("OPTIONS", 204), ("PATCH", 405)):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        connection.request(method, path)
        response = connection.getresponse()
        assert (response.status, response.headers["allow"]) == (expected, allowed)
        connection.close()
