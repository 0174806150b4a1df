"""Ends a process when its parent has ended."""

import os
import signal
import threading
import time

PARENT = "SPARSEGEN_PARENT"  # the environment variable with the id of the parent
POLL_EVERY = 0.5  # seconds
PATIENCE = 5.0  # seconds between SIGTERM and the forced exit


def end_with_parent() -> None:
    """Watches the process with the id in SPARSEGEN_PARENT, if that is set, from a thread.

    Otherwise a worker of BentoML would outlive a killed arbiter, keep its port, and answer health checks. The id comes
    from a variable, because the parent may have ended before this call.
    """
    if PARENT in os.environ:
        threading.Thread(target=_watch, args=[int(os.environ[PARENT])], daemon=True).start()


def _watch(parent: int) -> None:
    while (
        os.getppid() == parent
    ):  # changes when the parent ends; `parent` itself may be reused by another process
        time.sleep(POLL_EVERY)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE)
    os._exit(1)
