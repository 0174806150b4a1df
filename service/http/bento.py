"""Runs bentoml as `python -m bentoml` does, and ends it with the process that holds the other end of standard input.

The server would otherwise outlive a `sparsegen serve` that was killed, keep its port, and take jobs that nobody does.
"""

import os
import runpy
import shutil
import signal
import sys
import threading
import time

from sparsegen.service.http.orphans import PARENT

PATIENCE = 6.0  # seconds; a worker that is left then ends by itself, see `orphans`


def end_with_stdin(orphaned: threading.Event) -> None:
    """Waits until standard input closes; then ends this process and its children."""
    while os.read(0, 1024):
        pass
    orphaned.set()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE)
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    orphaned = threading.Event()
    threading.Thread(target=end_with_stdin, args=[orphaned], daemon=True).start()
    os.environ[PARENT] = str(os.getpid())
    sys.argv[0] = "bentoml"
    try:
        runpy.run_module("bentoml", run_name="__main__")
    finally:
        if orphaned.is_set():  # nobody else is left to do it
            shutil.rmtree(os.environ["BENTOML_HOME"], ignore_errors=True)


if __name__ == "__main__":
    main()
