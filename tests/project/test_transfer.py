"""The tables of tasks that no policy saw: what they say is in their results, and they stand in the documentation."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rltemp.data.tasks import load_task
from rltemp.experiments.students import train_method
from rltemp.io.files import json_lines
from rltemp.training.preparation import prepare

ROOT = Path(__file__).parents[2]
TRANSFER = runpy.run_path(str(ROOT / "scripts" / "transfer.py"))


def result(task: str, factor: float, rule: str, *test: float, unit: str = "points") -> dict[str, Any]:
    shared = {"rate": 0.1 * factor, "validation": [0.0], "unit": unit, "splits": 1, "machine": "m", "torch": "t"}
    return {"task": task, "factor": factor, "rule": rule, "test": list(test), **shared}


RESULTS = [
    *(result("a", 1.0, rule, *test) for rule, test in (("none", (50, 52)), ("fixed:4", (51, 52)), ("ttm", (99, 99)))),
    result("a", 1.0, "universal", 53, 54),
    *(result("b", 3.0, rule, *test) for rule, test in (("none", (80, 82)), ("fixed:4", (70, 70)))),
    result("b", 3.0, "universal", 79, 82),
    *(result("c", 1.0, rule, *test, unit="nats") for rule, test in (("none", (-2.1, -2.2)), ("fixed:4", (-2.3, -2.4)))),
    result("c", 1.0, "universal", -2.12, -2.22, unit="nats"),
]


def test_a_difference_over_cells_pairs_the_students_of_each() -> None:
    cells = [("a", 1.0), ("b", 3.0)]
    found = {
        (cells[0], "universal"): np.array([50.0, 60.0]),
        (cells[0], "fixed:4"): np.array([49.0, 58.0]),
        (cells[1], "universal"): np.array([90.0, 80.0]),
        (cells[1], "fixed:4"): np.array([91.0, 82.0]),
    }
    # student 0: +1 and -1, student 1: +2 and -2
    assert TRANSFER["difference"](found, cells, "universal", "fixed:4").mean == pytest.approx(0.0)
    assert TRANSFER["difference"](found, cells[:1], "universal", "fixed:4").mean == pytest.approx(1.5)


def test_the_page_marks_harm_and_ranks_rules_that_have_every_cell() -> None:
    page = TRANSFER["page"](RESULTS)
    lines = [line for line in page.splitlines() if line.startswith("| ") and "---" not in line]
    a, b, c = lines[1:4]
    assert a.startswith("| a | x 1 | 51.00 | 51.50 | 53.50 | +2.50 [")
    assert "harm" not in a
    assert "| -0.50 [" in b
    assert "harm" not in b  # half a point is allowed
    assert c.endswith("| 0.0 | harm |")  # 0.02 nats are not
    assert "Harm in 1 of 3 cells, in 1 of 3 of tasks whose results nobody had seen" in page
    ranked = [line.split(" | ")[0] for line in lines[4:]]
    assert ranked == ["| rule", "| universal", "| none", "| fixed:4"] * 2  # ttm lacks a cell; nobody had seen any


def test_students_of_several_splits_are_those_of_each_split_alone() -> None:
    problems = [prepare(load_task("iris", split_seed=split, teacher_epochs=2, epochs=3)) for split in (1, 2)]
    together = TRANSFER["train_students"](problems, "wttm", range(7, 11), "never")
    alone = [train_method(problems[split], "wttm", [seed], 1) for split, seed in ((0, 7), (0, 8), (1, 9), (1, 10))]
    wanted = [100 * float(one.test_accuracy[0]) for one in alone]
    assert together["test"] == pytest.approx(wanted, abs=1e-3)
    assert together["unit"] == "points"


def test_a_results_file_is_added_to_and_nothing_in_it_is_trained_again(tmp_path: Path) -> None:
    cells = tmp_path / "cells.jsonl"
    asked = ["train", "--tasks", "iris", "--rules", "fixed:1", "--against", "--seeds", "2", "--cells", str(cells)]
    TRANSFER["main"]([*asked, "--factors", "1"])
    first = cells.read_text()
    assert [line.count('"task": "iris"') for line in first.splitlines()] == [1, 1, 1]
    TRANSFER["main"]([*asked, "--factors", "1", "3"])
    assert cells.read_text().startswith(first)
    rates = {round(one["rate"] / one["factor"], 9) for one in json_lines(cells)}
    assert len(rates) == 1
    TRANSFER["main"](["write", str(tmp_path / "page.md"), str(cells)])
    assert "Harm in" in (tmp_path / "page.md").read_text()


def test_the_documentation_has_the_page_of_its_results() -> None:
    found = json_lines(ROOT / "docs" / "results" / "transfer.jsonl")
    assert TRANSFER["page"](found) == (ROOT / "docs" / "results" / "transfer.md").read_text("utf-8")


def test_the_page_has_the_tuned_temperature_and_the_lead_at_other_sizes() -> None:
    validated = {"fixed:1": 50, "fixed:2": 70, "fixed:4": 60, "fixed:8": 40}
    tested = {"fixed:1": 10, "fixed:2": 20, "fixed:4": 30, "fixed:8": 40}
    results = [
        result("a", 1.0, rule, test) | {"validation": [validated.get(rule, 0)]}
        for rule, test in {**tested, "none": 5, "universal": 31}.items()
    ]
    for width, longer in ((32, 1), (32, 4), (128, 1), (128, 4)):
        size = f"a, mlp:{width}, length x {longer}"
        results += [result(size, 1.0, "none", 50), result(size, 1.0, "fixed:4", 51)]
        results.append(result(size, 1.0, "universal", 50 + width + longer))
    page = TRANSFER["page"]([{"validation": [0], **one} for one in results])
    assert "| fixed, tuned | 20.00 | +15.00 | +11.00 |" in page
    assert "| mlp:128 | x 4 | +131.00 | +132.00 |" in page
    assert "Harm in 0 of 1 cells" in page  # those of other sizes have a table of their own
