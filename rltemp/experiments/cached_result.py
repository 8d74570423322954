"""The file of a cell: what one stack of students came to, its key and a digest, as strict JSON.

A cell is named by its key, which is what determines it. Numbers come back from the file bit by bit.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rltemp.errors import BadInputError
from rltemp.io.run_folders import read_json, versions

MOST_STUDENTS = 2048
"""In one cell: with as many, and a trace, it stays below what `read_json` reads."""
MOST_POINTS = 20_000
"""In one cell's trace."""
DETERMINING = ("rltemp", "torch", "numpy")
"""The packages whose versions a cell carries: cells of others are not mixed in."""

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Version = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.+!-]{1,64}$")]
Row = Annotated[list[Fraction], Field(min_length=1, max_length=MOST_STUDENTS)]
Amount = Annotated[float, Field(ge=0)]
Amounts = Annotated[list[Amount | None], Field(min_length=1, max_length=MOST_STUDENTS)]
MeasureName = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,40}$")]


@functools.cache
def determining_versions() -> tuple[tuple[str, str], ...]:
    """The versions that cells trained here carry, by package."""
    found = versions()
    return tuple((name, found[name]) for name in DETERMINING if name in found)


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class StoredTrace(_Strict):
    """Samples of a policy's temperatures, for the picture: float32 `[4, N]`, little-endian, in base64."""

    reference: float = Field(gt=0)
    samples: str = Field(max_length=4 * 4 * MOST_POINTS * 4 // 3 + 4)

    @classmethod
    def pack(cls, rows: np.ndarray[Any, Any], reference: float) -> StoredTrace:
        """Of progress, margin, student's and teacher's temperatures: `[4, N]`, of numbers that float32 can hold."""
        return cls(reference=reference, samples=base64.b64encode(rows.astype("<f4").tobytes()).decode())

    def rows(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The rows, `[4, N]`."""
        found = np.frombuffer(base64.b64decode(self.samples, validate=True), "<f4").reshape(4, -1)
        return found.astype(np.float64)

    @model_validator(mode="after")
    def _drawable(self) -> StoredTrace:
        temperatures = self.rows()[2:]
        if not temperatures.size or not (np.isfinite(temperatures) & (temperatures > 0)).all():
            raise ValueError("a trace needs samples, of temperatures that are positive and finite")
        return self


class CachedResult(_Strict):
    """What one stack of students came to.

    Args:
        test_accuracy: 0..1, one a student, in the order of its seeds; floats come back from the file bit by bit.
        validation_accuracy: Likewise.
        measures: Of `rltemp.experiments.measures.MEASURES`, by name, likewise; None where a student has none.
        diverged: How many students' numbers are not finite.
        guarded: For how many samples a rule's guard stood in for its formula.
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

    @model_validator(mode="after")
    def _agrees(self) -> CachedResult:
        students = len(self.test_accuracy)
        uneven = len(self.validation_accuracy) != students or any(
            len(row) != students for row in self.measures.values()
        )
        if uneven or self.diverged > students or self.guarded > self.answered:
            raise ValueError("the cell's counts and lengths contradict each other")
        return self


class CachedResultFile(_Strict):
    """A cell with its key."""

    format: Literal["rltemp-cell"] = "rltemp-cell"
    format_version: Literal[2] = 2
    key: dict[str, Any]
    cell: CachedResult

    def encoded(self) -> bytes:
        """As the file holds it."""
        content = self.model_dump()
        return _canonical({**content, "sha256": hashlib.sha256(_canonical(content)).hexdigest()}) + b"\n"


def file_name(key: Mapping[str, Any]) -> str:
    """The name of the file of this key's cell."""
    return f"{hashlib.sha256(_canonical(key)).hexdigest()[:20]}.json"


def in_words(found: Mapping[str, str]) -> str:
    """Versions as a table's note has them: `rltemp 0.1.0, torch 2.4.0, numpy 1.26.4`."""
    return ", ".join(f"{name} {found[name]}" for name in sorted(found, key=[*DETERMINING, *sorted(found)].index))


def read_cell(path: Path, key: Mapping[str, Any]) -> CachedResult:
    """The cell in a file that is whole and of this key.

    Raises:
        BadInputError: Where it is damaged, or another's.
    """
    file = parsed(path)
    seeds = key.get("seeds")
    if _canonical(file.key) != _canonical(key):
        raise BadInputError("it is the cell of another key")
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
        raise BadInputError(f"it cannot be read as a cell: {error}") from error
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
