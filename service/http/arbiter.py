"""The arbiter of BentoML without its control sockets.

These sockets listen on loopback ports without a password: any user of the machine could start programs through them
as the user of the server.
"""

from typing import Any

from bentoml._internal.utils import circus  # noqa: TID253 (this module extends it)

# Sockets of ZeroMQ inside the process: they have no port and no file.
CONTROL, EVENTS = "inproc://control", "inproc://events"


class Arbiter(circus.Arbiter):
    """Choice: keeps the ports for plugins, which run in other processes, e.g. with `bentoml serve --reload`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        if not options.get("plugins"):
            options |= {"endpoint": CONTROL, "pubsub_endpoint": EVENTS}
        super().__init__(*arguments, **options)


def use() -> None:
    """Makes BentoML use `Arbiter`. Must be called after the service was loaded and before it starts."""
    circus.Arbiter = Arbiter  # type: ignore[misc]  # the class that bentoml instantiates
