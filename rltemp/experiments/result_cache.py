"""ResultCache: what one stack of students came to, kept as a small file, so that no stack is trained twice.

A cell is named by a hash of what determines it (its key), holds that key and a digest of itself, and is written whole
or not at all. Whoever trains one claims it with a lock that ends with its process; several processes may so work in
one folder, each on cells of its own: `fill` is what each of them calls.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rltemp.errors import BadInputError
from rltemp.experiments.cached_result import (
    CachedResult,
    CachedResultFile,
    determining_versions,
    file_name,
    in_words,
    parsed,
    read_cell,
)
from rltemp.io.console import say
from rltemp.io.files import atomic_write
from rltemp.io.locks import owner, taken

PATIENCE, PAUSE = 3600.0, 0.1
"""Seconds without any cell finished after which waiting for others' cells ends, and between two looks at them."""


@dataclass(frozen=True)
class Job:
    """One cell to be had.

    Args:
        key: What determines it, as JSON holds it; under `seeds` the student's seed, or a list of seeds for a stack.
        work: Trains it.
        skipped: Told where it was there already, or another process has trained it.
        order: What to tell another process that is to train it; see `rltemp.experiments.crews.share`.
    """

    key: Mapping[str, Any]
    work: Callable[[], CachedResult]
    skipped: Callable[[], None] = lambda: None
    order: tuple[Any, ...] = ()


class ResultCache:
    """A folder of cells.

    Args:
        folder: Made where it is missing.
        allow_mixed: Use cells of other versions as they are.
        warn: Told, in one line, of a file that is refused and trained again.

    Raises:
        BadInputError: Where the folder cannot be made, or holds cells of other versions that may not be mixed in.
    """

    def __init__(self, folder: Path, *, allow_mixed: bool = False, warn: Callable[[str], None] = say) -> None:
        self.folder, self.warn = folder, warn
        self.found = self.trained = 0
        self._warned: set[Path] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInputError(f"cannot make {folder}: {error}. Choose another --out") from error
        if not allow_mixed:
            self._refuse_other_versions()

    def path(self, key: Mapping[str, Any]) -> Path:
        """Where the cell of this key lies, or would lie."""
        return self.folder / file_name(key)

    def read(self, key: Mapping[str, Any]) -> CachedResult | None:
        """The cell of this key; None, after a warning where there is a file, if it has to be trained."""
        path = self.path(key)
        if not os.path.lexists(path):
            return None
        try:
            return read_cell(path, key)
        except BadInputError as error:
            if path not in self._warned:
                self._warned.add(path)
                self.warn(f"Cell {path} is refused and trained again: {error}.")
            return None

    def take(self, job: Job) -> CachedResult | None:
        """The cell from its file, or trained now; None where another process has claimed it.

        Raises:
            BadInputError: Where it cannot be claimed or written, or was finished meanwhile with another result.
        """
        if (cell := self.there(job)) is not None:
            return cell
        with _claim(self.path(job.key)) as mine:
            if not mine or (cell := self.there(job)) is not None:
                return cell
            cell = job.work()
            self.write(job.key, cell)
            self.trained += 1
            return cell

    def write(self, key: Mapping[str, Any], cell: CachedResult) -> None:
        """Write a cell; one that is there already, whole and of this key, has to be the same to the byte.

        Raises:
            BadInputError: Where it is not, with both files' names, or where it cannot be written.
        """
        path, data = self.path(key), CachedResultFile(key=dict(key), cell=cell).encoded()
        try:
            twice = path.exists() and bool(read_cell(path, key)) and path.read_bytes() != data
        except (BadInputError, OSError):
            twice = False  # damaged: it is why this cell was trained
        if twice:
            other = path.with_name(f"{path.stem}.{platform.node()}-{os.getpid()}.second")
            atomic_write(other, data)
            raise BadInputError(
                f"a cell was trained twice and the two differ: {path} and {other}. Needed: the same machine type, "
                "packages and threads wherever cells of one folder are trained"
            )
        atomic_write(path, data)

    def there(self, job: Job) -> CachedResult | None:
        """The cell, where it is there already."""
        cell = self.read(job.key)
        if cell is not None:
            self.found += 1
            _remove_claim(self.path(job.key))  # of a process that was killed after it had written the cell
            job.skipped()
        return cell

    def _refuse_other_versions(self) -> None:
        """One look at all cells, before the first is trained."""
        here, others = dict(determining_versions()), Counter[str]()
        for path in self.folder.glob("*.json"):
            with contextlib.suppress(BadInputError):
                found = parsed(path).cell.versions
                others[in_words(found)] += found != here
        if others := +others:
            held = "; ".join(f"{count} of {words}" for words, count in sorted(others.items()))
            raise BadInputError(
                f"{self.folder} holds cells of other versions ({held}; here: {in_words(here)}), and versions are not "
                "mixed. Choose another --out, or give --allow-mixed to use them as they are"
            )


def fill(cells: ResultCache | None, jobs: Sequence[Job], patience: float = PATIENCE) -> list[CachedResult]:
    """Every job's cell, in their order; those that others have claimed are looked at again after one's own.

    Args:
        cells: Where they are kept; None keeps them nowhere.
        jobs: What is wanted.
        patience: Seconds to wait for others' cells while none is finished.

    Raises:
        BadInputError: Where the patience ends, with the cell and its owner; or as `ResultCache.take`.
    """
    if cells is None:
        return [job.work() for job in jobs]
    found: dict[int, CachedResult] = {}
    since = time.monotonic()
    while waiting := [index for index in range(len(jobs)) if index not in found]:
        new = {index: cell for index in waiting if (cell := cells.take(jobs[index])) is not None}
        found |= new
        if new:
            since = time.monotonic()
        elif time.monotonic() - since > patience:
            raise BadInputError(_waited(cells.path(jobs[waiting[0]].key), len(waiting), patience))
        else:
            time.sleep(PAUSE)
    return [found[index] for index in range(len(jobs))]


@contextlib.contextmanager
def _claim(path: Path) -> Iterator[bool]:
    """Whether the cell is this process's to train, which holds until the block or the process ends."""
    try:
        lock = taken(_lock_file(path))
    except OSError as error:
        raise BadInputError(f"cannot claim {path}: {error}") from error
    if lock is None:
        yield False
        return
    try:
        yield True
    finally:
        # The cell is written, or nobody's: who comes late and locks the file that was removed looks for it first.
        _remove_claim(path)
        lock.release()


def _remove_claim(path: Path) -> None:
    with contextlib.suppress(OSError):
        _lock_file(path).unlink()


def _waited(path: Path, count: int, patience: float) -> str:
    lock = _lock_file(path)
    return (
        f"{count} cells are claimed by others and none was finished in {patience:g} s; the first is {path}, of "
        f"{owner(lock)}. If that process is gone for ever, remove {lock}. The same command goes on with what is missing"
    )


def _lock_file(path: Path) -> Path:
    return path.with_suffix(".lock")
