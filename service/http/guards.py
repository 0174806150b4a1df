"""ASGI middleware that checks every request before it reaches our routes, BentoML's or Gradio's.

`guards` lists them in order. A refusal is one sentence, answered before the body is read.
"""

import asyncio
import hashlib
import hmac
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, HTTPConnection, Request, cookie_parser
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sparsegen.service.clients import client_of
from sparsegen.service.errors import SENTENCES, busy
from sparsegen.service.page import markup
from sparsegen.service.page.events import API, EVENTS, FILE
from sparsegen.service.settings import ServiceSettings, host_of
from sparsegen.service.uploads import UPLOAD

READ, WRITE = frozenset({"GET", "HEAD"}), frozenset({"POST"})
Address = tuple[frozenset[str], re.Pattern[str]]  # methods and path
STREAM = re.compile(rf"{API}/(heartbeat/[\w-]{{1,64}}|queue/data|upload_progress)")
NAME = r"[\w@+~-][\w@+~.-]{0,127}"  # of a file or folder; bounded, since the file system limits names
FOREIGN: Sequence[Address] = [  # the used addresses of BentoML and Gradio
    (READ, re.compile(r"/(livez|readyz|healthz|metrics|docs\.json|schema\.json)")),
    (READ, re.compile(rf"/static_content/{NAME}", re.ASCII)),
    (READ, re.compile(r"/ui/?|/ui/(config|theme\.css)/?")),
    (READ, re.compile(rf"/ui/(assets|static)/({NAME}/){{0,8}}{NAME}", re.ASCII)),
    (READ, re.compile(rf"{API}/(info|startup-events|app_id|theme\.css)/?")),
    (READ, STREAM),
    (READ, FILE),
    *((WRITE, re.compile(path)) for path in (UPLOAD, *EVENTS)),
]
PROBES = frozenset({"/livez", "/readyz", "/healthz"})  # answered for any host, token and load
PUBLIC = PROBES | {
    "/favicon.ico",
    "/manifest.json",
}  # no token required; browsers request these two without a cookie
PAGES = re.compile(r"/|/ui/?|/docs")  # show the login form to visitors without a token
MAX_LOGIN, LOGIN_SECONDS = 4096, 10.0  # bytes of a login, and its time limit
SESSION_SECONDS = 30 * 24 * 3600
ALL_REQUESTS, ALL_STREAMS = 512, 1024  # concurrent ones of all clients


def guards(settings: ServiceSettings, routes: Iterable[BaseRoute]) -> list[tuple[type, dict[str, Any]]]:
    """The middleware, outermost first, each with its options.

    Args:
        routes: Our routes; their addresses are allowed in addition to FOREIGN.
    """
    own = [
        (frozenset(route.methods or ()), re.compile(route.path_regex.pattern))
        for route in routes
        if isinstance(route, Route)
    ]
    cors = {"allow_origins": settings.allow_origin, "allow_methods": ["GET", "POST", "DELETE"]}
    cors |= {
        "allow_headers": ["authorization", "content-type", "x-request-id"],
        "expose_headers": ["location", "retry-after", "x-request-id"],
    }
    return [
        *([(CORSMiddleware, cors)] if settings.allow_origin else []),
        (SecurityHeaders, {"settings": settings}),
        (AllowedHosts, {"settings": settings}),
        (OwnOrigin, {"settings": settings}),
        (KnownAddresses, {"known": [*own, *FOREIGN, *([(WRITE, PAGES)] if settings.token else [])]}),
        # Before the login, since a client without a token may send its form slowly.
        (ClientLimits, {"requests": settings.client_requests, "streams": settings.client_streams}),
        *([(Login, {"token": settings.token})] if settings.token else []),
    ]


POLICY = {"object-src": "'none'", "base-uri": "'self'", "form-action": "'self'"}
SCRIPTS = POLICY | {"default-src": "'self'", "style-src": "'self' 'unsafe-inline'"}
POLICIES = {  # Content-Security-Policy of pages, by the first part of their path
    # Gradio embeds its configuration as a script, and compiles the JavaScript of handlers from text.
    "ui": SCRIPTS
    | {
        "script-src": "'self' 'unsafe-inline' 'unsafe-eval'",
        "img-src": "'self' data: blob:",
        "font-src": "'self' data:",
        "connect-src": "'self' data: blob:",
        "worker-src": "'self' blob:",
    },
    "docs": SCRIPTS | {"script-src": "'self' 'unsafe-inline'", "img-src": "'self' data:"},
}
NOTHING = POLICY | {
    "default-src": "'none'",
    "style-src": "'unsafe-inline'",
}  # for answers that are not pages


