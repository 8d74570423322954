"""The table of tasks that no policy saw: what it says is in its results, and it is the one in the documentation."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rltemp.data.tasks import load_task
from rltemp.experiments.students import train_method
from rltemp.training.preparation import prepare

ROOT = Path(__file__).parents[2]
TRANSFER = runpy.run_path(str(ROOT / "scripts" / "transfer.py"))


def result(task: str, rule: str, *test: float) -> dict[str, Any]:
    return {
        "task": task,
        "rule": rule,
        "test": list(test),
        "teachers": [90.0, 91.0, 92.0],
        "machine": "m",
        "torch": "t",
    }


def test_a_mean_over_tasks_pairs_the_students_of_each() -> None:
    accuracy = {
        ("a", "universal"): np.array([50.0, 60.0]),
        ("a", "fixed:4"): np.array([49.0, 58.0]),
        ("b", "universal"): np.array([90.0, 80.0]),
        ("b", "fixed:4"): np.array([91.0, 82.0]),
    }
    # student 0: +1 and -1, student 1: +2 and -2
    assert TRANSFER["over"](accuracy, ["a", "b"], "universal", "fixed:4").mean == pytest.approx(0.0)
    assert TRANSFER["over"](accuracy, ["a"], "universal", "fixed:4").mean == pytest.approx(1.5)


def test_the_page_ranks_rules_that_have_every_task_and_names_the_splits() -> None:
    results = [
        result("a", "fixed:4", 50, 52),
        result("b", "fixed:4", 80, 82),
        result("a", "universal", 53, 54),
        result("b", "universal", 81, 84),
        result("a", "ttm", 99, 99),
    ]
    lines = [line for line in TRANSFER["page"](results).splitlines() if line.startswith("| ") and "---" not in line]
    assert [line.split(" | ")[0] for line in lines[:4]] == ["| rule", "| universal", "| fixed:4", "| task"]
    assert "| 53.50 | 82.50 | 68.00 | +2.00" in lines[1]
    assert lines[4].startswith("| a | 3 | 51.00 | +2.50 [")


def test_a_student_of_a_split_is_the_one_that_the_split_alone_would_have() -> None:
    problems = [prepare(load_task("iris", split_seed=split, teacher_epochs=2, epochs=3)) for split in (1, 2)]
    together = TRANSFER["train_on_splits"](problems, "wttm", [7, 8, 9])
    alone = [train_method(problems[split], "wttm", [seed], 1) for split, seed in ((0, 7), (1, 8), (0, 9))]
    assert together["test"].tolist() == pytest.approx([float(one.test_accuracy[0]) for one in alone])
    assert together["validation"].tolist() == pytest.approx([float(one.validation_accuracy[0]) for one in alone])


def test_the_page_in_the_documentation_is_that_of_the_results() -> None:
    results = TRANSFER["read"](ROOT / "docs" / "results" / "transfer.jsonl")
    assert (ROOT / "docs" / "results" / "transfer.md").read_text("utf-8") == TRANSFER["page"](results)
    assert {len(one["test"]) for one in results} == {64}
