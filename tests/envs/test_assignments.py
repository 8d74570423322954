"""What the runs of one task are drawn around."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import get_args

import numpy as np
import torch

from rltemp.data.problem import Problem
from rltemp.data.recipe import Schedule
from rltemp.envs.assignments import RATE_FACTOR, OneTask, varied


def test_a_varied_task_draws_rates_lengths_and_schedules_around_its_own(short: Problem) -> None:
    source, generator = OneTask(short, redraw=True, vary=True), np.random.default_rng(0)
    recipes = [source.draw(generator, 1).problem.task.recipe for _ in range(60)]
    own = short.task.recipe
    rates = [recipe.learning_rate / own.learning_rate for recipe in recipes]
    assert 1 / RATE_FACTOR <= min(rates) < 0.5 < 2 < max(rates) <= RATE_FACTOR
    assert {recipe.schedule for recipe in recipes} == {*get_args(Schedule)}
    assert sum(recipe.schedule == own.schedule for recipe in recipes) > 30
    assert len({recipe.epochs for recipe in recipes}) > 1
    assert {recipe.batch_size for recipe in recipes} == {own.batch_size}
    assert OneTask(short, redraw=True).draw(generator, 1).problem.task.recipe == own


def test_an_optimizer_that_brings_its_own_rate_is_varied_around_it(short: Problem) -> None:
    own = replace(short.task.recipe, optimizer=partial(torch.optim.SGD, lr=0.07))
    rates = {varied(own, np.random.default_rng(seed)).learning_rate for seed in range(8)}
    assert len(rates) == 8
    assert 0.07 / RATE_FACTOR <= min(rates) < 0.07 < max(rates) <= 0.07 * RATE_FACTOR
