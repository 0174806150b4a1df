"""Access to the server: host names, origins, the token, security headers, and limits per client."""

import asyncio
import contextlib
import http.client
import json
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from answers import sentence
from chromium import CHROMIUM, DRIVER, Page
from server import (  # noqa: F401 (two are fixtures)
    NO_TORCH,
    Server,
    running_server,
    small_models,
    start,
    until,
)
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse

from sparsegen.service.clients import client_of
from sparsegen.service.http import connections, synchronous
from sparsegen.service.http.guards import ClientLimits
from sparsegen.service.http.serve import serve
from sparsegen.service.page import events
from sparsegen.service.settings import ServiceSettings

TOKEN = "a-token-of-the-tests-0123"
GOOD, SPACE, EVIL = "https://good.example", "https://space.example", "https://evil.example"
HEALTH = ["/livez", "/readyz", "/healthz"]


@pytest.fixture(scope="module", name="guarded")
def server_with_a_token(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "token").write_text(f"{TOKEN}\n")
    options = ["--host", "0.0.0.0", "--allow-host", "Images.example", "--allow-origin", GOOD]
    options += ["--allow-frame", SPACE, "--token-file", str(folder / "token"), "--port"]
    server = start(folder / "run", models, [sys.executable, "-m", "sparsegen", "serve", *options])
    try:
        yield server.wait_until_ready()
        assert TOKEN not in server.log.read_text()
    finally:
        server.stop()


def ask(
    server: Server, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Sends a request with these headers, in which _ stands for -."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, given)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.mark.parametrize(
    "name",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "192.168.7.7:3000",
        "a@localhost",
        "",
    ],
)
def test_a_name_that_is_not_the_server_s_is_refused(server, name):
    for method, path in (("GET", "/ui/"), ("POST", "/restore"), ("GET", "/metrics"), ("GET", "/nosuch")):
        status, _, answer = ask(server, method, path, Host=name)
        assert status == 421 and "--allow-host" in sentence(answer)
    for path in HEALTH:
        assert ask(server, "GET", path, Host=name)[0] == 200


@pytest.mark.parametrize(
    "name", ["localhost", "LOCALHOST:80", "127.0.0.1", "127.8.9.1:3000", "[::1]:3000", "localhost."]
)
def test_the_names_of_loopback_are_allowed(server, name):
    assert ask(server, "GET", "/models", Host=name)[0] == 200


@pytest.mark.parametrize(
    "name", ["images.example", "IMAGES.EXAMPLE:8443", "192.168.7.7:3000", "[2001:db8::1]"]
)
def test_a_server_on_the_network_accepts_allowed_names_and_addresses(guarded, name):
    assert ask(guarded, "GET", "/models", Host=name, **BEARER)[0] == 200
    assert ask(guarded, "GET", "/models", Host="evil.example", **BEARER)[0] == 421


