"""A recipe: what it refuses, what an optimizer brings, its rates beside torch's schedulers, and how it says itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer, lr_scheduler

from rltemp import BadInputError
from rltemp.data.recipe import Recipe
from rltemp.data.tasks import TASKS
from rltemp.models.optimizer_trials import stacking_fault, usable_fault

STEPS = 40


def weight() -> nn.Parameter:
    return nn.Parameter(torch.ones(3))


def own_adam(parameters: Sequence[nn.Parameter]) -> Optimizer:
    return torch.optim.Adam(parameters, lr=0.25, betas=(0.5, 0.9), weight_decay=0.125)


def no_optimizer(parameters: Sequence[nn.Parameter]) -> int:
    return len(parameters)


def raising(_: Sequence[nn.Parameter]) -> Optimizer:
    raise RuntimeError("no such thing")


def warmed(later: Callable[[Optimizer, int], Any], warmup: int) -> Callable[[Optimizer], Any]:
    """Torch's schedulers one after the other: a warm-up from 0, and what follows over the rest of the run."""

    def made(optimizer: Optimizer) -> Any:
        first = lr_scheduler.LambdaLR(optimizer, lambda step: min(step / warmup, 1.0))
        return lr_scheduler.SequentialLR(optimizer, [first, later(optimizer, STEPS - warmup)], [warmup])

    return made


@pytest.mark.parametrize(
    ("recipe", "scheduler"),
    [
        (Recipe(1, 1, 0.2), lambda of: lr_scheduler.CosineAnnealingLR(of, STEPS)),
        (Recipe(1, 1, 0.2, schedule="step"), lambda of: lr_scheduler.MultiStepLR(of, [25, 30, 35])),
        (
            Recipe(1, 1, 0.2, schedule="step", milestones=(0.3, 0.6, 0.9)),
            lambda of: lr_scheduler.MultiStepLR(of, [12, 24, 36]),
        ),
        (Recipe(1, 1, 0.2, schedule="linear"), lambda of: lr_scheduler.LinearLR(of, 1.0, 0.0, STEPS)),
        (Recipe(1, 1, 0.2, schedule="constant"), lambda of: lr_scheduler.ConstantLR(of, 1.0)),
        (Recipe(1, 1, 0.2, warmup=0.2), warmed(lr_scheduler.CosineAnnealingLR, 8)),
        (
            Recipe(1, 1, 0.2, warmup=0.2, schedule="linear"),
            warmed(lambda of, rest: lr_scheduler.LinearLR(of, 1.0, 0.0, rest), 8),
        ),
        (Recipe(1, 1, 0.2, warmup=0.2, schedule="constant"), warmed(lambda of, _: lr_scheduler.ConstantLR(of, 1.0), 8)),
    ],
)
def test_a_rate_is_that_of_torchs_scheduler_at_every_step(
    recipe: Recipe, scheduler: Callable[[Optimizer], Any]
) -> None:
    optimizer = SGD([weight()], lr=0.2)
    made, seen = scheduler(optimizer), []
    for _ in range(STEPS):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        made.step()
    assert [recipe.rate(step, STEPS) for step in range(STEPS)] == pytest.approx(seen, abs=1e-9)
    assert max(seen) == pytest.approx(0.2)


def test_a_warmup_begins_at_zero_and_a_groups_own_rate_follows_it() -> None:
    recipe = Recipe(1, 1, 0.2, warmup=0.5, schedule="constant")
    assert [recipe.rate(step, 8) for step in (0, 2, 4, 7)] == pytest.approx([0.0, 0.1, 0.2, 0.2])
    assert recipe.rate(2, 8, largest=1.0) == pytest.approx(0.5)


# What an optimizer brings


def test_what_a_partial_brings_wins_and_can_be_changed_by_name() -> None:
    recipe = Recipe(1, 1, 0.02, optimizer=partial(AdamW, lr=3e-3, weight_decay=0.1, betas=(0.9, 0.95)))
    assert (recipe.learning_rate, recipe.weight_decay) == (3e-3, 0.1)
    [group] = recipe.make_optimizer([weight()]).param_groups
    assert (group["lr"], group["weight_decay"], group["betas"]) == (3e-3, 0.1, (0.9, 0.95))
    changed = recipe.changed(learning_rate=0.5, weight_decay=0.0)
    [group] = changed.make_optimizer([weight()]).param_groups
    assert (group["lr"], group["weight_decay"], group["betas"]) == (0.5, 0.0, (0.9, 0.95))


def test_what_is_not_given_is_the_optimizers_own_but_for_sgd_by_name() -> None:
    for optimizer, momentum in (("sgd", 0.9), ("SGD", 0.9), (SGD, 0.0), (partial(SGD, lr=1.0), 0.0), ("rmsprop", 0.0)):
        [group] = Recipe(1, 1, 0.02, optimizer=optimizer).make_optimizer([weight()]).param_groups
        assert group["momentum"] == momentum, optimizer
    [group] = Recipe(1, 1, 0.02, optimizer="adamw").make_optimizer([weight()]).param_groups
    assert (group["lr"], group["weight_decay"]) == (0.02, 0.01)


