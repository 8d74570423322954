"""Commands that compare, and what they leave in their folders."""

from __future__ import annotations

import json
import re
from pathlib import Path

COMPARE = ("compare", "--task", "toy", "--epochs", "2", "--rules", "none", "fixed:1|2", "dtkd", "universal")


COMPARE_SIZE = ("--seeds", "6", "--selection-seeds", "2", "--stack", "2")


QUICK = ("compare", "--no-html", "--task", "toy", "--epochs", "1")


STUDY = ("study", "--task", "toy", "--epochs", "1", "--rules", "universal", "--only", "controls")


STUDY_SIZE = ("--seeds", "4", "--selection-seeds", "2", "--stack", "2")


def cells_of(out: Path) -> dict[str, tuple[int, int]]:
    """Every cached result with what changes where it is written again."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (out / "cells").glob("*.json")}


def contents(out: Path) -> dict[str, object]:
    """Every file by its bytes, but for those that hold what the clock said."""
    found: dict[str, object] = {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file()
        and path.suffix not in (".tmp", ".clock", ".rltemp")
        and path.name not in ("run.lock", "timing.json", "report.html")
    }
    result = json.loads((out / "result.json").read_text())
    return {**found, "result.json": json.dumps(result)}


def shares(said: str) -> tuple[int, int]:
    """How many results a process found, and how many it trained, by its own count."""
    match = re.search(r"(\d+) of (\d+) results were cached; (\d+) were trained now", said)
    assert match, said
    found, both, trained = map(int, match.groups())
    assert found + trained == both
    return found, trained