STATE_CHANGING = [
    ("POST", "/sample"),
    ("POST", "/sample/array"),
    *(("POST", path) for path in synchronous.PATHS),
    ("POST", "/restore"),
    ("DELETE", f"/restore/{'0' * 32}"),
    ("POST", f"{events.API}/upload"),
    *(("POST", path) for path in events.EVENTS),
]
FOREIGN = [
    {"Origin": EVIL},
    {"Origin": "null"},
    {"Origin": EVIL, "Sec_Fetch_Site": "cross-site"},
    {"Sec_Fetch_Site": "cross-site"},
    {"Sec_Fetch_Site": "same-site", "Origin": "http://localhost:9999"},
    {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"},  # the form of a foreign page
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "http://[::1"},
    {"Origin": "a"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_a_page_of_another_origin_cannot_change_anything(server, headers):
    for method, path in STATE_CHANGING:
        status, got, answer = ask(server, method, path, b"{}", Content_Type="application/json", **headers)
        assert status == 403 and "--allow-origin" in sentence(answer), path
        assert "access-control-allow-origin" not in got


def test_a_page_of_another_origin_cannot_read_or_hold_a_stream(server):
    for path in ("/models", "/ui/config", f"{events.API}/heartbeat/a", f"/restore/{'0' * 32}"):
        for mode in ("cors", "no-cors"):
            headers = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": mode}
            assert ask(server, "GET", path, **headers)[0] == 403
    link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
    assert ask(server, "GET", "/ui/", **link)[0] == 200
    for path in ("/ui/config", "/models", f"{events.API}/info"):
        status, got, _ = ask(server, "OPTIONS", path, Origin=EVIL, Access_Control_Request_Method="POST")
        assert status == 403 and not [name for name in got if name.lower().startswith("access-control")]


@pytest.mark.parametrize("own", [{}, {"Sec_Fetch_Site": "same-origin"}, {"Sec_Fetch_Site": "none"}], ids=str)
def test_the_server_s_own_page_and_programs_are_served(server, own):
    origin = {"Origin": server.url} if own else {}
    body = b'{"model": "dcgan-8.ml", "count": 1}'
    assert ask(server, "POST", "/sample", body, Content_Type="application/json", **own, **origin)[0] == 200
    assert ask(server, "POST", "/sample", body, Content_Type="application/json", Origin=server.url)[0] == 200
    proxied = {"Origin": "https://images.example", "X_Forwarded_Host": "images.example"}
    assert ask(server, "POST", "/sample", body, Content_Type="application/json", **proxied)[0] == 200


def test_an_allowed_origin_may_use_the_api(guarded):
    preflight = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "authorization"}
    status, got, _ = ask(guarded, "OPTIONS", "/sample", Origin=GOOD, **preflight)
    assert (status, got["access-control-allow-origin"]) == (200, GOOD)
    status, got, _ = ask(guarded, "GET", "/ui/config", Origin=GOOD, Sec_Fetch_Site="cross-site", **BEARER)
    assert (status, got.get_all("access-control-allow-origin")) == (200, [GOOD])
    assert "access-control-allow-credentials" not in got  # the cookie is for the server's own page
    assert ask(guarded, "OPTIONS", "/sample", Origin=EVIL, **preflight)[0] == 400
    assert ask(guarded, "POST", "/sample", b"{}", Origin=EVIL, **BEARER)[0] == 403


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/ui/",
        "/models",
        "/docs",
        "/nosuch",
        "/restore/a",
        "/metrics",
        "/ui/theme.css",
        f"{events.API}/file=a",
    ],
)
def test_every_answer_has_the_headers_that_protect_a_browser(server, path):
    _, got, _ = ask(server, "GET", path)
    assert got["x-content-type-options"] == "nosniff" and got["referrer-policy"] == "no-referrer"
    assert "frame-ancestors 'none'" in got["content-security-policy"] and got["x-frame-options"] == "DENY"
    assert got["cross-origin-resource-policy"] == "same-origin"
    page = path.split("/")[1] in ("ui", "docs") and not path.startswith(events.API)
    assert ("default-src 'none'" in got["content-security-policy"]) != page


def test_the_page_can_be_framed_only_by_allowed_origins(guarded):
    _, got, _ = ask(guarded, "GET", "/ui/", **BEARER)
    assert (
        f"frame-ancestors 'self' {SPACE}" in got["content-security-policy"] and "x-frame-options" not in got
    )


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/models"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
        ("GET", "/ui/config"),
        ("GET", f"{events.API}/queue/data?session_hash=a"),
        ("GET", f"{events.API}/heartbeat/a"),
        ("GET", "/static_content/swagger-ui.css"),
        *STATE_CHANGING,
    ],
)
def test_requests_without_the_token_are_refused(guarded, method, path):
    wrong = [
        {},
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": TOKEN},
    ]
    wrong += [
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": "Bearer \xff"},
        {"Cookie": f"sparsegen={TOKEN}"},
    ]
    for headers in wrong:
        status, got, answer = ask(guarded, method, path, b"{}" if method == "POST" else None, **headers)
        assert status == 401 and "Bearer TOKEN" in sentence(answer) and got["www-authenticate"] == "Bearer"


def test_health_checks_need_no_token(guarded):
    for path in HEALTH:
        assert ask(guarded, "GET", path)[0] == 200


