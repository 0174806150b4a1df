"""Where independent tasks run: in this process, on a Ray cluster, or as jobs of Slurm (by submitit).

A task is a call of one function with one argument. Ray and submitit are optional, and imported when they are used. They
place the tasks, move the results and repeat the tasks of a lost node.
"""

import logging
import os
import pickle
import platform
import secrets
import socket
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

from sparsegen.common.devices import AUTO
from sparsegen.common.extras import require

logger = logging.getLogger(__name__)

HERE = "here"
ON_HELP = (
    "Where the tasks run: here; ray, the running cluster or else this machine; ray://HOST:PORT; or slurm, with options "
    "of sbatch after a colon, e.g. slurm:partition=gpu,time=600 (minutes)."
)
ALLOWED = "here, ray, ray://HOST:PORT or slurm[:NAME=VALUE,...]"
CONNECT = 5.0  # seconds until an address that does not answer is reported
GRACE = 30.0  # seconds in which cancelled tasks may save their state
RETRIES = 20  # Choice: a task that loses its process this often has too little memory, or a bug

Argument = TypeVar("Argument")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Needs:
    """What a task reserves on its node.

    Attributes:
        gpus: Below 1 if several tasks share a GPU.
        memory: In bytes; 0: unknown.
    """

    processors: int = 1
    gpus: float = 0
    memory: int = 0


class TaskError(RuntimeError):
    """The error of a task on another node; the message names the node, and a note has the traceback."""


@dataclass(frozen=True)
class Outcome(Generic[Argument, Result]):
    """The end of a task: a result or an error."""

    argument: Argument
    value: Result | None = None
    error: Exception | None = None

    def result(self) -> Result:
        """Returns the result. Raises: The error of the task."""
        if self.error:
            raise self.error
        return self.value  # type: ignore[return-value]  # None only if it is the result


class Engine(Protocol):
    """Runs tasks within a `with` block; at its end, tasks that are not done are cancelled.

    Attributes:
        here: Whether tasks run in this process, one after the other.
    """

    here: bool

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def map(
        self,
        function: Callable[[Argument], Result],
        arguments: Iterable[Argument],
        needs: Callable[[Argument], Needs],
        folders: Sequence[Path] = (),
    ) -> Iterator[Outcome[Argument, Result]]:
        """Calls a function with each argument, and yields the outcomes in the order in which the tasks end.

        Args:
            function: For other processes it is pickled by its name, as are the arguments.
            arguments: Consumed all at once, or in this process one by one.
            needs: The needs of the task of an argument.
            folders: Folders that the tasks write to; a task fails if its node does not see them.

        Raises:
            ValueError: If the needs cannot be met.
        """


def open_engine(on: str = HERE) -> Engine:
    """Returns the engine of a name, after checks that take at most seconds.

    Args:
        on: "here", "ray", "ray://HOST:PORT" or "slurm[:NAME=VALUE,...]".

    Raises:
        ValueError: On other names.
        ImportError: If the extra is not installed.
        ConnectionError: If no cluster answers at the address.
    """
    name, colon, rest = on.partition(":")
    if name not in ENGINES or (colon and not rest):
        raise ValueError(f"--on must be {ALLOWED}; got {on!r}")
    return ENGINES[name](rest)


class InProcess:
    """Tasks of this process. Arguments are consumed one by one, so they may depend on earlier outcomes."""

    here = True

    def __init__(self, rest: str = "") -> None:
        if rest:
            raise ValueError(f"--on must be {ALLOWED}; got '{HERE}:{rest}'")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def map(
        self,
        function: Callable[[Argument], Result],
        arguments: Iterable[Argument],
        needs: Callable[[Argument], Needs],
        folders: Sequence[Path] = (),
    ) -> Iterator[Outcome[Argument, Result]]:
        for argument in arguments:
            try:
                outcome = Outcome(argument, function(argument))
            except Exception as error:
                outcome = Outcome(argument, error=error)
            yield outcome


