"""The restoration jobs: requests, attempts of workers, and ends, in one SQLite file or in Redis.

No value is read, changed and written back. A job is claimed by creating the key of its next attempt, and ended by
creating the key of its end; the storage lets only one process create a key. The data of a worker has the number of
its attempt in its key, so a worker that resumes after its lease cannot change the data of its successor. An attempt
is lost if its worker sends no heartbeat for LEASE seconds.

Choice: only the storages of huey, which have one interface for SQLite and Redis, not its queue and consumer. A task
that huey has dequeued is lost if the worker is killed, and its messages are pickled, so anyone who can write to the
Redis could run code in the workers. The queue is the unfinished jobs in the order of their numbers.
"""

import json
import logging
import math
import re
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from sparsegen.service.jobs.errors import LEASE, Busy, NoWorker, StoreError
from sparsegen.service.jobs.places import default_place
from sparsegen.service.jobs.storage import TABLES, KeyValueStore, open_storage
from sparsegen.service.settings import ServiceSettings

logger = logging.getLogger(__name__)

HEARTBEAT_EVERY = 3.0  # seconds
KEEP = 24 * 3600.0  # seconds from the end of a job to its removal
MAX_WAITING = 16
MAX_LOST = 3  # attempts whose worker died, after which a job fails
MIN_MEASURED = 5.0  # seconds; shorter jobs are mostly start-up, and do not count for the pace
DRAFT = 600.0  # seconds after which an unfinished submission is removed
FILES = ("image", "mask", "kernel")
REMOVED = "removed"  # status of an end: the job was deleted
OUTCOMES = ("done", "failed", "canceled")
LIVE = ("waiting", "running")  # states of unfinished jobs; the others are of finished ones
ID = re.compile("[0-9a-f]{32}")
JOB_NOT_FOUND = (  # of the id
    "There is no job {!r}: it never existed, was deleted, or expired (a day after its end, or earlier in a full store)."
)
END_SIZE = 64 << 10  # bytes that an end counts in addition to its picture, since `sweep` reads all ends
STORED_PIXELS = 1_000_000  # maximum of a stored picture, uploaded or restored
PROGRESS = (
    "iteration",
    "fraction",
    "seconds",
    "best_iteration",
    "history",
    "notes",
)  # kept when a job is canceled
Json = dict[str, Any]  # a value of the storage, decoded
State = Literal["waiting", "running", "done", "failed", "canceled"]


class Status(TypedDict):
    """The state of a job, as returned by GET /restore/ID; None: unknown, or not yet known.

    Fields:
        position: Position of a waiting job in the queue, from 1.
        fraction: Estimated share of the work that is done, 0 to 1.
        seconds, seconds_left: Duration so far, and estimated rest.
        history: Pairs of iteration and the statistic of the stopping rule.
    """

    id: str
    status: State
    position: int | None
    iteration: int | None
    fraction: float | None
    seconds: float | None
    best_iteration: int | None
    history: list[Sequence[float]]
    seconds_left: float | None
    stopped_because: str | None
    error: str | None
    notes: list[str]


@dataclass(frozen=True)
class Claim:
    """An attempt at a job, held by one worker."""

    id: str
    attempt: int
    worker: str
    record: Json
    files: dict[str, bytes] = field(repr=False)

    @property
    def key(self) -> str:
        return _key(self.id, self.attempt)


@dataclass(frozen=True)
class Live:
    """An unfinished job: its record, its attempts in order, and whether the last one is running."""

    id: str
    record: Json
    attempts: list[Json]
    running: bool

    @property
    def waiting(self) -> bool:
        return not self.running

    @property
    def lost(self) -> int:
        """The number of attempts whose worker died, including the last one unless it is running."""
        return sum(not attempt.get("given_back") for attempt in self.attempts) - self.running


