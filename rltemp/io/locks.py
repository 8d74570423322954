"""Locks of the operating system on files: one process at a time, and free again when it ends, however it ends."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from rltemp.errors import BadInputError

LOCK = "run.lock"
_held: dict[Path, FileLock] = {}


def owner(path: Path) -> str:
    """Who has a lock, since when, as far as its file says."""
    with contextlib.suppress(OSError, ValueError):
        process, machine = path.read_text("utf-8", "replace")[:200].split()[:2]
        since = datetime.fromtimestamp(path.stat().st_mtime).astimezone().isoformat(" ", "seconds")
        return f"process {process} on {machine} since {since}"
    return "a process that left no name"


def hold(folder: Path, option: str = "--out") -> None:
    """Keep other processes out of a folder until `release`, the end of `released_at_end`, or the end of this process.

    Args:
        folder: It is there already.
        option: Which names another.

    Raises:
        BadInputError: Where another process is at work there, naming it, or no lock can be made there.
    """
    path = folder.resolve() / LOCK
    if path in _held:
        return
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        by = owner(path)
        raise BadInputError(
            f"{folder} is in use by {by} (lock {LOCK}). Wait for it, or choose another {option}"
        ) from None
    except OSError as error:
        said = error.strerror or error
        raise BadInputError(f"cannot write into {folder}: {said}. Choose another {option}") from error
    _sign(path)
    _held[path] = lock


def held(folder: Path) -> bool:
    """Whether this process keeps others out of a folder."""
    return folder.resolve() / LOCK in _held


def release(folder: Path) -> None:
    """Let others in again."""
    path = folder.resolve() / LOCK
    if (lock := _held.pop(path, None)) is not None:
        path.unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def released_at_end() -> Iterator[None]:
    """Let others into every folder that was taken within, when this ends, however it ends."""
    before = set(_held)
    try:
        yield
    finally:
        for path in set(_held) - before:
            release(path.parent)


def _sign(path: Path) -> None:
    """Name the owner in the lock's file, as `filelock` itself does where a file system knows no locks."""
    with contextlib.suppress(OSError), path.open("r+") as file:
        if not file.read().startswith(f"{os.getpid()}\n"):
            file.seek(0)  # emptying it by opening would make some file systems wait for the disk on closing
            file.write(f"{os.getpid()}\n{platform.node()}\n")
            file.truncate()
