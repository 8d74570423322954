"""A run that is shared out over workers is the run that one process plays, number for number, and none is lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.killing import KillingStep
from torch import Tensor

from rltemp.agents.network import SampleNetwork, mirrored_draws
from rltemp.data.problem import Problem
from rltemp.envs.played import Stretch
from rltemp.envs.shares import Workers, open_workers
from rltemp.envs.variety import Variety
from rltemp.envs.vector import DistillVecEnv
from rltemp.errors import TrainingStoppedError
from rltemp.io.pool import RETRIES, WorkerPool

STUDENTS = 32
"""Two shares of 16, the length of a processor's vectors: rows then fall into the same places of it in any stack."""


@pytest.fixture(scope="module")
def two() -> Iterator[Workers]:
    with open_workers(2) as workers:
        assert workers is not None
        yield workers


def pair(problem: Problem | Variety, workers: Workers, **options: object) -> list[DistillVecEnv]:
    return [DistillVecEnv(problem, STUDENTS, replicas=2, seed=3, workers=one, **options) for one in (None, workers)]


def played(env: DistillVecEnv) -> list[Stretch]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SampleNetwork(torch.zeros(8), torch.ones(8))
        return [*env.play(network, mirrored_draws(network.weights.detach(), 0.3, STUDENTS))]


def assert_same(mine: object, theirs: object) -> None:
    assert type(mine) is type(theirs)
    for field in fields(mine):
        one, other = getattr(mine, field.name), getattr(theirs, field.name)
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


def assert_same_runs(mine: list[Stretch], theirs: list[Stretch]) -> None:
    for one, other in zip(mine, theirs, strict=True):
        assert one.steps == other.steps
        for name in ("reward", "potential", "lost"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert_same(one.looks[0].signals, other.looks[0].signals)
        assert_same(one.looks[0].temperatures, other.looks[0].temperatures)
        assert torch.equal(one.looks[0].loss, other.looks[0].loss)


def test_every_look_of_two_runs_is_the_same(short: Problem, two: Workers) -> None:
    alone, shared = pair(short, two, mixup_runs=1, reward_interval=7)
    for number in range(2):
        mine, theirs = played(alone), played(shared)
        assert_same_runs(mine, theirs)
        assert [stretch.steps for stretch in mine] == [7, 7, 6]
        assert alone.runs_finished == shared.runs_finished == number + 1
    np.testing.assert_array_equal(alone.finished.potential, shared.finished.potential)


def test_students_that_diverge_do_so_in_every_share(short: Problem, two: Workers) -> None:
    wild = replace(short, task=replace(short.task, recipe=replace(short.task.recipe, learning_rate=1e30)))
    alone, shared = pair(wild, two)
    assert_same_runs(played(alone), played(shared))
    assert shared.finished.lost[:16].any()
    assert shared.finished.lost[16:].any()


def test_a_state_of_either_is_restored_by_the_other(short: Problem, two: Workers) -> None:
    alone, shared = pair(short, two)
    played(alone)
    for one, other in ((alone, shared), (shared, alone)):
        state = one.state()
        before = played(one)
        other.restore(state)
        other.reset()
        assert_same_runs(before, played(other))


def test_tasks_of_a_variety_are_drawn_alike(two: Workers) -> None:
    alone, shared = pair(Variety(("digits:3", "formula:4"), seed=3, size=2), two, tasks=2, looks=3)
    for _ in range(2):
        assert_same_runs(played(alone), played(shared))


def test_one_worker_is_this_process_itself() -> None:
    with open_workers(1) as workers:
        assert workers is None


def test_shares_are_in_order_and_differ_by_one_at_most() -> None:
    assert Workers(WorkerPool(), 2).shares(7) == [slice(0, 3), slice(3, 7)]
    assert Workers(WorkerPool(), 2).shares(32) == [slice(0, 16), slice(16, 32)]


@pytest.mark.faults
def test_the_students_of_a_killed_worker_are_trained_again(short: Problem, tmp_path: Path) -> None:
    step = KillingStep(tmp_path, 1)
    with open_workers(2) as workers:
        alone, shared = pair(short, workers, step=step)
        for _ in range(2):
            assert_same_runs(played(alone), played(shared))
    assert len([*tmp_path.glob("killed-*")]) == 1


@pytest.mark.faults
def test_workers_that_are_lost_again_and_again_end_it_in_one_line(short: Problem, tmp_path: Path) -> None:
    lost = rf"^students 1 to 16 of the run could not be trained in {RETRIES + 1} tries: each time its worker was lost"
    with open_workers(2) as workers, pytest.raises(TrainingStoppedError, match=lost):
        played(DistillVecEnv(short, STUDENTS, step=KillingStep(tmp_path, 1000), workers=workers))
