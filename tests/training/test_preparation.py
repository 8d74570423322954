"""From a task's description to the problem in memory: classes, labels, and every kind of teacher."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from support.own_tasks import (
    CLASSES,
    FEATURES,
    Noisy,
    clusters,
    dropout_student,
    normalised_student,
    own_task,
    trained_teacher,
)
from torch import Tensor, nn

from rltemp import BadInputError, load_method
from rltemp.data.problem import Problem, evaluate, outputs
from rltemp.training.distill import Distillation
from rltemp.training.preparation import prepare
from rltemp.training.steps import train

ROWS, LABELS = clusters()


def problem(**options: Any) -> Problem:
    return prepare(own_task(**options))


def linear(width: int) -> nn.Module:
    return nn.Linear(FEATURES, width)


def large_student(seed: int, width: int = 50_000) -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, width), nn.ReLU(), nn.Linear(width, CLASSES))


# Classes and labels


def test_classes_are_the_teachers_and_else_those_of_the_labels(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RLTEMP_CACHE", str(tmp_path))
    seven = {"student": lambda: linear(7)}
    assert problem(teacher=linear(7), **seven).dataset.num_classes == 7
    assert problem(teacher=torch.zeros(200, 7), **seven).dataset.num_classes == 7
    trained = problem(teacher="mlp:4", student="mlp:3", teacher_epochs=1)
    assert trained.dataset.num_classes == CLASSES
    assert outputs(trained.teacher, trained, trained.dataset.test).shape == (80, CLASSES)


def test_a_class_that_is_in_the_test_split_alone_counts(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RLTEMP_CACHE", str(tmp_path))
    test = ROWS[:3], torch.tensor([0, 1, 6])
    assert problem(teacher="mlp:4", student="mlp:3", test=test, teacher_epochs=1).dataset.num_classes == 7


def tokens(labels: Tensor) -> dict[str, Any]:
    return {
        "train": (torch.zeros(40, 3, dtype=torch.long), labels),
        "test": None,
        "student": lambda: nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5)),
        "teacher": nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5)),
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"train": (ROWS, LABELS.masked_fill(torch.arange(200) == 8, 4))},
            "is no class; needed: 0 to 3",
        ),
        ({"test": (ROWS, LABELS + 7)}, "test: label 7 at [0] is no class; needed: 0 to 3"),
        ({"validation": (ROWS, LABELS.masked_fill(LABELS == 3, 4))}, "validation: label 4 at [3] is no class"),
        ({"probe": (ROWS, LABELS.masked_fill(LABELS == 3, 4))}, "probe: label 4 at [3] is no class"),
        ({"student": lambda: linear(3)}, "student <lambda> answers 3 classes; teacher and labels have 4"),
        ({"student": lambda: linear(5)}, "student <lambda> answers 5 classes; teacher and labels have 4"),
        ({"teacher": linear(3)}, "student dropout_student answers 4 classes; teacher and labels have 3"),
        ({"teacher": torch.zeros(200, 3)}, "student dropout_student answers 4 classes; teacher and labels have 3"),
        ({"teacher": torch.zeros(199, 4)}, "teacher logits have shape (199, 4); needed: (200, 4), one for each sample"),
        ({"teacher": torch.zeros(200, 2, 4)}, "teacher logits have shape (200, 2, 4); needed: (200, 4)"),
        ({"teacher": nn.Linear(7, 4)}, "teacher Linear cannot take the task's inputs (RuntimeError: "),
        (
            {"teacher": nn.LSTM(5, 4)},
            "teacher LSTM: a network must answer with logits [B, ..., C], a tensor; got a tuple",
        ),
        (
            {"teacher": nn.Unflatten(1, (1, 5)), "student": lambda: linear(5)},
            "teacher Unflatten answers (1, 5) for a sample",
        ),
        ({"student": lambda: nn.Linear(7, 4)}, "student <lambda> cannot take the task's inputs (RuntimeError: "),
        ({"batch_size": 500}, "batch size 500 is above the 160 training samples"),
        ({"teacher": "mlp:4", "train": ROWS, "test": None}, "a teacher cannot be trained without labels"),
        (
            tokens(torch.zeros(40, 2, dtype=torch.long)),
            "train: labels have shape (24, 2)",
        ),
        (tokens(torch.zeros(40, dtype=torch.long)), "train: labels have shape (24,)"),
        (
            tokens(5 * (torch.arange(120) == 37).long().view(40, 3)),
            "is no class; needed: 0 to 4",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError) as caught:
        Distillation(problem(**options), 0)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_padding_may_have_any_label() -> None:
    labels = torch.zeros(40, 3, dtype=torch.long)
    train_set = {"inputs": labels, "labels": labels.masked_fill(labels == 0, 9), "mask": torch.arange(3) < 0}
    train_set["mask"] = (torch.arange(3) < 2).expand(40, 3)
    train_set["labels"] = labels.masked_fill(~train_set["mask"], 9)
    found = problem(**tokens(labels) | {"train": train_set})
    assert found.dataset.train.targets.max() == 0
    assert found.tokens


# A teacher as a network


def test_a_teacher_is_frozen_and_a_whole_run_leaves_it_as_it_was() -> None:
    given = trained_teacher()
    before = copy.deepcopy(given.state_dict())
    found = problem(teacher=given, train=Noisy(ROWS, LABELS))  # its views change: the teacher runs on every batch
    assert found.teacher is given
    assert found.teacher_logits is None
    assert not any(module.training for module in given.modules())
    assert not any(value.requires_grad for value in given.parameters())
    student = train(Distillation(found, 0), load_method("fixed:4"))
    assert not torch.equal(next(student.parameters()), next(found.students(0).parameters()))
    for name, value in given.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(module.training for module in given.modules())
    assert all(value.grad is None for value in given.parameters())


def test_logits_of_fixed_samples_are_computed_once_in_eval_mode() -> None:
    found = problem()
    assert torch.equal(found.teacher_logits, outputs(found.teacher, found, found.dataset.train))
    assert torch.equal(found.teacher_on("train"), found.teacher_logits)
    assert found.teacher_accuracy == float(evaluate(found.teacher, found, found.dataset.test)) > 0.7


def test_a_teacher_that_is_trained_is_trained_by_its_own_recipe_and_kept(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RLTEMP_CACHE", str(tmp_path))
    options = {"teacher": dropout_student, "teacher_epochs": 6, "teacher_batch_size": 20, "teacher_optimizer": "adamw"}
    steps: list[tuple[int, int]] = []
    first = prepare(own_task(**options, teacher_learning_rate=0.02), on_step=lambda *step: steps.append(step))
    assert steps[-1] == (48, 48)
    assert first.teacher_accuracy > 0.7
    again = prepare(own_task(**options, teacher_learning_rate=0.02), on_step=lambda *step: steps.append(step))
    assert len(steps) == 48
    assert torch.equal(again.teacher_logits, first.teacher_logits)
    other = prepare(own_task(**options, teacher_learning_rate=0.01), on_step=lambda *step: steps.append(step))
    assert len(steps) == 96
    assert not torch.equal(other.teacher_logits, first.teacher_logits)


def test_a_network_teaches_copies_of_itself_that_it_does_not_freeze() -> None:
    network = nn.Linear(FEATURES, CLASSES)
    found = problem(student=network, teacher=network)
    assert found.teacher is network
    student = train(Distillation(found, 0), load_method("none"))
    assert not torch.equal(student.weight, network.weight)
    assert torch.equal(found.students(1).weight, network.weight)


# A teacher as logits


def test_every_part_that_is_cut_takes_its_rows_of_the_logits_along() -> None:
    logits = torch.nn.functional.one_hot(LABELS, CLASSES) * 3.0 + torch.arange(200).unsqueeze(1)
    found = problem(teacher=logits, test=None)
    cut = found.dataset.cut_at
    assert torch.equal(found.teacher_logits, logits[cut["train"]])
    for part in ("probe", "validation", "test"):
        assert torch.equal(found.teacher_on(part), logits[cut[part]])
    assert found.teacher is None
    assert found.teacher_accuracy == 1.0


def test_of_a_split_that_was_given_the_teacher_is_not_known() -> None:
    logits = torch.nn.functional.one_hot((LABELS + 1) % CLASSES, CLASSES).float()
    found = problem(teacher=logits)
    assert found.teacher_on("test") is None
    assert found.teacher_on("validation").shape == (20, CLASSES)
    assert found.teacher_accuracy == 0.0
    given = {part: clusters(40, seed) for seed, part in enumerate(("probe", "validation", "test"))}
    whole = problem(teacher=logits, **given)
    assert torch.equal(whole.teacher_logits, logits)
    assert whole.teacher_on("validation") is None
    assert whole.teacher_accuracy == 0.0  # on the training samples: there is nothing else


def test_known_logits_train_the_student_that_their_network_trains() -> None:
    network = trained_teacher().eval()
    with torch.no_grad():
        logits = network(ROWS)
    by_network, by_logits = (
        train(Distillation(problem(teacher=teacher), 3), load_method("dtkd")) for teacher in (network, logits)
    )
    for one, other in zip(by_network.parameters(), by_logits.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


# No labels


@pytest.mark.parametrize("kind", ["network", "logits"])
def test_the_teachers_predictions_stand_in_for_labels_that_are_missing(kind: str, caplog) -> None:
    network = trained_teacher().eval()
    with torch.no_grad():
        logits = network(ROWS)
    with caplog.at_level(logging.INFO, "rltemp"):
        found = problem(teacher=network if kind == "network" else logits, train=ROWS, test=None, epochs=8)
    assert "no labels: the teacher's predictions stand in" in caplog.text
    assert not found.labelled
    for part in ("train", "probe", "validation", "test"):
        split = getattr(found.dataset, part)
        assert torch.equal(split.labels, logits[found.dataset.cut_at[part]].argmax(-1))
    assert found.teacher_accuracy == 1.0
    run = Distillation(found, 0)
    assert run.observe().labels is None
    with pytest.raises(
        BadInputError, match="'fixed:4' needs labels, and task clusters has none: take a method without"
    ):
        run.attach(load_method("fixed:4"))
    student = train(run, load_method("fixed:temperature=2,ce_weight=0"))
    assert evaluate(student, found, found.dataset.test) > 0.6


def test_without_labels_logits_of_all_splits_are_needed() -> None:
    with pytest.raises(BadInputError, match="test has no labels and no teacher logits; give labels, or a teacher as"):
        problem(teacher=torch.zeros(200, CLASSES), train=ROWS, test=ROWS[:9])


# What is said of the students


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (dropout_student, "Students dropout_student are trained one by one: it draws random numbers in training"),
        (normalised_student, ""),
        (large_student, "Students large_student are trained one by one: they are too large to gain by a stack."),
    ],
)
def test_the_log_says_why_students_are_not_stacked(student: Any, message: str, caplog) -> None:
    with caplog.at_level(logging.INFO, "rltemp"):
        found = problem(student=student)
    said = [line for line in caplog.messages if "one by one" in line]
    assert said == ([] if not message else [line for line in caplog.messages if line.startswith(message)])
    assert len(said) == bool(message)
    assert (found.stack_size > 1) == (not message)
