"""The storage of the jobs: values by key in one SQLite file or in Redis, with the storages of huey."""

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

from sparsegen.common.extras import install_command
from sparsegen.service.jobs.errors import FileError, NoStore, RedisDown, StoreError, StoreFull
from sparsegen.service.jobs.places import ENVIRONMENT, check_redis_url, is_redis, public

logger = logging.getLogger(__name__)

Fault = TypeVar("Fault", bound=Exception)
Guard = Callable[[], AbstractContextManager[None]]  # converts the errors of a storage to StoreErrors
TABLES = ("jobs", "attempts", "ends", "workers", "blobs")  # one `KeyValueStore` each


class KeyValueStore:
    """Persistent bytes by key: one storage of huey, which raises StoreErrors."""

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
        """Writes a value unless the key exists; of several processes, one gets True."""
        with self._guard():
            return bool(self.storage.put_if_empty(key, value))

    def delete(self, *keys: str) -> None:
        with self._guard():
            for key in keys:
                self.storage.delete_data(key)

    def next_number(self) -> int:
        return self.count("number")

    def count(self, name: str, amount: int = 1) -> int:
        """Adds `amount` to a counter, and returns its value."""
        with self._guard():
            return int(self.storage.incr(name, amount))


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Storage:
    """The storage of a `Store`.

    Attributes:
        tables: Key-value stores by the names in TABLES.
        clock: Returns seconds since 1970, the same for all servers and workers.
        close: Closes all connections.
        scrub: Overwrites deleted data, if the storage keeps it.
    """

    tables: Mapping[str, KeyValueStore]
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
        raise NoStore(f"the place of the jobs must be a file or redis://…; got {public(where)!r}")
    return _open_sqlite(Path(where).expanduser().absolute())


def _open_sqlite(path: Path) -> Storage:
    def store_error(error: sqlite3.Error) -> StoreError:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            return StoreFull(f"no room for jobs in {path}: the disk is full, free some space")
        return FileError(f"jobs cannot be stored in {path} ({error}): set {ENVIRONMENT} to another file")

    guard = _guard(sqlite3.Error, store_error)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # it contains pictures of users
    except OSError as error:
        raise FileError(
            f"jobs cannot be stored in {path} ({error.strerror}): set {ENVIRONMENT} to another file"
        ) from error
    with guard():
        storages = {name: _Sqlite(name, filename=str(path), cache_mb=1) for name in TABLES}

    def close() -> None:
        for storage in storages.values():
            storage.close()

    def scrub() -> None:
        """Empties the write-ahead log, which contains deleted pictures; while others read it, their next write does."""
        with guard(), storages["blobs"].db() as cursor:
            cursor.execute("pragma wal_checkpoint(truncate)").fetchall()

    tables = {name: KeyValueStore(storage, guard) for name, storage in storages.items()}
    return Storage(tables, time.time, close, scrub)


def _open_redis(url: str) -> Storage:
    try:
        from redis import ConnectionPool, RedisError
        from redis.exceptions import AuthenticationError, OutOfMemoryError
        from redis.exceptions import ConnectionError as NoConnection
        from redis.exceptions import TimeoutError as NoAnswer
    except ImportError:
        raise NoStore(f"jobs in Redis need its client: {install_command('redis')}") from None
    try:
        check_redis_url(url)
    except ValueError as error:
        raise NoStore(str(error)) from None

    def store_error(error: Exception) -> StoreError:
        if isinstance(error, OutOfMemoryError):
            return StoreFull(f"no room for jobs in {public(url)}: raise its maxmemory")
        unreachable = isinstance(error, NoConnection | NoAnswer) and not isinstance(
            error, AuthenticationError
        )
        remedy = (
            "check that Redis is running there"
            if unreachable
            else "check user, password and database of the URL"
        )
        return RedisDown(f"jobs cannot be stored in {public(url)} ({error}): {remedy}")

    guard = _guard((RedisError, ConfigurationError), store_error)
    with guard():
        try:
            pool = ConnectionPool.from_url(url, socket_timeout=5, socket_connect_timeout=5)
            pool.make_connection()  # checks the options without connecting
        except (TypeError, ValueError):  # their messages may quote a part of a password
            raise NoStore(
                f"the URL of Redis ({public(url)}) has an unknown option or an invalid value: the options after "
                "the ? are username=, password= and db="
            ) from None
        storages = {name: RedisStorage(f"sparsegen_{name}", connection_pool=pool) for name in TABLES}
        storages["blobs"] = _RedisKeys("sparsegen_blobs", connection_pool=pool)

    def clock() -> float:
        """The time of Redis, because the clocks of machines differ."""
        with guard():
            seconds, microseconds = storages["jobs"].conn.time()
        return seconds + microseconds / 1e6

    tables = {name: KeyValueStore(storage, guard) for name, storage in storages.items()}
    clock()  # fails if Redis cannot be reached
    with guard():
        _check_policy(storages["jobs"].conn, public(url))
    return Storage(tables, clock, pool.disconnect)


class _Sqlite(SqliteStorage):
    """A storage that overwrites deleted data with zeros, and rolls back if a commit fails.

    huey leaves the transaction of a failed commit open, which locks the file for all processes until this one ends.
    """

    @contextmanager
    def db(self, commit: bool = False, close: bool = False) -> Iterator[sqlite3.Cursor]:
        with super().db(close=close) as cursor:
            if not commit:
                yield cursor
                return
            cursor.execute(self.begin_sql)
            try:
                yield cursor
                cursor.connection.commit()
            except BaseException:
                cursor.connection.rollback()
                raise

    def _create_connection(self) -> sqlite3.Connection:
        connection = super()._create_connection()
        connection.execute("pragma secure_delete=on")
        return connection


class _RedisKeys(RedisStorage):
    """A storage with one Redis key per value, where huey uses one hash for all values.

    A Redis that evicts keys then drops single pictures, not all at once.
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
    """Warns if Redis may evict jobs when its memory is full."""
    from redis.exceptions import ResponseError

    try:
        policy = connection.config_get("maxmemory-policy").get("maxmemory-policy", "")
    except ResponseError:
        logger.info("the maxmemory-policy of %s cannot be read: it should be noeviction", place)
        return
    if policy.startswith("allkeys"):
        logger.warning(
            "Redis at %s evicts keys when its memory is full (maxmemory-policy %s), including jobs and pictures: "
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
