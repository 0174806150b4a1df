"""The store of the restoration jobs, and the workers, some of them real processes that are killed."""

import itertools
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import psutil
import pytest
import redis_server
import restorer
from huey.storage import MemoryStorage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule
from PIL import Image
from server import free_port, until

from pictures import encoded
from sparsegen.pictures.reading import read_picture
from sparsegen.restoration.settings import Task, fair_threads
from sparsegen.service.jobs import calibration, worker
from sparsegen.service.jobs import store as jobs
from sparsegen.service.jobs.errors import LEASE, Busy, NoWorker, StoreError, StoreFull
from sparsegen.service.jobs.pool import RESTART_AFTER, WorkerPool
from sparsegen.service.jobs.storage import TABLES, KeyValueStore, open_storage
from sparsegen.service.jobs.store import END_SIZE, KEEP, MAX_LOST, MIN_MEASURED, Store, open_store, too_many
from sparsegen.service.jobs.worker import CURVE, Curve, work

FACTS = {"seconds": 20.0, "iteration": 5, "history": [[1, 0.5]], "stopped_because": "it is good"}


def png(value: int = 100, side: int = 16) -> bytes:
    return encoded(Image.fromarray(np.full((side, side), value, np.uint8)))


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real Redis."""
    port = free_port()
    process = redis_server.start(tmp_path_factory.mktemp("redis"), port, "--save", "")
    yield f"redis://127.0.0.1:{port}"
    process.terminate()
    process.wait(10)


@pytest.fixture(params=["sqlite", "redis"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The place of an empty store."""
    if request.param == "sqlite":
        yield str(tmp_path / "state" / "jobs.sqlite")
        return
    url = request.getfixturevalue("redis_url")
    yield url
    import redis

    with redis.Redis.from_url(url) as client:
        client.flushall()