class Store:
    """The jobs of all servers and workers that use the same place; see `open_store`."""

    def __init__(
        self,
        tables: Mapping[str, KeyValueStore],
        clock: Callable[[], float],
        close: Callable[[], None],
        scrub: Callable[[], None] = lambda: None,
        room: float = math.inf,
    ) -> None:
        """`scrub` overwrites deleted data, if the storage keeps it; `room` is in bytes, see `sweep`."""
        self.jobs, self.attempts, self.ends, self.workers, self.blobs = (tables[name] for name in TABLES)
        self.clock, self.close, self._scrub, self.room = clock, close, scrub, room

    # Methods for servers.

    def submit(
        self,
        task: Json,
        files: Mapping[str, bytes],
        notes: Iterable[str] = (),
        limit: int = MAX_WAITING,
        effort: float = 1.0,
        client: str = "",
        quota: int = MAX_WAITING,
    ) -> Status:
        """Adds a job, and returns its status; `effort` is its estimated work (`Task.effort`).

        A `client` may have `quota` unfinished jobs; with "" only `limit` applies.

        A draft is written before the limits are checked, so that concurrent servers together never exceed `limit`.
        Workers do not claim drafts.

        Raises: NoWorker, Busy; StoreError, StoreFull.
        """
        self.check_room(limit, client, quota)
        job_id = uuid.uuid4().hex
        draft = {"draft": True, "number": self.jobs.next_number(), "at": self.clock(), "client": client}
        self.jobs.put(job_id, _pack(draft))
        try:
            self._check_room(limit, client, quota, drafts=1)
            for name, content in files.items():
                self.blobs.put(f"{job_id}:{name}", content)
            record = {
                "draft": False,
                "task": task,
                "notes": list(notes),
                "files": list(files),
                "effort": effort,
            }
            self.jobs.put(job_id, _pack(draft | record))
        except (StoreError, Busy):
            with suppress(StoreError):  # `sweep` removes the draft later
                self._discard(job_id)
            raise
        status = self.status(job_id)
        assert status is not None, "a job or its end is kept for longer than this takes"
        return status

    def check_room(self, limit: int = MAX_WAITING, client: str = "", quota: int = MAX_WAITING) -> None:
        """Checks whether a job would be accepted.

        Raises:
            NoWorker: If there was no heartbeat within LEASE.
            Busy: If `limit` jobs are waiting, or `quota` jobs of the client are unfinished.
            StoreError: If the store cannot be read or written.
        """
        self._check_room(limit, client, quota, drafts=0)

    def _check_room(self, limit: int, client: str, quota: int, drafts: int) -> None:
        """As `check_room`, where `drafts` of the waiting jobs are the caller's own."""
        alive, live = self._alive(), self.live()
        if not alive:
            self.check_writable()  # a full or broken store is the more useful error
            raise NoWorker
        running = [left for job in live if job.running and (left := self._left(job)) is not None]
        if client and sum(job.record.get("client") == client for job in live) - drafts >= quota:
            raise Busy(
                f"{quota} jobs of yours are unfinished, the limit per client: wait for one to end, or cancel one",
                min(running, default=60),
            )
        if sum(job.waiting for job in live) - drafts >= limit:
            raise Busy(
                f"{limit} jobs are waiting, the limit: retry later, or start another worker",
                min(running, default=60),
            )

    def status(self, job_id: str) -> Status | None:
        """The status of a job; None if there is none with this id, which may be any text."""
        if not ID.fullmatch(job_id):
            return None
        record = self.jobs.get(job_id)  # before its end: a job is removed only after its end is written
        if (end := self.ends.get(job_id)) is not None:
            return _ended(job_id, end)
        if record is None or _load(record).get("draft"):
            return None
        live = self.live()
        for job in live:
            if job.id == job_id:
                return self._status(job, live)
        end = self.ends.get(job_id)  # it ended meanwhile
        return None if end is None else _ended(job_id, end)

    def preview(self, job_id: str) -> bytes | None:
        """A PNG of the current picture of a job that is running or done."""
        end = self.ends.get(job_id)
        if end is not None:
            return self.result(job_id)
        for number in range(len(self._attempts(job_id)), 0, -1):
            if (content := self.blobs.get(f"{job_id}:preview:{number}")) is not None:
                return content
        return None

    def result(self, job_id: str) -> bytes | None:
        """The PNG that is the result of a job; None unless it is done."""
        end = self.ends.get(job_id)
        attempt = None if end is None else _load(end).get("attempt")
        return None if attempt is None else self.blobs.get(f"{job_id}:result:{attempt}")

    def delete(self, job_id: str) -> Status | None:
        """Cancels an unfinished job, or removes a finished one with all of its data; returns its last status.

        A mark of a removed job remains for as long as its end would have, so that a worker which resumes after its
        lease cannot end the job again.
        """
        status = self.status(job_id)
        if status is None or status["status"] in LIVE:
            return self.cancel(job_id)
        if (end := self.ends.get(job_id)) is None:  # it expired meanwhile
            return status
        kept = {name: _load(end)[name] for name in ("at", "attempts", "client")}
        self.ends.put(
            job_id, _pack(kept | {"status": REMOVED})
        )  # first, so that `finish` does not restore the picture
        self._clear_up(job_id)  # remains of killed processes
        self._remove_pictures(job_id, kept["attempts"])
        self._scrub()
        return status

    def cancel(self, job_id: str) -> Status | None:
        """Ends an unfinished job, and returns its status; its worker stops within one iteration."""
        status = self.status(job_id)
        if status is not None and status["status"] in LIVE:
            progress = {name: value for name, value in status.items() if name in PROGRESS}
            self._end(job_id, "canceled", **progress)
            status = self.status(job_id)
        return status

    def counts(self) -> tuple[int, int]:
        """The numbers of waiting and of running jobs."""
        running = [job.running for job in self.live()]
        return running.count(False), running.count(True)

    def oldest_waiting(self) -> float:
        """Seconds since the oldest waiting job was submitted; 0 if none is waiting."""
        submitted = [job.record["at"] for job in self.live() if job.waiting and not job.record.get("draft")]
        return max(0.0, self.clock() - min(submitted)) if submitted else 0.0

    def outcomes(self) -> dict[str, int]:
        """The number of jobs that have ended so far in each of the OUTCOMES."""
        return {outcome: self.ends.count(outcome, 0) for outcome in OUTCOMES}

    def check_writable(self) -> None:
        """Raises: StoreError, StoreFull if the store cannot be written."""
        self.jobs.next_number()

    def workers_alive(self) -> int:
        """The number of workers with a heartbeat within LEASE."""
        return len(self._alive())

    # Methods for workers.

    def heartbeat(self, worker: str) -> None:
        """Reports that a worker is alive; without heartbeats, others take over its job."""
        self.workers.put(worker, _pack({"at": self.clock()}))

    def leave(self, worker: str) -> None:
        self.workers.delete(worker)

    def claim(self, worker: str) -> Claim | None:
        """Claims the first job that is waiting or whose worker is dead; fails jobs that killed too many workers.

        A worker has one job at a time: a job that it already holds when it calls this is a claim whose answer was
        lost with the connection.
        """
        for job in self.live():
            forgotten = job.running and job.attempts[-1]["worker"] == worker
            if job.record.get("draft") or (job.running and not forgotten):
                continue
            if job.lost >= MAX_LOST:
                self._end(
                    job.id,
                    "failed",
                    error=f"each of the {MAX_LOST} workers that tried it was killed, probably because of too little "
                    f"memory: use a smaller picture",
                    notes=job.record["notes"],
                )
                continue
            number = len(job.attempts) + 1
            if not self.attempts.create(_key(job.id, number), _pack({"worker": worker})):
                continue  # claimed by another worker
            names = job.record["files"]
            found = {name: self.blobs.get(f"{job.id}:{name}") for name in names}
            files = {name: content for name, content in found.items() if content is not None}
            if self.ends.present(job.id) or not self.jobs.present(job.id):
                self._clear_up(job.id)  # it ended meanwhile
                self.attempts.delete(_key(job.id, number))
            elif len(files) < len(names):
                self._end(job.id, "failed", error="its pictures were removed from the store: submit it again")
            else:
                return Claim(job.id, number, worker, job.record, files)
        return None

    def holds(self, claim: Claim) -> bool:
        """Whether the worker may continue: the job was neither canceled nor taken over."""
        following = _key(claim.id, claim.attempt + 1)
        return self.attempts.present(claim.key, following) == {claim.key} and not self.ends.present(claim.id)

    def report(self, claim: Claim, progress: Json) -> None:
        self.attempts.put(claim.key, _pack({"worker": claim.worker, "at": self.clock()} | progress))

    def show(self, claim: Claim, preview: bytes) -> None:
        self.blobs.put(f"{claim.id}:preview:{claim.attempt}", preview)

    def withdraw(self, claim: Claim) -> None:
        """Removes the preview of an attempt that lost its job; it may have been written after the others' removal."""
        self.blobs.delete(f"{claim.id}:preview:{claim.attempt}")

    def give_back(self, claim: Claim) -> None:
        """Returns the job to its place in the queue; the attempt does not count as lost."""
        if self.holds(claim):
            self.attempts.put(claim.key, _pack({"worker": claim.worker, "given_back": True}))

    def finish(self, claim: Claim, result: bytes, facts: Json, effort: float | None = None) -> bool:
        """Ends a job with its result; False if it has already ended. May be repeated after a StoreError.

        Args:
            effort: The effort of the iterations that were run; None: the estimate of the submission.
        """
        # The result is written first: if the worker is killed before the end is written, the job runs again.
        key = f"{claim.id}:result:{claim.attempt}"
        self.blobs.put(key, result)
        facts = facts | {"attempt": claim.attempt, "size": len(result), "notes": claim.record["notes"]}
        if not self._end(claim.id, "done", **facts):
            end = self.ends.get(claim.id)
            if end is None or _load(end).get("attempt") != claim.attempt:
                self.blobs.delete(key)
                return False
        if facts["seconds"] >= MIN_MEASURED:
            # Workers may overwrite each other's sums here, which affects only an estimate.
            measured = claim.record["effort"] if effort is None else effort
            before, done = self._done(), {"seconds": facts["seconds"], "effort": measured}
            self.blobs.put("done", _pack({name: 0.7 * before.get(name, 0) + done[name] for name in done}))
        return True

    def calibrate(self, seconds: float, effort: float) -> None:
        """Sets the pace, unless a job has been measured."""
        if not self._done():
            self.blobs.put("done", _pack({"seconds": seconds, "effort": effort}))

    def fail(self, claim: Claim, sentence: str, facts: Json) -> bool:
        return self._end(claim.id, "failed", error=sentence, notes=claim.record["notes"], **facts)

    # Methods for both.

    def sweep(self) -> None:
        """Removes jobs that ended KEEP seconds ago, and remains of killed processes.

        If the finished jobs take more than `room`, some are removed earlier; see `too_many`.
        """
        now, attempts = self.clock(), self.attempts.all()
        jobs = {job_id: _load(job) for job_id, job in self.jobs.all().items()}
        ends = {job_id: _load(end) for job_id, end in self.ends.all().items()}
        crowded = too_many(ends, self.room)
        for job_id, end in ends.items():
            old = now - end["at"] >= KEEP or (
                job_id in crowded and job_id not in jobs
            )  # else the job would run again
            if old or end["status"] == REMOVED:
                self._remove_pictures(job_id, end["attempts"])
            if old:
                self.ends.delete(job_id)
        for job_id, job in jobs.items():
            if job_id in ends:
                self._clear_up(job_id)
            elif job.get("draft") and now - job["at"] >= DRAFT:
                self._discard(job_id)
        for key in attempts:  # read before the jobs, so the job of each attempt was there, too
            if key.partition(":")[0] not in jobs:
                self.attempts.delete(key)
        for worker, beat in self.workers.all().items():
            if now - _load(beat)["at"] >= 10 * LEASE:
                self.workers.delete(worker)
        self._scrub()

    def live(self) -> list[Live]:
        """The unfinished jobs in the order of their submission, drafts included."""
        attempts = self.attempts.all()  # before the workers: a worker sends a heartbeat before it claims
        alive = self._alive()
        live = []
        for job_id, record in self.jobs.all().items():
            own = _own(job_id, attempts)
            running = bool(own) and not own[-1].get("given_back") and own[-1]["worker"] in alive
            live.append(Live(job_id, _load(record), own, running))
        return sorted(live, key=lambda job: job.record["number"])

    def _alive(self) -> set[str]:
        # abs: if the clock was set back, dead workers must not look alive.
        beats, now = self.workers.all(), self.clock()
        return {worker for worker, beat in beats.items() if abs(now - _load(beat)["at"]) < LEASE}

    def _attempts(self, job_id: str) -> list[Json]:
        return _own(job_id, self.attempts.all())

    def _end(self, job_id: str, status: str, **facts: object) -> bool:
        """Writes the end of a job unless there is one, and removes its other data."""
        job = self.jobs.get(job_id)
        client = "" if job is None else _load(job).get("client", "")
        end = {
            "status": status,
            "at": self.clock(),
            "attempts": len(self._attempts(job_id)),
            "client": client,
        }
        end |= facts
        ended = self.ends.create(job_id, _pack(end))
        self._clear_up(job_id)
        if ended:
            self.ends.count(status)
        return ended

    def _clear_up(self, job_id: str) -> None:
        """Removes what a finished job does not need; the job last, so that after a kill `sweep` repeats this."""
        end = self.ends.get(job_id)
        kept = None if end is None else _load(end).get("attempt")
        for number in range(
            len(self._attempts(job_id)), 0, -1
        ):  # the last first, since `_own` counts from the first
            self.blobs.delete(f"{job_id}:preview:{number}")
            if number != kept:
                self.blobs.delete(f"{job_id}:result:{number}")
            self.attempts.delete(_key(job_id, number))
        self._discard(job_id)

    def _remove_pictures(self, job_id: str, attempts: int) -> None:
        """Removes the results and previews of the attempts at a job."""
        keys = [f"{job_id}:{what}:{n}" for n in range(1, attempts + 1) for what in ("result", "preview")]
        self.blobs.delete(*self.blobs.present(*keys))

    def _discard(self, job_id: str) -> None:
        self.blobs.delete(*(f"{job_id}:{name}" for name in FILES))
        self.jobs.delete(job_id)

    def _done(self) -> dict[str, float]:
        """Decaying sums of the seconds and the effort of finished jobs."""
        done = self.blobs.get("done")
        return {} if done is None else _load(done)

    def pace(self) -> float | None:
        """Seconds per unit of effort, measured on finished jobs or by `calibrate`; None before."""
        done = self._done()
        return done["seconds"] / done["effort"] if done else None

    def ahead(self) -> tuple[int, float]:
        """The number of unfinished jobs, and the estimated seconds until the next submitted one starts."""
        lefts = [self._left(job) or 0.0 for job in self.live() if not job.record["draft"]]
        return len(lefts), sum(lefts) / max(len(self._alive()), 1)

    def _left(self, job: Live) -> float | None:
        """Estimated seconds of work left, from its worker or from the pace; None if unknown."""
        left, pace = job.attempts[-1].get("seconds_left") if job.running else None, self.pace()
        return pace * job.record["effort"] if left is None and pace is not None else left

    def _status(self, job: Live, live: list[Live]) -> Status:
        if job.running:
            return _status_of(job.id, "running", job.attempts[-1] | {"notes": job.record["notes"]})
        ahead = [other for other in live[: live.index(job)] if other.waiting and not other.record["draft"]]
        before = [self._left(other) for other in live if other.running or other in ahead]
        left = own = self._left(job)
        if own is not None:
            left = round(sum(other or 0 for other in before) / max(len(self._alive()), 1) + own, 1)
        known = {"position": 1 + len(ahead), "seconds_left": left, "notes": job.record["notes"]}
        return _status_of(job.id, "waiting", known)


