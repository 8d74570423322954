"""`rltemp/Distill-v0` is an ordinary Gymnasium environment, and holds no training of its own."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import stable_baselines3.common.env_checker as sb3
import torch
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray
from torch import nn

import rltemp
from rltemp import BadInputError, Signals, Temperatures, load_method
from rltemp.data.problem import Problem
from rltemp.envs.distill_env import DistillEnv
from rltemp.envs.episode import FIRST_TRAINING_SEED
from rltemp.envs.rewards import WORST
from rltemp.kd.method import Method
from rltemp.rules import dtkd
from rltemp.training.distill import Distillation
from rltemp.training.steps import train

Record = tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]
Act = Callable[[DistillEnv], NDArray[np.float32]]


def zero(env: DistillEnv) -> NDArray[np.float32]:
    return np.zeros((50, 2), np.float32)


def play(env: DistillEnv, act: Act = zero) -> list[Record]:
    """Every step from here to the end of the run."""
    records: list[Record] = []
    while not (records and (records[-1][2] or records[-1][3])):
        records.append(env.step(act(env)))
    return records


@pytest.fixture
def env(short: Problem) -> DistillEnv:
    """At the beginning of its first run."""
    made = DistillEnv(short)
    made.reset(seed=0)
    return made


def weights_of(env: DistillEnv) -> list[torch.Tensor]:
    return [value.detach() for value in env.episode.run.student.state_dict().values()]


def trained(env: DistillEnv, method: Method) -> nn.Module:
    """The plain loop's student, of the seed and on the samples of the run in `env`."""
    run = env.episode.run
    data = {"train": run.split, "subset": run.batches.subset, "teacher_logits": run.teacher_logits}
    return train(Distillation(env.problem, run.seeds, **data), method)


def assert_same(env: DistillEnv, plain: nn.Module, tolerance: float = 1e-7) -> None:
    """The student of `env` has the weights of `plain`."""
    for mine, theirs in zip(weights_of(env), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance)


def force_nan(env: DistillEnv) -> None:
    with torch.no_grad():
        next(env.episode.run.student.parameters()).fill_(math.nan)


def test_gymnasium_makes_it_without_an_argument() -> None:
    env = gymnasium.make("rltemp/Distill-v0")
    assert isinstance(env.unwrapped, DistillEnv)
    assert (env.observation_space.shape, env.action_space.shape) == ((50, 8), (50, 2))
    assert gymnasium.spec("rltemp/Distill-v0").entry_point == "rltemp.envs.distill_env:DistillEnv"


def test_gymnasium_finds_it_by_its_module(short: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rltemp, "envs", sys.modules["rltemp.envs"])  # as it is, once this is over
    monkeypatch.delitem(sys.modules, "rltemp.envs")
    monkeypatch.delitem(gymnasium.registry, "rltemp/Distill-v0")
    with pytest.raises(gymnasium.error.UnregisteredEnv):
        gymnasium.make("rltemp/Distill-v0", task=short)
    assert isinstance(gymnasium.make("rltemp.envs:rltemp/Distill-v0", task=short).unwrapped, DistillEnv)


