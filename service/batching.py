"""Adaptive batching: requests that arrive together and agree on model and k share one run of the network.

Choice: not bentoml's `batchable=True`, whose batches cannot differ in k or model from one to the next.
"""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

Run = Callable[[Hashable, np.ndarray], np.ndarray]
Waiting = list[tuple[np.ndarray, asyncio.Future]]  # the rows of a request, and where its results go


class Batcher:
    """Merges the rows of concurrent requests of one key into batches, and hands each request its own back.

    The first request of a key waits `latency` seconds for others; while every worker is busy, batches grow.

    Args:
        run: Maps (key, rows) to one result for each row; is called in a thread.
        limit: Rows of the largest batch; no request may have more.
        observe: Is told the rows of every batch.

    Raises: ValueError if a request has more rows than a batch.
    """

    def __init__(
        self,
        run: Run,
        limit: int = 64,
        latency: float = 0.004,
        workers: int = 1,
        observe: Callable[[int], None] = lambda rows: None,
    ) -> None:
        self._run, self._limit, self._latency, self._observe = run, limit, latency, observe
        self._pool = ThreadPoolExecutor(workers, "sampler")
        self._free = asyncio.Semaphore(workers)
        self._waiting: dict[Hashable, Waiting] = {}
        self._tasks: set[asyncio.Task] = set()  # the event loop itself keeps weak references only

    async def __call__(self, key: Hashable, rows: np.ndarray) -> np.ndarray:
        if len(rows) > self._limit:
            raise ValueError(f"a request has at most {self._limit} rows; got {len(rows)}")
        future = asyncio.get_running_loop().create_future()
        if key in self._waiting:
            self._waiting[key].append((rows, future))
        else:
            self._waiting[key] = [(rows, future)]
            self._start(self._drain(key))
        return await future

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _start(self, coroutine: Coroutine) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _drain(self, key: Hashable) -> None:
        await asyncio.sleep(self._latency)
        while self._waiting[key]:
            await self._free.acquire()
            self._start(self._serve(key, self._take(self._waiting[key])))
        del self._waiting[key]

    def _take(self, queue: Waiting) -> Waiting:
        """Removes from the front of the queue what fits into one batch, leaving out who no longer waits."""
        batch, total = [], 0
        while queue and total + len(queue[0][0]) <= self._limit:
            rows, future = queue.pop(0)
            if not future.done():
                batch.append((rows, future))
                total += len(rows)
        return batch

    async def _serve(self, key: Hashable, batch: Waiting) -> None:
        try:
            if not batch:
                return
            rows = np.concatenate([rows for rows, _ in batch])
            self._observe(len(rows))
            results = await asyncio.get_running_loop().run_in_executor(self._pool, self._run, key, rows)
            first = 0
            for rows, future in batch:
                if not future.done():
                    future.set_result(results[first : first + len(rows)])
                first += len(rows)
        except Exception as error:  # whatever it is, each of those who wait must hear of it
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
        finally:
            self._free.release()
