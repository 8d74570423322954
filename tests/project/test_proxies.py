"""scripts/proxies.py: every method is ranked on families of small tasks, and rankings are compared."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from rltemp.io.files import json_lines

ROOT = Path(__file__).parents[2]
PROXIES = runpy.run_path(str(ROOT / "scripts" / "proxies.py"))


def test_results_are_trained_once_and_the_page_compares_their_rankings(tmp_path: Path) -> None:
    cells, large, page = tmp_path / "cells.jsonl", tmp_path / "large.jsonl", tmp_path / "page.md"
    methods = ["none", "fixed", "dtkd"]
    asked = ["train", "--tasks", "1", "--students", "2", "--cells", str(cells), "--methods", *methods, "--families"]
    PROXIES["main"]([*asked, "formula:2"])
    first = cells.read_text()
    PROXIES["main"]([*asked, "formula:2", "formula:3"])
    assert cells.read_text().startswith(first)
    assert [(one["family"], one["method"]) for one in json_lines(cells)] == [
        (family, method) for family in ("formula:2", "formula:3") for method in methods
    ]
    large.write_text(
        "".join(json.dumps({"method": method, "test": place / 3}) + "\n" for place, method in enumerate(methods))
    )
    PROXIES["main"](["write", str(page), str(cells), str(large)])
    assert "| formula:3 |" in page.read_text()


def test_a_ranking_is_of_scores_standardised_within_each_task() -> None:
    results = [
        {"family": "a", "task": task, "method": method, "score": score}
        for task, scores in enumerate(({"x": 1.0, "y": 2.0}, {"x": 90.0, "y": 10.0}))
        for method, score in scores.items()
    ]
    assert PROXIES["ranking"](results, "a") == pytest.approx({"x": 0.0, "y": 0.0})
    assert PROXIES["correlation"]({"x": 1.0, "y": 2.0, "z": 3.0}, {"x": 5.0, "y": 6.0, "z": 9.0}, "xyz") == 1.0
