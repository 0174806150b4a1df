"""What can be wrong with the jobs, in sentences for people."""

import math

LEASE = 15.0  # seconds without a sign of life after which a worker is taken for dead


class StoreError(RuntimeError):
    """The store of the jobs cannot be used; one sentence says why, and is for whoever runs the server.

    `public` is for clients: it names no path and no URL.
    """

    public = "the store of the jobs cannot be used: the log of the server says why"


class NoStore(StoreError, ValueError):
    """What was given as the place of the store is none."""


class FileError(StoreError):
    public = "the file of the jobs cannot be read or written: the log of the server says why"


class RedisDown(StoreError):
    public = "Redis, which keeps the jobs, cannot be used: the log of the server says why"


class StoreFull(StoreError):
    """There is no room in the store."""

    public = "the server has no room for another job: try again later"


class Busy(RuntimeError):
    """No further job is taken now; `retry_after` says in how many seconds to ask again, `status` is HTTP's."""

    status = 429

    def __init__(self, sentence: str, retry_after: float) -> None:
        super().__init__(sentence)
        self.retry_after = min(max(math.ceil(retry_after), 1), 3600)


class NoWorker(Busy):
    """Nobody would do a job."""

    status = 503

    def __init__(self) -> None:
        super().__init__(
            f"no worker gave a sign of life within {LEASE:.0f} seconds, so nobody would do the job: "
            f"start one with `sparsegen worker`",
            LEASE,
        )
