"""Runs the server: `sparsegen serve`. Its HTTP worker runs the restoration workers, see `jobs.pool`."""

import errno
import logging
import math
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import IO

import psutil

from sparsegen.service.jobs.places import ENVIRONMENT as JOBS
from sparsegen.service.jobs.worker import stop_signals
from sparsegen.service.logs import set_up_logs
from sparsegen.service.models import open_models, sources
from sparsegen.service.settings import ServiceSettings

logger = logging.getLogger(__name__)

SERVICE = "sparsegen.service.http.endpoint:SparseGen"
HTTP_WORKER = "_bentoml_impl.worker.service"  # the module of a BentoML worker
BENTO = "sparsegen.service.http.bento"  # ends when this process ends
FOLDER, LOCK = "sparsegen-serve-", "lock"  # prefix of a server's temporary folder; a file in it
PATIENCE = 9.5  # seconds between asking the server to end and killing it
RESTART_AFTER = 5.0  # minimum seconds between two starts of the server


def serve(
    host: str = "127.0.0.1", port: int = 3000, workers: int | None = None, jobs: str | None = None
) -> int:
    """Serves the models until SIGINT or SIGTERM, and returns the exit code 0.

    Child processes that end or are killed are restarted. All of them end when this process ends or is killed.

    Args:
        workers: Number of processes that run restorations; None: one, or none without PyTorch.
        jobs: SQLite file or Redis URL of the jobs; see `jobs.places.default_place`.

    Raises:
        FileNotFoundError: If there are no models.
        OSError: If the port is taken or the host unknown.
        ValueError: If a setting of `ServiceSettings` cannot be used.
        RuntimeError: If the server or its worker ends before it answers.
    """
    settings = ServiceSettings.from_environment(host=host, workers=workers)
    set_up_logs()
    for warning in settings.warnings():
        logger.warning(warning)
    open_models(*sources())  # fail early; BentoML would restart a failing worker forever
    check_port(host, port)
    with private_folder() as home, stop_signals() as stopped:
        variables = environment(home, jobs) | settings.environment() | {"TMPDIR": home}
        server = HttpServer(host, port, variables)
        try:
            while not stopped:
                server.restart_dead()
                time.sleep(0.2)
        finally:
            server.stop()
    return 0


class HttpServer:
    """The arbiter of BentoML and its worker, which answers the requests.

    If one of them ends, both are restarted. The arbiter also restarts its worker, but with a delay, without a log line,
    and not in a container.
    """

    def __init__(self, host: str, port: int, variables: dict[str, str]) -> None:
        self.url, self._variables = f"http://{_visible(host)}:{port}", variables
        self._command = [sys.executable, "-m", BENTO, "serve", SERVICE, "--host", host, "--port", str(port)]
        # An open page would keep its connection forever.
        self._command += ["--timeout-graceful-shutdown", "3"]
        self._arbiter: subprocess.Popen[bytes] | None = None
        self._workers: set[psutil.Process] = set()
        self._answers = self._announced = False
        self._started = -math.inf

    def restart_dead(self) -> None:
        """Starts the server, prints the address of the page once it answers, and restarts it if a part has ended.

        Raises:
            RuntimeError: If a part ends before the first answer.
        """
        if self._arbiter is None:
            if time.monotonic() - self._started >= RESTART_AFTER:
                self._start()
        elif what := self._ended(self._arbiter):
            if not self._announced:
                raise RuntimeError(f"{what} before it was ready: see the log above")
            logger.warning("%s: restarting the server", what)
            self.stop()
        elif not self._answers and self._ask():
            self._answers = True
            if not self._announced:
                print(f"The page: {self.url}/ui", flush=True)
                self._announced = True

    def stop(self, patience: float = PATIENCE) -> None:
        """Ends the arbiter and its workers by SIGTERM; by SIGKILL after `patience` seconds or without the arbiter."""
        if self._arbiter is None:
            return
        if self._arbiter.poll() is None:
            self._workers |= _http_workers(self._arbiter.pid)
            self._arbiter.terminate()
            try:
                self._arbiter.wait(patience)
            except subprocess.TimeoutExpired:
                self._arbiter.kill()
                self._arbiter.wait()
        for worker in self._workers:
            with suppress(psutil.NoSuchProcess):
                worker.kill()
        psutil.wait_procs(self._workers, timeout=patience)
        if self._arbiter.stdin is not None:
            self._arbiter.stdin.close()
        self._arbiter = None

    def _start(self) -> None:
        self._arbiter = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, env=self._variables, start_new_session=True
        )
        self._workers, self._answers, self._started = set(), False, time.monotonic()

    def _ended(self, arbiter: subprocess.Popen[bytes]) -> str | None:
        """The part of the server that has ended, in a sentence; None if none has."""
        if arbiter.poll() is not None:
            return f"the server ended with exit code {arbiter.returncode}"
        if not self._answers:
            self._workers |= _http_workers(arbiter.pid)
        for worker in self._workers:
            if not _lives(worker):
                return "the server's worker ended"
        return None

    def _ask(self) -> bool:
        """Whether the server answers. It may not be ready, which depends on other services, e.g. Redis."""
        connection = HTTPConnection(self.url.removeprefix("http://"), timeout=2)
        try:
            connection.request("GET", "/livez")
            return connection.getresponse().status == 200
        except (OSError, HTTPException):
            return False  # not listening yet
        finally:
            connection.close()


def environment(home: str, jobs: str | None = None) -> dict[str, str]:
    """The environment of a server, with its own home folder, since servers in one home disturb each other."""
    return {
        **os.environ,
        # Not an argument: a URL may contain a password, and all users can see arguments.
        **({JOBS: jobs} if jobs else {}),
        "BENTOML_HOME": home,
        "GRADIO_TEMP_DIR": os.path.join(home, "gradio"),
    }


def check_port(host: str, port: int) -> None:
    """Raises: OSError with the reason if the address cannot be bound."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError):
        raise OSError(f"unknown host {host!r}: choose another --host, e.g. 127.0.0.1 or 0.0.0.0") from None
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            option = "--host" if error.errno == errno.EADDRNOTAVAIL else "--port"
            raise OSError(
                f"cannot listen on {host}:{port} ({error.strerror}): choose another {option}"
            ) from None


def _http_workers(arbiter: int) -> set[psutil.Process]:
    """The running worker processes of an arbiter."""
    found = set()
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(arbiter).children():
            with suppress(psutil.NoSuchProcess):  # also raised for a zombie
                if HTTP_WORKER in child.cmdline():
                    found.add(child)
    return found


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


@contextmanager
def private_folder() -> Iterator[str]:
    """A temporary folder that only this user can access, removed at the end.

    Folders of killed servers are removed first; their lock is free.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{FOLDER}*/{LOCK}"):
        with suppress(OSError), left.open("r+") as lock:  # of another user, or removed meanwhile
            old = time.time() - os.fstat(lock.fileno()).st_mtime > 60  # a newer one may not be locked yet
            if old and _locked(lock) and left.parent.lstat().st_uid == os.geteuid():
                shutil.rmtree(left.parent, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=FOLDER, ignore_cleanup_errors=True) as folder:
        with open(os.path.join(folder, LOCK), "w") as lock:
            _locked(lock)
            yield folder


def _locked(file: IO[str]) -> bool:
    """Locks a file until it is closed; False if another process holds the lock, or locks are not supported."""
    try:
        import fcntl
    except ImportError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _visible(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
