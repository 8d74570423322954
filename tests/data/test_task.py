"""`Task.of`: every kind of student, teacher and option, and the built-in tasks, which it makes too."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.own_tasks import CLASSES, FEATURES, clusters, dropout_student, own_task, trained_teacher
from torch import nn

from rltemp import BadInputError, Task
from rltemp.data.task import Own
from rltemp.data.tasks import TASKS, load_task
from rltemp.models.weight_files import save_weights

PARTS: dict[str, Any] = {"student": "mlp:4", "teacher": "mlp:8", "train": clusters()}
FILE = """
import torch
from torch import nn

import rltemp

def make_net(seed):
    return nn.Linear(5, 4 + seed)

def trained():
    return nn.Linear(5, 4)

def fails():
    return 1 / 0

def make_task():
    return rltemp.Task.of(name="mine", student=make_net, teacher=trained, train=torch.zeros(40, 5), epochs=3)

number = 3
"""


class Net(nn.Linear):
    def __init__(self) -> None:
        super().__init__(FEATURES, CLASSES)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file of a user's own, in the working folder."""
    monkeypatch.chdir(tmp_path)
    name = f"file_of_{tmp_path.name}"  # a module is loaded once
    (tmp_path / f"{name}.py").write_text(FILE)
    return f"{name}.py"


# Students


@pytest.mark.parametrize(
    ("student", "name"),
    [
        (dropout_student, "dropout_student"),
        (lambda: Net(), "<lambda>"),
        (Net, "Net"),
        (Net(), "Net"),
        (partial(nn.Linear, FEATURES, CLASSES), "partial"),
    ],
)
def test_a_student_is_a_function_a_class_or_a_network(student: Any, name: str) -> None:
    task = Task.of(**PARTS | {"student": student})
    assert task.student == name
    first, second = task.own.student(0), task.own.student(1)
    assert first is not second
    assert first(clusters()[0]).shape == (200, CLASSES)


def test_a_built_in_student_is_its_name() -> None:
    task = Task.of(**PARTS)
    assert (task.student, task.teacher, task.own.student, task.own.teacher) == ("mlp:4", "mlp:8", None, None)


def test_a_student_of_a_file_is_found_by_its_name(file: str) -> None:
    task = Task.of(**PARTS | {"student": f"{file}:make_net"})
    assert task.student == f"{file}:make_net"
    assert task.own.student(2).out_features == 6


# Teachers


def test_a_trained_network_and_a_function_that_returns_one_are_known() -> None:
    network = Net()
    for teacher in (network, lambda: network):
        task = Task.of(**PARTS | {"teacher": teacher})
        assert task.own.known_teacher is network
        assert task.own.teacher is None


@pytest.mark.parametrize("teacher", [Net, dropout_student, lambda seed=0: Net()])
def test_a_class_or_a_function_of_a_seed_is_trained(teacher: Any) -> None:
    task = Task.of(**PARTS | {"teacher": teacher})
    assert task.own.known_teacher is None
    assert isinstance(task.own.teacher(3), nn.Module)


def test_logits_are_given_as_a_tensor_an_array_or_a_file(tmp_path: Path) -> None:
    logits = torch.randn(200, CLASSES, dtype=torch.float64)
    np.save(tmp_path / "logits.npy", logits.numpy())
    torch.save(logits, tmp_path / "logits.pt")
    save_weights(nn.ParameterDict({"logits": nn.Parameter(logits)}), tmp_path / "logits.safetensors", {})
    files = [tmp_path / f"logits{suffix}" for suffix in (".npy", ".pt", ".safetensors")]
    for teacher in (logits, logits.numpy(), *files, *map(str, files)):
        task = Task.of(**PARTS | {"teacher": teacher})
        assert torch.equal(task.own.known_teacher, logits.float())
        assert task.own.known_teacher.dtype == torch.float32
        assert task.teacher == (Path(teacher).name if isinstance(teacher, (str, Path)) else type(teacher).__name__)


def test_another_teacher_takes_the_place_of_the_one_there_was() -> None:
    task = own_task()
    assert load_task(task, teacher="mlp:3").own == Own(task.own.data, task.own.student, None, None)
    seeded = load_task(task, teacher=dropout_student)
    assert seeded.own.known_teacher is None
    assert load_task(seeded, teacher=Net()).own.teacher is None
    assert load_task(task, student="mlp:3").own.student is None


def test_a_teacher_of_a_file_is_found_by_its_name(file: str) -> None:
    known, trained = (Task.of(**PARTS | {"teacher": f"{file}:{name}"}) for name in ("trained", "make_net"))
    assert isinstance(known.own.known_teacher, nn.Linear)
    assert known.teacher == f"{file}:trained"
    assert trained.own.known_teacher is None
    assert trained.own.teacher(1).out_features == 5


# Options


def test_options_are_fields_of_the_task_or_of_its_recipes() -> None:
    task = Task.of(
        **PARTS,
        name="mine",
        metric="accuracy",
        split_seed=3,
        teacher_seed=4,
        epochs=7,
        optimizer=partial(torch.optim.AdamW, lr=0.3, weight_decay=0.2),
        clip=1.0,
        teacher_epochs=9,
        teacher_optimizer="adamw",
    )
    assert (task.name, task.metric, task.split_seed, task.teacher_seed) == ("mine", "accuracy", 3, 4)
    assert (task.recipe.epochs, task.recipe.learning_rate, task.recipe.clip) == (7, 0.3, 1.0)
    assert (task.teacher_recipe.epochs, task.teacher_recipe.optimizer, task.teacher_recipe.clip) == (9, "adamw", None)