class Ray:
    """Tasks of a Ray cluster: `ray://HOST:PORT`, or the cluster that Ray finds, or one of this machine alone."""

    here = False

    def __init__(self, rest: str = "") -> None:
        require("ray", "--on ray", "ray", *["grpc"] if rest else [])
        self.address = f"ray:{rest}" if rest else None
        self.pending: dict[Any, Any] = {}
        if rest and not rest.startswith("//"):
            raise ValueError(f"--on must be {ALLOWED}; got '{self.address}'")
        found = self.address or _running_cluster()
        self.starts = found is None
        if found:
            _check_answer(found)

    def __enter__(self) -> Self:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # of a cluster that is started here
        import ray

        try:
            with warnings.catch_warnings(action="ignore"):  # the error says the same
                ray.init(self.address, logging_level=logging.ERROR, log_to_driver=False)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            ray.shutdown()  # of a connection that was half made
            message = f"--on {self.address or 'ray'}: {' '.join(str(error).split())}"
            if "timeout" in message:
                message += "; if the cluster needs a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
            raise ConnectionError(message) from error
        return self

    def map(
        self,
        function: Callable[[Argument], Result],
        arguments: Iterable[Argument],
        needs: Callable[[Argument], Needs],
        folders: Sequence[Path] = (),
    ) -> Iterator[Outcome[Argument, Result]]:
        import ray

        remote = ray.remote(max_retries=RETRIES)(run_task)
        with _marked(folders) as marks:
            payload = ray.put(_pack(function, marks))
            checked: set[Needs] = set()
            for argument in arguments:
                need = needs(argument)
                if need not in checked:
                    self._check_room(need)
                    checked.add(need)
                task = remote.options(
                    num_cpus=need.processors, num_gpus=need.gpus, memory=need.memory or None
                )
                self.pending[task.remote(payload, pickle.dumps(argument))] = argument
            while self.pending:
                (done,), _ = ray.wait(list(self.pending))
                argument = self.pending.pop(done)
                try:
                    outcome = Outcome(argument, *ray.get(done))
                except ray.exceptions.RayError as error:
                    outcome = Outcome(argument, error=TaskError(_reason(error)))
                yield outcome

    def _check_room(self, need: Needs) -> None:
        """Checks that a node is large enough; for a running cluster, which may grow, it is only a warning."""
        import ray

        wanted = {"CPU": need.processors, "GPU": need.gpus, "memory": need.memory}
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if any(all(node.get(name, 0) >= amount for name, amount in wanted.items()) for node in nodes):
            return
        most = {name: max((node.get(name, 0) for node in nodes), default=0) for name in wanted}
        problem = (
            f"a task needs {need.processors} processors, {need.gpus:g} GPUs and {need.memory / 1e9:.1f} GB, and no "
            f"node has them: the nodes have up to {most['CPU']:g}, {most['GPU']:g} and {most['memory'] / 1e9:.1f} GB"
        )
        if self.starts:
            raise ValueError(f"{problem}: use fewer threads, GPUs or less memory, or --on {HERE}")
        logger.warning("%s; it waits until such a node joins the cluster", problem)

    def __exit__(self, *error: object) -> None:
        import ray

        if self.pending:
            logger.warning(
                "cancelling %d tasks, for up to %d s; Ctrl-C does not wait", len(self.pending), GRACE
            )
        try:
            for task in self.pending:
                ray.cancel(task)  # raises KeyboardInterrupt in a running task
            if self.pending:
                ray.wait(list(self.pending), num_returns=len(self.pending), timeout=GRACE)
        finally:
            self.pending.clear()
            ray.shutdown()


class Slurm:
    """Jobs of Slurm, submitted by submitit; tasks of equal needs form an array.

    Submissions, results and logs are in runs/slurm of the working folder, which every node must see.
    """

    here = False
    cluster, poll = "slurm", 5.0  # submitit's name of the scheduler; seconds between two looks at the jobs
    folder = Path("runs/slurm")

    def __init__(self, rest: str = "") -> None:
        require("slurm", "--on slurm", "submitit")
        self.options: dict[str, int | str] = {"time": 24 * 60}
        self.jobs: list[Any] = []
        for part in filter(None, rest.split(",")):
            name, equals, value = part.partition("=")
            if not (name and equals and value):
                raise ValueError(f"options of slurm are NAME=VALUE, separated by commas; got {part!r}")
            self.options[name] = int(value) if value.isdecimal() else value

    def __enter__(self) -> Self:
        from submitit import AutoExecutor

        logging.getLogger("submitit").setLevel(
            logging.ERROR
        )  # it warns at each look without Slurm's accounting
        path = self.folder.absolute()
        try:
            self.executor = AutoExecutor(path, self.cluster, slurm_max_num_timeout=RETRIES)
            options = {f"slurm_{name}": value for name, value in self.options.items()}
            self.executor.update_parameters(name="sparsegen", **options)
        except (RuntimeError, NameError, ValueError) as error:
            raise ValueError(f"--on slurm: {' '.join(str(error).split())}") from error
        return self

    def map(
        self,
        function: Callable[[Argument], Result],
        arguments: Iterable[Argument],
        needs: Callable[[Argument], Needs],
        folders: Sequence[Path] = (),
    ) -> Iterator[Outcome[Argument, Result]]:
        from submitit.core.utils import FailedJobError
        from submitit.helpers import as_completed

        groups: dict[Needs, list[Argument]] = {}
        for argument in arguments:
            groups.setdefault(needs(argument), []).append(argument)
        for need in groups:
            if need.gpus % 1:
                raise ValueError(
                    f"Slurm has no fractions of a GPU: --gpus must be an integer; got {need.gpus:g}"
                )
        with _marked(folders) as marks:
            payload = self.executor.folder / f"{secrets.token_hex(8)}.function"
            payload.parent.mkdir(parents=True, exist_ok=True)
            payload.write_bytes(_pack(function, marks))
            owners: dict[str, Argument] = {}
            for need, group in groups.items():
                self.executor.update_parameters(
                    cpus_per_task=need.processors,
                    gpus_per_node=int(need.gpus) or None,
                    mem_gb=need.memory / 1e9 or None,
                )
                try:
                    jobs = self.executor.map_array(Requeued(payload), map(pickle.dumps, group))
                except FailedJobError as error:
                    raise ValueError(f"Slurm refuses the jobs: {' '.join(str(error).split())}") from error
                self.jobs += jobs
                owners |= dict(zip([job.job_id for job in jobs], group, strict=True))
            for job in as_completed(list(self.jobs), poll_frequency=self.poll):
                self.jobs.remove(job)
                argument = owners[job.job_id]
                try:
                    outcome = Outcome(argument, *job.result())
                except Exception as error:  # submitit has several, and raises those of pickle, too
                    message = (
                        f"job {job.job_id}: {str(error).partition(chr(10))[0]}; its log is {job.paths.stderr}"
                    )
                    outcome = Outcome(argument, error=TaskError(message))
                yield outcome
            payload.unlink(missing_ok=True)

    def __exit__(self, *error: object) -> None:
        for job in self.jobs:
            job.cancel(check=False)
        self.jobs.clear()


