"""The functions of `rltemp` on a small task of a user's own, and the commands of their names on one in a file."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.own_tasks import Noisy, clusters, normalised_student, own_task
from support.processes import code

import rltemp
from rltemp import BadInputError
from rltemp.cli.dispatch import parse
from rltemp.experiments.options import CompareOptions
from rltemp.integrations import Controller
from rltemp.policy.policy_file import read_policy
from rltemp.runs.functions import made
from rltemp.runs.train_policy import TrainPolicyOptions

POLICY: dict[str, Any] = {"students_per_update": 4, "replicas": 2, "updates": 1, "validation_students": 2}
FILE = """
import torch
from torch import nn

import rltemp


def make_student(seed):
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 4))


def make_teacher():
    torch.manual_seed(0)
    return nn.Linear(5, 4)


def wrong_student(seed):
    return nn.Linear(5, 3)


def make_task():
    rows = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    return rltemp.Task.of(
        name="mine", student=make_student, teacher=make_teacher, train=(rows, rows[:, :4].argmax(1)),
        optimizer="adamw", learning_rate=0.02, epochs=2, batch_size=20,
    )


def empty():
    return rltemp.Task.of(student=make_student, teacher=make_teacher, train=(torch.zeros(0, 5), torch.zeros(0).long()))


def fails():
    return {}["key"]
"""


def words(options: dict[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        yield from (f"--{name.replace('_', '-')}", str(value))


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    return found


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that was trained on students with dropout."""
    folder = tmp_path_factory.mktemp("policy")
    result = rltemp.train_policy(own_task(), folder / "p", **POLICY)
    assert read(folder / "p" / "result.json") == result
    return folder / "p" / "policy.safetensors"


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A file of a user's own in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLTEMP_CACHE", str(tmp_path / "cache"))
    name = f"mine_{abs(hash(tmp_path))}"  # a module is loaded once in a process
    (tmp_path / f"{name}.py").write_text(FILE)
    yield f"{name}.py"
    sys.modules.pop(name, None)


# From Python


def test_a_policy_of_ones_own_task_is_a_rule_in_any_loop(policy: Path) -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    found = Controller(str(policy)).temperatures(logits, 2 * logits, torch.arange(6) % 4, progress=0.5)
    assert found.student.shape == (6,)
    assert found.student.unique().numel() > 1


def test_the_same_seed_is_the_same_policy_and_another_is_another(policy: Path, tmp_path: Path) -> None:
    rltemp.train_policy(own_task(), tmp_path / "same", **POLICY)
    rltemp.train_policy(own_task(), tmp_path / "other", **POLICY, seed=1)
    same, other = (tmp_path / name / "policy.safetensors" for name in ("same", "other"))
    assert same.read_bytes() == policy.read_bytes() != other.read_bytes()


def test_the_same_seed_is_the_same_student_and_another_is_another(policy: Path, tmp_path: Path) -> None:
    results = [
        rltemp.distill(own_task(), str(policy), tmp_path / name, seed=seed)
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    ]
    first, same, other = ((tmp_path / name / "student.safetensors").read_bytes() for name in "abc")
    assert first == same != other
    assert results[0] == results[1] == read(tmp_path / "a" / "result.json")
    assert results[0]["test_accuracy"] > 0.4  # of four classes
    assert results[0]["task"]["student"] == "dropout_student"