@pytest.fixture
def store(where: str) -> Iterator[Store]:
    """An empty store with one live worker, A."""
    store = open_store(where)
    store.heartbeat("A")
    yield store
    store.close()


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets the lease of the processes of `restorer`."""
    monkeypatch.setattr(jobs, "LEASE", restorer.LEASE)


def submit(store: Store, iterations: int = 3, seed: int = 0, content: bytes | None = None, **more) -> str:
    task = {"kind": "denoise", "seed": seed, "iterations": iterations}
    return store.submit(task, {"image": content or png()}, ["a note"], **more)["id"]


def status_of(store: Store, job_id: str) -> str | None:
    status = store.status(job_id)
    return status and status["status"]


def later(store: Store, seconds: float) -> None:
    before = store.clock
    store.clock = lambda: before() + seconds


def test_a_job_waits_runs_and_is_done(store):
    first, second = submit(store), submit(store)
    assert [store.status(each)["position"] for each in (first, second)] == [1, 2]
    claim = store.claim("A")
    assert (claim.id, claim.files) == (first, {"image": png()}) and claim.record["task"]["seed"] == 0
    assert (status_of(store, first), store.status(second)["position"]) == ("running", 1)
    assert store.preview(first) is None
    store.report(claim, {"iteration": 4, "fraction": 0.5, "seconds_left": 3.0, "history": [[1, 0.5]]})
    store.show(claim, b"preview")
    status = store.status(first)
    assert (status["iteration"], status["fraction"], status["seconds_left"]) == (4, 0.5, 3.0)
    assert store.preview(first) == b"preview" and store.result(first) is None
    assert store.finish(claim, b"result", FACTS)
    status = store.status(first)
    assert status["status"] == "done" and status["notes"] == ["a note"]
    assert {name: status[name] for name in FACTS} == FACTS
    assert store.result(first) == store.preview(first) == b"result"
    assert store.status(second)["seconds_left"] == 20.0  # as long as the first
    assert set(store.blobs.all()) == {f"{first}:result:1", f"{second}:image", "done"}
    assert store.status("0" * 32) is None and store.cancel("0" * 32) is None


def test_the_estimated_wait_depends_on_the_efforts_of_all_jobs_and_on_the_workers(store):
    done, runs = submit(store, effort=4.0), submit(store, effort=30.0)
    larger, waits = submit(store, effort=20.0), submit(store, effort=1.0)
    claim = store.claim("A")
    assert claim.id == done and store.status(waits)["seconds_left"] is None  # not known yet
    store.finish(claim, b"result", FACTS)  # 20 seconds: 5 for each unit
    assert store.status(waits)["seconds_left"] == 5 * (30 + 20 + 1)
    claim = store.claim("A")
    assert claim.id == runs and store.status(larger)["seconds_left"] == 5 * (
        30 + 20
    )  # no report of its worker yet
    store.report(claim, {"seconds_left": 3.0})
    assert store.status(waits)["seconds_left"] == 3 + 5 * (20 + 1)
    store.heartbeat("B")
    assert store.status(waits)["seconds_left"] == (3 + 5 * 20) / 2 + 5
    store.jobs.put("1" * 32, b'{"draft": true, "number": 1, "at": %d}' % store.clock())
    assert store.status(waits)["seconds_left"] == (3 + 5 * 20) / 2 + 5  # drafts do not count


def test_large_jobs_weigh_more_in_the_pace_and_very_short_ones_do_not_count(store):
    def do(effort: float, seconds: float) -> None:
        submit(store, effort=effort)
        assert store.finish(store.claim("A"), b"result", FACTS | {"seconds": seconds})

    def left(effort: float) -> float | None:
        job_id = submit(store, effort=effort)
        seconds = store.status(job_id)["seconds_left"]
        store.cancel(job_id)
        return seconds

    do(0.01, MIN_MEASURED - 1)
    assert left(10.0) is None
    do(1000.0, 2000.0)
    do(1.0, 20.0)  # ten times as slow, but small
    assert left(10.0) == round(10 * (0.7 * 2000 + 20) / (0.7 * 1000 + 1), 1)


def test_stored_jobs_persist_after_the_store_is_closed(store, where):
    done, waits = submit(store), submit(store)
    store.finish(store.claim("A"), b"result", FACTS)
    before = store.status(done), store.status(waits)
    store.close()
    again = open_store(where)
    assert (again.status(done), again.status(waits)) == before and again.result(done) == b"result"
    again.close()


def test_no_more_jobs_wait_than_allowed(store):
    running = submit(store)
    claim = store.claim("A")
    store.report(claim, {"seconds_left": 7.2})
    for _ in range(3):
        submit(store, limit=3)
    with pytest.raises(Busy, match="3 jobs are waiting, the limit") as caught:
        submit(store, limit=3)
    assert caught.value.retry_after == 8  # when the one that runs is done
    assert store.counts() == (3, 1) and len(store.blobs.all()) == 4
    store.cancel(running)
    store.claim("A")
    submit(store, limit=3)


def test_concurrent_servers_never_accept_more_jobs_than_the_limit(where, store):
    stores = [open_store(where) for _ in range(6)]

    def ask(one: Store) -> int:
        taken = 0
        for _ in range(4):
            try:
                submit(one, limit=5)
                taken += 1
            except Busy:
                pass
        return taken

    with ThreadPoolExecutor(len(stores)) as pool:
        taken = sum(pool.map(ask, stores))
    for one in stores:
        one.close()
    assert taken == store.counts()[0] <= 5  # those that ask at the very same time may all be refused
    while taken < 5:
        submit(store, limit=5)
        taken += 1
    with pytest.raises(Busy):
        submit(store, limit=5)


def test_a_job_is_refused_without_a_live_worker(store):
    later(store, LEASE + 1)
    with pytest.raises(NoWorker, match="start one with `sparsegen worker`"):
        submit(store)
    assert not store.jobs.all() and not store.blobs.all()
    store.heartbeat("A")
    submit(store)


def test_a_job_of_a_dead_worker_is_claimed_again_and_that_worker_cannot_change_it(store):
    job_id = submit(store)
    dead = store.claim("A")
    store.report(dead, {"iteration": 9})
    store.heartbeat("B")
    assert store.claim("B") is None and store.holds(dead)
    later(store, LEASE + 1)
    store.heartbeat("B")
    assert status_of(store, job_id) == "waiting"
    claim = store.claim("B")
    assert (claim.id, claim.attempt) == (job_id, 2)
    store.heartbeat("A")  # it was only suspended
    assert not store.holds(dead) and store.holds(claim)
    store.report(dead, {"iteration": 10})
    store.show(dead, b"old")
    store.give_back(dead)
    assert store.status(job_id)["iteration"] is None and status_of(store, job_id) == "running"
    assert store.claim("A") is None
    assert store.finish(claim, b"new", FACTS)
    assert not store.finish(dead, b"old", FACTS) and not store.fail(dead, "broken", {})
    assert store.result(job_id) == b"new" and status_of(store, job_id) == "done"


def test_dead_workers_do_not_look_alive_after_the_clock_is_set_back(store):
    submit(store)
    store.claim("A")
    later(store, -3600)
    store.heartbeat("B")
    assert store.claim("B").attempt == 2


def test_a_job_that_killed_its_workers_fails_and_one_that_was_given_back_does_not(store):
    job_id, other = submit(store), submit(store)
    for number in range(1, MAX_LOST + 3):
        store.heartbeat(f"W{number}")
        claim = store.claim(f"W{number}")
        assert claim.id == job_id
        if number in (1, 3):
            store.give_back(claim)
        else:
            later(store, LEASE + 1)
    store.heartbeat("A")
    claim = store.claim("A")
    assert claim.id == other
    status = store.status(job_id)
    assert (
        status["status"] == "failed" and "each of the 3 workers that tried it was killed" in status["error"]
    )


def test_canceling_ends_a_job_once_and_stops_its_worker(store):
    waits, runs = submit(store), submit(store)
    assert store.cancel(waits)["status"] == "canceled"
    claim = store.claim("A")
    assert claim.id == runs
    store.report(claim, {"iteration": 4})
    canceled = store.cancel(runs)
    assert (canceled["status"], canceled["iteration"]) == ("canceled", 4)
    assert not store.holds(claim) and store.cancel(runs) == canceled
    assert not store.finish(claim, b"result", FACTS)
    assert store.status(runs) == canceled and store.result(runs) is None
    assert store.claim("A") is None and not store.jobs.all() and not store.blobs.all()


def test_deleting_a_finished_job_removes_its_pictures_for_good(store):
    job_id, live = submit(store), submit(store)
    claim = store.claim("A")
    store.show(claim, b"preview")
    store.finish(claim, b"result", FACTS)
    status = store.status(job_id)
    assert store.delete(job_id) == status and status["status"] == "done"
    assert (
        store.status(job_id) is store.result(job_id) is store.preview(job_id) is store.delete(job_id) is None
    )
    assert set(store.blobs.all()) == {f"{live}:image", "done"}
    assert not store.finish(claim, b"again", FACTS) and not store.fail(
        claim, "broken", {}
    )  # its worker had slept
    assert store.status(job_id) is None and set(store.blobs.all()) == {f"{live}:image", "done"}
    assert store.delete(live)["status"] == "canceled" == store.status(live)["status"]
    assert store.delete(live)["status"] == "canceled" and store.status(live) is None
    assert set(store.blobs.all()) == {"done"}
    later(store, KEEP)
    store.sweep()
    assert not store.ends.all()


def test_deleted_data_is_not_left_in_the_files_of_the_database(tmp_path):
    store = open_store(str(tmp_path / "jobs.sqlite"))
    store.heartbeat("A")
    secret, result = (np.random.default_rng(seed).bytes(20_000) for seed in range(2))
    job_id = submit(store, content=secret)
    store.finish(store.claim("A"), result, FACTS)

    def found(content: bytes) -> bool:
        return any(content[9000:9100] in file.read_bytes() for file in tmp_path.iterdir())

    assert found(result)
    store.delete(job_id)
    assert not found(result) and not found(secret)
    store.close()


def test_a_job_that_was_queued_under_old_names_of_settings_runs(store):
    job_id = store.submit({"kind": "denoise", "members": 3}, {"image": png()})["id"]
    asked = []

    def run(task, picture, mask, kernel, callback):
        asked.append(task)
        return restorer.Restoration(picture, "all iterations are done", 1, 1.0)

    worker.run_job(store, store.claim("A"), run, [])
    assert status_of(store, job_id) == "done" and asked[0].ensemble_size == 3


def test_a_preview_that_was_written_after_the_cancel_is_removed(store):
    job_id = submit(store)
    claim = store.claim("A")

    def run(task, picture, mask, kernel, callback):
        store.cancel(job_id)
        store.show(claim, b"late")
        assert callback(restorer.Progress(1, 2, picture))
        return restorer.Restoration(picture, "it was asked to", 1, 1.0)

    worker.run_job(store, claim, run, [])
    assert not store.blobs.all() and status_of(store, job_id) == "canceled"


def test_a_job_that_reaches_its_deadline_ends_with_the_best_picture_so_far_and_a_note(
    store, where, monkeypatch
):
    monkeypatch.setenv("SPARSEGEN_JOB_DEADLINE_HOURS", str(1 / 3600))
    job_id = submit(store, iterations=100_000)
    work(where, restorer.run, once=True)
    status = store.status(job_id)
    assert status["status"] == "done" and 1 < status["iteration"] < 100_000
    assert "deadline" in status["stopped_because"] and "best picture so far" in status["stopped_because"]
    np.testing.assert_allclose(read_picture(store.result(job_id)).pixels, 1 - read_picture(png()).pixels)


def test_concurrent_requests_of_a_client_do_not_exceed_its_quota_of_unfinished_jobs(where, store):
    stores = [open_store(where) for _ in range(6)]

    def ask(one: Store) -> int:
        taken = 0
        for _ in range(4):
            with suppress(Busy):
                submit(one, client="a", quota=3)
                taken += 1
        return taken

    with ThreadPoolExecutor(len(stores)) as pool:
        taken = sum(pool.map(ask, stores))
    for one in stores:
        one.close()
    assert taken <= 3  # those that ask at the very same time may all be refused
    submit(store, client="b", quota=3)
    store.claim("A")
    while taken < 3:
        submit(store, client="a", quota=3)
        taken += 1
    with pytest.raises(Busy, match="3 jobs of yours are unfinished"):
        submit(store, client="a", quota=3)
    assert all("client" not in end.decode() for end in store.ends.all().values())


@pytest.mark.parametrize("where", ["redis"], indirect=True)
def test_redis_has_a_key_per_picture_and_eviction_causes_a_warning(store, where, caplog):
    import redis

    job_id = submit(store)
    with redis.Redis.from_url(where) as client:
        assert client.type(f"sparsegen_blobs:{job_id}:image") == b"string"
        assert client.delete(f"sparsegen_blobs:{job_id}:image")  # as an eviction does
        assert store.claim("A") is None
        assert "removed from the store: submit it again" in store.status(job_id)["error"]
        with monkeypatched_policy("allkeys-lru"), caplog.at_level("WARNING"):
            open_store(where).close()
    assert "maxmemory-policy allkeys-lru" in caplog.text and "noeviction" in caplog.text


@contextmanager
def monkeypatched_policy(policy: str) -> Iterator[None]:
    """The policy of the imitation of Redis, which has none."""
    import redis

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redis.Redis, "config_get", lambda self, name: {name: policy})
        yield


def test_many_workers_claim_each_job_once(store, where):
    wanted = {submit(store) for _ in range(8)}
    stores = [open_store(where) for _ in range(6)]
    gate = threading.Barrier(len(stores))

    def claim(number: int) -> list[str]:
        names = (f"W{number}.{count}" for count in itertools.count())  # a worker has one job at a time
        gate.wait()

        def one() -> jobs.Claim | None:
            stores[number].heartbeat(name := next(names))
            return stores[number].claim(name)

        return [claim.id for claim in iter(one, None)]

    with ThreadPoolExecutor(len(stores)) as pool:
        claimed = list(itertools.chain(*pool.map(claim, range(len(stores)))))
    for one in stores:
        one.close()
    assert sorted(claimed) == sorted(wanted)


def test_sweeping_removes_old_jobs_and_remains_of_killed_processes(store):
    old = submit(store)
    store.finish(store.claim("A"), b"result", FACTS)
    store.jobs.put("1" * 32, b'{"draft": true, "number": 7, "at": %d}' % store.clock())
    store.blobs.put("1" * 32 + ":image", b"half")
    store.attempts.put("2" * 32 + ":1", b"{}")  # of a removed job
    store.sweep()
    assert status_of(store, old) == "done" and "1" * 32 in store.jobs.all() and not store.attempts.all()
    later(store, KEEP - 60)
    store.heartbeat("A")
    young = submit(store)
    store.finish(store.claim("A"), b"young", FACTS)
    store.sweep()
    assert status_of(store, old) == "done" and "1" * 32 not in store.jobs.all()
    later(store, 61)
    store.sweep()
    assert status_of(store, old) is None and store.result(young) == b"young"
    assert set(store.blobs.all()) == {f"{young}:result:1", "done"} and set(store.ends.all()) == {young}
    assert not store.workers.all() or set(store.workers.all()) == {"A"}


def test_finished_jobs_do_not_exceed_their_room_and_are_removed_by_client(store):
    ended = []
    for client, size in [("heavy", 300_000), ("light", 200_000), ("heavy", 300_000), ("heavy", 300_000)]:
        ended.append(submit(store, client=client))
        store.finish(store.claim("A"), bytes(size), FACTS)
        later(store, 1)
    deleted = submit(store, client="light")
    store.finish(store.claim("A"), b"gone", FACTS)
    store.delete(deleted)
    store.sweep()
    assert all(store.result(each) for each in ended)
    store.room = 500_000 + 3 * END_SIZE  # one picture of each, and the mark of the deleted one
    store.sweep()
    assert [status_of(store, each) for each in ended] == [None, "done", None, "done"]
    assert {f"{each}:result:1" for each in (ended[1], ended[3])} | {"done"} == set(store.blobs.all())
    store.room = 0
    store.sweep()
    assert not store.ends.all() and set(store.blobs.all()) == {"done"}


def test_a_job_that_has_just_ended_does_not_run_again_in_a_full_store(store):
    job_id = submit(store)
    claim = store.claim("A")
    store.ends.put(
        job_id, b'{"status": "canceled", "at": %d, "attempts": 1}' % store.clock()
    )  # and then a kill
    store.room = 0
    store.sweep()
    assert not store.live() and status_of(store, job_id) == "canceled" and not store.finish(claim, b"", FACTS)
    store.sweep()
    assert status_of(store, job_id) is None and store.claim("A") is None


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.integers(0, 30)),
        max_size=12,
        unique_by=lambda end: end[2],  # of two jobs of the same age, either may be removed
    ),
    st.integers(0, 99),
)
def test_jobs_of_the_client_with_the_most_bytes_are_removed_first(given_ends, room):
    ends = {
        str(number): {"client": client, "size": size, "at": at}
        for number, (client, size, at) in enumerate(given_ends)
    }
    room += END_SIZE * len(ends) // 2
    kept, expected = dict(ends), set()  # the definition, one step after the other

    def taken(of: list[dict]) -> int:
        return sum(END_SIZE + end["size"] for end in of)

    while taken(list(kept.values())) > room:
        of = {client: [end for end in kept.values() if end["client"] == client] for client in "abc"}
        most = max(taken(own) for own in of.values())
        oldest = {
            client: min(end["at"] for end in own) for client, own in of.items() if own and taken(own) == most
        }
        goes = next(
            job_id
            for job_id in too_many(ends, room)
            if job_id in kept and oldest.get(kept[job_id]["client"]) == kept[job_id]["at"]
        )
        expected.add(goes)
        del kept[goes]
    assert too_many(ends, room) == expected


def test_a_full_disk_is_reported_in_a_sentence_and_leaves_nothing_behind(tmp_path):
    store = open_store(str(tmp_path / "jobs.sqlite"))
    store.heartbeat("A")
    kept = submit(store)
    for name in TABLES:  # every connection has its own limit
        connection = getattr(store, name).storage.conn
        pages = connection.execute("pragma page_count").fetchone()[0]
        connection.execute(f"pragma max_page_count={pages + 8}")
    noise = np.random.default_rng(0).bytes(100_000)
    with pytest.raises(StoreFull, match="no room for jobs in .*jobs.sqlite: the disk is full"):
        submit(store, content=noise)
    assert set(store.jobs.all()) == {kept} and set(store.blobs.all()) == {f"{kept}:image"}
    claim = store.claim("A")
    with pytest.raises(StoreFull):
        store.finish(claim, noise, FACTS)
    assert status_of(store, kept) == "running"
    assert store.finish(claim, b"small", FACTS)
    store.close()


@pytest.mark.parametrize(
    ("place", "error", "word"),
    [
        ("mysql://name:secret@host/0", ValueError, "a file or redis://"),
        ("redis://name:secret@127.0.0.1:1/0", StoreError, "check that Redis is running"),
        ("{folder}", StoreError, "Is a directory"),
        ("{folder}/text", StoreError, "file is not a database"),
        ("{folder}/text/jobs", StoreError, "SPARSEGEN_JOBS"),
    ],
)
def test_an_unusable_place_is_refused_without_its_password(tmp_path, place, error, word):
    (tmp_path / "text").write_text("no database, but long enough to be looked at as if it were one" * 99)
    with pytest.raises(error, match=word) as caught:
        open_store(place.format(folder=tmp_path))
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_the_default_place_is_the_variable_or_a_file_in_the_state_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("SPARSEGEN_JOBS", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    open_store().close()
    file = tmp_path / "sparsegen" / "jobs.sqlite"
    assert file.stat().st_mode & 0o077 == 0  # it contains pictures of users
    monkeypatch.setenv("SPARSEGEN_JOBS", "redis://host")
    assert jobs.default_place() == "redis://host"


class Killed(BaseException):
    """The process was killed."""


class Memory:
    """Tables and a time in memory that persist after their stores; a store can be killed at one of its writes."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.storages = {name: MemoryStorage(name) for name in TABLES}

    def store(self, kill_after: int | None = None) -> Store:
        writes = itertools.count()

        def counted(write: Callable) -> Callable:
            def wrapped(*arguments):
                if kill_after is not None and next(writes) >= kill_after:
                    raise Killed
                return write(*arguments)

            return wrapped

        tables = {name: KeyValueStore(storage, nullcontext) for name, storage in self.storages.items()}
        for table in tables.values():
            for name in ("put", "create"):
                setattr(table, name, counted(getattr(table, name)))
            one, many = counted(lambda storage, key: storage.delete_data(key)), table.storage
            table.delete = lambda *keys, one=one, many=many: [one(many, key) for key in keys]
        return Store(tables, lambda: self.time, lambda: None)

    def holds(self, *tables: str) -> list[str]:
        return [key for name in tables for key in self.storages[name].result_items()]