def test_the_token_allows_the_api(guarded):
    assert ask(guarded, "GET", "/models", Authorization=f"bearer {TOKEN}")[0] == 200
    body = b'{"model": "dcgan-8.ml", "count": 1}'
    assert ask(guarded, "POST", "/sample", body, Content_Type="application/json", **BEARER)[0] == 200


@pytest.mark.parametrize("path", ["/", "/ui", "/ui/", "/docs"])
def test_a_visitor_logs_in_and_gets_a_cookie_without_the_token(guarded, path):
    status, got, page = ask(guarded, "GET", path)
    assert status == 401 and b'type="password"' in page and got["cache-control"] == "no-store"
    form = {"Content_Type": "application/x-www-form-urlencoded"}
    status, got, page = ask(guarded, "POST", path, b"token=wrong", **form)
    assert status == 401 and b"The token is wrong" in page and "set-cookie" not in got
    assert ask(guarded, "POST", path, f"token={TOKEN}".encode(), Origin=EVIL, **form)[0] == 403
    assert ask(guarded, "POST", path, b"token=" + b"a" * 5000, **form)[0] == 413
    status, got, _ = ask(guarded, "POST", path, f"token={TOKEN}".encode(), **form)
    assert status == 303 and got["location"] == "./" + path.rpartition("/")[2]
    cookie = got["set-cookie"]
    assert (
        TOKEN not in cookie
        and "HttpOnly" in cookie
        and "SameSite=strict" in cookie
        and "Secure" not in cookie
    )
    kept = cookie.partition(";")[0]
    assert ask(guarded, "GET", "/ui/config", Cookie=kept)[0] == 200
    assert ask(guarded, "GET", "/ui/config", Cookie=kept[:-1])[0] == 401
    _, got, _ = ask(guarded, "POST", path, f"token={TOKEN}".encode(), X_Forwarded_Proto="https", **form)
    assert "Secure" in got["set-cookie"]


SLOW_LOGIN = b"POST /ui/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4000\r\n\r\ntoken="


def test_slow_logins_are_limited_like_other_requests(guarded):
    with contextlib.ExitStack() as stack:

        def log_in(address: str) -> socket.socket:
            source = (address, 0)
            one = socket.create_connection(("127.0.0.1", guarded.port), 20, source_address=source)
            stack.enter_context(one).sendall(SLOW_LOGIN)
            return one

        held = [log_in("127.0.0.3") for _ in range(ServiceSettings.client_requests)]
        assert until(lambda: log_in("127.0.0.3").recv(12), b"HTTP/1.1 429", 5) == b"HTTP/1.1 429"
        assert held[0].recv(12) == b"HTTP/1.1 408"  # after some seconds


def test_no_process_of_the_server_shows_the_token(guarded):
    import psutil

    tree = [psutil.Process(guarded.process.pid)]
    tree += tree[0].children(recursive=True)
    assert len(tree) > 2
    assert not [process for process in tree if TOKEN in " ".join(process.cmdline())]


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="needs chromium and chromedriver on the PATH")
def test_the_page_works_in_a_browser_after_the_login(guarded, tmp_path):
    page = Page(guarded.url, 1280, tmp_path)
    try:
        page.driver.get(f"{guarded.url}/ui/#restore")
        page.all("#token")[0].send_keys(f"{TOKEN}\n")
        assert until(lambda: len(page.all("#examples .tile")), 4) == 4
        assert page.driver.current_url == f"{guarded.url}/ui/#restore"
        page.click("#tabs [role=tab]", 0)
        assert until(lambda: len(page.pictures("#gallery")), 16) == 16
        wrong = [entry for entry in page.driver.get_log("browser") if entry["level"] == "SEVERE"]
        assert len(wrong) <= 1 and all("401" in entry["message"] for entry in wrong)  # before the login
    finally:
        page.driver.quit()


