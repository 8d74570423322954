"""Worker processes that keep what they are given and answer call after call, and what every worker process needs.

A worker here holds students that are half trained, so that it cannot be replaced: where one is lost, the training ends.
Where every order stands for itself, see `rltemp.experiments.pool`.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import cloudpickle
import torch

from rltemp.errors import BadInputError, InterruptedRunError, RltempError, TrainingStoppedError
from rltemp.io.interruption import requested


@dataclass(frozen=True)
class _Failure:
    """What went wrong in a worker, with its traceback as text."""

    error: RltempError
    trace: str


class Workers:
    """Processes on this machine, each with the threads of this one and copies of what all are given.

    Args:
        count: 1 or more.
    """

    def __init__(self, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.count = count
        self._given: dict[str, Any] = {}
        self._processes: list[BaseProcess] = []
        self._connections: list[Connection] = []
        with deaf():
            for _ in range(count):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(theirs, torch.get_num_threads()), daemon=True)
                process.start()
                theirs.close()  # so that our end is told when the worker's closes
                self._processes.append(process)
                self._connections.append(ours)

    def give(self, name: str, thing: Any) -> None:
        """Let every worker have a copy under this name: of what it is at the next call, where all copies are sent."""
        self._given[name] = thing

    def call(self, name: str, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call a method of each worker's copy at the same time, and wait for all of them.

        Args:
            name: What was given.
            method: Of it.
            arguments: Of each worker.

        Returns:
            What each worker's call returned.

        Raises:
            RltempError: As the first of the workers raised it.
            TrainingStoppedError: Where a worker raised anything else, or was lost.
        """
        given, self._given = packed(self._given) if self._given else b"", {}
        for number, values in enumerate(arguments):
            with self._losses(number):
                _send(self._connections[number], (given, name, method, values))
        answers = [self._answer(number) for number in range(len(arguments))]
        for answer in answers:
            if isinstance(answer, _Failure):
                raise answer.error from RuntimeError(answer.trace)
        return answers

    def shares(self, total: int) -> list[slice]:
        """So many things in one range a worker, in order, as evenly as it goes."""
        ends = [total * number // self.count for number in range(self.count + 1)]
        return [slice(first, last) for first, last in pairwise(ends)]

    def close(self) -> None:
        """End all workers at once; they write nothing."""
        for process in self._processes:
            process.kill()
            process.join()
        for connection in self._connections:
            connection.close()

    def _answer(self, number: int) -> Any:
        with self._losses(number):
            return self._connections[number].recv()

    @contextlib.contextmanager
    def _losses(self, number: int) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError) as error:
            process = self._processes[number]
            process.join(1)
            if (signalled := requested()) is not None:  # a SIGTERM to the whole group
                raise InterruptedRunError(signalled) from error
            raise TrainingStoppedError(
                f"worker {number + 1} of {self.count} is gone, with exit code {process.exitcode}. The same command "
                "goes on from the last checkpoint; where memory was short, with fewer --workers"
            ) from error


def open_workers(count: int) -> contextlib.AbstractContextManager[Workers | None]:
    """So many workers, which end with the context; None for one, whose work this process does."""
    return contextlib.closing(Workers(count)) if count > 1 else contextlib.nullcontext()


def _work(connection: Connection, threads: int) -> None:
    """In a worker: keep and answer until the parent is gone."""
    begin_worker(threads)
    kept: dict[str, Any] = {}
    with contextlib.suppress(EOFError):
        while True:
            _send(connection, _called(kept, *connection.recv()))


def _called(kept: dict[str, Any], given: bytes, name: str, method: str, values: tuple[Any, ...]) -> Any:
    try:
        if given:
            kept |= unpacked(given)
        return getattr(kept[name], method)(*values)
    except BaseException as error:  # a SystemExit of a user's code too, which would end the worker without a word
        return _Failure(_told(error), traceback.format_exc())


def _told(error: BaseException) -> RltempError:
    """An error as people are told of it: one of a user's own code as `rltemp.cli.main` has it."""
    if isinstance(error, RltempError):
        return error
    said = f"{type(error).__name__}: {error}"
    # Such code was sent along, and is of no module here.
    modules = {getattr(module, "__file__", None) for module in [*sys.modules.values()]}
    if any(frame.filename not in modules for frame in traceback.extract_tb(error.__traceback__)):
        return BadInputError(f"your code raised {said}. --debug shows where")
    return TrainingStoppedError(f"a worker's training raised {said}")


def _send(connection: Connection, message: Any) -> None:
    connection.send_bytes(cloudpickle.dumps(message))  # `send` would put tensors into shared memory; see `packed`


def begin_worker(threads: int) -> None:
    """In a new process: compute with so many threads, and end with the parent, however that ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


@contextlib.contextmanager
def deaf() -> Iterator[None]:
    """Ctrl-C reaches every process of a terminal; those that are started within leave it to this one."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def packed(thing: Any) -> bytes:
    """A thing on its way to another process, with the functions that its user wrote.

    Torch's own way would put every tensor into shared memory, of which a container may have no more than 64 MiB.
    """
    stream = io.BytesIO()
    # Keeps the order in memory, which decides how a convolution is computed.
    torch.save(thing, stream, pickle_module=cloudpickle)
    return stream.getvalue()


def unpacked(data: bytes) -> Any:
    """The thing, on the same kind of device."""
    return torch.load(io.BytesIO(data), weights_only=False)  # from `packed`, and nobody else
