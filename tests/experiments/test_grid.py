"""A grid of tasks, teachers and students: checked before anything is trained, one table a point and one over all."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from support.processes import code

from rltemp.data.problem import Problem
from rltemp.experiments.compare import compare
from rltemp.experiments.grid import grid_tasks, overall
from rltemp.experiments.method_results import Comparison, MethodResult
from rltemp.experiments.options import CompareOptions
from rltemp.experiments.students import ROUNDS, step_times
from rltemp.report.comparison import tuning_warnings


def comparison(base: list[float], other: list[float], chosen: str = "dtkd:1", degraded: bool = False) -> Comparison:
    methods = [
        MethodResult("fixed:4", np.array(base), np.array(base)),
        MethodResult(chosen, np.array(other), np.array(other), degraded=degraded),
    ]
    return Comparison(methods, {"fixed:4": "fixed:4", "dtkd:1|2": chosen})


RULES = ["fixed:4", "dtkd:1|2"]


def test_the_middle_half_of_its_paired_differences_sums_up_a_rule():
    one = comparison([0.50, 0.60, 0.70, 0.80], [0.51, 0.62, 0.73, 0.84])
    two = comparison([0.1, 0.1, 0.1, 0.1], [0.15, 0.16, 0.17, 0.90], chosen="dtkd:2")
    dtkd, fixed = overall([one, two], RULES, ["fixed:4"])  # the better one first
    # Differences 1, 2, 3, 4 and 5, 6, 7, 80: the middle half is 3, 4, 5, 6.
    assert dtkd.differences["fixed:4"][0] == pytest.approx(4.5)
    assert dtkd.differences["fixed:4"][1] < 4.5 < dtkd.differences["fixed:4"][2] < 80
    assert fixed.differences["fixed:4"] == (0.0, 0.0, 0.0)
    assert (dtkd.rule, dtkd.note) == ("dtkd:1|2", "")


def test_unlike_methods_at_a_point_leave_the_whole_without_a_difference():
    points = [comparison([0.5, 0.6], [0.6, 0.7]), comparison([0.5, 0.6], [0.6, 0.7], degraded=True)]
    refused = overall(points, RULES, ["fixed:4"])[0]
    assert all(map(math.isnan, refused.differences["fixed:4"]))
    assert refused.note == "not compared: dtkd:1 is degraded"
    allowed = overall(points, RULES, ["fixed:4"], allow_mixed=True)[0]
    assert allowed.differences["fixed:4"][0] == pytest.approx(10.0)
    assert allowed.note == "compared although dtkd:1 is degraded"


def test_the_grid_is_all_tasks_by_all_teachers_by_all_students():
    options = CompareOptions(tasks=("wine", "iris"), students=("mlp:2", "mlp:4"), teachers=("mlp:8",), epochs=3)
    tasks = grid_tasks(options)
    assert [(task.name, task.teacher, task.student) for task in tasks] == [
        ("wine", "mlp:8", "mlp:2"),
        ("wine", "mlp:8", "mlp:4"),
        ("iris", "mlp:8", "mlp:2"),
        ("iris", "mlp:8", "mlp:4"),
    ]
    assert {task.recipe.epochs for task in tasks} == {3}
    assert options.folder() == Path("runs/compare-wine-iris")
    assert [task.name for task in grid_tasks(CompareOptions())] == ["digits"]


IMPOSSIBLE: dict[str, tuple[list[str], str]] = {
    "twice": (["--tasks", "wine", "wine"], "the grid has wine: mlp:64 teaches mlp:4 twice"),
    "two ways": (["--tasks", "wine", "--students", "mlp:2", "--student", "mlp:3"], "--student or --students, not both"),
    "batch": (
        ["--tasks", "digits", "wine", "--batch-size", "150"],
        "batch size 150 of the student is above the 88 training samples",
    ),
    "student": (["--tasks", "iris", "--students", "mlp:4", "mpl:4"], "iris: mlp:64 teaches mpl:4 is impossible: "),
    "teacher": (
        ["--tasks", "wine", "iris", "--teacher-weights", "{wine}"],
        "iris: mlp:64 teaches mlp:4 is impossible: ",
    ),
    "rule": (
        ["--tasks", "toy", "--rules", "fixed:4", "support.own_rules:of_five"],
        "under support.own_rules:of_five is imp",
    ),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_cannot_go_together_is_one_line_before_anything_is_trained(name, tmp_path, capsys, monkeypatch):
    words, message = IMPOSSIBLE[name]
    if name == "teacher":
        assert code("train-teacher", "--task", "wine", "--out", tmp_path / "t") == 0
        words = [word.format(wine=tmp_path / "t" / "teacher.safetensors") for word in words]
    monkeypatch.setenv("RLTEMP_CACHE", str(tmp_path / "cache"))
    capsys.readouterr()
    assert code("compare", *words, "--seeds", 2, "--out", tmp_path / "c") in (2, 3)
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert "Preparing" not in said.out
    assert not (tmp_path / "c").exists()
    assert not (tmp_path / "cache").exists(), "no teacher was trained"


def test_a_study_takes_one_task(tmp_path: Path, capsys):
    assert code("study", "--rules", "universal", "--tasks", "wine", "iris", "--out", tmp_path / "s") == 2
    assert "unknown option --tasks: did you mean --task?" in capsys.readouterr().err


def test_a_grid_has_a_table_a_point_and_one_over_all_but_no_times(tmp_path: Path, capsys):
    out = tmp_path / "g"
    rules = ("--rules", "fixed:4", "fixed:1|2")
    words = ("compare", "--tasks", "toy", "iris", "--epochs", 2, *rules, "--seeds", 3, "--selection-seeds", 2)
    assert code(*words, "--time", "--out", out) == 0
    said, result = capsys.readouterr().out, json.loads((out / "result.json").read_text())
    assert [point["task"]["name"] for point in result["points"]] == ["toy", "iris"]
    assert [one["rule"] for one in result["overall"]] == ["fixed:4", "fixed:1|2"]
    tuned = [point["arms"][1] for point in result["points"]]
    assert [(one["alternatives"], one["tuning_students"]) for one in tuned] == [(2, 4), (2, 4)]
    assert all(set(one["measures"]) >= {"selected_accuracy", "agreement"} for one in tuned)
    assert len(result["warnings"]) == 1
    assert result["warnings"][0] in said
    assert "Over all 2: interquartile means" in said
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert [(row["task"], row["student"]) for row in rows[::6]] == [("toy", "linear"), ("iris", "mlp:4")]
    assert {path.name for path in out.glob("*.png")} == {"picture-1.png", "picture-2.png"}
    report = (out / "report.md").read_text()
    assert "--rules fixed:4 'fixed:1|2'" in report
    assert "--tasks toy iris" in report
    assert "--task " not in report
    times = json.loads((out / "timing.json").read_text())["step_times"]
    assert [set(one["rules"]) for one in times] == [
        {one["rule"] for one in point["arms"]} for point in result["points"]
    ]
    assert "milliseconds" not in (out / "result.json").read_text() + report
    assert "rough" in said
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    assert code(*words, "--out", out) == 0
    again = capsys.readouterr().out
    assert "Over all 2: interquartile means" in again
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before


def test_one_method_under_two_names_has_no_difference_at_all(toy: Problem):
    found = compare(toy, ["fixed:4", "fixed:4.0"], [0, 1, 2])
    one = overall([found], ["fixed:4.0"], ["fixed:4"])[0]
    assert one.differences["fixed:4"] == (0.0, 0.0, 0.0)


def test_unlike_budgets_are_said_and_like_ones_are_not():
    results = [
        MethodResult(name, np.ones(2), np.ones(2), alternatives=count) for name, count in (("a", 1), ("b", 4), ("c", 4))
    ]
    assert tuning_warnings([results])[0].endswith("alternatives tried (1 for 1, 4 for 2 methods).")
    assert tuning_warnings([results[1:]]) == []


def test_a_step_is_timed_in_turn_with_plain_distillations_and_ends_in_time(toy: Problem):
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    found = step_times(toy, ["dtkd", "none"], stack=2, clock=clock)
    assert set(found["rules"]) == {"dtkd", "none"}
    assert found["rules"]["dtkd"] == {"milliseconds": 1000.0, "ratio": 1.0}
    assert (found["students"], found["rounds"]) == (2, 3), "each round is 7 s by this clock"
    assert step_times(toy, ["dtkd"])["rounds"] == ROUNDS
