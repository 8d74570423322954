"""`compare` and `study` lose nothing: killed and started again they end as if they had not been, result by result."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.policies import sloped_policy as policy
from support.processes import Process, code, start, until
from support.results import COMPARE, COMPARE_SIZE, QUICK, STUDY, STUDY_SIZE, cells_of, contents, shares
from torch import nn

from rltemp.data.problem import Problem
from rltemp.data.tasks import load_task
from rltemp.errors import BadInputError
from rltemp.experiments.compare import compare
from rltemp.experiments.result_cache import CachedResult, ResultCache, TrainedStack
from rltemp.loading import SHIPPED
from rltemp.training.identity import fingerprints, problem_identity, rule_identity
from rltemp.training.preparation import prepare


@pytest.fixture(scope="module")
def toy_once() -> Problem:
    return prepare(load_task("toy", epochs=1))


def kill_at(process: Process, out: Path, results: int, wait: float) -> None:
    """Kill a run some time after it has this many results."""
    until(lambda: len(cells_of(out)) >= results, 120)
    time.sleep(wait)
    process.send(signal.SIGKILL)
    process.finish()


LONG = (*COMPARE, "--seeds", "40", "--selection-seeds", "8", "--stack", "2")


@pytest.mark.parametrize(
    ("words", "kills", "seed"),
    [
        pytest.param((*COMPARE, *COMPARE_SIZE), 1, 1, id="compare, once"),
        pytest.param(LONG, 3, 3, id="compare", marks=pytest.mark.faults),
        pytest.param((*STUDY, *STUDY_SIZE), 3, 5, id="study", marks=pytest.mark.faults),
        pytest.param((*LONG, "--workers", "2"), 3, 7, id="workers", marks=pytest.mark.faults),
    ],
)
@pytest.mark.faults
def test_a_run_that_was_killed_at_random_moments_ends_with_the_same_bytes(words, kills, seed, tmp_path, capsys):
    """Run to the end, and again with kills: the same bytes, and no result trained twice."""
    out, whole, drawn = tmp_path / "run", tmp_path / "whole", random.Random(seed)
    alone = words[:-2] if "--workers" in words else words
    assert code(*alone, "--out", out) == 0
    total = len(cells_of(out))
    out.rename(whole)  # the report holds the command and so the folder's name
    done: dict[str, tuple[int, int]] = {}
    for part in range(kills):
        share = 0.8 * total / kills  # the last kill leaves some to do
        target = max(int(drawn.uniform(part, part + 1) * share), len(done) + 1)
        kill_at(start(*words, "--out", out), out, target, drawn.uniform(0, 0.05))
        now = cells_of(out)
        assert done.items() <= now.items(), "a finished result was written again"
        assert len(done) < len(now) < total
        assert not (out / "result.json").exists()
        done = now
    capsys.readouterr()
    assert code(*words, "--out", out) == 0
    said = capsys.readouterr().out
    assert shares(said) == (len(done), total - len(done))
    assert done.items() <= cells_of(out).items()
    assert contents(out) == contents(whole)


def unfinished(out: Path) -> None:
    """As a run is left that was stopped at its very end."""
    for name in ("result.json", "results.csv", "report.md", "picture.png"):
        (out / name).unlink()


RUNS = [
    pytest.param((*COMPARE, "--seeds", "3", "--selection-seeds", "2"), id="compare"),
    pytest.param((*STUDY, *STUDY_SIZE), id="study", marks=pytest.mark.faults),
]


@pytest.mark.parametrize("words", RUNS)
def test_what_has_all_its_results_trains_nothing_and_records_nothing(words: tuple[str, ...], tmp_path: Path, capsys):
    out = tmp_path / "run"
    assert code(*words, "--out", out) == 0
    assert "Training under" in capsys.readouterr().out
    before, results = contents(out), cells_of(out)
    unfinished(out)
    assert code(*words, "--out", out) == 0
    said = capsys.readouterr().out
    assert shares(said) == (len(results), 0)
    assert "Training under" not in said
    assert "Recording" not in said
    assert contents(out) == before
    assert cells_of(out) == results


@pytest.mark.faults
def test_a_study_gone_on_with_makes_the_same_controls_from_a_new_recording(tmp_path: Path, capsys):
    out = tmp_path / "s"
    assert code(*STUDY, *STUDY_SIZE, "--out", out) == 0
    before, lost = contents(out), []
    unfinished(out)
    for path in sorted((out / "cells").glob("*.json")):
        if '"marginal"' in path.read_text():
            lost.append(path)
            path.unlink()
    capsys.readouterr()
    assert code(*STUDY, *STUDY_SIZE, "--out", out) == 0
    said = capsys.readouterr().out
    assert len(lost) == 2
    assert shares(said)[1] == 2
    assert said.count("Recording universal.") == 1
    assert contents(out) == before


@pytest.mark.parametrize("option", ["--fresh", "--no-only-missing"])
def test_an_unfinished_run_trains_all_results_again_where_asked(option: str, tmp_path: Path, capsys):
    words = (*QUICK, "--rules", "none", "--seeds", "2", "--out", tmp_path / "c")
    assert code(*words) == 0
    before, results = contents(tmp_path / "c"), cells_of(tmp_path / "c")
    unfinished(tmp_path / "c")
    assert code(*words, option) == 0
    assert contents(tmp_path / "c") == before
    anew = cells_of(tmp_path / "c")
    assert anew.keys() == results.keys()
    assert all(anew[name] != results[name] for name in results)


def test_a_damaged_result_is_named_and_trained_again(tmp_path: Path, capsys, caplog):
    out = tmp_path / "c"
    words = (*QUICK, "--rules", "none", "universal", "--seeds", "2", "--out", out)
    assert code(*words) == 0
    before = contents(out)
    unfinished(out)
    first = min((out / "cells").glob("*.json"))
    first.write_bytes(first.read_bytes()[:-100])
    capsys.readouterr()
    assert code(*words) == 0
    said = capsys.readouterr()
    assert f"Cached result {first} is refused and trained again" in said.err + caplog.text
    assert shares(said.out) == (1, 1)
    assert contents(out) == before


def test_a_policy_that_was_changed_is_noticed_by_runs_finished_or_not(tmp_path: Path, capsys):
    out, file = tmp_path / "c", policy(tmp_path / "p.safetensors", 1.0)
    rules = ("fixed:4", file, f"matched:{file}")
    words = (*QUICK, "--rules", *rules, "--seeds", "2", "--out", out)
    assert code(*words) == 0
    before, results = contents(out), cells_of(out)
    policy(file, -1.0)
    capsys.readouterr()
    assert code(*words) == 2
    said = capsys.readouterr()
    assert "finished before" not in said.out
    assert said.err.count("\n") == 1
    assert f"{file} was changed" in said.err
    assert str(out) in said.err
    assert contents(out) == before

    unfinished(out)
    assert code(*words) == 0
    assert shares(capsys.readouterr().out) == (1, 2)
    assert results.items() <= cells_of(out).items()
    assert contents(out)["results.csv"] != before["results.csv"]

    policy(file, 1.0)
    unfinished(out)
    assert code(*words) == 0
    assert shares(capsys.readouterr().out) == (3, 0), "the first policy's results are there as well"
    assert contents(out)["results.csv"] == before["results.csv"]


def test_a_policy_counts_by_its_content_wherever_it_lies(tmp_path: Path, capsys):
    out, other = tmp_path / "c", tmp_path / "elsewhere.safetensors"
    shutil.copyfile(SHIPPED["universal"], other)
    words = (*QUICK, "--seeds", "2", "--against", "none", "--out", out)
    assert code(*words, "--rules", "none", "universal", f"matched:{other}", "matched:universal") == 0
    assert len(cells_of(out)) == 3
    rows = (out / "results.csv").read_text().splitlines()[5:]
    assert [line.split(",")[4:] for line in rows[:2]] == [line.split(",")[4:] for line in rows[2:]]


def test_a_policy_that_changes_during_the_comparison_stops_it(toy_once: Problem, tmp_path: Path):
    file = policy(tmp_path / "p.safetensors", 1.0)
    cache = ResultCache(tmp_path / "cells")

    def on_progress(rule: str, step: int, steps: int) -> None:
        if rule != "none" and step % (steps // 2) == 5:
            policy(file, -1.0)

    with pytest.raises(BadInputError, match="was changed: what was trained before is of another file"):
        compare(toy_once, ["none", str(file)], [0], on_progress=on_progress, cache=cache)
    assert cache.trained == 1, "the result of two policies is not kept"


def test_what_a_strangers_result_names_is_neither_read_nor_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    marker, package = tmp_path / "marker", tmp_path / "package_of_a_stranger"
    package.mkdir()
    (package / "__init__.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    out = tmp_path / "c"
    words = (*QUICK, "--rules", "none", "--seeds", "2", "--out", out)
    assert code(*words) == 0
    stored = json.loads((out / "result.json").read_text())
    assert stored["files"] == {}
    for files in ({"package_of_a_stranger.part:rule": "ab", str(tmp_path / "p.zip"): "cd"}, ["none"], "none", None):
        (out / "result.json").write_text(json.dumps({**stored, "files": files}))
        assert code(*words) == 0
    assert not marker.exists()


def test_a_rule_of_ones_own_counts_by_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = tmp_path / "own_rule_of_a_test.py"
    source.write_text("from rltemp import uniform\n\ndef rule(signals):\n    return uniform(signals, 2.0)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "own_rule_of_a_test:rule"
    first = rule_identity(f"matched:{name}", fingerprints([f"matched:{name}"]))
    source.write_text(source.read_text().replace("2.0", "3.0"))
    second = rule_identity(f"matched:{name}", fingerprints([f"matched:{name}"]))
    assert first[0] == second[0] == f"matched:{name}"
    assert first[1] != second[1]
    assert rule_identity("matched:fixed:4", fingerprints(["matched:fixed:4"])) == ["matched:fixed:4"]


def test_what_determines_a_student_is_in_its_key(toy_once: Problem, make_problem):
    first = problem_identity(toy_once)
    assert problem_identity(prepare(load_task("toy", epochs=1))) == first
    for changed in (load_task("toy", epochs=2), load_task("toy", epochs=1, split_seed=1)):
        assert problem_identity(prepare(changed)) != first
    images, labels = torch.rand(4, 1, 2, 2), torch.arange(4)
    own = [problem_identity(make_problem(images, labels, teacher_logits=torch.full((4, 4), x))) for x in (0.0, 1.0)]
    assert own[0]["teacher"] != own[1]["teacher"]
    half = [problem_identity(replace(toy_once, teacher=nn.Linear(2, 2).to(torch.bfloat16))) for _ in range(2)]
    assert half[0]["teacher"] != half[1]["teacher"]


def rewritten(path: Path, **changes: Any) -> None:
    """Change a stored result, as training it elsewhere would have."""
    file = json.loads(path.read_text())
    result = CachedResult.model_validate(file["cell"]).model_copy(update=changes)
    ResultCache(path.parent, allow_mixed=True).write(file["key"], TrainedStack(result))


@pytest.fixture
def unlike(tmp_path: Path) -> tuple[Path, tuple[object, ...]]:
    """The folder of two methods' results that are not finished, and the command."""
    words = (*QUICK, "--rules", "none", "fixed:4", "--seeds", "2", "--out", tmp_path / "c")
    assert code(*words) == 0
    unfinished(tmp_path / "c")
    return tmp_path / "c", words


