"""What every worker process needs: how it begins and ends, how things travel to it, and what it tells of its errors.

`rltemp.io.pool` has the pools that start such processes.
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
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Client, Listener, wait
from typing import Any, TypeVar, cast

import cloudpickle
import torch

from rltemp.errors import BadInputError, RltempError

Thing = TypeVar("Thing")


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


class Handout:
    """Hands a thing out to new worker processes, each of which fetches it.

    Through a socket, which notices where a worker is killed while it fetches. The arguments of a new process go through
    a pipe that does not: where they are large, this process would wait for ever.

    Args:
        thing: What is packed now.
        count: How often it is fetched at most; it is forgotten then.

    Attributes:
        address: For `fetched`.
    """

    def __init__(self, thing: Any, count: int) -> None:
        self._data, self._closed = packed(thing), False
        self._listener = Listener(("127.0.0.1", 0), backlog=count, authkey=_authkey())
        self.address = self._listener.address
        threading.Thread(target=self._hand_out, args=(count,), daemon=True).start()

    def close(self) -> None:
        """Hand out no more."""
        self._closed = True
        with contextlib.suppress(OSError, EOFError):
            Client(self.address, authkey=_authkey()).close()  # wakes the thread

    def _hand_out(self, count: int) -> None:
        with self._listener:
            while count and not self._closed:
                gone = contextlib.suppress(OSError, EOFError, multiprocessing.AuthenticationError)
                with gone, self._listener.accept() as connection:
                    connection.send_bytes(self._data)
                count -= 1
        self._data = b""


def fetched(address: Any) -> Any:
    """In a worker: what a `Handout` of its parent hands out."""
    with Client(address, authkey=_authkey()) as connection:
        return unpacked(connection.recv_bytes())


def _authkey() -> bytes:
    return multiprocessing.current_process().authkey  # a worker has its parent's


def sent(thing: Thing) -> Thing:
    """What to hand over to another process, where the thing itself arrives; it is packed as often as it is sent."""
    return cast(Thing, _Parcel(thing))


@dataclass(frozen=True)
class _Parcel:
    thing: Any

    def __reduce__(self) -> tuple[Any, ...]:
        return unpacked, (packed(self.thing),)


def packed(thing: Any) -> bytes:
    """A thing as bytes, with the functions that its user wrote.

    Torch's own way would put every tensor into shared memory, of which a container may have no more than 64 MiB.
    """
    stream = io.BytesIO()
    # Keeps the order in memory, which decides how a convolution is computed.
    torch.save(thing, stream, pickle_module=cloudpickle)
    return stream.getvalue()


def unpacked(data: bytes) -> Any:
    """The thing, on the same kind of device."""
    return torch.load(io.BytesIO(data), weights_only=False)  # from `packed`, and nobody else


@dataclass(frozen=True)
class WorkerFailure:
    """An error that is meant for people, on its way from a worker, with its traceback as text."""

    error: RltempError
    trace: str

    @classmethod
    def of(cls, error: BaseException) -> WorkerFailure | None:
        """Of an error that is being handled; one of a user's own code as `rltemp.cli.main` has it; else None."""
        trace = traceback.format_exc()
        if isinstance(error, RltempError):
            return cls(error, trace)
        # Such code was sent along, and is of no module here.
        modules = {getattr(module, "__file__", None) for module in [*sys.modules.values()]}
        if all(frame.filename in modules for frame in traceback.extract_tb(error.__traceback__)):
            return None
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return cls(BadInputError(f"your code raised {said}. --debug shows where"), trace)
