"""How often a training step waits for its device to read a number: once at most."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.device_reads import DeviceReads

from rltemp import load_method
from rltemp.data.problem import Problem
from rltemp.envs.distill_env import DistillEnv
from rltemp.envs.vector import DistillVecEnv
from rltemp.rules.published_methods import METHODS
from rltemp.training.distill import Distillation
from rltemp.training.guards import RunGuard
from rltemp.training.steps import Step, plain_step

SEEDS: dict[str, Any] = {"one student": 0, "a stack": [0, 1]}


def reads_of_a_step(problem: Problem, method: str, step: Step, seeds: Any = 0) -> list[str]:
    """What one step reads, after others that settle what is found out once in a run."""
    run = Distillation(problem, seeds)
    attached = run.attach(load_method(method))
    for _ in range(3):
        step(run, attached)
    with DeviceReads() as reads:
        step(run, attached)
    assert run.healthy
    return reads.places


@pytest.mark.parametrize("method", [*sorted(METHODS), "universal", "matched:dtkd"])
def test_a_guarded_step_reads_one_number(digits: Problem, method: str) -> None:
    assert len(reads_of_a_step(digits, method, RunGuard().step)) == 1


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("method", ["none", "fixed:4", "annealing", "ctkd", "random", "universal", "matched:dtkd"])
def test_a_plain_step_reads_one_number_at_most(digits: Problem, method: str, seeds: str) -> None:
    assert len(reads_of_a_step(digits, method, plain_step, SEEDS[seeds])) <= 1


def test_a_teacher_that_runs_on_every_batch_is_watched_by_the_same_number(digits: Problem) -> None:
    assert len(reads_of_a_step(replace(digits, teacher_logits=None), "fixed:4", RunGuard().step)) == 1


def test_the_scaler_of_float16_reads_a_second_number_of_its_own(digits: Problem) -> None:
    half = replace(digits, task=replace(digits.task, recipe=replace(digits.task.recipe, precision="float16")))
    assert len(reads_of_a_step(half, "fixed:4", plain_step)) <= 2
    assert len(reads_of_a_step(half, "fixed:4", RunGuard().step)) == 2


def flat(problem: Problem) -> tuple[Any, tuple[int, ...]]:
    return DistillEnv(problem, reward_interval=1000), (50, 2)


def stacked(problem: Problem) -> tuple[Any, tuple[int, ...]]:
    return DistillVecEnv(problem, 4, reward_interval=1000), (200, 2)


@pytest.mark.parametrize("make", [flat, stacked])
def test_a_step_of_an_environment_reads_once_what_leaves_it(digits, make):
    """Observation, infos and whether all is sound, in one copy; a look at the probe reads the potential beside."""
    env, shape = make(digits)
    env.reset()
    for _ in range(3):
        env.step(np.zeros(shape, np.float32))
    with DeviceReads() as reads:
        env.step(np.zeros(shape, np.float32))
    assert len(reads.places) == 1, reads.places
    env.episode.reward_interval = 1
    with DeviceReads() as reads:
        env.step(np.zeros(shape, np.float32))
    assert len(reads.places) == 2, reads.places