class SecurityHeaders:
    """Adds headers that restrict what browsers do with an answer: scripts, frames, other origins, type guessing.

    The CORS headers of Gradio are removed; `CORSMiddleware`, outside of this, sets them if origins are allowed.
    """

    def __init__(self, app: ASGIApp, settings: ServiceSettings) -> None:
        self.app = app
        self.frames = " ".join(["'self'", *settings.allow_frame]) if settings.allow_frame else "'none'"
        self.readers = "cross-origin" if settings.allow_origin else "same-origin"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    header
                    for header in message.get("headers", [])
                    if not header[0].startswith(b"access-control-")
                ]
                self._add(MutableHeaders(raw=message["headers"]), scope["path"])
            await send(message)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)

    def _add(self, headers: MutableHeaders, path: str) -> None:
        page = None if path.startswith(API) else POLICIES.get(path.lstrip("/").partition("/")[0])
        policy = (page or NOTHING) | {"frame-ancestors": self.frames}
        headers["content-security-policy"] = "; ".join(f"{name} {value}" for name, value in policy.items())
        headers["x-content-type-options"] = "nosniff"
        headers["cross-origin-resource-policy"] = self.readers
        headers.setdefault("referrer-policy", "no-referrer")
        if self.frames == "'none'":
            headers["x-frame-options"] = "DENY"


class AllowedHosts:
    """Answers 421 to a request with a host name that is not allowed."""

    def __init__(self, app: ASGIApp, settings: ServiceSettings) -> None:
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in PROBES:
            given = Headers(scope=scope).getlist("host")
            name = host_of(given[0]) if len(given) == 1 else ""
            if not self.settings.allows_host(name):
                sentence = f"the host name {name[:100]!r} is not allowed: the operator can allow it with --allow-host"
                await JSONResponse({"error": sentence}, 421)(scope, receive, send)
                return
        await self.app(scope, receive, send)


class OwnOrigin:
    """Answers 403 to requests from pages of other websites.

    A browser sends the origin of a request in Sec-Fetch-Site or Origin. Other sites may only link to the server.
    Programs that are not browsers send neither header.
    """

    def __init__(self, app: ASGIApp, settings: ServiceSettings) -> None:
        self.app, self.origins = app, settings.allow_origin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._foreign(scope["method"], Headers(scope=scope)):
            sentence = "pages of other origins may not use this server: the operator can allow one with --allow-origin"
            await JSONResponse({"error": sentence}, 403)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _foreign(self, method: str, headers: Headers) -> bool:
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if "*" in self.origins or origin in self.origins:
            return False
        if site is not None:
            link = method in READ and headers.get("sec-fetch-mode") == "navigate"
            return site not in ("same-origin", "none") and not link
        if origin is None:
            return False
        own = {headers.get("host"), headers.get("x-forwarded-host")}
        name = origin.partition("://")[2]
        return not name or name not in own


class KnownAddresses:
    """Answers 404 to a path that is not in `known`, 405 to a wrong method, and OPTIONS with the allowed methods."""

    def __init__(self, app: ASGIApp, known: Sequence[Address]) -> None:
        self.app, self.known = app, known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "this server has no WebSockets"})
        elif scope["type"] != "http":
            await self.app(scope, receive, send)
        elif scope["method"] in (methods := self._methods(scope["path"])):
            await self.app(scope, receive, send)
        else:
            await _refusal(scope, methods)(scope, receive, send)

    def _methods(self, path: str) -> set[str]:
        return {method for methods, pattern in self.known if pattern.fullmatch(path) for method in methods}


def _refusal(scope: Scope, methods: set[str]) -> Response:
    if not methods:
        return JSONResponse({"error": SENTENCES[404].format(**scope)}, 404)
    allow = {"allow": ", ".join(sorted({*methods, "OPTIONS"}))}
    if scope["method"] == "OPTIONS":
        return Response(status_code=204, headers=allow)
    return JSONResponse({"error": SENTENCES[405].format(**scope)}, 405, allow)


