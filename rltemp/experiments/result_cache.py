"""Cached results: what one stack of students came to, kept as a small file, so that no stack is trained twice.

A result is named by a hash of what determines it (its key). Its file holds that key and a digest of itself, as strict
JSON, and is written whole or not at all. Numbers come back from it bit by bit.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rltemp.errors import BadInputError
from rltemp.experiments.recorder import TemperatureTrace
from rltemp.io.files import atomic_write
from rltemp.io.run_folders import read_json
from rltemp.io.versions import versions

log = logging.getLogger(__name__)

CELLS = "cells"
"""The folder of cached results in a run folder."""
MOST_STUDENTS = 2048
"""In one result: with as many, and a trace, its file stays below what `read_json` reads."""
MOST_POINTS = 20_000
"""In the trace of one result."""
DETERMINING = ("rltemp", "torch", "numpy")
"""The packages whose versions a result carries; results of other versions are not mixed in."""

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Version = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.+!-]{1,64}$")]
Row = Annotated[list[Fraction], Field(min_length=1, max_length=MOST_STUDENTS)]
Amount = Annotated[float, Field(ge=0)]
Amounts = Annotated[list[Amount | None], Field(min_length=1, max_length=MOST_STUDENTS)]
MeasureName = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,40}$")]


@functools.cache
def determining_versions() -> tuple[tuple[str, str], ...]:
    """The versions that results trained here carry, by package."""
    found = versions()
    return tuple((name, found[name]) for name in DETERMINING if name in found)


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class StoredTrace(_Strict):
    """A `TemperatureTrace`: its rows as float32 `[4, N]`, little-endian, in base64."""

    reference: float = Field(gt=0)
    samples: str = Field(max_length=4 * 4 * MOST_POINTS * 4 // 3 + 4)

    @classmethod
    def pack(cls, trace: TemperatureTrace) -> StoredTrace:
        """Of numbers that float32 can hold."""
        rows = trace.progress, trace.teacher_margin, trace.student_temperature, trace.teacher_temperature
        samples = base64.b64encode(np.stack(rows).astype("<f4").tobytes()).decode()
        return cls(reference=trace.reference, samples=samples)

    def unpack(self) -> TemperatureTrace:
        """The trace."""
        rows = np.frombuffer(base64.b64decode(self.samples, validate=True), "<f4").reshape(4, -1).astype(np.float64)
        progress, margin, student, teacher = rows
        return TemperatureTrace(progress, margin, student, teacher, self.reference)

    @model_validator(mode="after")
    def _drawable(self) -> StoredTrace:
        self.unpack()
        return self


class CachedResult(_Strict):
    """What one stack of students came to.

    Args:
        test_accuracy: 0..1, one a student, in the order of its seeds; floats come back from the file bit by bit.
        validation_accuracy: Likewise.
        measures: By name, likewise; None where a student has none.
        diverged: How many students' numbers are not finite.
        guarded: For how many samples a rule's guard stood in for its formula, or a policy faded.
        answered: How many samples the rule answered.
        degraded: Whether the rule was not what trained the students: too many answers were a fallback's.
        trace: Temperatures, where the picture shows this stack's.
        versions: Of the packages that it was trained with.
    """

    test_accuracy: Row
    validation_accuracy: Row
    measures: dict[MeasureName, Amounts] = Field(default_factory=dict, max_length=16)
    diverged: Count = 0
    guarded: Count = 0
    answered: Count = 0
    degraded: bool = False
    trace: StoredTrace | None = None
    versions: dict[Version, Version] = Field(default_factory=lambda: dict(determining_versions()), max_length=16)

    def measured(self, name: str) -> list[float | None]:
        """A measure of each student; None of all in a result of before there was this measure."""
        return self.measures.get(name, [None] * len(self.test_accuracy))

    @model_validator(mode="after")
    def _agrees(self) -> CachedResult:
        students = len(self.test_accuracy)
        uneven = len(self.validation_accuracy) != students or any(
            len(row) != students for row in self.measures.values()
        )
        if uneven or self.diverged > students or self.guarded > self.answered:
            raise ValueError("the counts and lengths of the result contradict each other")
        return self


class CachedResultFile(_Strict):
    """A result with its key."""

    format: Literal["rltemp-cell"] = "rltemp-cell"
    format_version: Literal[2] = 2
    key: dict[str, Any]
    cell: CachedResult

    def encoded(self) -> bytes:
        """As the file holds it."""
        content = self.model_dump()
        return _canonical({**content, "sha256": hashlib.sha256(_canonical(content)).hexdigest()}) + b"\n"


def file_name(key: Mapping[str, Any]) -> str:
    """The name of the file of the result of this key."""
    return f"{hashlib.sha256(_canonical(key)).hexdigest()[:20]}.json"


def in_words(found: Mapping[str, str]) -> str:
    """Versions as a table's note has them: `rltemp 0.1.0, torch 2.4.0, numpy 1.26.4`."""
    return ", ".join(f"{name} {found[name]}" for name in sorted(found, key=[*DETERMINING, *sorted(found)].index))


