"""Where the jobs are kept: values by key in one SQLite file, or in Redis, through the storages of huey."""

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huey.exceptions import ConfigurationError
from huey.storage import BaseStorage, RedisStorage, SqliteStorage

from sparsegen.service.jobs.errors import FileError, NoStore, RedisDown, StoreError, StoreFull
from sparsegen.service.jobs.places import ENVIRONMENT, check_redis_url, is_redis, public

logger = logging.getLogger(__name__)

Fault = TypeVar("Fault", bound=Exception)
Guard = Callable[
    [], AbstractContextManager[None]
]  # a context that turns the errors of a storage into StoreErrors
SHELVES = ("jobs", "attempts", "ends", "workers", "blobs")  # one key-value store each


class KeyValueStore:
    """Bytes by name that outlive a process: one storage of huey, its errors told in a sentence."""

    def __init__(self, storage: BaseStorage, guard: Guard) -> None:
        self.storage, self._guard = storage, guard

    def get(self, key: str) -> bytes | None:
        with self._guard():
            return self.storage.peek_many([key]).get(key)

    def present(self, *keys: str) -> set[str]:
        with self._guard():
            return set(self.storage.peek_many(list(keys)))

    def all(self) -> dict[str, bytes]:
        with self._guard():
            return self.storage.result_items()

    def put(self, key: str, value: bytes) -> None:
        with self._guard():
            self.storage.put_data(key, value)

    def create(self, key: str, value: bytes) -> bool:
        """Writes what is not there yet; of several processes, one is told True."""
        with self._guard():
            return bool(self.storage.put_if_empty(key, value))

    def delete(self, *keys: str) -> None:
        with self._guard():
            for key in keys:
                self.storage.delete_data(key)

    def next_number(self) -> int:
        with self._guard():
            return self.storage.incr("number")


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Storage:
    """What a `Store` keeps its jobs in.

    Attributes:
        shelves: Key-value stores by the names of SHELVES.
        clock: Seconds since 1970, the same for all servers and workers.
        close: Ends all connections.
        scrub: Overwrites what was deleted, if the storage keeps that.
    """

    shelves: Mapping[str, KeyValueStore]
    clock: Callable[[], float]
    close: Callable[[], None]
    scrub: Callable[[], None] = _nothing


def open_storage(where: str) -> Storage:
    """Opens a Redis URL or a SQLite file.

    Raises:
        StoreError, NoStore: For a URL of another kind, or if the client of Redis is missing.
    """
    if is_redis(where):
        return _open_redis(where)
    if "://" in where:
        raise NoStore(f"jobs are kept in a file or at redis://…; got {public(where)!r}")
    return _open_sqlite(Path(where).expanduser().absolute())


def _open_sqlite(path: Path) -> Storage:
    def store_error(error: sqlite3.Error) -> StoreError:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            return StoreFull(f"no room for jobs in {path}: the disk is full, free some space")
        return FileError(f"jobs cannot be kept in {path} ({error}): set {ENVIRONMENT} to another file")

    guard = _guard(sqlite3.Error, store_error)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # it holds people's pictures
    except OSError as error:
        raise FileError(
            f"jobs cannot be kept in {path} ({error.strerror}): set {ENVIRONMENT} to another file"
        ) from error
    with guard():
        storages = {name: _Sqlite(name, filename=str(path), cache_mb=1) for name in SHELVES}

    def close() -> None:
        for storage in storages.values():
            storage.close()

    def scrub() -> None:
        """Empties the write-ahead log, which holds deleted pictures; where others read it, their next write does."""
        with guard():
            storages["blobs"].conn.execute("pragma wal_checkpoint(truncate)")

    shelves = {name: KeyValueStore(storage, guard) for name, storage in storages.items()}
    return Storage(shelves, time.time, close, scrub)


