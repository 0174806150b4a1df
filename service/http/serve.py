"""Starts the server, as `sparsegen serve` does."""

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
from sparsegen.service.jobs.worker import WORKERS, stop_signals
from sparsegen.service.models import models_folder, open_models
from sparsegen.service.settings import ServiceSettings

logger = logging.getLogger(__name__)

SERVICE = "sparsegen.service.http.endpoint:SparseGen"
HTTP_WORKER = "_bentoml_impl.worker.service"  # the module that a worker of bentoml runs
BENTO, RESTORER = (
    "sparsegen.service.http.bento",
    "sparsegen.service.jobs.worker",
)  # both end with this process
FOLDER, LOCK = "sparsegen-serve-", "lock"  # how the temporary folder of a server begins; a file in it
PATIENCE = 8.0  # seconds between asking a process to end and killing it
RESTART_AFTER = 5.0  # seconds from the start of a process to that of its successor


def serve(host: str = "127.0.0.1", port: int = 3000, workers: int = 1, jobs: str | None = None) -> int:
    """Serves the models until SIGINT or SIGTERM, and returns the exit code 0.

    A process that ends meanwhile, even if it is killed, is started again; all end with this one, even if it is killed.

    Args:
        workers: Processes beside the server that do restorations.
        jobs: Where the restorations are kept, a SQLite file or a Redis URL; see `jobs.default_place`.

    Raises:
        FileNotFoundError: If there are no models.
        OSError: If the port is taken or the host unknown.
        ValueError: If a setting of `ServiceSettings` cannot be used.
        RuntimeError: If the server or its worker ends before it answers.
    """
    settings = ServiceSettings.from_environment(host=host)
    for warning in settings.warnings():
        logger.warning(warning)
    open_models(models_folder())  # here, since bentoml starts a worker that fails again and again
    check_port(host, port)
    with private_folder() as home, stop_signals() as stopped:
        variables = environment(home, jobs) | settings.environment() | {WORKERS: str(workers)}
        pool, server = WorkerPool(workers, variables), HttpServer(host, port, variables | {"TMPDIR": home})
        try:
            while not stopped:
                pool.restart_dead()
                server.restart_dead()
                time.sleep(0.2)
        finally:
            pool.ask_to_stop()  # before the server has ended: a container is killed after ten seconds
            server.stop()
            pool.stop()
    return 0


class HttpServer:
    """The arbiter of BentoML and its worker, which answers the requests.

    Where one of them ends, both are started anew. The arbiter starts its worker again as well, but not in a container,
    not at once, and without a word.
    """

    def __init__(self, host: str, port: int, variables: dict[str, str]) -> None:
        self.url, self._variables = f"http://{_visible(host)}:{port}", variables
        self._command = [sys.executable, "-m", BENTO, "serve", SERVICE, "--host", host, "--port", str(port)]
        # An open page would keep its connection for good.
        self._command += ["--timeout-graceful-shutdown", "3"]
        self._arbiter: subprocess.Popen[bytes] | None = None
        self._workers: set[psutil.Process] = set()
        self._answers = self._announced = False
        self._started = -math.inf

    def restart_dead(self) -> None:
        """Starts the server, announces the page once it answers, and starts it again where a part of it has ended.

        Raises:
            RuntimeError: If a part of it ends before it has answered for the first time.
        """
        if self._arbiter is None:
            if time.monotonic() - self._started >= RESTART_AFTER:
                self._start()
        elif what := self._ended(self._arbiter):
            if not self._announced:
                raise RuntimeError(f"{what} before it was ready; see above")
            logger.warning("%s: the server is started again", what)
            self.stop()
        elif not self._answers and self._ask():
            self._answers = True
            if not self._announced:
                print(f"The page: {self.url}/ui", flush=True)
                self._announced = True

    def stop(self, patience: float = PATIENCE) -> None:
        """Ends the arbiter and its workers by SIGTERM; by SIGKILL if that takes too long or the arbiter is gone."""
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
        _close_stdin(self._arbiter)
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
        """Whether it answers. Not whether it is ready, which may hang on others, as Redis."""
        connection = HTTPConnection(self.url.removeprefix("http://"), timeout=2)
        try:
            connection.request("GET", "/livez")
            return connection.getresponse().status == 200
        except (OSError, HTTPException):
            return False  # not listening yet
        finally:
            connection.close()


class WorkerPool:
    """The worker processes beside a server. Each reads a pipe that closes when this process ends, however it does."""

    def __init__(self, count: int, variables: dict[str, str]) -> None:
        self._variables = {**variables, WORKERS: str(count)}
        self._workers: list[subprocess.Popen[bytes] | None] = [None] * count
        self._started, self._pause = [-math.inf] * count, [RESTART_AFTER] * count

    def restart_dead(self) -> None:
        """Starts the workers, and again those that ended, less and less often where they end at once."""
        now = time.monotonic()
        for index, worker in enumerate(self._workers):
            age = now - self._started[index]
            if age < self._pause[index] or (worker is not None and worker.poll() is None):
                continue
            if worker is not None:
                logger.warning("a worker ended with exit code %d: another takes its place", worker.returncode)
                _close_stdin(worker)
                at_once = age < 2 * self._pause[index]
                self._pause[index] = min(2 * self._pause[index], 60) if at_once else RESTART_AFTER
            self._workers[index] = subprocess.Popen(
                [sys.executable, "-m", RESTORER],
                stdin=subprocess.PIPE,
                env=self._variables,
                start_new_session=True,  # Ctrl-C is for this process alone, which then stops them
            )
            self._started[index] = now

    def ask_to_stop(self) -> None:
        """Lets the workers put their jobs back."""
        for worker in filter(None, self._workers):
            _close_stdin(worker)

    def stop(self) -> None:
        """Waits until the workers have ended, and kills those that take too long."""
        self.ask_to_stop()
        for worker in filter(None, self._workers):
            try:
                worker.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()


def environment(home: str, jobs: str | None = None) -> dict[str, str]:
    """A server's environment with a home of its own, since two servers in one disturb each other."""
    return {
        **os.environ,
        # Not an argument, since a URL may hold a password, and everybody sees arguments.
        **({JOBS: jobs} if jobs else {}),
        "BENTOML_HOME": home,
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


def _close_stdin(process: subprocess.Popen[bytes]) -> None:
    """Asks a process to end that reads the pipe at its standard input."""
    if process.stdin is not None:
        process.stdin.close()


def _http_workers(arbiter: int) -> set[psutil.Process]:
    """The worker processes of an arbiter that have not ended."""
    found = set()
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(arbiter).children():
            with suppress(psutil.NoSuchProcess):  # a zombie, too
                if HTTP_WORKER in child.cmdline():
                    found.add(child)
    return found


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


@contextmanager
def private_folder() -> Iterator[str]:
    """A temporary folder that no other user may enter, removed at the end.

    Folders of servers that were killed are removed first: nobody holds the lock of theirs.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{FOLDER}*/{LOCK}"):
        with suppress(OSError), left.open("r+") as lock:  # of another user, or gone meanwhile
            old = time.time() - os.fstat(lock.fileno()).st_mtime > 60  # else it may not be locked yet
            if old and _locked(lock) and left.parent.lstat().st_uid == os.geteuid():
                shutil.rmtree(left.parent, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=FOLDER, ignore_cleanup_errors=True) as folder:
        with open(os.path.join(folder, LOCK), "w") as lock:
            _locked(lock)
            yield folder


def _locked(file: IO[str]) -> bool:
    """Locks a file until it is closed; False if another process has locked it, or where there are no such locks."""
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