def test_defaults_are_those_of_the_page() -> None:
    task = Task.of(**PARTS)
    assert (task.name, task.metric, task.split_seed) == ("own", None, 0)
    assert (task.recipe.epochs, task.recipe.batch_size, task.recipe.learning_rate) == (10, 64, 0.05)
    assert (task.recipe.optimizer, task.recipe.schedule, task.recipe.ema) == ("sgd", "cosine", 0.0)


def test_what_a_result_says_of_it_is_json_without_the_users_objects() -> None:
    said = own_task(optimizer=partial(torch.optim.AdamW, lr=0.3), learning_rate=None).described()
    assert json.loads(json.dumps(said)) == said
    assert (said["name"], said["student"], said["teacher"]) == ("clusters", "dropout_student", "Sequential")
    assert (said["recipe"]["optimizer"], said["recipe"]["learning_rate"]) == ("adamw", 0.3)
    assert "own" not in said


# Data


def test_data_are_made_when_they_are_asked_for_and_kept() -> None:
    reads = []

    def items() -> Any:
        reads.append(1)
        return zip(*clusters(), strict=True)

    class Lazy:
        def __iter__(self) -> Any:
            return items()

    task = Task.of(**PARTS | {"train": Lazy()})
    assert reads == []
    dataset = task.own.data(0)
    assert load_task(task, epochs=3).own.data(0) is dataset
    assert reads == [1]
    other = task.own.data(1)
    assert not torch.equal(other.cut_at["train"], dataset.cut_at["train"])


def test_a_data_set_with_a_name_keeps_its_splits_and_takes_own_networks() -> None:
    task = Task.of(student=dropout_student, teacher=trained_teacher(), train="iris", epochs=2)
    assert (task.name, task.own.data) == ("iris", None)
    with pytest.raises(BadInputError, match="data set 'iris' has its own splits; leave test, validation and probe out"):
        Task.of(student="mlp:4", teacher="mlp:8", train="iris", probe=clusters())


# Built-in tasks, and tasks of a file


@pytest.mark.parametrize("name", TASKS)
def test_a_built_in_task_is_what_the_constructor_makes_of_its_parts(name: str) -> None:
    task = TASKS[name]
    made = Task.of(
        student=task.student,
        teacher=task.teacher,
        train=name,
        metric=task.metric,
        recipe=task.recipe,
        teacher_recipe=task.teacher_recipe,
    )
    assert made == task
    assert made.own == Own()


def test_a_task_of_a_file_is_made_by_its_function_and_changed_by_options(file: str) -> None:
    task = load_task(f"{file}:make_task", epochs=9, student="mlp:3")
    assert (task.name, task.recipe.epochs, task.student) == ("mine", 9, "mlp:3")
    assert isinstance(task.own.known_teacher, nn.Linear)


# What cannot be


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"student": 3}, "student: needed is a network's name, a function or a torch module; got 3"),
        ({"teacher": [1, 2]}, "teacher: needed is a network's name, a function or a torch module; got [1, 2]"),
        ({"teacher": torch.zeros(5)}, "teacher logits must be [N, ..., C], floats; got (5,), torch.float32"),
        ({"teacher": torch.zeros(5, 3).long()}, "teacher logits must be [N, ..., C], floats; got (5, 3), torch.int64"),
        ({"teacher": "missing.npy"}, "teacher logits missing.npy: no such file"),
        ({"teacher": lambda: 3}, "<lambda> must return a torch module; got a int"),
        ({"teacher": lambda: 1 / 0}, "<lambda> raised ZeroDivisionError: division by zero. --debug shows where"),
        ({"student": "missing.py:make"}, "no file missing.py; needed: file.py:attribute"),
        ({"epoch": 3}, "unknown recipe option 'epoch': did you mean 'epochs'"),
        ({"teacher_epoch": 3}, "unknown recipe option 'epoch': did you mean 'epochs'"),
        ({"optimizer": "adamm"}, "unknown optimizer 'adamm': did you mean 'adam'"),
        ({"optimizer": "adamw", "momentum": 0.9}, "recipe: optimizer adamw takes no momentum; leave it out"),
        ({"metric": "margins"}, "unknown metric 'margins': did you mean 'margin'"),
    ],
)
def test_what_cannot_be_a_part_is_refused_in_one_line(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError) as caught:
        Task.of(**PARTS | parts)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("make_net", "make_net raised TypeError: make_net() missing 1 required positional argument: 'seed'"),
        ("trained", "trained must return a task, as rltemp.Task.of makes it; got a Linear"),
        ("number", "number must return a task, as rltemp.Task.of makes it; got a int"),
        ("fails", "fails raised ZeroDivisionError: division by zero. --debug shows where"),
        ("missing", "has no 'missing'. Needed: module:attribute"),
    ],
)
def test_what_returns_no_task_is_refused_in_one_line(name: str, message: str, file: str) -> None:
    with pytest.raises(BadInputError) as caught:
        load_task(f"{file}:{name}")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