def test_a_finished_run_is_shown_and_not_trained_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = rltemp.distill(own_task(), "fixed:2", tmp_path / "d")
    before = {
        file: (file.stat().st_mtime_ns, file.read_bytes()) for file in (tmp_path / "d").rglob("*") if file.is_file()
    }
    with caplog.at_level(logging.INFO, "rltemp"):
        assert rltemp.distill(own_task(), "fixed:2", tmp_path / "d") == first
    assert "holds this run, finished before; nothing was trained or changed." in caplog.text
    assert {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in before} == before
    assert set(before) == {file for file in (tmp_path / "d").rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 3}, "differs in: content"),
        ({"train": clusters(seed=5)}, "differs in: content"),
        ({"student": lambda: torch.nn.Linear(5, 4)}, "differs in: content"),
        ({"teacher": torch.zeros(200, 4)}, "differs in: content"),
    ],
)
def test_a_folder_is_of_one_task_by_its_content(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    rltemp.distill(own_task(), "fixed:2", tmp_path / "d")
    with pytest.raises(BadInputError) as caught:
        rltemp.distill(own_task(**change), "fixed:2", tmp_path / "d")
    assert message in str(caught.value)
    with pytest.raises(BadInputError, match="differs in: seed 0 -> 1"):
        rltemp.distill(own_task(), "fixed:2", tmp_path / "d", seed=1)


def test_a_comparison_has_a_row_for_every_rule(policy: Path, tmp_path: Path) -> None:
    rules = ["none", "fixed:1|4", "dtkd", str(policy)]
    options: dict[str, Any] = {"seeds": 3, "selection_seeds": 2, "html": False}
    result = rltemp.compare(own_task(), rules, tmp_path / "c", **options)
    assert [row["rule"] for row in result["arms"]] in (
        [*rules[:1], best, *rules[2:]] for best in ("fixed:1", "fixed:4")
    )
    assert all(row["n"] == 3 for row in result["arms"])
    assert len((tmp_path / "c" / "results.csv").read_text().splitlines()) == 1 + 3 * len(rules)
    assert (tmp_path / "c" / "report.md").is_file()
    assert rltemp.compare(own_task(), rules, tmp_path / "c", **options) == result


FREE = "fixed:temperature=2,ce_weight=0"
ROWS, LABELS = clusters()
KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "drawn": ({"train": Noisy(ROWS, LABELS), "student": normalised_student}, "fixed:2"),
    "masked": ({"train": (ROWS, LABELS.masked_fill(torch.arange(200) % 7 == 0, -100))}, "fixed:2"),
    "logits": ({"teacher": 3.0 * torch.eye(4)[LABELS], "test": None}, "fixed:2"),
    "unlabelled": ({"train": ROWS, "test": None}, FREE),
    "unlabelled logits": ({"train": ROWS, "test": None, "teacher": 3.0 * torch.eye(4)[LABELS]}, FREE),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_is_trained_and_compared_on_every_kind_of_data(kind: str, tmp_path: Path) -> None:
    parts, rule = KINDS[kind]
    task = own_task(**parts)
    rltemp.train_policy(task, tmp_path / "p", **POLICY, reference=rule)
    rules = [rule, str(tmp_path / "p" / "policy.safetensors")]
    rows = rltemp.compare(task, rules, tmp_path / "c", seeds=2, html=False)["arms"]
    assert [row["rule"] for row in rows] == rules
    assert all(row["n"] == 2 and 25 < row["accuracy_percent"] <= 100 for row in rows)


def test_what_needs_labels_is_refused_where_there_are_none(tmp_path: Path) -> None:
    task = own_task(train=ROWS, test=None)
    for work in (
        lambda: rltemp.distill(task, "dtkd", tmp_path / "o"),
        lambda: rltemp.compare(task, [FREE, "dtkd"], tmp_path / "o"),
        lambda: rltemp.train_policy(task, tmp_path / "o", **POLICY),
    ):
        with pytest.raises(BadInputError, match="needs labels, and task clusters has none: take a method without"):
            work()
        assert not (tmp_path / "o").exists()


def test_a_policy_needs_teacher_logits_of_the_samples_that_reward_it(tmp_path: Path) -> None:
    task = own_task(teacher=3.0 * torch.eye(4)[LABELS], probe=clusters(40, 3))
    with pytest.raises(BadInputError, match="leave probe out, so that it is cut from them"):
        rltemp.train_policy(task, tmp_path / "o", **POLICY)
    assert not (tmp_path / "o").exists()


def test_students_of_a_comparison_are_those_that_distill_trains(tmp_path: Path) -> None:
    compared = rltemp.compare(own_task(), ["fixed:2"], tmp_path / "c", seeds=2, html=False)
    one, two = (rltemp.distill(own_task(), "fixed:2", tmp_path / f"d{seed}", seed=seed) for seed in (0, 1))
    mean = 50 * (one["test_accuracy"] + two["test_accuracy"])
    assert compared["arms"][0]["accuracy_percent"] == pytest.approx(mean, abs=1e-4)


def test_a_policy_is_explained(policy: Path, tmp_path: Path) -> None:
    result = rltemp.explain(own_task(epochs=1), str(policy), tmp_path / "e", seeds=2, importance_seeds=1)
    assert read(tmp_path / "e" / "result.json") == result
    assert "student_margin" in (tmp_path / "e" / "why.md").read_text()


def test_a_policy_is_checked_against_its_reference_and_what_is_simple(policy: Path, tmp_path: Path) -> None:
    result = rltemp.check(own_task(), str(policy), tmp_path / "c", seeds=2)
    assert result == read(tmp_path / "c" / "result.json")
    reference = read_policy(policy).manifest.reference
    assert [row["rule"] for row in result["arms"]] == ["none", "fixed:1", reference, "fixed:4", str(policy)]
    assert result["seeds"] == 2


def test_a_policy_is_studied(policy: Path, tmp_path: Path) -> None:
    result = rltemp.study(own_task(epochs=1), [str(policy)], tmp_path / "s", seeds=2, only=("controls",), html=False)
    assert str(policy) in {row["rule"] for row in result["arms"]}
    assert len(result["arms"]) > 2


@pytest.mark.parametrize("function", ["train_policy", "distill", "check", "compare", "study", "explain"])
def test_an_unknown_option_is_answered_with_the_closest(function: str, tmp_path: Path) -> None:
    rules = {"compare": [["none"]], "study": [["none"]], "explain": ["universal"]}.get(function, [])
    with pytest.raises(BadInputError, match="unknown option 'batch_sise': did you mean 'batch_size'"):
        getattr(rltemp, function)(own_task(), *rules, out=tmp_path / "o", batch_sise=3)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("given", [{"preset": "rlkd"}, {"start_from": "universal"}])
def test_what_options_stand_for_is_the_same_from_python(given: dict[str, str]) -> None:
    words = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)]
    found = made(TrainPolicyOptions, task="toy", updates=3, **given)
    assert found == parse("train-policy", ["--task", "toy", "--updates", "3", *words])
    assert found.policy.features != TrainPolicyOptions().policy.features


