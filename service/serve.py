"""Starts the server, as `sparsegen serve` does."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException

from sparsegen.service.models import find_models, models_folder

SERVICE = "sparsegen.service.endpoint:SparseGen"


def serve(host: str = "127.0.0.1", port: int = 3000) -> int:
    """Serves the models until SIGINT or SIGTERM, and returns the exit code, 0 if one of them ended it.

    Raises: FileNotFoundError if there are no models, OSError if the port is taken, RuntimeError if the server
        ends before it is ready.
    """
    find_models(models_folder())
    check_port(host, port)
    with tempfile.TemporaryDirectory(prefix="sparsegen-serve-") as home, stop_signals() as stopped:
        command = [sys.executable, "-m", "bentoml", "serve", SERVICE, "--host", host, "--port", str(port)]
        command += ["--timeout-graceful-shutdown", "3"]  # an open page would keep its connection for good
        server = subprocess.Popen(command, env=environment(home), start_new_session=True)
        try:
            if wait_until_ready(server, host, port, stopped):
                print(f"The page: http://{_visible(host)}:{port}/ui", flush=True)
            while server.poll() is None and not stopped:
                time.sleep(0.2)
        finally:
            stop(server)
    return 0 if stopped else server.returncode


def environment(home: str) -> dict[str, str]:
    """A server's environment: no tracking, and a home of its own, since two in one disturb each other."""
    return {
        **os.environ,
        "BENTOML_HOME": home,
        "BENTOML_DO_NOT_TRACK": "True",
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": os.path.join(home, "gradio"),
    }


def check_port(host: str, port: int) -> None:
    """Raises: OSError if nothing can listen there, saying why."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise OSError(
                f"cannot listen on {host}:{port} ({error.strerror}): choose another --port"
            ) from None


def wait_until_ready(server: subprocess.Popen, host: str, port: int, stopped: list[int]) -> bool:
    """Polls /readyz until it answers 200; returns False if a signal came first.

    Raises: RuntimeError if the server ends.
    """
    while not stopped:
        if server.poll() is not None:
            raise RuntimeError(
                f"the server ended with exit code {server.returncode} before it was ready; see above"
            )
        connection = HTTPConnection(_visible(host), port, timeout=2)
        try:
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return True
        except (OSError, HTTPException):
            pass  # not listening yet
        finally:
            connection.close()
        time.sleep(0.2)
    return False


def stop(server: subprocess.Popen, patience: float = 15) -> None:
    """Ends a server and its workers: by SIGTERM, and by SIGKILL if that takes too long."""
    if server.poll() is None:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(patience)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in the list that it yields, in place of being ended by them."""
    stopped: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: stopped.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _visible(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
