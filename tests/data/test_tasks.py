"""A task is a description, any field of which can be replaced by name."""

from __future__ import annotations

from typing import Any

import pytest

from rltemp import BadInputError
from rltemp.data.sources import load_dataset
from rltemp.data.tasks import TASKS, Recipe, load_task
from rltemp.models.networks import build_model


def test_fields_of_the_task_of_its_recipe_and_of_its_teachers_are_replaced_by_name() -> None:
    task = load_task("digits", student="mlp:16", epochs=3, teacher_epochs=7, teacher_seed=5, split_seed=2)
    assert (task.student, task.recipe.epochs, task.teacher_recipe.epochs) == ("mlp:16", 3, 7)
    assert (task.teacher_seed, task.split_seed) == (5, 2)
    assert task.recipe.batch_size == TASKS["digits"].recipe.batch_size


def test_none_keeps_what_the_task_has() -> None:
    assert load_task("digits", epochs=None, student=None, teacher_weights=None) == TASKS["digits"]


def test_a_task_keeps_the_option_it_was_asked_for_with() -> None:
    assert load_task("imagefolder:/data/birds").name == "imagefolder:/data/birds"
    assert load_task("synthetic:classes=20").name == "synthetic:classes=20"


@pytest.mark.parametrize("name", ["wine", "breast_cancer", "iris", "synthetic"])
def test_a_run_on_a_table_has_a_few_hundred_steps_for_a_student_far_smaller_than_its_teacher(name: str) -> None:
    task, data = load_task(name), load_dataset(name)
    assert 100 <= task.recipe.steps(len(data.train)) <= 400
    student, teacher = (
        sum(value.numel() for value in build_model(network, data.image_shape, data.num_classes).parameters())
        for network in (task.student, task.teacher)
    )
    assert 10 * student < teacher


@pytest.mark.parametrize(
    ("spec", "overrides", "named"),
    [
        ("digit", {}, "unknown task 'digit': did you mean 'digits'"),
        ("digits", {"epoch": 3}, "did you mean 'epochs'"),
        ("digits", {"teacher_epoch": 3}, "did you mean 'epochs'"),
        ("digits", {"epochs": 0}, "recipe: epochs must be finite and above 0; got 0"),
        ("digits", {"epochs": 1.5}, "recipe: epochs must be a whole number; got 1.5"),
        ("digits", {"batch_size": 2.5}, "recipe: batch_size must be a whole number"),
        ("digits", {"learning_rate": float("nan")}, "learning_rate must be finite"),
        ("digits", {"momentum": 1.0}, r"momentum must be in \[0, 1\)"),
        ("digits", {"weight_decay": -1.0}, "weight_decay at least 0"),
        ("digits", {"schedule": "cosinus"}, "unknown schedule 'cosinus': did you mean 'cosine'"),
        ("digits", {"precision": "float8"}, "unknown precision 'float8'"),
    ],
)
def test_what_cannot_be_is_refused_by_name(spec: str, overrides: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInputError, match=named):
        load_task(spec, **overrides)


def test_the_cosine_schedule_falls_from_the_rate_to_almost_zero() -> None:
    recipe = Recipe(1, 1, 0.2)
    rates = [recipe.rate(step, 8) for step in range(8)]
    assert rates[0] == 0.2
    assert rates[4] == pytest.approx(0.1)
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 0.01


def test_the_step_schedule_is_a_tenth_at_five_six_and_seven_eighths() -> None:
    # Epochs 150, 180 and 210 of 240, one step each
    recipe = Recipe(1, 1, 1.0, schedule="step")
    rates = [recipe.rate(step, 240) for step in (0, 149, 150, 179, 180, 209, 210, 239)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_the_constant_schedule_is_constant() -> None:
    recipe = Recipe(1, 1, 0.3, schedule="constant")
    assert {recipe.rate(step, 10) for step in range(10)} == {0.3}


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_task_is_named_as_in_the_table(name: str) -> None:
    assert TASKS[name].name == name
    assert load_task(name) == TASKS[name]
