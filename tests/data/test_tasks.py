"""A task is a description, any field of which can be replaced by name."""

from __future__ import annotations

from typing import Any

import pytest

from rltemp import BadInputError
from rltemp.data.recipe import Recipe
from rltemp.data.sources import load_dataset
from rltemp.data.tasks import TASKS, load_task
from rltemp.models.networks import build_model


def test_fields_of_a_task_and_of_its_recipes_are_replaced_by_name() -> None:
    task = load_task("digits", student="mlp:16", epochs=3, teacher_epochs=7, teacher_seed=5, split_seed=2)
    assert (task.student, task.recipe.epochs, task.teacher_recipe.epochs) == ("mlp:16", 3, 7)
    assert (task.teacher_seed, task.split_seed) == (5, 2)
    assert task.recipe.batch_size == TASKS["digits"].recipe.batch_size


def test_none_keeps_what_the_task_has_and_its_name_its_option() -> None:
    assert load_task("digits", epochs=None, student=None, teacher_weights=None) == TASKS["digits"]
    assert load_task("synthetic:classes=20").name == "synthetic:classes=20"


def test_a_schedule_falls_by_a_cosine_by_tenths_or_not() -> None:
    cosine, step, constant = (Recipe(1, 1, 0.2, schedule=name) for name in ("cosine", "step", "constant"))
    rates = [cosine.rate(step, 8) for step in range(8)]
    assert (rates[0], rates[4]) == (0.2, pytest.approx(0.1))
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 0.01
    # Epochs 150, 180 and 210 of 240, one step each
    fallen = [step.rate(number, 240) for number in (0, 149, 150, 179, 180, 209, 210, 239)]
    assert fallen == pytest.approx([0.2, 0.2, 0.02, 0.02, 0.002, 0.002, 0.0002, 0.0002])
    assert {constant.rate(number, 10) for number in range(10)} == {0.2}


@pytest.mark.parametrize("name", ["wine", "breast_cancer", "iris", "synthetic"])
def test_a_run_on_a_table_has_a_few_hundred_steps_and_a_small_student(name: str) -> None:
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


@pytest.mark.parametrize(("name", "batch", "rate"), [("imagenet", 256, 0.1), ("imagenet-mdistiller", 512, 0.2)])
def test_a_benchmarks_recipe_sets_networks_pictures_and_training(name: str, batch: int, rate: float) -> None:
    task = load_task("imagefolder:pictures", recipe=name)
    assert (task.teacher, task.student) == ("resnet34", "resnet18")
    assert (task.image_size, task.resize, task.augment, task.normalise) == (224, 256, "crop+mirror", "imagenet")
    for recipe in (task.recipe, task.teacher_recipe):
        assert (recipe.epochs, recipe.batch_size, recipe.weight_decay) == (100, batch, 1e-4)
        rates = [recipe.rate(epoch, 100) for epoch in (0, 29, 30, 59, 60, 89, 90, 99)]
        assert rates == pytest.approx([rate * factor for factor in (1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001)])


def test_options_beside_a_recipe_win_and_a_recipe_needs_pictures() -> None:
    task = load_task("imagefolder:pictures", recipe="imagenet", student="resnet8", epochs=2, image_size=64)
    assert (task.student, task.recipe.epochs, task.teacher_recipe.epochs, task.image_size) == ("resnet8", 2, 100, 64)
    with pytest.raises(BadInputError, match="unknown recipe 'imagnet': did you mean 'imagenet'"):
        load_task("imagefolder:pictures", recipe="imagnet")
    wrong = load_task("digits", recipe="imagenet")
    with pytest.raises(BadInputError, match=r"task digits: image_size and resize are for imagefolder:PATH"):
        load_dataset(wrong.name, pictures=wrong.pictures)
