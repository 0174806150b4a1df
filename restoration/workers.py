"""Parallel workers: a thread of this process, or child processes that end when it ends, also if it is killed."""

import os
import queue
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import current_process, get_context, parent_process
from multiprocessing.connection import Client
from multiprocessing.managers import SyncManager, dispatch  # type: ignore[attr-defined]  # missing in typeshed
from multiprocessing.process import BaseProcess
from queue import Queue
from threading import Event
from typing import Any

import torch


@contextmanager
def start_workers(count: int, threads: int) -> Iterator[tuple[Executor, Event, Queue[Any]]]:
    """Yields an executor of `count` workers, an event that asks them to stop, and a queue of reports.

    The queue belongs to a manager: a worker that is killed while it writes to a plain queue would block it forever.
    Reports are tuples of built-in types, so that the manager does not import their classes and, with them, torch.
    """
    with ExitStack() as stack:
        if count == 1:
            executor = stack.enter_context(single_worker(threads))
            stop = threading.Event()
            reports: Queue[Any] = queue.Queue(2)
        else:
            context = get_context("spawn")
            manager = SyncManager(ctx=context)
            manager.start()
            stack.callback(manager.shutdown)
            address = str(manager.address)  # of a Unix socket or a Windows pipe
            executor = ProcessPoolExecutor(count, context, _prepare, (threads, address))
            stop, reports = manager.Event(), manager.Queue(2 * count)
        stack.callback(executor.shutdown, cancel_futures=True)
        stack.callback(stop.set)
        yield executor, stop, reports


@contextmanager
def single_worker(threads: int) -> Iterator[Executor]:
    """Yields an executor of one thread in this process, for which torch uses `threads` threads."""
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(threads,)) as executor:
            yield executor
    finally:
        torch.set_num_threads(before)  # the worker has also changed it for later threads


def _prepare(threads: int, manager: str) -> None:
    """Prepares a worker process; `manager` is the address of the manager."""
    parent = parent_process()
    if parent is None:
        raise RuntimeError("a worker must be a child process; this is the main process")
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes, and the parent handles it
    threading.Thread(target=_end_with_parent, args=(parent, manager), daemon=True).start()


def _end_with_parent(parent: BaseProcess, manager: str) -> None:
    """Ends this process and the manager if their parent is killed; otherwise they would never end."""
    parent.join()
    try:
        with Client(manager, authkey=current_process().authkey) as connection:
            dispatch(connection, None, "shutdown")
    except (OSError, EOFError):  # another worker has already ended the manager
        pass
    finally:
        os._exit(1)