def test_the_command_line_warns_of_a_server_on_the_network_without_a_token():
    for host in ("0.0.0.0", "::", "192.168.7.7", "images.example"):
        (warning,) = ServiceSettings(host=host).warnings()
        assert host in warning and "--token" in warning
        assert ServiceSettings(host=host, token=TOKEN).warnings() == []
    for host in ("127.0.0.1", "::1", "localhost", "127.0.0.2"):
        assert ServiceSettings(host=host).warnings() == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"token": "short"}, "at least 16"),
        ({"token": "with spaces in the token"}, "no spaces"),
        ({"allow_origin": ("good.example",)}, "SPARSEGEN_ALLOW_ORIGIN takes an origin such as https"),
        ({"allow_frame": ("https://a.example/path",)}, "SPARSEGEN_ALLOW_FRAME"),
        ({"allow_frame": ("https://a.example; script-src *",)}, "SPARSEGEN_ALLOW_FRAME"),
        ({"allow_host": ("https://a.example",)}, "without scheme and port"),
        ({"proxy": ("a.example",)}, "an address or a network"),
        ({"client_requests": 0}, "SPARSEGEN_CLIENT_REQUESTS is an integer from 1 to"),
        ({"job_hours": float("nan")}, "SPARSEGEN_JOB_HOURS is a number from 0.01 to"),
    ],
    ids=str,
)
def test_an_invalid_setting_is_refused(given, words):
    with pytest.raises(ValueError, match=words) as refused:
        ServiceSettings(**given)
    assert str(given.get("token")) not in str(refused.value)


def test_settings_are_the_same_after_a_round_trip_through_the_environment():
    exposure = ServiceSettings(
        host="::",
        allow_host=("a.example", "b"),
        allow_origin=(GOOD,),
        allow_frame=(SPACE, "*"),
        token=TOKEN,
        proxy=("10.0.0.0/8",),
        root_path="/images",
        client_requests=3,
        sync_seconds=4.5,
    )
    assert ServiceSettings.from_environment(exposure.environment()) == exposure
    assert exposure.environment()["FORWARDED_ALLOW_IPS"] == "10.0.0.0/8"
    assert ServiceSettings.from_environment({}) == ServiceSettings() and TOKEN not in repr(exposure)
    assert ServiceSettings.from_environment({"SPARSEGEN_TOKEN": "b" * 20}, token=TOKEN).token == TOKEN
    with pytest.raises(ValueError, match="SPARSEGEN_CLIENT_REQUESTS is an integer"):
        ServiceSettings.from_environment({"SPARSEGEN_CLIENT_REQUESTS": "many"})
    with pytest.raises(ValueError, match="SPARSEGEN_CLIENT_STREAMS is an integer from 1 to .*; got 0"):
        ServiceSettings.from_environment({"SPARSEGEN_CLIENT_STREAMS": "0"})


def test_an_empty_token_does_not_open_the_server():
    with pytest.raises(ValueError, match="SPARSEGEN_TOKEN is empty"):
        ServiceSettings.from_environment({"SPARSEGEN_TOKEN": ""})
    assert ServiceSettings.from_environment({"SPARSEGEN_TOKEN": ""}, token=TOKEN).token == TOKEN