def read_result(path: Path, key: Mapping[str, Any]) -> CachedResult:
    """The result in a file that is whole and of this key.

    Raises:
        BadInputError: Where it is damaged, or another's.
    """
    file = parsed(path)
    seeds = key.get("seeds")
    if _canonical(file.key) != _canonical(key):
        raise BadInputError("it is the result of another key")
    if len(file.cell.test_accuracy) != (len(seeds) if isinstance(seeds, (list, tuple)) else 1):
        raise BadInputError("it does not hold one accuracy a seed")
    return file.cell


def parsed(path: Path) -> CachedResultFile:
    """The content of a file that is whole.

    Raises:
        BadInputError: Where it is not.
    """
    content = read_json(path)
    given = content.pop("sha256", None)
    try:
        intact = given == hashlib.sha256(_canonical(content)).hexdigest()
    except (ValueError, RecursionError) as error:  # 1e999 is JSON, and infinite
        raise BadInputError(f"it cannot be read as a result: {error}") from error
    if not intact:
        raise BadInputError("its SHA-256 is not that of its content: the file is damaged or was changed")
    try:
        return CachedResultFile.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInputError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _canonical(value: Any) -> bytes:
    """One text for one value: sorted keys, no blanks, no nan."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


class ResultCache:
    """A folder of cached results.

    Args:
        folder: Made where it is missing.
        allow_mixed: Use results of other versions as they are.

    Attributes:
        found: How many results were there.
        trained: How many were not, and have been trained.

    Raises:
        BadInputError: Where the folder cannot be made, or holds results of other versions that may not be mixed in.
    """

    def __init__(self, folder: Path, *, allow_mixed: bool = False) -> None:
        self.folder = folder
        self.found = self.trained = 0
        self._warned: set[Path] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInputError(f"cannot make {folder}: {error}. Choose another --out") from error
        if not allow_mixed:
            self._refuse_other_versions()

    def path(self, key: Mapping[str, Any]) -> Path:
        """Where the result of this key lies, or would lie."""
        return self.folder / file_name(key)

    def has(self, key: Mapping[str, Any]) -> bool:
        """Whether there is a file of this key, whole or not."""
        return os.path.lexists(self.path(key))

    def read(self, key: Mapping[str, Any]) -> CachedResult | None:
        """The result of this key; None, after a warning where there is a file, if it has to be trained."""
        path = self.path(key)
        if not self.has(key):
            return None
        try:
            return read_result(path, key)
        except BadInputError as error:
            if path not in self._warned:
                self._warned.add(path)
                log.warning(f"Cached result {path} is refused and trained again: {error}.")
            return None

    def write(self, key: Mapping[str, Any], outcome: TrainedStack) -> None:
        """Write a result, and before it the files that lie beside it."""
        path = self.path(key)
        for suffix, data in outcome.files.items():
            atomic_write(path.with_suffix(suffix), data)
        atomic_write(path, CachedResultFile(key=dict(key), cell=outcome.result).encoded())

    def _refuse_other_versions(self) -> None:
        """Read all results once, before the first is trained."""
        here, others = dict(determining_versions()), Counter[str]()
        for path in self.folder.glob("*.json"):
            with contextlib.suppress(BadInputError):
                found = parsed(path).cell.versions
                others[in_words(found)] += found != here
        if others := +others:
            held = "; ".join(f"{count} of {words}" for words, count in sorted(others.items()))
            raise BadInputError(
                f"{self.folder} holds results of other versions ({held}; here: {in_words(here)}), and versions are not "
                "mixed. Choose another --out, or give --allow-mixed to use them as they are"
            )


@dataclass(frozen=True)
class TrainedStack:
    """What training a stack gives.

    Args:
        result: To be cached.
        files: What to keep beside it, by suffix.
    """

    result: CachedResult
    files: Mapping[str, bytes] = field(default_factory=dict)