def test_a_function_as_a_rule_is_told_how_it_is_named() -> None:
    with pytest.raises(BadInputError, match=r"one of your own as FILE\.py:NAME"):
        rltemp.distill("toy", lambda signals: signals)  # type: ignore[arg-type]


def test_options_reach_the_part_that_they_are_of() -> None:
    given = {"updates": 3, "learning_rate": 0.5, "clip": 2.0, "policy_learning_rate": 0.1, "policy_clip": 0.3}
    options = made(TrainPolicyOptions, task="toy", **given)
    assert (options.learning_rate, options.clip) == (0.5, 2.0)
    assert (options.policy.updates, options.policy.learning_rate, options.policy.clip) == (3, 0.1, 0.3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": (torch.zeros(0, 5), torch.zeros(0).long())}, "train is empty"),
        ({"train": (clusters()[0], clusters()[1] + 1)}, "label 4 at ["),
        ({"train": (_ for _ in ())}, "train is empty"),
        ({"student": lambda: torch.nn.Linear(5, 3)}, "answers 3 classes; teacher and labels have 4"),
        ({"student": lambda seed: {}["key"]}, "raised KeyError: 'key'"),
    ],
)
@pytest.mark.parametrize("function", ["train_policy", "distill", "check", "compare"])
def test_bad_input_is_refused_and_leaves_nothing(function: str, options: Any, message: str, tmp_path: Path) -> None:
    task, rules = own_task(**options), [["none"]] if function == "compare" else []
    with pytest.raises(BadInputError) as caught:
        getattr(rltemp, function)(task, *rules, out=tmp_path / "o")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# From the command line


def test_a_command_on_a_file_trains_the_student_that_python_trains(mine: str, tmp_path: Path) -> None:
    task = f"{mine}:make_task"
    assert code("distill", "--task", task, "--rule", "dtkd", "--seed", 2, "--out", "a") == 0
    rltemp.distill(task, "dtkd", "b", seed=2)
    rltemp.distill(sys.modules[mine.removesuffix(".py")].make_task(), "dtkd", tmp_path / "c", seed=2)
    students = {(tmp_path / folder / "student.safetensors").read_bytes() for folder in "abc"}
    assert len(students) == 1


