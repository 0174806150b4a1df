"""Adaptive batching: requests that arrive together and agree on the model share one run of the network.

Choice: not bentoml's `batchable=True`, whose batches cannot differ in the model from one to the next.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import numpy as np

Key = TypeVar("Key", bound=Hashable)
Waiting = list[tuple[np.ndarray, asyncio.Future[np.ndarray]]]  # the rows of a request, and its results
FIRST_PACE = 0.005  # expected seconds per row of a kind that has not run yet
MEMORY = 0.7  # weight of the previous pace when a batch has been timed


class Overloaded(Exception):
    """The queue is too long; retry after `seconds`."""

    def __init__(self, seconds: float, what: str = "samples") -> None:
        super().__init__(f"too many requests are waiting for {what}: retry in a moment")
        self.seconds = seconds


class Batcher(Generic[Key]):
    """Merges the rows of concurrent requests with the same key into batches, and returns to each request its results.

    The first request of a key waits `latency` seconds for others; while all workers are busy, batches grow. A request
    is refused if the queue before it is expected to take more than `patience` seconds.

    Args:
        run: Maps (key, rows) to one result per row; called in a thread.
        limit: Maximum rows of a batch, and of a request.
        observe: Called with the number of rows of every batch.
        kind: Maps a key to its kind; rows of one kind take equally long.

    Raises:
        ValueError: If a request has more rows than a batch.
        Overloaded: If it would wait too long.
    """

    def __init__(
        self,
        run: Callable[[Key, np.ndarray], np.ndarray],
        limit: int = 64,
        latency: float = 0.004,
        workers: int = 1,
        observe: Callable[[int], None] = lambda rows: None,
        patience: float = 10,
        kind: Callable[[Key], Hashable] = lambda key: key,
    ) -> None:
        self._run, self._limit, self._latency, self._observe = run, limit, latency, observe
        self._workers, self._patience, self._kind = workers, patience, kind
        self._pace: dict[Hashable, float] = {}  # seconds per row of a kind
        self._rows: Counter[Hashable] = Counter()  # waiting or running rows of a kind
        self._pool = ThreadPoolExecutor(workers, "sampler")
        self._free = asyncio.Semaphore(workers)
        self._waiting: dict[Key, Waiting] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # the event loop keeps weak references only

    async def __call__(self, key: Key, rows: np.ndarray) -> np.ndarray:
        if len(rows) > self._limit:
            raise ValueError(f"a request has at most {self._limit} rows; got {len(rows)}")
        self.check_room()
        kind = self._kind(key)
        self._rows[kind] += len(rows)
        try:
            return await self._enqueue(key, rows)
        finally:
            self._rows[kind] -= len(rows)

    def check_room(self) -> None:
        """Raises: Overloaded if the queue is too long."""
        if (expected := self.expected_seconds()) > self._patience:
            raise Overloaded(expected - self._patience)

    def expected_seconds(self) -> float:
        """Expected seconds until the waiting and running rows are done."""
        work = sum(rows * self._pace.get(kind, FIRST_PACE) for kind, rows in self._rows.items())
        return work / self._workers

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _enqueue(self, key: Key, rows: np.ndarray) -> np.ndarray:
        future: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
        if key in self._waiting:
            self._waiting[key].append((rows, future))
        else:
            self._waiting[key] = [(rows, future)]
            self._start(self._drain(key))
        return await future

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _drain(self, key: Key) -> None:
        await asyncio.sleep(self._latency)
        while self._waiting[key]:
            await self._free.acquire()
            self._start(self._serve(key, self._take(self._waiting[key])))
        del self._waiting[key]

    def _take(self, queue: Waiting) -> Waiting:
        """Removes from the front of the queue what fits into one batch, and drops canceled requests."""
        batch: Waiting = []
        total = 0
        while queue and total + len(queue[0][0]) <= self._limit:
            rows, future = queue.pop(0)
            if not future.done():
                batch.append((rows, future))
                total += len(rows)
        return batch

    async def _serve(self, key: Key, batch: Waiting) -> None:
        try:
            if not batch:
                return
            rows = np.concatenate([rows for rows, _ in batch])
            self._observe(len(rows))
            began = time.monotonic()
            results = await asyncio.get_running_loop().run_in_executor(self._pool, self._run, key, rows)
            self._note((time.monotonic() - began) / len(rows), self._kind(key))
            first = 0
            for rows, future in batch:
                if not future.done():
                    future.set_result(results[first : first + len(rows)])
                first += len(rows)
        except Exception as error:  # any error is passed to all waiting requests
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
        finally:
            self._free.release()

    def _note(self, pace: float, kind: Hashable) -> None:
        self._pace[kind] = MEMORY * self._pace.get(kind, pace) + (1 - MEMORY) * pace
