"""Crews: other processes that train the cells of a folder, each cell a task of its own.

`rltemp.experiments.workers` has one of processes on this machine, `rltemp.experiments.cluster` one of a Ray cluster's.
What they share is here: cells that are there are taken, the others handed out, and a cell that nobody can train ends it
all with its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Protocol

from rltemp.errors import BadInputError, TrainingStoppedError
from rltemp.experiments.cached_result import CachedResult
from rltemp.experiments.result_cache import Job, ResultCache, fill

RETRIES = 2
"""How often a cell is tried again after its process was killed or raised."""

Work = Callable[..., CachedResult]
"""Trains the cell of a job's `order`; it reaches another process once, and may be large."""

Outcome = tuple[CachedResult, bool] | BadInputError | TrainingStoppedError
"""A cell and whether it was trained now; or an error that another try would end in as well."""


class Crew(Protocol):
    """Processes that work."""

    def submit(self, work: Work, folder: Path, job: Job) -> Future[Outcome]:
        """Have the job's cell in this folder; ends in an error after `RETRIES` further tries."""
        ...


def share(crew: Crew, cells: ResultCache, jobs: Sequence[Job], work: Work) -> list[CachedResult]:
    """Every job's cell, in their order, those that are missing trained by the crew; see `fill`.

    Raises:
        BadInputError: As `fill`, in any of the processes.
        TrainingStoppedError: For a cell that no process could train, with what its process said.
    """
    found = {place: cell for place, job in enumerate(jobs) if (cell := cells.there(job)) is not None}
    places = {crew.submit(work, cells.folder, jobs[at]): at for at in range(len(jobs)) if at not in found}
    try:
        for future in as_completed(places):
            place = places[future]
            found[place], new = _result(future, cells, jobs[place])
            cells.trained, cells.found = cells.trained + new, cells.found + (not new)
            jobs[place].skipped()
    finally:
        for future in places:
            future.cancel()
    return [found[place] for place in range(len(jobs))]


def have(work: Work, folder: Path, key: Mapping[str, Any], order: tuple[Any, ...]) -> Outcome:
    """Have one cell, in a process of a crew."""
    try:
        # Who handed it out has looked at all versions, and warned of what is damaged.
        cells = ResultCache(folder, allow_mixed=True, warn=lambda _: None)
        (cell,) = fill(cells, [Job(key, lambda: work(*order))])
    except (BadInputError, TrainingStoppedError) as error:
        return error
    return cell, bool(cells.trained)


def _result(future: Future[Outcome], cells: ResultCache, job: Job) -> tuple[CachedResult, bool]:
    error = future.exception()  # raised here, a rule's SystemExit would end this process without a word
    if error is not None:
        said = "its process was killed" if isinstance(error, BrokenProcessPool) else _said(error)
        raise TrainingStoppedError(
            f"cell {cells.path(job.key)} of {job.order} could not be trained in {RETRIES + 1} tries: {said}"
        ) from error
    outcome = future.result()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _said(error: BaseException) -> str:
    """What was raised, and the traceback of the process that raised it, which comes as the cause or as the text."""
    first, _, rest = str(error).partition("\n")
    return f"{type(error).__name__}: {first}. Its process said: {error.__cause__ or rest or first}"
