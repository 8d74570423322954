"""`--workers N`: processes on this machine that train cells, with the threads that this process has.

Each is a pool of one process, and a thread here waits for it: where one is killed, it is known which cell it had, and
nobody else is touched. They live as long as a pipe from here is open, and so never longer than this process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from rltemp.experiments.crews import RETRIES, Outcome, Work, have
from rltemp.experiments.result_cache import Job

_work: Work | None = None  # in a worker: what it was started with


class Workers:
    """A crew of `count` processes, started when there is work for them.

    Args:
        count: 1 or more.
    """

    def __init__(self, count: int) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._alive, self._life = self._context.Pipe(duplex=False)
        self._others = {*multiprocessing.active_children()}
        self._threads = ThreadPoolExecutor(count, initializer=_deaf)
        self._mine = threading.local()

    def submit(self, work: Work, folder: Path, job: Job) -> Future[Outcome]:
        """As `Crew.submit`."""
        return self._threads.submit(self._try, work, folder, job)

    def close(self) -> None:
        """End all workers at once: a cell is whole or not there, and a claim ends with its process."""
        self._life.close()
        for process in {*multiprocessing.active_children()} - self._others:
            process.terminate()  # one that is just starting would notice after its imports only
        self._threads.shutdown(cancel_futures=True)

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _try(self, work: Work, folder: Path, job: Job) -> Outcome:
        """In the thread that is one worker's."""
        for left in reversed(range(RETRIES + 1)):
            try:
                return self._pool(work).submit(_have, folder, job.key, job.order).result()
            except Exception as error:
                if isinstance(error, BrokenProcessPool):
                    self._mine.pool = None
                if not left or self._life.closed:
                    raise
        raise AssertionError  # never reached

    def _pool(self, work: Work) -> ProcessPoolExecutor:
        """This thread's worker; another one where it was killed, or is there for other work."""
        if getattr(self._mine, "pool", None) is None or self._mine.work != work:
            self._mine.work = work
            start = self._alive, work, torch.get_num_threads()
            self._mine.pool = ProcessPoolExecutor(1, self._context, initializer=_begin, initargs=start)
        pool: ProcessPoolExecutor = self._mine.pool
        return pool


def _deaf() -> None:
    """Ctrl-C reaches every process of a terminal; processes that this thread starts leave it to this one."""
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _begin(alive: Connection, work: Work, threads: int) -> None:
    global _work
    threading.Thread(target=_leave_with, args=(alive,), daemon=True).start()
    torch.set_num_threads(threads)
    _work = work


def _leave_with(alive: Connection) -> None:
    alive.poll(None)  # nothing is ever sent: it is the end
    os._exit(1)


def _have(folder: Path, key: Mapping[str, Any], order: tuple[Any, ...]) -> Outcome:
    assert _work is not None
    return have(_work, folder, key, order)
