"""The middleware of an application with the page: all guards, in order, whichever server runs it."""

from collections.abc import Iterable, Mapping
from typing import Any

from starlette.datastructures import State
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.routing import BaseRoute

from sparsegen.service.errors import JsonErrors, broken
from sparsegen.service.http.deadline import Deadline
from sparsegen.service.http.guards import guards
from sparsegen.service.http.limits import MAX_BODY, BodyLimit
from sparsegen.service.http.readiness import Readiness
from sparsegen.service.jobs.orders import MAX_UPLOAD
from sparsegen.service.page.events import EVENTS, MAX_EVENT, PageRequests
from sparsegen.service.settings import ServiceSettings
from sparsegen.service.uploads import UPLOAD, Room

PAGE_LIMITS = {  # bytes of a body, where they differ from the default of BodyLimit
    ("POST", UPLOAD): MAX_UPLOAD + MAX_BODY,  # a file, and the rest of the form
    **{("POST", path): MAX_EVENT for path in EVENTS},
}


def protection(
    settings: ServiceSettings,
    routes: Iterable[BaseRoute],
    state: State,
    room: Room,
    limits: Mapping[tuple[str, str], int] | None = None,
    deadlines: Mapping[tuple[str, str], float] | None = None,
) -> list[tuple[type, dict[str, Any]]]:
    """The middleware, outermost first, each with its options.

    Args:
        routes: Our routes besides those of the page.
        state: The state of the application; it gets `health` and, from `page.app.mount`, `queued`, `handlers` and
            `sessions`.
        limits, deadlines: Bytes of a body, and seconds until an answer begins, of routes by method and path.
    """
    return [
        (ServerErrorMiddleware, {"handler": broken}),  # also answers errors of the middleware
        *guards(settings, routes),
        (Readiness, {"health": lambda: state.health}),
        (JsonErrors, {}),
        (BodyLimit, {"exceptions": PAGE_LIMITS | dict(limits or {}), "room": room}),
        (Deadline, {"exceptions": deadlines}),
        (
            PageRequests,
            {
                "queued": lambda: state.queued(),
                "handlers": lambda: state.handlers,
                "sessions": lambda: state.sessions,
                "limit": settings.client_events,
            },
        ),
    ]