class Login:
    """Requires the token: as a bearer token from programs, by a form from visitors of the page.

    The form sets a cookie that proves knowledge of the token without containing it.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.token = app, token.encode()
        self.cookie = (
            f"sparsegen_{self._proof('name')[:8]}"  # distinct for servers on other ports of the host
        )
        self.session = self._proof("session")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PUBLIC:
            await self.app(scope, receive, send)
        elif scope["method"] == "POST" and PAGES.fullmatch(scope["path"]):
            try:
                async with asyncio.timeout(LOGIN_SECONDS):
                    answer = await self._log_in(scope, receive)
            except TimeoutError:
                sentence = f"the login did not arrive within {LOGIN_SECONDS:g} seconds: retry"
                answer = JSONResponse({"error": sentence}, 408, {"connection": "close"})
            except ClientDisconnect:
                return
            await answer(scope, receive, send)
        elif self._knows(Headers(scope=scope)):
            await self.app(scope, receive, send)
        else:
            await self._ask(scope)(scope, receive, send)

    def _proof(self, what: str) -> str:
        return hmac.new(self.token, f"sparsegen {what}".encode(), hashlib.sha256).hexdigest()

    def _knows(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), self.token):
            return True
        kept = cookie_parser(headers.get("cookie", "")).get(self.cookie, "")
        return hmac.compare_digest(kept.encode("latin-1", "replace"), self.session.encode())

    def _ask(self, scope: Scope, note: str = "") -> Response:
        headers = {"www-authenticate": "Bearer", "cache-control": "no-store"}
        if PAGES.fullmatch(scope["path"]):
            # With no-referrer, browsers would send the form with the origin "null".
            return HTMLResponse(markup.login(note), 401, headers | {"referrer-policy": "same-origin"})
        sentence = "this server requires a token: send it in the header Authorization: Bearer TOKEN"
        return JSONResponse({"error": sentence}, 401, headers)

    async def _log_in(self, scope: Scope, receive: Receive) -> Response:
        body = b""
        async for chunk in Request(scope, receive).stream():
            body += chunk
            if len(body) > MAX_LOGIN:
                return JSONResponse(
                    {"error": f"a login may have at most {MAX_LOGIN:,} bytes"}, 413, {"connection": "close"}
                )
        (given, *_) = parse_qs(body.decode("latin-1")).get("token", [""])
        if not hmac.compare_digest(given.strip().encode(), self.token):
            return self._ask(scope, "The token is wrong.")
        back = f"./{scope['path'].rpartition('/')[2]}"  # relative, since a proxy may add a path prefix
        answer = RedirectResponse(back, 303, {"cache-control": "no-store"})
        secure = "https" in (scope["scheme"], Headers(scope=scope).get("x-forwarded-proto"))
        answer.set_cookie(
            self.cookie, self.session, SESSION_SECONDS, secure=secure, httponly=True, samesite="strict"
        )
        return answer


class ClientLimits:
    """Answers 429 to a client with too many concurrent requests or streams of the page, and 503 if all have too many.

    Streams are counted separately, because they stay open as long as the page.
    """

    def __init__(
        self,
        app: ASGIApp,
        requests: int,
        streams: int,
        all_requests: int = ALL_REQUESTS,
        all_streams: int = ALL_STREAMS,
    ) -> None:
        self.app = app
        self.limits = {"requests": (requests, all_requests), "streams": (streams, all_streams)}
        self.held: dict[str, Counter[str]] = {kind: Counter() for kind in self.limits}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self.app(scope, receive, send)
            return
        kind = "streams" if STREAM.fullmatch(scope["path"]) else "requests"
        (limit, of_all), held, client = self.limits[kind], self.held[kind], client_of(HTTPConnection(scope))
        if held[client] >= limit:
            await busy(429, f"one client may have at most {limit} concurrent {kind}: wait for an answer", 2)(
                scope, receive, send
            )
        elif held.total() >= of_all:
            await busy(503, f"the server allows at most {of_all} concurrent {kind}: retry in a moment", 10)(
                scope, receive, send
            )
        else:
            held[client] += 1
            try:
                await self.app(scope, receive, send)
            finally:
                held[client] -= 1
                if not held[client]:
                    del held[client]