def too_many(ends: Mapping[str, Json], room: float) -> set[str]:
    """The finished jobs to remove so that the others fit into `room` bytes.

    Each is the oldest job of the client that uses the most bytes at that point, so that a client cannot displace the
    pictures of others.
    """
    sizes = {job_id: END_SIZE + end.get("size", 0) for job_id, end in ends.items()}
    total, own = sum(sizes.values()), Counter[str]()
    oldest: dict[str, list[str]] = defaultdict(list)  # per client, the oldest last
    for job_id in sorted(ends, key=lambda job_id: -ends[job_id]["at"]):
        client = ends[job_id].get("client", "")
        oldest[client].append(job_id)
        own[client] += sizes[job_id]
    gone: set[str] = set()
    while total > room:
        client = max(own, key=own.__getitem__)
        job_id = oldest[client].pop()
        gone.add(job_id)
        own[client] -= sizes[job_id]
        total -= sizes[job_id]
    return gone


def open_store(where: str | None = None) -> Store:
    """Opens the store at a Redis URL or in a SQLite file; by default `default_place`.

    Raises:
        StoreError, NoStore: For a URL of another kind, or if the client of Redis is missing.
    """
    storage = open_storage(where or default_place())
    room = ServiceSettings.from_environment().results_mb << 20
    return Store(storage.tables, storage.clock, storage.close, storage.scrub, room)