@pytest.mark.parametrize("kill_after", range(16))
def test_a_worker_killed_at_any_write_loses_no_job_and_leaves_nothing_behind(kill_after):
    memory = Memory()
    calm, doomed = memory.store(), memory.store(kill_after)
    calm.heartbeat("B")
    job_id = submit(calm)
    try:
        doomed.heartbeat("A")
        claim = doomed.claim("A")
        doomed.report(claim, {"iteration": 1})
        doomed.show(claim, b"preview")
        doomed.finish(claim, b"by A", FACTS)
        assert kill_after > 9, "it was to be killed"
    except Killed:
        pass
    memory.time += LEASE + 1
    calm.heartbeat("B")
    while (claim := calm.claim("B")) is not None:
        calm.finish(claim, b"by B", FACTS)
    assert calm.status(job_id)["status"] == "done"
    assert calm.result(job_id) in (b"by A", b"by B")
    calm.sweep()
    assert memory.holds("jobs", "attempts") == []
    assert [key for key in memory.holds("blobs") if key != "done"] in (
        [f"{job_id}:result:1"],
        [f"{job_id}:result:2"],
    )


@pytest.mark.parametrize("kill_after", range(8))
def test_a_worker_that_lost_its_connection_writes_the_result_again(kill_after):
    memory = Memory()
    calm, cut = memory.store(), memory.store(kill_after)
    calm.heartbeat("A")
    job_id = submit(calm)
    claim = calm.claim("A")
    with suppress(Killed):
        cut.finish(claim, b"result", FACTS)
    assert calm.finish(claim, b"result", FACTS)
    assert (calm.result(job_id), calm.status(job_id)["status"]) == (b"result", "done")
    assert memory.holds("jobs", "attempts") == []


