"""What a person gives both environments and gets of them: tasks in any form, words, and no copies."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from rltemp import BadInputError
from rltemp.data.problem import Problem
from rltemp.data.tasks import load_task
from rltemp.envs.distill_env import DistillEnv
from rltemp.envs.vector import DistillVecEnv

ENVIRONMENTS = DistillEnv, DistillVecEnv


@pytest.mark.parametrize("make", ENVIRONMENTS)
def test_a_task_is_taken_by_its_name_described_or_loaded(make: Callable[[Any], Any], toy: Problem) -> None:
    envs = [make(task) for task in ("toy", load_task("toy"), toy)]
    assert len({repr(env) for env in envs}) == 1
    assert [env.problem.task for env in envs] == 3 * [toy.task]


@pytest.mark.parametrize("make", ENVIRONMENTS)
def test_what_is_no_task_is_refused_in_one_line(make: Callable[[Any], Any]) -> None:
    with pytest.raises(BadInputError, match="unknown task 'digit': did you mean 'digits'"):
        make("digit")
    with pytest.raises(BadInputError, match=r"a task is given by its name, as a Task or as a Problem; got 5$"):
        make(5)


def test_an_environment_says_what_it_is(short: Problem) -> None:
    assert repr(DistillEnv(short)) == "<DistillEnv digits: student mlp:6, reference fixed:4>"
    words = "<DistillVecEnv digits: 3 students of 50 samples, student mlp:6, reference dtkd>"
    assert repr(DistillVecEnv(short, 3, method="dtkd")) == words


@pytest.mark.parametrize("make", ENVIRONMENTS)
@pytest.mark.parametrize("take", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_copy_is_refused_in_one_line_with_the_way_out(make, take, short: Problem) -> None:
    env = make(short)
    env.reset()
    with pytest.raises(BadInputError) as refused:
        take(env)
    assert str(refused.value) == (
        f"a {make.__name__} cannot be copied or pickled: the run in it holds gradients, and rules that are functions. "
        "Make another one, and reset it with the same seed"
    )
