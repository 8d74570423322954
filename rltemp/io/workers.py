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
from multiprocessing.connection import wait
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
class Failure:
    """An error that is meant for people, on its way from a worker, with its traceback as text."""

    error: RltempError
    trace: str

    @classmethod
    def of(cls, error: BaseException) -> Failure | None:
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
