"""The verdict of a check, by hand; and the check itself: how many students, which data, what a folder keeps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.own_tasks import own_task
from support.processes import code

import rltemp
from rltemp.experiments import check
from rltemp.experiments.check import Verdict, compared, verdict
from rltemp.experiments.measures import LOSS, ON_VALIDATION, VALIDATION_LOSS
from rltemp.experiments.method_results import MethodResult, table_rows
from rltemp.rules.published_methods import METHODS

ACCURACY = ON_VALIDATION["accuracy"]


def judged(students: int = 32, noise: float = 0.002, **accuracies: float) -> Verdict:
    """The verdict on `policy` for methods of these mean validation accuracies; on test data all is the other way."""
    drawn = np.random.default_rng(0)
    shared = 0.02 * drawn.standard_normal(students)
    results = []
    for name, mean in accuracies.items():
        row = mean + shared + noise * drawn.standard_normal(students)
        results.append(MethodResult(name, 1 - row, row))
    return verdict(table_rows(results, ["none", "policy"], quantity=ACCURACY), "policy")


@pytest.mark.parametrize(
    ("mild", "plain", "policy", "use"),
    [
        (0.92, 0.91, 0.94, "policy"),  # above all
        (0.93, 0.91, 0.92, "mild"),
        (0.92, 0.94, 0.91, "plain"),
        (0.92, 0.91, 0.921, "mild"),  # a tenth of a point is no reason for a policy
        (0.88, 0.87, 0.92, "policy"),  # what is simple does harm
        (0.92, 0.85, 0.72, "mild"),  # the policy does
        (0.88, 0.87, 0.72, "none"),
        (0.9, 0.9, 0.9, "none"),  # nothing gains half a point
        (0.9, 0.899, 0.902, "policy"),  # little, but it is shown
    ],
)
def test_the_verdict_of_clear_differences(mild: float, plain: float, policy: float, use: str) -> None:
    found = judged(none=0.9, mild=mild, plain=plain, policy=policy)
    assert found.use == use
    start = {"policy": "use it. policy gains +", "none": "do not distil. "}.get(use, f"use {use}. It gains +")
    assert found.line.startswith(start)


def test_too_few_students_are_told_how_many_would_do() -> None:
    found = judged(8, 0.04, none=0.9, mild=0.9, plain=0.9, policy=0.92)
    assert found.use is None
    assert found.seeds is not None
    assert found.line.startswith(f"8 students are too few to tell; --seeds {found.seeds} would show 0.5 points.")
    assert judged(found.seeds, 0.04, none=0.9, mild=0.9, plain=0.9, policy=0.92).use == "policy"


def test_two_that_help_and_cannot_be_told_apart_are_said_to() -> None:
    found = judged(8, 0.012, none=0.8, mild=0.9, plain=0.85, policy=0.904)
    assert found.use is None
    assert "too few to tell" in found.line
    assert "policy gains +" in found.line
    assert "over mild, the best simple rule" in found.line


def test_of_losses_less_is_better() -> None:
    drawn = np.random.default_rng(0)
    losses = {"none": 2.0, "mild": 1.9, "policy": 1.8}
    rows = {name: mean + 0.001 * drawn.standard_normal(16) for name, mean in losses.items()}
    half = np.full(16, 0.5)
    results = [MethodResult(name, half, half, measures={VALIDATION_LOSS: row}) for name, row in rows.items()]
    found = verdict(table_rows(results, ["none", "policy"], quantity=ON_VALIDATION[LOSS.name]), "policy")
    assert found.use == "policy"
    assert found.line.startswith("use it. policy gains +0.1992 [+0.1984, +0.1998] nats over no teacher, and +0.0994")


@pytest.mark.parametrize(("lost", "use"), [("policy", "mild"), ("mild", "policy"), ("none", None)])
def test_a_rule_whose_students_diverged_is_not_to_be_used(lost: str, use: str | None) -> None:
    half, losses = np.full(8, 0.5), {"none": 2.0, "mild": 1.9, "policy": 1.8}
    results = [
        MethodResult(name, half, half, measures={VALIDATION_LOSS: mean + 0.001 * np.arange(8)})
        for name, mean in losses.items()
    ]
    results = [
        replace(one, measures={VALIDATION_LOSS: np.full(8, np.nan)}) if one.rule == lost else one for one in results
    ]
    assert verdict(table_rows(results, ["none", "policy"], quantity=ON_VALIDATION[LOSS.name]), "policy").use == use


def test_what_is_compared_has_no_rule_twice() -> None:
    assert compared("fixed:4") == ["none", "fixed:1", "fixed:4"]
    assert compared("dtkd") == ["none", "fixed:1", "fixed:4", "dtkd"]
    first, second, reference, *rest = compared("universal")
    assert (first, second, rest) == ("none", "fixed:1", ["fixed:4", "universal"])
    assert reference.partition(":")[0] in METHODS


@pytest.mark.parametrize(("seconds", "most", "students"), [(0.0, 128, 8), (600.0, 16, 16)])
def test_students_are_doubled_while_the_time_allows(
    seconds: float, most: int, students: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "SECONDS", seconds)
    monkeypatch.setattr(check, "MOST", most)
    result = rltemp.check(own_task(epochs=1), "fixed:2", tmp_path / "c")
    assert result["seeds"] == students
    assert [row["n"] for row in result["arms"]] == [students] * 4


def test_a_check_goes_on_with_more_students_and_is_shown_again(tmp_path: Path) -> None:
    def checked(seeds: int) -> dict[str, object]:
        return rltemp.check(own_task(epochs=1), "fixed:2", tmp_path / "c", seeds=seeds)

    first = checked(4)
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "c" / "cells").iterdir()}
    written = (tmp_path / "c" / "result.json").stat().st_mtime_ns
    assert checked(4) == first
    assert (tmp_path / "c" / "result.json").stat().st_mtime_ns == written
    more = checked(6)
    assert more["seeds"] == 6
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    alone = rltemp.check(own_task(epochs=1), "fixed:2", tmp_path / "alone", seeds=6)
    assert json.dumps(more["arms"]) == json.dumps(alone["arms"])
    with pytest.raises(rltemp.BadInputError, match="other settings"):
        rltemp.check(own_task(epochs=2), "fixed:2", tmp_path / "c", seeds=6)


def test_the_command_prints_a_table_of_80_columns_and_one_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rltemp.cli.console.FILE_WIDTH", 80)
    assert code("check", "--task", "iris", "--epochs", 2, "--seeds", 3, "--out", tmp_path / "c") == 0
    said = capsys.readouterr().out
    result = json.loads((tmp_path / "c" / "result.json").read_text())
    assert said.count(f"Verdict: {result['verdict']}\n") == 1
    assert f"On {result['samples']} validation samples, never on test data" in said
    table = said.partition("universal.\n")[2].partition("\nOn ")[0]
    for row in result["arms"]:
        assert row["rule"] in table
        assert f"{row['accuracy_percent']:.2f}" in table
    assert max(map(len, table.splitlines())) <= 80
