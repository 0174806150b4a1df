"""Who works side by side: a thread of this process, or processes that end with it, whoever is killed."""

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
    """Yields who does the work, what tells them to stop, and what they report by; in the end stops them all.

    Reports go by a manager: a worker that is killed while it writes to a plain queue would block it for ever.
    They go as tuples of plain things, so that the manager need not import what makes them, and torch with it.
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
    """A worker in this process, whose torch has so many threads."""
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(threads,)) as executor:
            yield executor
    finally:
        torch.set_num_threads(before)  # of all threads to come, for which the worker has changed it, too


def _settle(threads: int, manager: str) -> None:
    """Prepares a worker process."""
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all, and the parent is who decides
    threading.Thread(target=_end_with_parent, args=(manager,), daemon=True).start()


def _end_with_parent(manager: str) -> None:
    """Ends this process and the manager if their parent is killed: they would wait for it for ever."""
    parent_process().join()
    try:
        with Client(manager, authkey=current_process().authkey) as connection:
            dispatch(connection, None, "shutdown")
    except (OSError, EOFError):  # another worker was quicker
        pass
    finally:
        os._exit(1)