def test_a_claim_whose_answer_was_lost_does_not_count():
    memory = Memory()
    store = memory.store()
    store.heartbeat("A")
    job_id = submit(store)
    for attempt in range(1, MAX_LOST + 2):  # and not a lost attempt
        claim = store.claim("A")
        assert (claim.id, claim.attempt) == (job_id, attempt)
    assert store.finish(claim, b"result", FACTS)


@pytest.mark.parametrize("what", ["submit", "cancel"])
@pytest.mark.parametrize("kill_after", range(8))
def test_a_server_killed_at_any_write_leaves_a_complete_job_or_none(what, kill_after):
    memory = Memory()
    calm, doomed = memory.store(), memory.store(kill_after)
    calm.heartbeat("B")
    job_id = submit(calm) if what == "cancel" else None
    claim = calm.claim("B")
    try:
        if what == "cancel":
            calm.show(claim, b"preview")
            doomed.cancel(job_id)
        else:
            submit(doomed)
        assert kill_after > 2, "it was to be killed"
    except Killed:
        pass
    memory.time += jobs.DRAFT
    calm.heartbeat("B")
    calm.sweep()
    whole = [key for key in memory.holds("jobs")]
    if what == "submit":
        assert len(whole) == (kill_after >= 3) and len(memory.holds("blobs")) == len(whole)
        assert (calm.claim("B") is not None) == bool(whole)
    elif memory.holds("ends"):
        assert calm.status(job_id)["status"] == "canceled"
        assert memory.holds("jobs", "attempts", "blobs") == []
    else:
        assert kill_after == 0 and calm.holds(claim) and calm.finish(claim, b"result", FACTS)