def test_every_command_takes_a_task_of_a_file(mine: str, tmp_path: Path, capsys) -> None:
    task = ("--task", f"{mine}:make_task")
    assert code("train-policy", *task, *words(POLICY), "--out", "p") == 0
    rules = ("none", "fixed:2", "p/policy.safetensors")
    assert code("compare", *task, "--rules", *rules, "--seeds", 2, "--no-html", "--out", "c") == 0
    assert [row["rule"] for row in read(tmp_path / "c" / "result.json")["arms"]] == list(rules)
    assert code("check", *task, "--rule", rules[2], "--seeds", 2, "--out", "v") == 0
    assert code("explain", *task, "--rules", rules[2], "--seeds", 2, "--importance-seeds", 0, "--out", "e") == 0
    assert code("distill", *task, "--rule", rules[2], "--out", "d") == 0
    said = capsys.readouterr().err.splitlines()  # a teacher of one epoch is hardly better than chance
    assert all("warning: Teacher make_teacher" in line for line in said if "rltemp: " in line)
    assert code("distill", "--config", "d", "--out", "again") == 2  # a stranger's file would run its code
    assert "would import and run a module. Where that is meant, type it: --task" in capsys.readouterr().err
    assert code("distill", "--config", "d", *task, "--out", "again") == 0
    one, other = (tmp_path / folder / "student.safetensors" for folder in ("d", "again"))
    assert one.read_bytes() == other.read_bytes()


def test_a_network_of_a_file_is_a_student_of_a_built_in_task(mine: str, tmp_path: Path) -> None:
    given = ("--student", f"{mine}:make_student", "--teacher", "mlp:8", "--teacher-epochs", 2, "--epochs", 1)
    (tmp_path / mine).write_text(
        "from torch import nn\n\n\ndef make_student(seed):\n    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3))\n"
    )
    assert code("distill", "--task", "iris", *given, "--rule", "dtkd", "--out", "d") == 0
    assert read(tmp_path / "d" / "result.json")["student"] == f"{mine}:make_student"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--task", "FILE:wrong"), "has no 'wrong'"),
        (("--task", "FILE:fails"), "FILE:fails raised KeyError: 'key'. --debug shows where"),
        (("--task", "FILE:empty"), "train is empty"),
        (("--task", "missing.py:make_task"), "no file missing.py; needed: file.py:attribute"),
        (
            ("--task", "FILE:make_task", "--student", "FILE:wrong_student"),
            "answers 3 classes; teacher and labels have 4",
        ),
        (("--task", "FILE:make_task", "--teacher", "FILE:fails"), "FILE:fails raised KeyError: 'key'"),
        (("--task", "FILE:make_task", "--teacher", "gone.npy"), "teacher logits gone.npy: no such file"),
        (("--task", "FILE:make_task", "--optimizer", "adamm"), "unknown optimizer 'adamm': did you mean 'adam'"),
    ],
)
@pytest.mark.parametrize("command", ["distill", "train-policy", "compare"])
def test_a_mistake_is_one_line_and_leaves_nothing(command, options, message, mine, tmp_path, capsys):
    given = [word.replace("FILE", mine) for word in options]
    before = {path for path in tmp_path.iterdir() if path.name != "__pycache__"}
    assert code(command, *given, "--out", "o") == 2
    said = capsys.readouterr().err
    assert said.startswith("rltemp: ")
    assert message.replace("FILE", mine) in said
    assert said.count("\n") == 1
    assert {path for path in tmp_path.iterdir() if path.name != "__pycache__"} == before


def test_debug_shows_where_the_users_code_failed(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code("distill", "--task", f"{mine}:fails", "--out", "o", "--debug") == 2
    said = capsys.readouterr().err
    assert 'return {}["key"]' in said
    assert "KeyError: 'key'" in said


def test_a_grid_whose_files_have_changed_is_not_shown_as_finished(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    nets = tmp_path / "grid_nets.py"
    nets.write_text(
        "from torch import nn\n\n\ndef make(seed):\n    return nn.Sequential(nn.Flatten(), nn.Linear(13, 3))\n"
    )
    options = CompareOptions(tasks=("wine",), students=("mlp:4", "grid_nets.py:make"))
    before = options.content
    monkeypatch.delitem(sys.modules, "grid_nets")
    nets.write_text(nets.read_text().replace("nn.Linear(13, 3)", "nn.Linear(13, 3, bias=False)"))
    assert before
    assert replace(options).content != before
    assert CompareOptions(tasks=("wine", "iris"), students=("mlp:4", "mlp:3")).content == ""
