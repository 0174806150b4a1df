"""Errors of the job store, each with a sentence for the operator or the client."""

import math

LEASE = 15.0  # seconds without a heartbeat after which a worker is considered dead


class StoreError(RuntimeError):
    """The job store cannot be used; the message is for the operator of the server.

    `public` is the message for clients, without paths and URLs.
    """

    public = "the job store cannot be used: the log of the server has the reason"


class NoStore(StoreError, ValueError):
    """The given place is not a job store."""


class FileError(StoreError):
    public = "the file of the jobs cannot be read or written: the log of the server has the reason"


class RedisDown(StoreError):
    public = "Redis, which stores the jobs, cannot be used: the log of the server has the reason"


class StoreFull(StoreError):
    """The store is full."""

    public = "the server has no room for another job: retry later"


class Busy(RuntimeError):
    """No job is accepted now; retry after `retry_after` seconds. `status` is the HTTP status."""

    status = 429

    def __init__(self, sentence: str, retry_after: float) -> None:
        super().__init__(sentence)
        self.retry_after = min(max(math.ceil(retry_after), 1), 3600)


class NoWorker(Busy):
    """No worker is running."""

    status = 503

    def __init__(self) -> None:
        super().__init__(
            f"no worker is running (no heartbeat within {LEASE:.0f} seconds): start one with "
            "`sparsegen worker`, which needs PyTorch",
            LEASE,
        )