def _open_redis(url: str) -> Storage:
    try:
        from redis import ConnectionPool, RedisError
        from redis.exceptions import AuthenticationError, OutOfMemoryError
        from redis.exceptions import ConnectionError as NoConnection
        from redis.exceptions import TimeoutError as NoAnswer
    except ImportError:
        raise NoStore("jobs in Redis need its client: pip install 'sparsegen[redis]'") from None
    try:
        check_redis_url(url)
    except ValueError as error:
        raise NoStore(str(error)) from None

    def store_error(error: Exception) -> StoreError:
        if isinstance(error, OutOfMemoryError):
            return StoreFull(f"no room for jobs in {public(url)}: raise its maxmemory")
        away = isinstance(error, NoConnection | NoAnswer) and not isinstance(error, AuthenticationError)
        remedy = "is Redis running there?" if away else "check user, password and database of the URL"
        return RedisDown(f"jobs cannot be kept in {public(url)} ({error}): {remedy}")

    guard = _guard((RedisError, ConfigurationError), store_error)
    with guard():
        try:
            pool = ConnectionPool.from_url(url, socket_timeout=5, socket_connect_timeout=5)
            pool.make_connection()  # takes the options; nothing is connected yet
        except (TypeError, ValueError):  # their sentences may quote a part of a password
            raise NoStore(
                f"the URL of Redis ({public(url)}) has an option that its client does not know, or a value it cannot "
                "use: give what follows the ? as username=, password= or db="
            ) from None
        storages = {name: RedisStorage(f"sparsegen_{name}", connection_pool=pool) for name in SHELVES}
        storages["blobs"] = _RedisKeys("sparsegen_blobs", connection_pool=pool)

    def clock() -> float:
        """The time of Redis, since the clocks of machines differ."""
        with guard():
            seconds, microseconds = storages["jobs"].conn.time()
        return seconds + microseconds / 1e6

    shelves = {name: KeyValueStore(storage, guard) for name, storage in storages.items()}
    clock()  # fails if Redis cannot be reached
    with guard():
        _check_policy(storages["jobs"].conn, public(url))
    return Storage(shelves, clock, pool.disconnect)


class _Sqlite(SqliteStorage):
    """A storage that overwrites what is deleted with zeros."""

    def _create_connection(self) -> sqlite3.Connection:
        connection = super()._create_connection()
        connection.execute("pragma secure_delete=on")
        return connection


class _RedisKeys(RedisStorage):
    """A storage with a key of Redis per value, where huey's has one hash of all.

    A Redis that evicts keys then drops single pictures, not all of them at once.
    """

    def _full(self, key: str) -> str:
        return f"{self.name}:{key}"

    def put_data(self, key: str, value: bytes, is_result: bool = False) -> None:
        self.conn.set(self._full(key), value)

    def peek_many(self, keys: Iterable[str]) -> dict[str, bytes]:
        keys = list(keys)
        values = self.conn.mget([self._full(key) for key in keys]) if keys else []
        return {key: value for key, value in zip(keys, values, strict=True) if value is not None}

    def put_if_empty(self, key: str, value: bytes, ttl: int | None = None) -> bool:
        return bool(self.conn.set(self._full(key), value, nx=True, ex=ttl))

    def delete_data(self, key: str) -> bool:
        return self.conn.delete(self._full(key)) != 0

    def result_items(self) -> dict[str, bytes]:
        start = len(self._full(""))
        return self.peek_many(key.decode()[start:] for key in self.conn.scan_iter(match=self._full("*")))


def _check_policy(connection: Any, place: str) -> None:
    """Warns where Redis may drop jobs to make room for others."""
    from redis.exceptions import ResponseError

    try:
        policy = connection.config_get("maxmemory-policy").get("maxmemory-policy", "")
    except ResponseError:
        logger.info("the maxmemory-policy of %s cannot be read: it should be noeviction", place)
        return
    if policy.startswith("allkeys"):
        logger.warning(
            "Redis at %s drops keys when its memory is full (maxmemory-policy %s), and with them jobs and pictures: "
            "set maxmemory-policy to noeviction",
            place,
            policy,
        )


def _guard(
    errors: type[Fault] | tuple[type[Fault], ...], store_error: Callable[[Fault], StoreError]
) -> Guard:
    @contextmanager
    def guard() -> Iterator[None]:
        try:
            yield
        except errors as error:
            raise store_error(error) from error

    return guard