def test_a_functions_own_values_win_and_are_not_changed_in_silence() -> None:
    recipe = Recipe(1, 1, 0.02, optimizer=own_adam)
    assert (recipe.learning_rate, recipe.weight_decay) == (0.25, 0.125)
    assert recipe.make_optimizer([weight()]).param_groups[0]["betas"] == (0.5, 0.9)
    with pytest.raises(BadInputError, match=r"brings learning_rate 0\.25 of its own; change it there"):
        recipe.changed(learning_rate=0.1)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"optimizer": "adamm"}, "unknown optimizer 'adamm': did you mean 'adam'"),
        ({"optimizer": "lbfgs"}, "optimizer lbfgs needs a closure"),
        ({"optimizer": torch.optim.LBFGS}, "optimizer lbfgs needs a closure"),
        ({"optimizer": 3}, "needed: an optimizer's name or a function of parameters; got 3"),
        ({"optimizer": no_optimizer}, "test_recipe:no_optimizer gave a int; needed: a torch.optim.Optimizer"),
        ({"optimizer": raising}, "test_recipe:raising cannot be made: no such thing"),
        ({"optimizer": "adamw", "momentum": 0.9}, "optimizer adamw takes no momentum; leave it out"),
        ({"optimizer": "rprop", "weight_decay": 0.1}, "optimizer rprop takes no weight_decay; leave it out"),
        ({"warmup": 1.0}, r"warmup must be in \[0, 1\); got 1.0"),
        ({"ema": 1.0}, r"ema must be in \[0, 1\)"),
        ({"label_smoothing": -0.1}, r"label_smoothing must be in \[0, 1\)"),
        ({"clip": 0.0}, "clip must be finite and above 0"),
        ({"accumulate": 0}, "accumulate must be a whole number of 1 or more"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInputError, match=named) as caught:
        Recipe(1, 1, 0.1, **options)
    assert "\n" not in str(caught.value)


def test_an_option_that_the_optimizer_itself_refuses_is_named() -> None:
    recipe = Recipe(1, 1, 0.1, optimizer=partial(AdamW, betas=(2.0, 0.9)))
    with pytest.raises(BadInputError, match=r"cannot be made: Invalid beta parameter at index 0: 2\.0"):
        recipe.make_optimizer([weight()])


# How it says itself


@pytest.mark.parametrize(
    "task", [one for one in TASKS.values() if one.name != "characters"], ids=lambda task: task.name
)
def test_a_recipe_of_version_0_2_says_what_it_said_then(task: Any) -> None:
    for recipe in (task.recipe, task.teacher_recipe):
        names = ("epochs", "batch_size", "learning_rate", "momentum", "weight_decay", "schedule", "precision")
        then = asdict(recipe) | {"momentum": 0.9, "weight_decay": recipe.weight_decay or 0.0}
        assert json.dumps(recipe.described()) == json.dumps({name: then[name] for name in names})


def test_all_that_a_recipe_says_is_json_and_tells_two_recipes_apart() -> None:
    def other_adam(parameters: Sequence[nn.Parameter]) -> Optimizer:
        return torch.optim.Adam(parameters, lr=0.25, betas=(0.5, 0.99), weight_decay=0.125)

    other_adam.__qualname__ = own_adam.__qualname__  # as an edited file has it
    optimizers = ("sgd", SGD, "adamw", partial(AdamW, eps=1e-3), partial(AdamW, eps=1e-4), own_adam, other_adam)
    base = Recipe(1, 1, 0.1)
    changes = [{"warmup": 0.1}, {"clip": 1.0}, {"accumulate": 2}, {"ema": 0.9}, {"label_smoothing": 0.1}]
    recipes = [*(Recipe(1, 1, 0.1, optimizer=one) for one in optimizers), *(replace(base, **one) for one in changes)]
    assert len({json.dumps(recipe.described(), sort_keys=True) for recipe in recipes}) == len(recipes)
    assert Recipe(1, 1, 0.1, optimizer="AdamW").described()["optimizer"] == "adamw"


def test_small_data_get_smaller_batches_and_large_data_keep_theirs() -> None:
    recipe = Recipe(1, 128, 0.1)
    assert [recipe.fitting(samples).batch_size for samples in (128, 127, 64, 9, 3)] == [128, 15, 8, 8, 3]
    assert all(recipe.fitting(samples).steps(samples) >= 1 for samples in range(1, 300))
    assert recipe.fitting(0) == recipe  # empty data are refused elsewhere


# What an optimizer can train


def test_a_trial_tells_which_optimizers_work_element_by_element() -> None:
    by_element = ("adadelta", "adagrad", "adam", "adamax", "adamw", "asgd", "nadam", "radam", "rmsprop", "rprop", "sgd")
    assert [name for name in by_element if stacking_fault(name)] == []
    assert stacking_fault(partial(AdamW, amsgrad=True)) == ""
    assert stacking_fault("adafactor") == "it does not work element by element"
    assert "Muon only supports 2D parameters" in stacking_fault("muon")


def test_a_trial_notices_a_function_that_looks_at_dimensions() -> None:
    def no_decay_for_vectors(parameters: Sequence[nn.Parameter]) -> Optimizer:
        groups = [
            {"params": [value for value in parameters if value.dim() > 1], "weight_decay": 10.0},
            {"params": [value for value in parameters if value.dim() < 2], "weight_decay": 0.0},
        ]
        return AdamW([group for group in groups if group["params"]], lr=0.1)

    assert stacking_fault(no_decay_for_vectors) == "it does not work element by element"


def test_a_trial_tells_which_optimizers_cannot_train_a_layer() -> None:
    assert usable_fault("sparseadam").startswith("SparseAdam does not support dense gradients")
    assert [usable_fault(name) for name in ("sgd", "adamw", "adafactor", "muon")] == [""] * 4
