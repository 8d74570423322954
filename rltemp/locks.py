"""One process at a time in a run folder: a lock that ends with its process, however that ends."""

from __future__ import annotations

import os
import socket
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from rltemp.errors import BadInputError

LOCK = "run.lock"
_held: dict[Path, FileLock] = {}


def hold(folder: Path) -> None:
    """Keep other processes out of a folder until `release`, or until this process ends, however it ends.

    Raises:
        BadInputError: Where another process is at work there, naming it, or no lock can be made there.
    """
    path = folder.resolve() / LOCK
    lock = _held.setdefault(path, FileLock(path, timeout=0))
    if lock.is_locked:
        return
    try:
        lock.acquire()
        now = datetime.now().astimezone().isoformat(" ", "seconds")
        path.write_text(f"process {os.getpid()} on {socket.gethostname()} since {now}\n", "utf-8")
    except Timeout:
        owner = path.read_text("utf-8", "replace").strip()[:200]
        raise BadInputError(
            f"{folder} is in use by {owner or 'another process'} (lock {LOCK}). Wait for it, or choose another --out"
        ) from None
    except OSError as error:
        raise BadInputError(f"cannot write into {folder}: {error.strerror or error}. Choose another --out") from error


def release(folder: Path) -> None:
    """Let others in again."""
    path = folder.resolve() / LOCK
    if (lock := _held.pop(path, None)) is not None:
        path.unlink(missing_ok=True)
        lock.release()