def test_it_passes_the_checkers_of_gymnasium_and_sb3(short: Problem) -> None:
    """Without a warning but for the shape of the observation, which SB3 calls unconventional."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(gymnasium.make("rltemp/Distill-v0", task=short).unwrapped)
        check_env(gymnasium.make("rltemp/Distill-v0").unwrapped)
        assert [str(one.message) for one in caught] == []
        sb3.check_env(gymnasium.make("rltemp/Distill-v0"))
    assert [message for one in caught if "unconventional shape" not in (message := str(one.message))] == []


@pytest.mark.parametrize("redraw", [False, True])
def test_the_same_seed_gives_the_same_run_bit_for_bit(short: Problem, redraw: bool) -> None:
    runs = []
    for _ in range(2):
        env = DistillEnv(short, redraw=redraw)
        env.action_space.seed(5)
        first, info = env.reset(seed=3)
        records = play(env, lambda env: env.action_space.sample())
        again, _ = env.reset()
        runs.append((first, info, records, again))
        torch.rand(1)  # torch's global generator takes no part
    (first, info, records, again), other = runs
    np.testing.assert_array_equal(first, other[0])
    np.testing.assert_array_equal(again, other[3])
    assert not np.array_equal(first, again)
    assert info == other[1]
    assert len(records) == len(other[2]) == 20
    for mine, theirs in zip(records, other[2], strict=True):
        np.testing.assert_array_equal(mine[0], theirs[0])
        assert mine[1:] == theirs[1:]


def test_a_student_learns_the_same_under_an_agents_no_grad(short: Problem) -> None:
    ends = []
    for grad in (True, False):
        env = DistillEnv(short)
        with torch.set_grad_enabled(grad):
            env.reset(seed=0)
            play(env)
        ends.append(weights_of(env))
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


def test_another_seed_gives_another_student_above_the_seeds_of_comparisons(short: Problem) -> None:
    env = DistillEnv(short)
    seeds = []
    for seed in range(5):
        env.reset(seed=seed)
        seeds.append(env.episode.run.seeds)
    assert len(set(seeds)) == 5
    assert min(seeds) >= FIRST_TRAINING_SEED


@pytest.mark.parametrize("method", ["fixed:4", "dtkd:reference=2"])
@pytest.mark.parametrize("redraw", [False, True])
def test_an_action_of_zero_is_the_reference_method(digits: Problem, method: str, redraw: bool) -> None:
    env = DistillEnv(digits, method=method, redraw=redraw)
    env.reset(seed=0)
    play(env)
    assert_same(env, trained(env, load_method(method)))


def test_without_redrawing_it_learns_from_the_tasks_own_training_part(short: Problem, env: DistillEnv) -> None:
    play(env)
    assert_same(env, train(Distillation(short, env.episode.run.seeds), load_method("fixed:4")))


def test_a_rules_temperatures_sent_as_actions_train_the_same_student(short: Problem) -> None:
    sharp = dtkd(4.0)

    def clipped(signals: Signals) -> Temperatures:
        found = sharp(signals).detach()
        student, teacher = found.student.clamp(0.8, 20.0), found.teacher.clamp(0.8, 20.0)
        return Temperatures(student, teacher, student * teacher)

    def act(env: DistillEnv) -> NDArray[np.float32]:
        found = sharp(env.episode.signals).detach()
        ratio = torch.stack([found.student, found.teacher], -1) / 4.0
        return (ratio.log() / math.log(5.0)).clamp(-1, 1).numpy()

    env = DistillEnv(short, method="fixed:4")
    env.reset(seed=1)
    play(env, act)
    assert_same(env, trained(env, Method("clipped", clipped)), 1e-5)
    reference = trained(env, load_method("fixed:4")).state_dict().values()
    assert all((mine - other).abs().max() > 1e-3 for mine, other in zip(weights_of(env), reference, strict=True))


def test_a_batch_norm_student_ends_as_the_plain_loop_leaves_it(make_problem: Callable[..., Problem]) -> None:
    images = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8) % 2
    problem = make_problem(images, labels, student="resnet8", teacher=nn.Sequential(nn.Flatten(), nn.Linear(192, 2)))
    env = DistillEnv(problem, reward_interval=100)
    env.reset(seed=0)
    play(env, lambda env: np.zeros((2, 2), np.float32))
    assert_same(env, trained(env, load_method("fixed:4")))


def test_rewards_sum_to_the_change_of_the_potential_at_any_interval(short: Problem) -> None:
    sums = []
    for interval in (1, 7, 1000):
        env = DistillEnv(short, reward_interval=interval)
        _, info = env.reset(seed=0)
        records = play(env)
        rewards = [record[1] for record in records]
        assert sum(rewards) == pytest.approx(records[-1][4]["potential"] - info["potential"], abs=1e-6)
        assert sum(reward != 0 for reward in rewards) == {1: 20, 7: 3, 1000: 1}[interval]
        assert {type(reward) for reward in rewards} == {float}
        sums.append(sum(rewards))
    assert sums == pytest.approx([sums[0]] * 3, abs=1e-6)
    assert sums[0] > 0.05


def test_info_reports_the_step(short: Problem) -> None:
    env = DistillEnv(short)
    _, info = env.reset(seed=0)
    assert set(info) == {"potential"}
    action = np.broadcast_to(np.array([1.0, -1.0], np.float32), (50, 2))
    info = env.step(action)[4]
    assert set(info) == {"potential", "student_temperature_mean", "teacher_temperature_mean", "loss"}
    assert info["student_temperature_mean"] == pytest.approx(20.0)
    assert info["teacher_temperature_mean"] == pytest.approx(0.8)
    assert info["loss"] > 0


def test_the_last_step_is_truncated_and_then_a_reset_is_needed(short: Problem) -> None:
    env = DistillEnv(short)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(zero(env))
    env.reset(seed=0)
    records = play(env)
    assert [record[3] for record in records] == [False] * 19 + [True]
    assert not any(record[2] for record in records)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(zero(env))


def test_a_diverging_student_ends_with_finite_numbers_and_worst_potential(env):
    before = env.step(zero(env))
    force_nan(env)
    observation, reward, terminated, truncated, info = env.step(zero(env))
    np.testing.assert_array_equal(observation, before[0])
    assert (terminated, truncated) == (True, False)
    assert info["potential"] == WORST["margin"]
    assert reward == pytest.approx(WORST["margin"] - before[4]["potential"], abs=1e-6)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(zero(env))
    assert np.isfinite(env.reset(seed=0)[0]).all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_action_that_is_not_finite_is_refused_by_sample_and_value(env: DistillEnv, value: float) -> None:
    action = zero(env)
    action[7, 1] = value
    with pytest.raises(BadInputError, match=rf"finite; got {value} for sample 7"):
        env.step(action)
    env.step(zero(env))  # nothing happened to the run


@pytest.mark.parametrize("shape", [(50,), (50, 1), (2, 50), (1, 50, 2)])
def test_an_action_of_another_shape_is_refused(env: DistillEnv, shape: tuple[int, ...]) -> None:
    with pytest.raises(BadInputError, match=r"needed: \(50, 2\)"):
        env.step(np.zeros(shape, np.float32))


def test_arrays_are_never_reused(short: Problem) -> None:
    env = DistillEnv(short)
    first, _ = env.reset(seed=0)
    kept = first.copy()
    first[:] = 99.0
    np.testing.assert_array_equal(env.episode.observation.numpy(), kept)
    second = env.step(zero(env))[0]
    assert not np.shares_memory(second, env.step(zero(env))[0])


def test_features_and_reference_are_checked_when_it_is_built(short: Problem) -> None:
    with pytest.raises(BadInputError, match="temperatures"):
        DistillEnv(short, method="none")
    with pytest.raises(BadInputError, match="feature"):
        DistillEnv(short, features=())
    with pytest.raises(BadInputError, match="unknown feature 'progres': did you mean 'progress'"):
        DistillEnv(short, features=("progres",))