def test_results_of_other_versions_are_refused_or_marked(unlike: tuple[Path, tuple[object, ...]], capsys):
    out, words = unlike
    rewritten(max((out / "cells").glob("*.json")), versions={"rltemp": "0.0.9", "torch": "1.9"})
    before = cells_of(out)
    capsys.readouterr()
    assert code(*words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "1 of rltemp 0.0.9, torch 1.9; here: rltemp" in error
    assert "--allow-mixed" in error
    assert cells_of(out) == before

    assert code(*words, "--allow-mixed") == 0
    assert shares(capsys.readouterr().out) == (2, 0)
    notes = [one["note"] for one in json.loads((out / "result.json").read_text())["arms"]]
    assert any("compared although versions differ (rltemp" in note for note in notes)
    assert "compared although versions differ" in (out / "report.md").read_text()


def test_a_degraded_method_is_not_compared(unlike: tuple[Path, tuple[object, ...]], capsys):
    out, words = unlike
    (path,) = [path for path in (out / "cells").glob("*.json") if '"rule":["none"]' in path.read_text()]
    rewritten(path, degraded=True)
    assert code(*words) == 0
    methods = {one["rule"]: one for one in json.loads((out / "result.json").read_text())["arms"]}
    assert methods["none"]["note"] == "not compared: none is degraded"
    assert methods["none"]["differences_points"]["fixed:4"]["mean"] is None
    capsys.readouterr()
    assert code(*words) == 0, "and the finished result is shown as it is"
    assert "not compared: none is degraded" in capsys.readouterr().out


def test_a_stack_larger_than_a_result_is_refused(tmp_path: Path, capsys):
    words = (*QUICK, "--rules", "none", "--seeds", "2", "--stack", "4096")
    assert code(*words, "--out", tmp_path / "c") == 2
    assert "at most 2048 students" in capsys.readouterr().err