ENGINES: Mapping[str, Callable[[str], Engine]] = {HERE: InProcess, "ray": Ray, "slurm": Slurm}


class Requeued:
    """A call of a stored function, repeated by submitit if its job was preempted or has reached its time limit."""

    def __init__(self, payload: Path) -> None:
        self.payload = payload

    def __call__(self, argument: bytes) -> "tuple[Any, TaskError | None]":
        return run_task(self.payload.read_bytes(), argument)

    def checkpoint(self, argument: bytes) -> Any:
        """Called by submitit before the job ends; returns the call that continues it."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, argument)


def run_task(payload: bytes, argument: bytes) -> "tuple[Any, TaskError | None]":
    """Calls a packed function on a node; returns its result and its error, one of which is None."""
    try:
        working_folder, marks, function = pickle.loads(payload)
        if working_folder not in sys.path:  # of a checkout, whose benchmarks are not installed
            sys.path.append(working_folder)
        for mark in marks:
            if not mark.exists():
                raise FileNotFoundError(
                    f"{mark.parent} is not the folder of this name on the machine that started the task: use a folder "
                    "that every node sees"
                )
        return pickle.loads(function)(pickle.loads(argument)), None
    except Exception as error:
        logger.exception("the task has failed")
        failure = TaskError(f"{sentence(error)} (on node {platform.node()})")
        failure.add_note(traceback.format_exc())
        return None, failure


def sentence(error: Exception) -> str:
    """Returns the message of an error in one line, with its type if it is not an expected one."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    expected = isinstance(error, OSError | ValueError | RuntimeError | ImportError)
    return text if expected else f"{type(error).__name__}: {text}"


def gpus_of(device: str, gpus: float | None, here: bool) -> tuple[str, float]:
    """Returns the device of a task and the GPUs that it reserves, by default one for a device that is a GPU.

    On another node, "auto" is an accelerator only if GPUs are reserved.

    Raises:
        ValueError: If the number of GPUs is negative.
    """
    if gpus is None:
        gpus = float(device.partition(":")[0] in ("cuda", "xpu"))
    if not 0 <= gpus < float("inf"):
        raise ValueError(f"--gpus is the number of GPUs of a task, at least 0; got {gpus:g}")
    return "cpu" if device == AUTO and not gpus and not here else device, gpus


def _pack(function: Callable[..., object], marks: Sequence[Path]) -> bytes:
    return pickle.dumps((os.getcwd(), tuple(marks), pickle.dumps(function)))


@contextmanager
def _marked(folders: Sequence[Path]) -> Iterator[list[Path]]:
    """Yields a new empty file in each folder, by which a node checks that it sees the folder."""
    marks = [folder.absolute() / f".sparsegen-{secrets.token_hex(8)}" for folder in dict.fromkeys(folders)]
    try:
        for mark in marks:
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
        yield marks
    finally:
        for mark in marks:
            mark.unlink(missing_ok=True)


def _running_cluster() -> str | None:
    """The address of the cluster that `ray.init` would use; None if it would start one."""
    from ray._private.services import canonicalize_bootstrap_address  # there is no public function

    named = os.environ.get("RAY_ADDRESS") or None
    if named and named.startswith("ray://"):
        return named
    found: str | None = canonicalize_bootstrap_address(named)  # type: ignore[arg-type]  # None is allowed
    return found


def _check_answer(address: str) -> None:
    """Raises ConnectionError if nothing listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT).close()
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"no Ray cluster answers at {address} ({error}): start one with `ray start --head`, or give its address as "
            "--on ray://HOST:PORT; RAY_ADDRESS=local uses this machine alone"
        ) from error


def _reason(error: Exception) -> str:
    """The reason of an error of Ray, without the traceback that precedes it."""
    reason = str(error).strip().rpartition("\n")[2] or type(error).__name__
    node = f" (on node {error.ip})" if hasattr(error, "ip") else ""
    hint = ": install this version of sparsegen on the nodes" if "No module named" in reason else ""
    return f"{reason}{node}{hint}"