class Life(RuleBasedStateMachine):
    """Random actions of servers, workers and time: two workers never hold one job, and no end is changed."""

    claims = Bundle("claims")
    names = st.sampled_from("ABC")

    def __init__(self) -> None:
        super().__init__()
        self.memory = Memory()
        self.store = self.memory.store()
        self.ids, self.held, self.ended, self.removed = [], [], {}, set()

    @rule()
    def ask(self) -> None:
        try:
            self.ids.append(submit(self.store, limit=3))
        except Busy:
            live = self.store.live()
            assert sum(job.waiting for job in live) >= 3 or not self.store._alive()

    @rule(name=names)
    def heartbeat(self, name: str) -> None:
        self.store.heartbeat(name)

    @rule(name=names, target=claims)
    def claim(self, name: str):
        self.store.heartbeat(name)
        claim = self.store.claim(name)
        if claim is not None:
            assert claim.id not in self.ended
            assert (claim.id, claim.attempt) not in [(other.id, other.attempt) for other in self.held]
            self.held.append(claim)
        return claim

    @rule(claim=claims)
    def report(self, claim) -> None:
        if claim is not None and self.store.holds(claim):
            self.store.report(claim, {"iteration": 1})

    @rule(claim=claims)
    def finish(self, claim) -> None:
        if claim is not None:
            own = str(claim.attempt).encode()
            before = self.store.result(claim.id)
            counts = claim.id not in self.ended or before == own  # told twice
            assert self.store.finish(claim, own, FACTS) == counts
            assert self.store.result(claim.id) == (own if counts else before)

    @rule(claim=claims)
    def fail(self, claim) -> None:
        if claim is not None:
            self.store.fail(claim, "broken", {})

    @rule(claim=claims)
    def give_back(self, claim) -> None:
        if claim is not None:
            self.store.give_back(claim)

    @rule(number=st.integers(0, 9))
    def cancel(self, number: int) -> None:
        if number < len(self.ids):
            self.store.cancel(self.ids[number])

    @rule(number=st.integers(0, 9))
    def delete(self, number: int) -> None:
        if number < len(self.ids):
            ended = self.ids[number] in self.ended
            self.store.delete(self.ids[number])
            if ended:
                self.removed.add(self.ids[number])

    @rule(seconds=st.sampled_from([1, LEASE / 2, LEASE, -LEASE]))
    def wait(self, seconds: float) -> None:
        self.memory.time += seconds

    @rule()
    def sweep(self) -> None:
        self.store.sweep()

    @invariant()
    def one_holder_and_lasting_ends(self) -> None:
        holders = [claim.id for claim in self.held if self.store.holds(claim)]
        assert len(holders) == len(set(holders))
        for job_id in self.ids:
            status = self.store.status(job_id)
            assert (status is None) == (job_id in self.removed)
            if status is None:
                assert self.store.result(job_id) is None
            elif status["status"] in ("done", "failed", "canceled"):
                assert self.ended.setdefault(job_id, status) == status
            else:
                assert job_id not in self.ended

    def teardown(self) -> None:
        """In the end, a live worker finishes every job."""
        for _ in range(20 * len(self.ids)):
            self.memory.time += LEASE + 1
            self.store.heartbeat("D")
            if (claim := self.store.claim("D")) is not None:
                assert self.store.finish(claim, b"result", FACTS)
        assert {status_of(self.store, each) for each in self.ids} <= {"done", "failed", "canceled", None}
        self.store.sweep()
        assert self.memory.holds("jobs", "attempts") == []


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def test_a_curve_has_the_points_at_which_the_statistic_was_measured():
    """Between measurements, a fit repeats its last statistic, even if the curve skipped it."""
    curve = Curve()
    for iteration in range(1, 5001):
        curve.add(iteration, float(iteration - iteration % 10))
    (step,) = set(np.diff([iteration for iteration, _ in curve.points[1:]]))
    assert step % 10 == 0 and all(iteration % 10 == 0 for iteration, _ in curve.points[1:])