@pytest.mark.parametrize("content", [None, b"\xff\xfe secret"])
def test_an_unreadable_token_file_is_named_without_its_content(tmp_path, content):
    if content:
        (tmp_path / "token").write_bytes(content)
    command = [sys.executable, "-m", "sparsegen", "serve", "--token-file", str(tmp_path / "token")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2 and "the token cannot be read from" in run.stderr
    assert "secret" not in run.stderr and "Errno" not in run.stderr


def test_bentoml_without_serve_warns_that_no_token_is_required():
    (warning,) = ServiceSettings().direct_warnings()
    assert "SPARSEGEN_TOKEN" in warning and "all addresses" in warning
    assert (
        ServiceSettings(host="127.0.0.1").direct_warnings()
        == ServiceSettings(token=TOKEN).direct_warnings()
        == []
    )


@pytest.mark.parametrize("path", ["/", "/ui"])
@pytest.mark.parametrize("host", ["localhost", "localhost:3000"])
def test_redirects_do_not_contain_the_host(server, path, host):
    """The login form is sent through these, and the policy forbids forms to other origins."""
    for method in ("GET", "HEAD"):
        status, got, _ = ask(server, method, path, Host=host)
        assert (status, got["location"]) == (307, "ui/") or (method, path, status) == ("HEAD", "/", 405)


def test_serve_warns_before_it_opens_to_the_network(models, monkeypatch, caplog):
    monkeypatch.setenv("SPARSEGEN_MODELS", str(models))
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        for host, warned in (("0.0.0.0", True), ("127.0.0.1", False)):
            caplog.clear()
            with pytest.raises(OSError, match="cannot listen"):
                serve(host, taken.getsockname()[1])
            assert ("--token" in caplog.text) == warned


def test_serve_refuses_an_invalid_token_in_one_line_without_it(models, tmp_path):
    command = [sys.executable, "-m", "sparsegen", "serve", "--port", "1"]
    run = subprocess.run(
        command, env={"SPARSEGEN_TOKEN": "tooshort", "PATH": ""}, capture_output=True, text=True, timeout=60
    )
    (line,) = run.stderr.splitlines()
    assert run.returncode == 2 and "at least 16" in line and "tooshort" not in line


def holding(
    server: Server, stack: contextlib.ExitStack, count: int, request: str, **headers: str
) -> list[int]:
    """Sends requests without reading their bodies; returns the statuses of those that are answered at once."""
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    sockets = [
        stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=60))
        for _ in range(count)
    ]
    for number, connection in enumerate(sockets):
        line = f"{request.format(number)} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n"
        connection.sendall(line.encode())
    return [int(connection.recv(12).split()[1]) for connection in sockets]


def test_idle_streams_of_one_client_do_not_block_others(server):
    limit = ServiceSettings.client_streams
    with contextlib.ExitStack() as stack:
        statuses = holding(server, stack, limit + 10, f"GET {events.API}/heartbeat/{{}}")
        assert sorted(statuses) == [200] * limit + [429] * 10
        status, headers, answer = ask(server, "GET", f"{events.API}/heartbeat/a")
        assert (
            status == 429
            and f"at most {limit} concurrent streams" in sentence(answer)
            and int(headers["retry-after"]) > 0
        )
        assert ask(server, "GET", "/models")[0] == 200 and ask(server, "GET", "/ui/")[0] == 200
        assert holding(server, stack, 1, f"GET {events.API}/heartbeat/b", X_Forwarded_For="10.0.0.1") == [200]
    again = f"GET {events.API}/heartbeat/c"

    def free() -> bool:
        with contextlib.ExitStack() as stack:
            return holding(server, stack, 1, again) == [200]

    assert until(free, True)


def test_endless_requests_of_one_client_do_not_block_others(server):
    promise = {"Content_Type": "application/json", "Content_Length": "9", "X_Forwarded_For": "10.0.0.2"}
    with contextlib.ExitStack() as stack:
        for _ in range(ServiceSettings.client_requests):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in promise.items())
            connection.sendall(f"POST /sample HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n".encode())
        mine = until(lambda: ask(server, "GET", "/models", X_Forwarded_For="10.0.0.2")[0], 429)
        assert mine == 429 and ask(server, "GET", "/models", X_Forwarded_For="10.0.0.3")[0] == 200


def test_the_queue_of_the_page_is_limited_in_total_and_per_client(server):
    dependencies = json.loads(server.ask("GET", "/ui/config")[2])["dependencies"]
    (draw,) = [one["id"] for one in dependencies if one["api_name"] == "draw"]
    data = ["sagan-8.ml", -1, 1, 64, 2, False, 2, 0]

    def join(address: str) -> int:
        body = json.dumps({"fn_index": draw, "session_hash": uuid.uuid4().hex, "data": data}).encode()
        status, headers, _ = ask(server, "POST", events.JOIN, body, X_Forwarded_For=address)
        assert (headers["retry-after"] is not None) == (status in (429, 503))
        return status

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(join, ["10.0.0.4"] * 60)) == {200, 429}
        assert join("10.0.0.5") == 200
        many = [f"10.0.1.{number % 25}" for number in range(150)]
        assert set(pool.map(join, many)) == {200, 503}
    assert until(lambda: join("10.0.0.5"), 200) == 200


