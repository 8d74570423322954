"""A comparison grows by seeds and rules in its folder: what it has is kept, and only what is missing is trained."""

from __future__ import annotations

import csv
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from support.policies import random_policy
from support.processes import Process, code, until

import rltemp
import rltemp.compiling.mode
from rltemp.cli.dispatch import parse
from rltemp.compiling.mode import CompileMode
from rltemp.data.problem import Problem
from rltemp.experiments.compare import compare
from rltemp.experiments.result_cache import ResultCache
from rltemp.io.locks import hold, release

WORDS = ("--task", "toy", "--epochs", 1, "--no-html")


def run(out: Path, *words: object) -> int:
    return code("compare", *WORDS, *words, "--out", out)


def rows(out: Path) -> dict[tuple[str, str], dict[str, str]]:
    """The lines of `results.csv` by rule and seed."""
    return {(row["rule"], row["seed"]): row for row in csv.DictReader((out / "results.csv").read_text().splitlines())}


def contents(out: Path) -> dict[Path, tuple[int, bytes]]:
    """Every file's time and bytes."""
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob("*") if path.is_file()}


def result(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "result.json").read_text())
    return found


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A finished comparison of two rules and three seeds."""
    assert run(tmp_path / "c", "--rules", "none", "fixed:4", "--seeds", 3) == 0
    return tmp_path / "c"


def test_more_seeds_and_rules_are_added_and_what_was_there_stays(small: Path, capsys: pytest.CaptureFixture[str]):
    before, cells = rows(small), contents(small / "cells")
    capsys.readouterr()
    assert run(small, "--rules", "none", "fixed:1|2", "fixed:4", "--seeds", 5, "--selection-seeds", 32) == 0
    said = capsys.readouterr().out
    assert f"{small} holds a part of this comparison" in said
    assert (
        "2 of 7 results were cached; 5 were trained now." in said
    )  # two choose, two are second stacks, one is the rule's
    after = rows(small)
    assert len(after) == 15
    assert all(after[key] == row for key, row in before.items())
    assert contents(small / "cells").items() >= cells.items()
    assert (result(small)["seeds"], json.loads((small / "config.json").read_text())["seeds"]) == ([0, 1, 2, 3, 4], 5)
    text = (small / "report.md").read_text()
    assert "--seeds 5" in text
    finished = contents(small)
    assert run(small, "--rules", "none", "fixed:1|2", "fixed:4", "--seeds", 5) == 0  # shown
    assert contents(small) == finished
    assert run(small, "--rules", "none", "fixed:1|2", "fixed:4", "--seeds", 6) == 0  # and once more
    assert contents(small / "cells").items() >= cells.items()
    assert len(rows(small)) == 18


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--rules", "none", "fixed:4", "--seeds", 2), "seeds 3 -> 2"),
        (("--rules", "none", "--seeds", 5), "-> absent, seeds 3 -> 5"),
        (("--rules", "none", "fixed:4", "dtkd", "--seeds", 3, "--learning-rate", 0.1), "learning_rate null -> 0.1"),
        (("--rules", "none", "fixed:4", "--seeds", 3, "--against", "none"), "against"),
        (("--rules", "fixed:4", "none", "--seeds", 3), "rules[0]"),
        (("--rules", "none", "fixed:4", "--seeds", 5, "--first-seed", 1), "first_seed 0 -> 1"),
        (("--rules", "none", "fixed:4", "dtdk", "--seeds", 3), "did you mean 'dtkd'"),
        (("--rules", "none", "fixed:4", "dtkd", "--seeds", 3, "--against", "fixed:5"), "did you mean 'fixed:4'"),
    ],
)
def test_what_adds_nothing_or_cannot_be_leaves_all_as_it_is(words, said, small: Path, capsys):
    before = contents(small)
    capsys.readouterr()
    assert run(small, *words) == 2
    assert said in capsys.readouterr().err
    assert contents(small) == before


def test_a_folder_that_another_process_works_in_does_not_grow(small: Path) -> None:
    before, ready = contents(small), small.parent / "ready"

    def work() -> None:
        hold(small)
        ready.touch()
        time.sleep(60)

    other = Process(work)
    until(ready.exists)
    try:
        assert run(small, "--rules", "none", "fixed:4", "--seeds", 4) == 2
    finally:
        other.send(signal.SIGKILL)
        other.finish()
    assert contents(small).items() >= before.items()


def test_a_growth_that_was_stopped_goes_on(small: Path, tmp_path: Path) -> None:
    grown = ("--rules", "none", "fixed:4", "dtkd", "--seeds", "4")
    options = parse("compare", [*map(str, WORDS), *grown, "--out", str(small)])
    assert options.open() is None  # and here the process is killed
    release(small)
    assert not (small / "result.json").exists()
    cells = contents(small / "cells")
    assert run(small, *grown) == 0
    assert contents(small / "cells").items() >= cells.items()
    assert len(rows(small)) == 12


def test_a_policy_in_front_leaves_the_traced_one_as_it_is(tmp_path: Path) -> None:
    out, policy = tmp_path / "c", random_policy(tmp_path / "policy.safetensors")
    assert run(out, "--rules", "none", "universal", "--seeds", 2) == 0
    cells = contents(out / "cells")
    assert run(out, "--rules", "none", policy, "universal", "--seeds", 2) == 0
    assert contents(out / "cells").items() >= cells.items()
    assert len(contents(out / "cells")) == len(cells) + 1


def test_python_adds_to_a_comparison_too(tmp_path: Path) -> None:
    options = {"out": tmp_path / "c", "epochs": 1, "html": False}
    rltemp.compare("toy", ["none"], seeds=2, **options)
    found = rltemp.compare("toy", ["none", "fixed:4"], seeds=3, **options)
    assert [(one["rule"], one["n"]) for one in found["arms"]] == [("none", 3), ("fixed:4", 3)]


def test_students_that_train_alone_are_added_one_by_one(tmp_path: Path) -> None:
    assert run(tmp_path / "c", "--rules", "none", "--seeds", 2, "--stack", 1) == 0
    cells = contents(tmp_path / "c" / "cells")
    assert run(tmp_path / "c", "--rules", "none", "--seeds", 3, "--stack", 1) == 0
    assert len(contents(tmp_path / "c" / "cells")) == len(cells) + 1 == 3


def test_results_of_plain_steps_are_kept_where_more_would_be_compiled(tmp_path: Path, toy: Problem) -> None:
    def grown(seeds: int, mode: CompileMode) -> ResultCache:
        cache = ResultCache(tmp_path)
        compare(toy, ["none"], range(seeds), stack=2, cache=cache, compile_mode=mode)
        return cache

    grown(2, "never")
    with pytest.MonkeyPatch.context() as enough:
        enough.setattr(rltemp.compiling.mode, "ENOUGH", 1)
        found = grown(4, "auto")
    assert (found.found, found.trained) == (1, 1)
    assert grown(4, "never").trained == 1  # a mode that was asked for takes no other's results
