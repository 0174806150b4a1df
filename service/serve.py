"""Starts the server, as `sparsegen serve` does."""

import errno
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException

import psutil

from sparsegen.service.models import models_folder, open_models

SERVICE = "sparsegen.service.endpoint:SparseGen"
WORKER = "_bentoml_impl.worker.service"  # the module that a worker of bentoml runs


def serve(host: str = "127.0.0.1", port: int = 3000) -> int:
    """Serves the models until SIGINT or SIGTERM, and returns the exit code, 0 if one of them ended it.

    Raises: FileNotFoundError if there are no models, OSError if the port is taken or the host unknown,
        RuntimeError if the server or its worker ends before it is ready.
    """
    open_models(models_folder())  # here, since bentoml starts a worker that fails again and again
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
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError):
        raise OSError(f"no host is called {host!r}: choose another --host, as 127.0.0.1 or 0.0.0.0") from None
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            option = "--host" if error.errno == errno.EADDRNOTAVAIL else "--port"
            raise OSError(
                f"cannot listen on {host}:{port} ({error.strerror}): choose another {option}"
            ) from None


def wait_until_ready(server: subprocess.Popen, host: str, port: int, stopped: list[int]) -> bool:
    """Polls /readyz until it answers 200; returns False if a signal came first.

    Raises: RuntimeError if the server or its worker ends.
    """
    started: set[int] = set()
    while not stopped:
        if server.poll() is not None:
            raise RuntimeError(
                f"the server ended with exit code {server.returncode} before it was ready; see above"
            )
        alive = workers(server)
        if started - alive:
            raise RuntimeError("the server's worker ended before it was ready; see above")
        started |= alive
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


def workers(server: subprocess.Popen) -> set[int]:
    """Numbers of the worker processes of a server that have not ended."""
    alive = set()
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(server.pid).children():
            with suppress(psutil.NoSuchProcess):  # a zombie, too
                if WORKER in child.cmdline():
                    alive.add(child.pid)
    return alive


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
