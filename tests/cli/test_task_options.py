"""Optimisers, schedules and batch sizes on the command line: taken, written down, kept by the next command, refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.pictures import write_folder
from support.processes import code

from rltemp.cli.dispatch import parse
from rltemp.data.tasks import load_task
from rltemp.loading import load_method
from rltemp.training.distill import Distillation
from rltemp.training.preparation import prepare
from rltemp.training.steps import train

WORDS = (
    *("--task", "toy", "--epochs", 1, "--optimizer", "AdamW", "--learning-rate", 0.01, "--weight-decay", 0.1),
    *("--schedule", "linear", "--warmup", 0.1, "--clip", 1.5, "--accumulate", 2, "--ema", 0.5),
    *("--label-smoothing", 0.1),
)
FIELDS = {
    "optimizer": "adamw",
    "learning_rate": 0.01,
    "weight_decay": 0.1,
    "schedule": "linear",
    "warmup": 0.1,
    "clip": 1.5,
    "accumulate": 2,
    "ema": 0.5,
    "label_smoothing": 0.1,
}
TEACHER = (
    *("--teacher", "mlp:8", "--teacher-epochs", 1, "--teacher-batch-size", 20, "--teacher-optimizer", "adamw"),
    *("--teacher-learning-rate", 0.01, "--teacher-weight-decay", 0.2, "--teacher-schedule", "constant"),
)


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr().err
    assert said.startswith("rltemp: ")
    assert said.count("\n") == 1
    return said


def test_a_students_recipe_is_taken_and_stands_in_every_file(tmp_path: Path, capsys) -> None:
    assert code("distill", *WORDS, "--out", tmp_path / "d") == 0
    config, recipe = read(tmp_path / "d" / "config.json"), read(tmp_path / "d" / "result.json")["task"]["recipe"]
    assert {name: recipe[name] for name in FIELDS} == FIELDS
    assert {name: config[name] for name in FIELDS} == {**FIELDS, "optimizer": "AdamW"}
    again = next(line for line in capsys.readouterr().out.splitlines() if "rltemp compare" in line)
    for word in ("--optimizer AdamW", "--warmup 0.1", "--clip 1.5", "--accumulate 2", "--label-smoothing 0.1"):
        assert word in again
    assert parse("distill", ["--config", str(tmp_path / "d")]).clip == 1.5
    assert code("distill", *WORDS, "--ema", 0.6, "--out", tmp_path / "d") == 2
    assert "differs in: ema 0.5 -> 0.6" in one_line(capsys)


def test_the_saved_student_is_the_running_mean_that_python_gets_too(tmp_path: Path) -> None:
    assert code("distill", *WORDS, "--rule", "fixed:4", "--out", tmp_path / "d") == 0
    run = Distillation(prepare(load_task("toy", epochs=1, **FIELDS)), 0)
    train(run, load_method("fixed:4"))
    saved = load_file(tmp_path / "d" / "student.safetensors")
    for name, value in run.evaluated.state_dict().items():
        assert torch.equal(saved[name], value)
        assert not torch.equal(saved[name], run.student.state_dict()[name])


def test_a_teachers_recipe_is_taken_and_makes_it_another_teacher(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RLTEMP_CACHE", str(tmp_path / "cache"))
    base = ("train-teacher", "--task", "iris")
    for number, words in enumerate((TEACHER[:4], TEACHER)):
        assert code(*base, *words, "--out", tmp_path / f"t{number}") == 0
    assert len(list((tmp_path / "cache" / "teachers").glob("*.safetensors"))) == 2
    assert code("distill", "--task", "iris", "--epochs", 1, *TEACHER, "--out", tmp_path / "d") == 0
    recipe = read(tmp_path / "d" / "result.json")["task"]["teacher_recipe"]
    wanted = {"optimizer": "adamw", "batch_size": 20, "weight_decay": 0.2, "schedule": "constant"}
    assert {name: recipe[name] for name in wanted} == wanted
    assert len(list((tmp_path / "cache" / "teachers").glob("*.safetensors"))) == 2


def test_a_policys_options_have_names_of_their_own(tmp_path: Path) -> None:
    options = parse("train-policy", ["--clip", "1.5", "--policy-clip", "0.1"])
    assert (options.clip, options.policy.clip) == (1.5, 0.1)
    both = parse("train-policy", ["--normalise", "half", "--no-policy-normalise"])
    assert (both.normalise, both.policy.normalise) == ("half", False)
    names = {"clip": 0.3, "students": 16, "tasks": 2, "normalise": False}  # as earlier versions wrote them
    (tmp_path / "old.json").write_text(json.dumps(names))
    old = parse("train-policy", ["--config", str(tmp_path / "old.json")])
    assert (old.clip, old.policy.clip) == (None, 0.3)
    assert (old.policy.students_per_update, old.policy.tasks_per_update) == (16, 2)
    assert (old.normalise, old.policy.normalise) == (None, False)


# Small data


@pytest.fixture
def flowers(tmp_path: Path) -> str:
    """A folder of 60 pictures to train on, fewer than a batch of the task has."""
    counts = {"cat": 30, "dog": 30}
    return f"imagefolder:{write_folder(tmp_path / 'flowers', {'train': counts, 'test': counts})}"


def test_small_data_get_batches_that_they_fill_and_one_line_says_so(flowers, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RLTEMP_CACHE", str(tmp_path / "cache"))
    small = ("--task", flowers, "--teacher", "mlp:4", "--student", "mlp:2", "--epochs", 1, "--teacher-epochs", 1)
    assert code("distill", *small, "--out", tmp_path / "d") == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "batches are smaller" in line]
    assert len(said) == 1
    assert "--batch-size 8 (by default 128), --teacher-batch-size 8 (by default 128)" in said[0]
    task = read(tmp_path / "d" / "result.json")["task"]
    assert (task["recipe"]["batch_size"], task["teacher_recipe"]["batch_size"]) == (8, 8)
    assert code("compare", "--no-html", *small, "--seeds", 1, "--rules", "none", "--out", tmp_path / "c") == 0
    assert code("distill", *small, "--batch-size", 16, "--out", tmp_path / "e") == 0
    assert read(tmp_path / "e" / "result.json")["task"]["recipe"]["batch_size"] == 16


@pytest.mark.parametrize("network", ["student", "teacher"])
@pytest.mark.parametrize("command", ["distill", "train-policy", "compare", "train-teacher"])
def test_a_batch_that_is_too_large_says_whose_it_is(network, command, flowers, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RLTEMP_CACHE", str(tmp_path / "cache"))
    option = {"student": "--batch-size", "teacher": "--teacher-batch-size"}[network]
    assert code(command, "--task", flowers, option, 500, "--out", tmp_path / "o") == 2
    said = one_line(capsys)
    assert f"batch size 500 of the {network} is above the" in said
    assert f"give {option} " in said
    assert not (tmp_path / "o").exists()
    assert not (tmp_path / "cache").exists()


# What cannot be


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--optimizer", "adamm"), "unknown optimizer 'adamm': did you mean 'adam'"),
        (("--optimizer", "lbfgs"), "optimizer lbfgs needs a closure"),
        (
            ("--optimizer", "sparseadam"),
            "optimizer sparseadam cannot train a network: SparseAdam does not support",
        ),
        (("--optimizer", "muon"), "optimizer muon cannot be made: Muon only supports 2D parameters"),
        (("--optimizer", "adamw", "--momentum", 0.9), "optimizer adamw takes no momentum; leave it out"),
        (("--teacher-optimizer", "adamm"), "unknown optimizer 'adamm'"),
        (("--ema", 1), "recipe: ema must be in [0, 1); got 1.0"),
        (("--clip", 0), "recipe: clip must be finite and above 0"),
        (("--accumulate", 0), "recipe: accumulate must be a whole number of 1 or more"),
        (("--warmup", "nan"), "recipe: warmup must be in [0, 1); got nan"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_is_trained(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RLTEMP_CACHE", str(tmp_path / "cache"))
    assert code("distill", "--task", "iris", *words, "--out", tmp_path / "o") == 2
    assert message in one_line(capsys)
    assert not (tmp_path / "o").exists()
    assert not (tmp_path / "cache").exists()


def test_a_policy_trains_one_by_one_where_the_optimizer_needs_that(tmp_path: Path) -> None:
    words = ("--task", "toy", "--epochs", 1, "--optimizer", "adafactor", "--students-per-update", 2, "--replicas", 2)
    assert code("train-policy", *words, "--updates", 1, "--validation-students", 2, "--out", tmp_path / "p") == 0
    assert (tmp_path / "p" / "policy.safetensors").is_file()


def test_a_comparison_trains_one_by_one_where_the_optimizer_needs_that(tmp_path: Path) -> None:
    words = ("--task", "toy", "--epochs", 1, "--optimizer", "adafactor", "--learning-rate", 0.01, "--seeds", 2)
    assert code("compare", "--no-html", *words, "--rules", "none", "--out", tmp_path / "c") == 0
    assert len((tmp_path / "c" / "results.csv").read_text().splitlines()) == 3