def _status_of(job_id: str, status: State, known: Json) -> Status:
    """A status with all of its keys; those that are not in `known` are None or empty."""
    return Status(
        id=job_id,
        status=status,
        position=known.get("position"),
        iteration=known.get("iteration"),
        fraction=known.get("fraction"),
        seconds=known.get("seconds"),
        best_iteration=known.get("best_iteration"),
        history=known.get("history", []),
        seconds_left=known.get("seconds_left"),
        stopped_because=known.get("stopped_because"),
        error=known.get("error"),
        notes=known.get("notes", []),
    )


def _ended(job_id: str, end: bytes) -> Status | None:
    """The status of a job that has ended; None if it was removed."""
    facts = _load(end)
    return None if facts["status"] == REMOVED else _status_of(job_id, facts["status"], facts)


def _own(job_id: str, attempts: Mapping[str, bytes]) -> list[Json]:
    own: list[Json] = []
    number = 1
    while (attempt := attempts.get(_key(job_id, number))) is not None:
        own.append(_load(attempt))
        number += 1
    return own


def _key(job_id: str, attempt: int) -> str:
    return f"{job_id}:{attempt}"


def _pack(value: object) -> bytes:
    return json.dumps(value, allow_nan=False).encode()


def _load(value: bytes) -> Json:
    loaded: Json = json.loads(value)
    return loaded
