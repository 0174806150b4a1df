"""The arbiter of BentoML without its control sockets.

They listen on ports of the loopback interface and ask for no password: any user of the machine could start programs
through them as the user of the server.
"""

from typing import Any

from bentoml._internal.utils import circus  # noqa: TID253 (what this module is for)

# Sockets of ZeroMQ inside the process: they have no port and no file.
CONTROL, EVENTS = "inproc://control", "inproc://events"


class Arbiter(circus.Arbiter):
    """Choice: plugins keep the ports. `bentoml serve --reload`, for development, has one in another process."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        if not options.get("plugins"):
            options |= {"endpoint": CONTROL, "pubsub_endpoint": EVENTS}
        super().__init__(*arguments, **options)


def use() -> None:
    """Makes BentoML start `Arbiter`; the process that calls this has loaded the service, and not started it yet."""
    circus.Arbiter = Arbiter  # type: ignore[misc]  # the class that bentoml instantiates
