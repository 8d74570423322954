"""A run that is shared out over workers is the run that one process trains, number for number."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from rltemp.data.problem import Problem
from rltemp.envs.variety import Variety
from rltemp.envs.vector import DistillVecEnv
from rltemp.io.workers import Workers

STUDENTS = 32
"""Two shares of 16, the length of a processor's vectors: rows then fall into the same places of it in any stack."""


@pytest.fixture(scope="module")
def two() -> Iterator[Workers]:
    with closing(Workers(2)) as workers:
        yield workers


def pair(problem: Problem | Variety, workers: Workers, **options: object) -> list[DistillVecEnv]:
    return [DistillVecEnv(problem, STUDENTS, replicas=2, seed=3, workers=one, **options) for one in (None, workers)]


def actions(env: DistillVecEnv, steps: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.uniform(-1, 1, (env.num_envs, 2)).astype(np.float32) for _ in range(steps)]


def assert_same_step(mine: tuple, theirs: tuple) -> None:
    for one, other in zip(mine[:3], theirs[:3], strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(mine[3], theirs[3], strict=True):
        assert one.keys() == other.keys()
        if one:
            np.testing.assert_array_equal(one["terminal_observation"], other["terminal_observation"])
            assert one["TimeLimit.truncated"] == other["TimeLimit.truncated"]
            assert [one["episode"][name] for name in "rl"] == [other["episode"][name] for name in "rl"]


def assert_same_values(mine: object, theirs: object) -> None:
    assert type(mine) is type(theirs)
    for field in fields(mine):
        one, other = getattr(mine, field.name), getattr(theirs, field.name)
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


def test_every_step_of_two_runs_is_the_same(short: Problem, two: Workers) -> None:
    alone, shared = pair(short, two, mixup_runs=1, reward_interval=7)
    np.testing.assert_array_equal(alone.reset(), shared.reset())
    for action in actions(alone, 2 * alone.episode.steps):
        assert_same_step(alone.step(action), shared.step(action))
        assert alone.episode.taken == shared.episode.taken
    np.testing.assert_array_equal(alone.finished.seen_potential, shared.finished.seen_potential)


def test_a_look_shows_all_students(short: Problem, two: Workers) -> None:
    alone, shared = pair(short, two)
    for env in (alone, shared):
        env.step(actions(env, 1)[0])
    mine, theirs = alone.episode.look(), shared.episode.look()
    assert_same_values(mine.signals, theirs.signals)
    assert_same_values(mine.temperatures, theirs.temperatures)
    assert torch.equal(mine.loss, theirs.loss)
    assert not theirs.signals.student_logits.requires_grad


def test_students_that_diverge_are_replaced_in_every_share(short: Problem, two: Workers) -> None:
    wild = replace(short, task=replace(short.task, recipe=replace(short.task.recipe, learning_rate=1e30)))
    alone, shared = pair(wild, two)
    for action in actions(alone, alone.episode.steps):
        assert_same_step(alone.step(action), shared.step(action))
    np.testing.assert_array_equal(alone.finished.lost, shared.finished.lost)
    assert shared.finished.lost[:16].any()
    assert shared.finished.lost[16:].any()


def test_a_state_of_either_is_restored_by_the_other(short: Problem, two: Workers) -> None:
    alone, shared = pair(short, two)
    for one, other in ((alone, shared), (shared, alone)):
        seen = one.reset()
        other.restore(one.state())
        np.testing.assert_array_equal(other.reset(), seen)


def test_tasks_of_a_variety_are_drawn_alike(two: Workers) -> None:
    alone, shared = pair(Variety(3, 2, (("digits", 3), ("formula", 4))), two)
    for _ in range(3):
        np.testing.assert_array_equal(alone.reset(), shared.reset())
        action = actions(alone, 1)[0]
        assert_same_step(alone.step(action), shared.step(action))