def test_connections_are_limited_per_client(few):
    with contextlib.ExitStack() as stack:

        def connect(address: str) -> socket.socket:
            source = (address, 0)
            return stack.enter_context(
                socket.create_connection(("127.0.0.1", few.port), 10, source_address=source)
            )

        idle = [connect("127.0.0.2") for _ in range(connections.CLIENT_CONNECTIONS)]
        with pytest.raises(ConnectionError):
            one_more = connect("127.0.0.2")
            assert not one_more.recv(1)
            raise ConnectionAbortedError
        assert few.ask("GET", "/models")[0] == 200
        idle[0].sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert idle[0].recv(12) == b"HTTP/1.1 200"


def test_all_clients_together_are_limited_and_streams_are_counted_separately():
    async def ask_all() -> list[int]:
        held, statuses = asyncio.Event(), []

        async def app(scope, receive, send):
            await held.wait()
            await PlainTextResponse("done")(scope, receive, send)

        limits = ClientLimits(app, requests=2, streams=1, all_requests=3, all_streams=1)

        async def get(path: str, address: str) -> None:
            async def send(message):
                if message["type"] == "http.response.start":
                    statuses.append((path[-1], address[-1], message["status"]))

            scope = {"type": "http", "method": "GET", "path": path, "headers": [], "client": (address, 1)}
            await limits(scope, None, send)

        stream = f"{events.API}/heartbeat/s"
        wanted = [("/r", "10.0.0.1")] * 3 + [("/r", "10.0.0.2"), ("/r", "10.0.0.3")]
        wanted += [(stream, "10.0.0.1"), (stream, "10.0.0.2"), ("/livez", "10.0.0.1")]
        tasks = [asyncio.create_task(get(*one)) for one in wanted]
        await asyncio.sleep(0)
        refused = list(statuses)
        held.set()
        await asyncio.gather(*tasks)
        assert not limits.held["requests"] and not limits.held["streams"]
        return refused

    assert asyncio.run(ask_all()) == [("r", "1", 429), ("r", "3", 503), ("s", "2", 503)]


def test_an_ipv6_network_is_one_client():
    def client(address: str) -> str:
        return client_of(HTTPConnection({"type": "http", "client": (address, 1)}))

    assert client("2001:db8::1") == client("2001:db8::ffff:1") != client("2001:db8:0:1::1")
    assert client("::ffff:10.0.0.1") == client("10.0.0.1") != client("10.0.0.2")


def test_a_forged_address_from_a_proxy_does_not_forge_a_log_line(server):
    forged = "203.0.113.9 DELETE /restore/{job_id} 200 1 ms"
    assert ask(server, "GET", "/models", X_Forwarded_For=forged)[0] == 200
    assert until(lambda: "unknown GET /models 200" in server.log.read_text(), True, 10)
    assert "203.0.113.9" not in server.log.read_text()


BREAKS = """
from sparsegen.service.settings import ServiceSettings
allows = ServiceSettings.allows_host
ServiceSettings.allows_host = lambda self, name: 1 / 0 if name == "broken.example" else allows(self, name)
"""


@pytest.fixture(scope="module", name="few")
def server_with_another_proxy(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {"SPARSEGEN_PROXY": "10.9.9.9", "SPARSEGEN_CLIENT_STREAMS": "1"}
    server = start(tmp_path_factory.mktemp("few") / "run", models, start_up=NO_TORCH + BREAKS, **settings)
    try:
        yield server.wait_until_ready()
    finally:
        server.stop()


def test_an_error_in_a_guard_is_answered_and_logged(few):
    status, _, answer = ask(few, "GET", "/models", Host="broken.example")
    assert status == 500 and "log" in sentence(answer)
    assert until(lambda: "ZeroDivisionError" in few.log.read_text(), True, 10)


def test_only_trusted_proxies_can_set_the_client_address(few):
    with contextlib.ExitStack() as stack:
        request = f"GET {events.API}/heartbeat/{{}}"
        assert holding(few, stack, 1, request, X_Forwarded_For="10.0.0.1") == [200]
        assert holding(few, stack, 1, request, X_Forwarded_For="10.0.0.2") == [429]