@given(count=st.integers(0, 3000))
@settings(max_examples=30, deadline=None, derandomize=True, database=None)
def test_a_curve_is_thinned_evenly_and_keeps_its_start(count):
    curve = Curve()
    for iteration in range(count):
        curve.add(iteration, iteration / 7)
    curve.add(count, None)
    curve.add(count, float("nan"))
    steps = np.diff([iteration for iteration, _ in curve.points])
    assert len(curve.points) <= CURVE and len(curve.points) >= min(count, CURVE // 2)
    assert len(set(steps)) <= 1 and (not count or curve.points[0] == (0, 0.0))


# From here on, the workers are processes; the store in Redis is tested above.
SQLITE = pytest.mark.parametrize("where", ["sqlite"], indirect=True)


@pytest.fixture
def workers(where: str, tmp_path: Path, short_lease: None) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts workers, and ends them after the test."""
    started = []

    def begin(*options: str) -> subprocess.Popen:
        started.append(restorer.start(where, tmp_path / "trace", *options))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.stdin.close()
        process.wait()


@pytest.fixture
def trace(tmp_path: Path) -> Callable[[], list[tuple[int, int, int]]]:
    return lambda: restorer.lines(tmp_path / "trace")


def test_a_job_of_a_killed_worker_is_run_again_by_another(store, workers, trace):
    killed = workers()
    job_id = submit(store, iterations=100)
    assert until(lambda: len(trace()) > 20, True)
    killed.kill()
    before = len(trace())
    successor = workers()
    assert until(lambda: status_of(store, job_id), "done", 30) == "done"
    assert {process for process, _, _ in trace()} == {killed.pid, successor.pid}
    assert [iteration for _, _, iteration in trace()[before:]] == list(range(1, 101))
    np.testing.assert_allclose(read_picture(store.result(job_id)).pixels, 1 - read_picture(png()).pixels)
    status = store.status(job_id)
    assert status["iteration"] == 100 and status["history"][0] == [1, 1.0] and status["fraction"] == 1
    assert status["stopped_because"] == "the iterations are over"


@SQLITE
def test_a_worker_stops_within_an_iteration_of_canceling_and_runs_the_next_job(store, workers, trace):
    workers()
    job_id, after = submit(store, iterations=100_000, seed=1), submit(store, seed=2)
    assert until(lambda: store.preview(job_id) is not None, True)
    assert status_of(store, job_id) == "running"
    store.cancel(job_id)
    before = len(trace())
    assert until(lambda: status_of(store, after), "done") == "done"
    assert (
        len([seed for _, seed, _ in trace()[before:] if seed == 1]) <= 2
    )  # one may have run while we counted
    assert status_of(store, job_id) == "canceled" and store.result(job_id) is None


@SQLITE
@pytest.mark.parametrize("end", ["SIGTERM", "SIGINT", "stdin"])
def test_a_worker_that_must_stop_returns_its_job_to_the_queue(store, workers, trace, end):
    process = workers("--leash")
    job_id = submit(store, iterations=100_000)
    assert until(lambda: status_of(store, job_id), "running") == "running"
    process.stdin.close() if end == "stdin" else process.send_signal(getattr(signal, end))
    assert process.wait(30) == 0
    assert status_of(store, job_id) == "waiting"  # and that without waiting for the lease
    assert store.claim("A").attempt == 2


@SQLITE
def test_two_workers_share_the_jobs_and_run_none_twice(store, workers, trace):
    workers(), workers()
    wanted = [submit(store, iterations=20, seed=seed) for seed in range(6)]
    assert until(lambda: {status_of(store, each) for each in wanted}, {"done"}, 30) == {"done"}
    runs = [(seed, iteration) for _, seed, iteration in trace()]
    assert sorted(runs) == sorted(itertools.product(range(6), range(1, 21)))


@SQLITE
def test_errors_of_a_job_are_reported_without_secrets_and_the_worker_continues(store, workers):
    workers()
    refused, broken, fine = (submit(store, seed=seed) for seed in (restorer.REFUSED, restorer.BROKEN, 1))
    assert until(lambda: status_of(store, fine), "done") == "done"
    assert store.status(refused)["error"] == "a picture of this seed is refused"
    assert (
        store.status(broken)["error"]
        == "the restoration failed (ZeroDivisionError): the log of the worker has the details"
    )


@SQLITE
def test_a_suspended_worker_finds_its_job_taken_over(store, workers, trace):
    sleeper = workers("--sleepy")
    job_id = submit(store, iterations=100)
    assert until(lambda: len(trace()), 5) == 5
    workers()
    assert until(lambda: len({process for process, _, _ in trace()}), 2) == 2
    sleeper.send_signal(signal.SIGCONT)
    assert until(lambda: status_of(store, job_id), "done") == "done"
    assert len([1 for process, _, _ in trace() if process == sleeper.pid]) == 5
    assert sleeper.poll() is None


def test_once_runs_one_job_and_exits(tmp_path, short_lease):
    where = str(tmp_path / "jobs.sqlite")
    assert work(where, restorer.run, once=True) == 0  # nothing to do
    store = open_store(where)
    store.heartbeat("somebody")
    first, second = submit(store), submit(store)
    work(where, restorer.run, once=True)
    assert (status_of(store, first), status_of(store, second)) == ("done", "waiting")
    assert set(store.workers.all()) == {"somebody"}
    store.close()


def test_a_worker_runs_real_restorations_by_default(tmp_path):
    where = str(tmp_path / "jobs.sqlite")
    store = open_store(where)
    store.heartbeat("somebody")
    job_id = submit(store, iterations=2, content=png(side=32))
    work(where, once=True)
    status = store.status(job_id)
    assert (status["status"], status["error"], status["iteration"]) == ("done", None, 2)
    assert read_picture(store.result(job_id)).pixels.shape == (32, 32, 1)
    store.close()


def test_a_worker_without_a_store_ends_with_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "sparsegen.service.jobs.worker"],
        env=os.environ | {"SPARSEGEN_JOBS": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"worker: jobs cannot be stored in {tmp_path}")


CREW = """
import os, sys, time
from sparsegen.service.jobs.pool import WorkerPool
WorkerPool(2, {**os.environ, "SPARSEGEN_JOBS": sys.argv[1]}).start()
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_workers_are_restarted_and_end_with_a_killed_server(tmp_path):
    where = str(tmp_path / "jobs.sqlite")
    store = open_store(where)
    server = subprocess.Popen([sys.executable, "-c", CREW, where], stderr=subprocess.DEVNULL)

    def alive() -> dict[str, int]:
        return {name: int(name.split("-")[-2]) for name in store.workers.all()}

    try:
        assert until(lambda: len(alive()), 2) == 2
        first = alive()
        os.kill(min(first.values()), signal.SIGKILL)
        assert until(lambda: len(alive()), 3) == 3  # with the heartbeat of the dead one
    finally:
        server.kill()
        server.wait()
    dead = min(first.values())
    assert until(lambda: set(alive().values()), {dead}) == {dead}  # the others have left
    store.close()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_no_process_outlives_a_killed_server(tmp_path):
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "sparsegen",
        "serve",
        "--port",
        str(port),
        "--jobs",
        str(tmp_path / "jobs.sqlite"),
    ]
    variables = {**os.environ, "TMPDIR": str(tmp_path)}
    server = subprocess.Popen(
        command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert any("The page:" in line for line in server.stdout)
        children = psutil.Process(server.pid).children(recursive=True)
        assert len(children) >= 3 and list(tmp_path.glob("sparsegen-serve-*"))
    finally:
        server.kill()
        server.communicate()
    assert not psutil.wait_procs(children, timeout=20)[1]
    assert not list(tmp_path.glob("sparsegen-serve-*"))


def test_parallel_fits_share_half_of_the_cores_or_one_per_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for cores, ensemble_size, fits, threads in (
        (1, 1, 1, 1),
        (1, 2, 1, 1),
        (2, 1, 1, 1),
        (2, 2, 1, 2),
        (2, 2, 2, 1),
        (8, 1, 1, 4),
        (8, 2, 1, 4),
        (8, 6, 1, 6),
        (8, 2, 3, 2),
        (4, 2, 2, 2),
        (8, 4, 2, 4),
        (16, 2, 2, 4),
        (4, 2, 0, 2),
    ):
        monkeypatch.setattr("sparsegen.restoration.settings.processors", lambda cores=cores: cores)
        assert fair_threads(ensemble_size, fits) == threads


@pytest.mark.parametrize(
    ("variables", "threads"),
    [({}, 4), ({"SPARSEGEN_WORKERS": "4"}, 2), ({"OMP_NUM_THREADS": "1"}, None)],
    ids=str,
)
def test_a_worker_sets_the_threads_of_each_network(
    variables: dict, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With eight processors and four networks, as one or one of four workers, or as set in the environment."""
    for name in ("SPARSEGEN_WORKERS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sparsegen.restoration.settings.processors", lambda: 8)
    monkeypatch.setattr("sparsegen.restoration.restore.run", lambda *given: given)
    told = []
    monkeypatch.setattr("torch.set_num_threads", told.append)
    task = Task.of(ensemble_size=4)
    assert worker._restore(task, "picture", None, None, None)[0] is task
    assert told == ([] if threads is None else [threads])


def test_a_pool_passes_the_number_of_its_workers_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr("subprocess.Popen", lambda command, **about: started.append(about["env"]))
    pool = WorkerPool(3, {"A": "b"})
    pool.restart_dead()
    assert [env[calibration.WORKERS] for env in started] == ["3"] * 3 and started[0]["A"] == "b"


def test_a_failed_commit_does_not_lock_the_jobs(tmp_path: Path) -> None:
    where = str(tmp_path / "jobs.sqlite")
    storage, other = open_storage(where), open_storage(where)
    blobs = storage.tables["blobs"].storage
    blobs.put_data("a", b"1" * 1000)
    unfinished = blobs.conn.execute("insert into counter values ('a', 'b', 1), ('a', 'c', 1) returning value")
    with pytest.raises(sqlite3.OperationalError, match="SQL statements in progress"):
        blobs.put_data("a", b"2")
    unfinished.close()
    other.tables["blobs"].put("a", b"3")
    assert storage.tables["blobs"].get("a") == b"3"
    storage.close()
    other.close()


def test_the_log_is_emptied_while_other_threads_write(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "jobs.sqlite"))

    def write(name: str) -> None:
        for _ in range(30):
            storage.tables["blobs"].put(name, bytes(200_000))

    with ThreadPoolExecutor(4) as threads:
        tasks = [threads.submit(write, name) for name in "abc"]
        tasks += [threads.submit(lambda: [storage.scrub() for _ in range(60)])]
        for task in tasks:
            task.result()
    storage.close()


@pytest.mark.parametrize(("code", "starts"), [(0, 1), (-9, 2)])
def test_a_pool_replaces_a_killed_worker_at_once_and_one_that_was_asked_to_end_later(
    code: int, starts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BentoML asks the workers to end before the server calls `stop`."""
    started = []
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: started.append(1) or ended)
    ended = Mock(pid=7, returncode=code, poll=lambda: code)
    clock = Mock(return_value=100.0)
    monkeypatch.setattr("sparsegen.service.jobs.pool.time.monotonic", clock)
    workers = WorkerPool(1, {})
    workers.restart_dead()
    clock.return_value += 100
    workers.restart_dead()
    assert len(started) == starts
    clock.return_value += RESTART_AFTER
    workers.restart_dead()
    assert len(started) == starts + 1  # the process of this test has always ended
