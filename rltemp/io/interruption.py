"""SIGTERM and SIGINT: a run finishes its step, saves, and leaves; a second signal leaves at once.

`handled()` is for the process that owns the command line. Inside `deferred()` a signal is only noted, and the loop asks
`requested()` after every step; anywhere else it raises where it finds the program. Files are written whole or not at
all, so either is safe.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rltemp.errors import InterruptedRunError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE = 8.0
"""Seconds that a loop has to come to the end of its step; schedulers kill after ten or more."""

_noted: list[signal.Signals] = []
_loops: list[str] = []


def requested() -> signal.Signals | None:
    """The signal that asked this process to stop, if one has."""
    return _noted[0] if _noted else None


@contextmanager
def deferred(name: str) -> Iterator[None]:
    """Within, a first signal is noted rather than raised: the loop looks for it after every step."""
    _loops.append(name)
    try:
        yield
    finally:
        _loops.remove(name)
        _patience(0)
    if _noted and not _loops:
        raise InterruptedRunError(_noted[0])


@contextmanager
def handled() -> Iterator[None]:
    """Within, SIGINT and SIGTERM stop the program in order; afterwards they are what they were.

    Does nothing outside the main thread, where Python handles no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _noted.clear()
    with kept_handlers():
        for number in SIGNALS:
            signal.signal(number, _handle)
        try:
            yield
        finally:
            _patience(0)
            _noted.clear()


@contextmanager
def kept_handlers() -> Iterator[None]:
    """Within, a library may set handlers for SIGINT and SIGTERM of its own, which do not last."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def _handle(number: int, frame: FrameType | None) -> None:
    if _noted:
        os._exit(128 + number)
    _noted.append(signal.Signals(number))
    if not _loops:
        raise InterruptedRunError(_noted[0])
    _patience(GRACE)


def _patience(seconds: float) -> None:
    """Leave in this many seconds; 0 calls it off."""
    if hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread():  # not on Windows
        if seconds:
            signal.signal(signal.SIGALRM, _lost_patience)
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _lost_patience(number: int, frame: FrameType | None) -> None:
    raise InterruptedRunError(_noted[0], f"the {_loops[-1]} did not come to the end of a step in {GRACE:g} s")
