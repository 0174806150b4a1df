"""Starts the server, as `sparsegen serve` does."""

import errno
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from http.client import HTTPConnection, HTTPException

import psutil

from sparsegen.service.exposure import Exposure
from sparsegen.service.jobs import ENVIRONMENT as JOBS
from sparsegen.service.models import models_folder, open_models
from sparsegen.service.options import Options
from sparsegen.service.worker import WORKERS, stop_signals

logger = logging.getLogger(__name__)

SERVICE = "sparsegen.service.endpoint:SparseGen"
WORKER = "_bentoml_impl.worker.service"  # the module that a worker of bentoml runs
BENTO, RESTORER = "sparsegen.service.bento", "sparsegen.service.worker"  # both end with this process
PATIENCE = 15.0  # seconds
RESTART_AFTER = 5.0  # seconds from the start of a worker of restorations to that of its successor


def serve(host: str = "127.0.0.1", port: int = 3000, workers: int = 1, jobs: str | None = None) -> int:
    """Serves the models until SIGINT or SIGTERM, and returns the exit code, 0 if one of them ended it.

    Args:
        workers: Processes beside the server that do restorations; they end with this one, even if it is killed.
        jobs: Where the restorations are kept, a SQLite file or a Redis URL; see `jobs.default_place`.

    Raises: FileNotFoundError if there are no models, OSError if the port is taken or the host unknown,
        ValueError if a setting of `Exposure` or a limit of `Options` cannot be used, RuntimeError if the server or
        its worker ends before it is ready.
    """
    Options.from_environment()  # here, as the models
    exposure = Exposure.from_environment(host=host)
    for warning in exposure.warnings():
        logger.warning(warning)
    open_models(models_folder())  # here, since bentoml starts a worker that fails again and again
    check_port(host, port)
    with tempfile.TemporaryDirectory(prefix="sparsegen-serve-") as home, stop_signals() as stopped:
        command = [sys.executable, "-m", BENTO, "serve", SERVICE, "--host", host, "--port", str(port)]
        command += ["--timeout-graceful-shutdown", "3"]  # an open page would keep its connection for good
        variables = environment(home, jobs) | exposure.environment()
        crew = Crew(workers, variables)
        server = subprocess.Popen(command, stdin=subprocess.PIPE, env=variables, start_new_session=True)
        try:
            crew.tend()  # now, so that somebody is there once the page is
            if wait_until_ready(server, host, port, stopped):
                print(f"The page: http://{_visible(host)}:{port}/ui", flush=True)
            while server.poll() is None and not stopped:
                crew.tend()
                time.sleep(0.2)
        finally:
            stop(server)
            crew.stop()
    return 0 if stopped else server.returncode


class Crew:
    """The worker processes beside a server. Each reads a pipe that closes when this process ends, however it does."""

    def __init__(self, count: int, variables: dict[str, str]) -> None:
        self._variables = {**variables, WORKERS: str(count)}
        self._workers: list[subprocess.Popen | None] = [None] * count
        self._started, self._pause = [-math.inf] * count, [RESTART_AFTER] * count

    def tend(self) -> None:
        """Starts the workers, and again those that ended, less and less often where they end at once."""
        now = time.monotonic()
        for index, worker in enumerate(self._workers):
            age = now - self._started[index]
            if age < self._pause[index] or (worker is not None and worker.poll() is None):
                continue
            if worker is not None:
                logger.warning("a worker ended with exit code %d: another takes its place", worker.returncode)
                worker.stdin.close()
                at_once = age < 2 * self._pause[index]
                self._pause[index] = min(2 * self._pause[index], 60) if at_once else RESTART_AFTER
            self._workers[index] = subprocess.Popen(
                [sys.executable, "-m", RESTORER],
                stdin=subprocess.PIPE,
                env=self._variables,
                start_new_session=True,  # Ctrl-C is for this process alone, which then stops them
            )
            self._started[index] = now

    def stop(self) -> None:
        """Lets the workers put their jobs back, and kills those that take too long."""
        alive = [worker for worker in self._workers if worker is not None]
        for worker in alive:
            worker.stdin.close()
        for worker in alive:
            try:
                worker.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()


def environment(home: str, jobs: str | None = None) -> dict[str, str]:
    """A server's environment: no tracking, and a home of its own, since two in one disturb each other."""
    return {
        **os.environ,
        # Not an argument, since a URL may hold a password, and everybody sees arguments.
        **({JOBS: jobs} if jobs else {}),
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


def stop(server: subprocess.Popen, patience: float = PATIENCE) -> None:
    """Ends a server and its workers: by SIGTERM, and by SIGKILL if that takes too long."""
    if server.poll() is None:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(patience)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _visible(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
