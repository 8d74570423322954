"""What runs report to a learner, as a strict schema, and the ledger of what came in and was not learned from yet.

A run reports several looks. A look is taken in once, however often it comes; a run counts when all its looks are in. No
look is taken on trust: shapes, finite numbers, a reward that a potential can pay, a draw that fits the version it
claims. A report is taken in whole or not at all.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from rltemp.agents.learner import FinishedRun, log_probability
from rltemp.envs.rewards import BEST, WORST, Potential
from rltemp.errors import BadInputError
from rltemp.policy.features import LIMIT

MAX_LOOKS = 1000
MAX_RECORDS = 4096
FARTHEST = 8.0
"""Standard deviations that a drawn weight can be from its mean; one draw in 10^15 is farther."""
TOLERANCE = 1e-3
"""Nats a weight that a reported log-probability may be off: draws and means are rounded to float32."""
REPORT_BYTES = 2**19
"""A report that is longer is carried in parts."""
KEPT_BYTES = 64 * 2**20
"""Of all runs that are known, those that were learned from included."""
KEPT_RUNS = 4096

FATES = "accepted", "known", "stale"
"""What becomes of a record; the fields of a `Receipt` say what it means."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:/-]{1,80}$")]
Numbers = Annotated[list[float], Field(min_length=1, max_length=2**16)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Record(_Strict):
    """What one student reports at one look of its run."""

    run: Name = Field(description="The run's own name: no other run of any process has it.")
    step: int = Field(ge=0, lt=MAX_LOOKS, description="Which look, from 0.")
    steps: int = Field(ge=1, le=MAX_LOOKS, description="Looks of the run; it counts when all are in.")
    policy_version: int = Field(ge=1, lt=2**53, description="The version that the weights were drawn around.")
    group: Name = Field(description="Runs of one group share initial weights, samples and batches.")
    observation: Numbers = Field(description="Mean features of the batch at this look, one a feature of the policy.")
    action: Numbers = Field(description="The drawn weights, layer by layer: weight [out, in] row by row, then bias.")
    log_probability: float = Field(
        description="Of the draw, in nats: independent normal around the version's mean parameters."
    )
    reward: float = Field(description="Change of the potential on probe samples since the last look.")


class Report(_Strict):
    """What one process reports at once."""

    potential: Potential = Field(description="What the rewards measure.")
    records: list[Record] = Field(min_length=1, max_length=MAX_RECORDS)


def parts(report: Report) -> list[Report]:
    """The report in pieces of about `REPORT_BYTES` as JSON, one record at least; records of a run stay in order."""
    count = len(report.records)
    each = max(1, REPORT_BYTES * count // len(report.model_dump_json()))
    return [
        Report(potential=report.potential, records=report.records[start : start + each])
        for start in range(0, count, each)
    ]


class Receipt(_Strict):
    """What became of a report's records."""

    accepted: int = Field(description="Taken in.")
    known: int = Field(description="Taken in before, with the same content.")
    stale: int = Field(description="Of a version that is no longer, or not yet, learned from.")
    version: int = Field(description="The newest version.")


class ConflictError(BadInputError):
    """Another record of the same run and look was taken in before."""


@dataclass
class _Book:
    """What is in of one run; only the digests once it was learned from."""

    record: Record | None
    version: int
    digests: dict[int, str] = field(default_factory=dict)
    rewards: dict[int, float] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes, about."""
        numbers = 0 if self.record is None else len(self.record.action) + len(self.record.observation)
        return 1000 + 250 * len(self.digests) + 32 * numbers


class Ledger:
    """Takes reports in, checks them, and gives finished runs out; any thread may ask.

    Args:
        features: Of an observation, F.
        exploration: Standard deviation of a draw.
        potential: What rewards measure.
        max_staleness: How many versions a draw may be older than the newest.
        least: Finished runs, in groups of two or more, that are given out together, at least.

    Attributes:
        counts: Records and runs by what became of them, since the start of the process.
    """

    def __init__(self, features: int, exploration: float, potential: str, max_staleness: int, least: int) -> None:
        self.features = features
        self.exploration = exploration
        self.potential = potential
        self.max_staleness = max_staleness
        self.least = least
        self.counts: Counter[str] = Counter()
        self.changed = threading.Condition()
        self._range = BEST[potential] - WORST[potential]
        self._means: dict[int, Tensor] = {}
        self._books: dict[str, _Book] = {}

    def begin(self, version: int, mean_parameters: Tensor) -> None:
        """Take draws around a new version; what is too old by now is forgotten."""
        with self.changed:
            self._means[version] = mean_parameters
            oldest = max(self._means) - self.max_staleness
            self._means = {number: kept for number, kept in self._means.items() if number >= oldest}
            old = [run for run, book in self._books.items() if book.version not in self._means]
            self.counts["expired_runs"] += sum(self._books.pop(run).record is not None for run in old)

    def take(self, report: Report) -> Receipt:
        """Take a report in.

        Raises:
            BadInputError: Where a record cannot be right; the first is named, and none is taken in.
            ConflictError: Where a run and look came before with another content; likewise.
        """
        if report.potential != self.potential:
            raise BadInputError(f"the rewards are of {report.potential}; this policy learns from {self.potential}")
        with self.changed:
            staged: dict[str, _Book] = {}
            found = Counter(self._stage(record, i, staged) for i, record in enumerate(report.records))
            self._books |= staged
            self._forget_most()
            self.counts.update({f"{name}_records": count for name, count in found.items()})
            if found["accepted"]:
                self.changed.notify_all()
            return Receipt(**{fate: found[fate] for fate in FATES}, version=max(self._means))

    def due(self) -> bool:
        """Whether there are enough finished runs for an update; ask with `changed` held."""
        return len(self._judged()) >= self.least

    def finished(self) -> list[FinishedRun]:
        """Give all finished runs out whose group has another; they are known from here on, and not given again."""
        with self.changed:
            runs = []
            for book, record in self._judged():
                observation, action = (np.array(values, np.float32) for values in (record.observation, record.action))
                improvement = sum(book.rewards.values())
                runs.append(FinishedRun(record.group, observation, action, record.log_probability, improvement))
                book.record, book.rewards = None, {}
            self.counts["learned_runs"] += len(runs)
            return runs

    def state(self) -> dict[str, Any]:
        """All runs that are known: what waits of them, and of those that were learned from what could come again."""
        with self.changed:
            return {run: _saved(book) for run, book in self._books.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Know them again, those of versions that are no longer learned from left out."""
        with self.changed:
            for run, book in state.items():
                if (version := int(book["version"])) in self._means:
                    record = Record.model_validate(book["record"]) if book.get("record") else None
                    self._books[run] = _Book(record, version, dict(book["digests"]), dict(book.get("rewards", {})))

    def _stage(self, record: Record, place: int, staged: dict[str, _Book]) -> str:
        """What becomes of a record: accepted (its book is then staged), known or stale."""
        book = staged.get(record.run) or self._books.get(record.run)
        digest = hashlib.sha256(record.model_dump_json().encode()).hexdigest()[:32]
        if book is not None and record.step in book.digests:
            if book.digests[record.step] != digest:
                raise ConflictError(f"look {record.step} of run {record.run!r} came before, with another content")
            return "known"
        if record.policy_version not in self._means:
            return "stale"
        if fault := next(self._faults(record), None):
            raise BadInputError(f"records[{place}].{fault}")
        if book is None:
            book = _Book(record, record.policy_version)
        elif book.record is None or _shared(book.record) != _shared(record):
            raise ConflictError(f"look {record.step} of run {record.run!r} says otherwise about it than those before")
        rewards = {**book.rewards, record.step: record.reward}
        if len(rewards) == record.steps and not abs(sum(rewards.values())) <= self._range + TOLERANCE:
            raise BadInputError(
                f"the rewards of run {record.run!r} sum to {sum(rewards.values()):g}; {self.potential} changes by "
                f"{self._range:g} at most"
            )
        staged[record.run] = _Book(book.record, book.version, {**book.digests, record.step: digest}, rewards)
        return "accepted"

    def _faults(self, record: Record) -> Iterator[str]:
        """What cannot be right about a record."""
        mean = self._means[record.policy_version]
        if record.step >= record.steps:
            yield f"step is {record.step}; its run has {record.steps} looks, from 0"
        for name, needed in (("observation", self.features), ("action", len(mean))):
            if (found := len(getattr(record, name))) != needed:
                yield f"{name} has {found} numbers; this policy needs {needed}"
        if (farthest := max(map(abs, record.observation))) > LIMIT + TOLERANCE:
            yield f"observation holds {farthest:g}; features lie within -{LIMIT:g} and {LIMIT:g}"
        if abs(record.reward) > self._range:
            yield f"reward is {record.reward:g}; {self.potential} changes by {self._range:g} at most"
        action = torch.tensor(record.action, dtype=torch.float64)
        deviations = (action - mean).abs() / self.exploration
        if not float(deviations.max()) <= FARTHEST:
            yield (
                f"action[{int(deviations.argmax())}] is {float(deviations.max()):.1f} standard deviations from "
                f"the mean of version {record.policy_version}; draws reach {FARTHEST:g}"
            )
        wanted = float(log_probability(action, mean, self.exploration))
        if not abs(record.log_probability - wanted) <= TOLERANCE * len(mean):
            yield (
                f"log_probability is {record.log_probability:g}; the draw has {wanted:g} under version "
                f"{record.policy_version}"
            )

    def _judged(self) -> list[tuple[_Book, Record]]:
        """Finished runs whose group has another finished one, each with a record of it."""
        complete = [
            (book, book.record)
            for book in self._books.values()
            if book.record and len(book.rewards) == book.record.steps
        ]
        sizes = Counter(record.group for _, record in complete)
        return [(book, record) for book, record in complete if sizes[record.group] > 1]

    def _forget_most(self) -> None:
        """Forget the oldest runs where there are too many, or too large ones."""
        size = waiting = 0
        for run, book in reversed(list(self._books.items())):
            size += book.size
            waiting += book.record is not None
            if size > KEPT_BYTES or waiting > KEPT_RUNS:
                self.counts["expired_runs"] += self._books.pop(run).record is not None


def _saved(book: _Book) -> dict[str, Any]:
    record = None if book.record is None else book.record.model_dump()
    return {"version": book.version, "digests": dict(book.digests), "record": record, "rewards": dict(book.rewards)}


def _shared(record: Record) -> tuple[Any, ...]:
    """What all looks of a run have in common."""
    return record.steps, record.policy_version, record.group, record.action, record.log_probability
