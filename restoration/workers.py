"""Parallel workers: a thread of this process, or processes that end with it, also if it is killed."""

import os
import queue
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import current_process, get_context, parent_process
from multiprocessing.connection import Client
from multiprocessing.managers import SyncManager, dispatch
from queue import Queue
from threading import Event

import torch


@contextmanager
def start_workers(count: int, threads: int) -> Iterator[tuple[Executor, Event, Queue]]:
    """Yields an executor of `count` workers, an event that asks them to stop, and a queue of reports.

    The queue belongs to a manager: a worker that is killed while it writes to a plain queue would block it forever.
    Reports are tuples of built-in types, so that the manager does not import their classes and, with them, torch.
    """
    with ExitStack() as stack:
        if count == 1:
            executor = stack.enter_context(single_worker(threads))
            stop, reports = threading.Event(), queue.Queue(2)
        else:
            context = get_context("spawn")
            manager = SyncManager(ctx=context)
            manager.start()
            stack.callback(manager.shutdown)
            executor = ProcessPoolExecutor(count, context, _settle, (threads, manager.address))
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
        torch.set_num_threads(before)  # the worker has changed it for later threads, too


def _settle(threads: int, manager: str) -> None:
    """Prepares a worker process."""
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes, and the parent handles it
    threading.Thread(target=_end_with_parent, args=(manager,), daemon=True).start()


def _end_with_parent(manager: str) -> None:
    """Ends this process and the manager if their parent is killed: else they would wait for it forever."""
    parent_process().join()
    try:
        with Client(manager, authkey=current_process().authkey) as connection:
            dispatch(connection, None, "shutdown")
    except (OSError, EOFError):  # another worker was faster
        pass
    finally:
        os._exit(1)
