"""Runs BentoML like `python -m bentoml`, and ends it when standard input closes, that is, when its parent has ended.

Otherwise the server would outlive a killed `sparsegen serve`, keep its port, and accept jobs without a worker.
"""

import os
import runpy
import shutil
import signal
import sys
import threading
import time

from sparsegen.service.http.orphans import PARENT

PATIENCE = 6.0  # seconds; remaining workers then end by themselves, see `orphans`


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
        if orphaned.is_set():  # the parent cannot do it
            shutil.rmtree(os.environ["BENTOML_HOME"], ignore_errors=True)


if __name__ == "__main__":
    main()
