"""Ends a process with the one that started it, however that ended."""

import os
import signal
import threading
import time

PARENT = "SPARSEGEN_PARENT"  # the environment variable that names the process to end with
POLL_EVERY = 0.5  # seconds
PATIENCE = 5.0  # seconds between SIGTERM and the end by force


def end_with_parent() -> None:
    """Watches the process named by SPARSEGEN_PARENT, if that is set, from a thread.

    A worker of BentoML would otherwise outlive an arbiter that was killed, keep its port, and answer health checks.
    The variable names the parent, since the parent may be gone before this is called.
    """
    if PARENT in os.environ:
        threading.Thread(target=_watch, args=[int(os.environ[PARENT])], daemon=True).start()


def _watch(parent: int) -> None:
    while (
        os.getppid() == parent
    ):  # changes once the parent is dead; its number may be given to another process
        time.sleep(POLL_EVERY)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE)
    os._exit(1)
