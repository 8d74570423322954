"""`DistillVecEnv` is an honest `VecEnv`: SB3 is told of every sample what happened to its student."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO

from rltemp import BadInputError, load_method
from rltemp.data.problem import Problem
from rltemp.envs.episode import FIRST_TRAINING_SEED
from rltemp.envs.rewards import WORST
from rltemp.envs.vector import DistillVecEnv
from rltemp.rules.published_methods import METHODS
from rltemp.training.distill import Distillation
from rltemp.training.steps import train

STEPS, BATCH = 20, 50
Array = NDArray[np.float32]
Step = tuple[Array, Array, NDArray[np.bool_], list[dict[str, Any]]]


def play(env: DistillVecEnv, actions: Array | None = None, steps: int = STEPS) -> list[Step]:
    """Take the same actions `[N, 2]` (zero by default) for some steps, by default a whole run."""
    chosen = np.zeros((env.num_envs, 2), np.float32) if actions is None else actions
    return [cast(Step, env.step(chosen)) for _ in range(steps)]


def weights_of(env: DistillVecEnv) -> list[torch.Tensor]:
    return [value.detach().clone() for value in env.episode.run.student.parameters()]


def test_spaces_and_shapes(short: Problem) -> None:
    env = DistillVecEnv(short, students=3, features=("progress", "student_margin"))
    assert (env.num_envs, env.observation_space.shape, env.action_space.shape) == (150, (2,), (2,))
    observation = env.reset()
    assert observation.shape == (150, 2)
    assert observation.dtype == np.dtype(np.float32)
    assert len(env.reset_infos) == 150
    observation, rewards, ended, infos = play(env, steps=1)[0]
    assert (observation.shape, rewards.shape, ended.shape, len(infos)) == ((150, 2), (150,), (150,), 150)
    assert [array.dtype.name for array in (observation, rewards, ended)] == ["float32", "float32", "bool"]


def test_replicas_must_divide_the_students(short: Problem) -> None:
    with pytest.raises(BadInputError, match="replicas x tasks must divide students; got 2 x 1 and 3"):
        DistillVecEnv(short, students=3, replicas=2)


@pytest.mark.parametrize("interval", [1, 7])
def test_rewards_of_a_sample_sum_to_its_students_change_of_potential(short: Problem, interval: int) -> None:
    env = DistillVecEnv(short, students=3, reward_interval=interval)
    env.reset()
    episode, start = env.episode, env.episode.potential.clone()
    records = play(env)
    total = np.sum([rewards for _, rewards, _, _ in records], axis=0).reshape(3, BATCH)
    gained = (episode.potential - start).numpy()
    np.testing.assert_allclose(total, np.repeat(gained[:, None], BATCH, 1), atol=1e-6)
    assert len(set(gained.tolist())) == 3
    returns = [info["episode"]["r"] for info in records[-1][3]]
    np.testing.assert_allclose(returns, total.ravel(), atol=1e-6)


def test_the_potential_does_not_contain_the_temperature(short: Problem) -> None:
    cold, hot = DistillVecEnv(short, 2, method="fixed:1"), DistillVecEnv(short, 2, method="fixed:16")
    cold.reset(), hot.reset()
    assert torch.equal(cold.episode.potential, hot.episode.potential)


def test_the_reward_depends_on_the_action(short: Problem) -> None:
    env = DistillVecEnv(short, students=2, replicas=2)
    env.reset()
    actions = np.zeros((2, BATCH, 2), np.float32)
    actions[1, :, 0] = -1.0
    rewards = play(env, actions.reshape(-1, 2), 1)[0][1].reshape(2, BATCH)
    assert np.ptp(rewards, axis=1).tolist() == [0.0, 0.0]
    assert abs(rewards[0, 0] - rewards[1, 0]) > 1e-5
    assert all(not torch.equal(value[0], value[1]) for value in weights_of(env))


def test_the_action_of_one_sample_alone_changes_its_student_and_no_other(short: Problem) -> None:
    env = DistillVecEnv(short, students=4, replicas=2)
    env.reset()
    actions = np.zeros((4, BATCH, 2), np.float32)
    actions[1, 9, 1] = 1.0
    play(env, actions.reshape(-1, 2), 1)
    for value in weights_of(env):
        assert not torch.equal(value[0], value[1])
        torch.testing.assert_close(value[2], value[3], rtol=0, atol=1e-7)


def test_every_sample_has_what_sb3_needs_at_the_end_and_only_there(short: Problem) -> None:
    env = DistillVecEnv(short, students=2)
    env.reset()
    *before, (observation, _, ended, infos) = play(env)
    assert not any(done.any() or any(some) for _, _, done, some in before)
    assert ended.all()
    for sample, info in enumerate(infos):
        assert set(info) == {"terminal_observation", "TimeLimit.truncated", "episode"}
        assert info["TimeLimit.truncated"] is True
        assert info["episode"]["l"] == STEPS
        assert info["terminal_observation"].shape == (8,)
        assert info["terminal_observation"][0] == pytest.approx(1.0)  # progress at the end
        assert observation[sample][0] == pytest.approx(-1.0)  # and at the beginning of the next run


def test_a_method_that_looks_ahead_is_refused(short: Problem) -> None:
    with pytest.raises(BadInputError, match="mkd looks a step ahead, which an environment's step does not"):
        DistillVecEnv(short, students=2, method="mkd")


@pytest.mark.parametrize("method", ["fixed:4", "dtkd:reference=2"])
def test_replicas_under_zero_actions_stay_identical_through_the_whole_run(short: Problem, method: str) -> None:
    env = DistillVecEnv(short, students=6, replicas=3, method=method)
    env.reset()
    episode = env.episode
    play(env)
    assert episode.run.seeds == [seed for seed in dict.fromkeys(episode.run.seeds) for _ in range(3)]
    for tensor in (episode.potential, *episode.run.student.parameters()):
        group = tensor.detach().view(2, 3, *tensor.shape[1:])
        # Not to the last bit: torch's kernels round differently at the ends of their vectors.
        torch.testing.assert_close(group[:, 0], group[:, 1], rtol=0, atol=1e-6)
        torch.testing.assert_close(group[:, 0], group[:, 2], rtol=0, atol=1e-6)
        assert (group[0] - group[1]).abs().max() > 1e-4


@pytest.mark.parametrize("method", [*(name for name in METHODS if name not in ("none", "mkd")), "matched:lskd"])
def test_zero_actions_are_the_reference_method(short: Problem, method: str) -> None:
    env = DistillVecEnv(short, students=2, method=method)
    env.reset()
    run = env.episode.run
    play(env)
    plain = train(
        Distillation(short, run.seeds, train=run.split, subset=run.batches.subset, teacher_logits=run.teacher_logits),
        load_method(method),
    )
    for mine, theirs in zip(run.student.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-7)


def test_the_same_seed_gives_the_same_run_bit_for_bit(short: Problem) -> None:
    runs = []
    for _ in range(2):
        env = DistillVecEnv(short, students=4, replicas=2, seed=1)
        env.seed(7)
        first = env.reset()
        actions = np.random.default_rng(0).uniform(-1, 1, (env.num_envs, 2)).astype(np.float32)
        runs.append([(first, first[:, 0]), *((o, r) for o, r, _, _ in play(env, actions, 2 * STEPS + 3))])
    for mine, theirs in zip(*runs, strict=True):
        np.testing.assert_array_equal(mine[0], theirs[0])
        np.testing.assert_array_equal(mine[1], theirs[1])
    other = DistillVecEnv(short, students=4, replicas=2, seed=2).reset()
    assert not np.array_equal(other, runs[0][0][0])


def test_ppo_trains_on_it(short: Problem) -> None:
    env = DistillVecEnv(short, students=2)
    agent = PPO("MlpPolicy", env, n_steps=STEPS, batch_size=500, n_epochs=1, seed=0, device="cpu")
    before = [value.clone() for value in agent.policy.parameters()]
    agent.learn(STEPS * env.num_envs)
    assert agent.num_timesteps == STEPS * env.num_envs
    assert len(agent.ep_info_buffer or ()) == env.num_envs
    assert any(not torch.equal(old, new) for old, new in zip(before, agent.policy.parameters(), strict=True))
    assert all(bool(value.isfinite().all()) for value in agent.policy.parameters())


@pytest.mark.parametrize("at", [5, STEPS - 1])
def test_a_diverging_student_ends_its_own_samples_alone(short: Problem, at: int) -> None:
    env, calm = (DistillVecEnv(short, students=3, seed=4) for _ in range(2))
    env.reset(), calm.reset()
    untouched = play(calm)
    before = play(env, steps=at)[-1][0].reshape(3, BATCH, -1)
    with torch.no_grad():
        next(env.episode.run.student.parameters())[1] = math.nan
    episode, potential = env.episode, float(env.episode.potential[1])
    observation, rewards, ended, infos = play(env, steps=1)[0]
    assert np.isfinite(observation).all()
    assert np.isfinite(rewards).all()
    last = at == STEPS - 1
    assert ended.reshape(3, BATCH).all(1).tolist() == [last, True, last]
    np.testing.assert_allclose(rewards.reshape(3, BATCH)[1], WORST["margin"] - potential, atol=1e-6)
    for sample in range(BATCH):
        info = infos[BATCH + sample]
        assert info["TimeLimit.truncated"] is False
        np.testing.assert_array_equal(info["terminal_observation"], before[1, sample])
    if last:
        finals = [info["terminal_observation"] for info in untouched[-1][3]]
        for sample in (0, 2 * BATCH):
            assert infos[sample]["TimeLimit.truncated"] is True
            np.testing.assert_allclose(infos[sample]["terminal_observation"], finals[sample], atol=1e-6)
        return
    rest = play(env, steps=STEPS - at - 1)
    assert all(np.isfinite(o).all() and np.isfinite(r).all() for o, r, _, _ in rest)
    assert rest[-1][2].all()
    lengths = [info["episode"]["l"] for info in rest[-1][3]]
    assert lengths == [STEPS] * BATCH + [STEPS - at - 1] * BATCH + [STEPS] * BATCH
    others = np.r_[0:BATCH, 2 * BATCH : 3 * BATCH]
    for mine, theirs in zip(rest, untouched[at + 1 :], strict=True):
        np.testing.assert_allclose(mine[0][others], theirs[0][others], atol=1e-5)
        np.testing.assert_allclose(mine[1][others], theirs[1][others], atol=1e-5)
    assert episode.lost.tolist() == [False, True, False]


def test_with_a_run_away_learning_rate_every_number_let_out_is_finite(short: Problem) -> None:
    recipe = replace(short.task.recipe, learning_rate=1e18)
    env = DistillVecEnv(replace(short, task=replace(short.task, recipe=recipe)), students=2)
    env.reset()
    records = play(env, np.full((env.num_envs, 2), -1.0, np.float32))
    assert all(np.isfinite(o).all() and np.isfinite(r).all() for o, r, _, _ in records)


def test_an_action_that_is_not_finite_or_of_another_shape_is_refused(short: Problem) -> None:
    env = DistillVecEnv(short, students=1)
    env.reset()
    for value in (math.nan, -math.inf):
        actions = np.zeros((BATCH, 2), np.float32)
        actions[3, 0] = value
        with pytest.raises(BadInputError, match=f"got {value} for sample 3"):
            env.step(actions)
    with pytest.raises(BadInputError, match=r"needed: \(50, 2\)"):
        env.step(np.zeros((BATCH, 1), np.float32))


def test_neither_validation_nor_test_samples_are_ever_met(short: Problem) -> None:
    env = DistillVecEnv(short, students=8)
    own = torch.cat([short.dataset.train.inputs, short.dataset.probe.inputs])
    assert torch.equal(env.episode.run.split.inputs, own)
    for _ in range(3):
        env.reset()
        subset, probe = env.episode.run.batches.subset, env.episode.probe
        drawn = torch.cat([subset, probe], 1).sort(1).values
        assert torch.equal(drawn, torch.arange(len(own)).expand(8, -1))  # disjoint, and all of the pool
        assert probe.shape == (8, len(short.dataset.probe))
        assert not torch.equal(probe[0], probe[1])


def test_without_redrawing_the_probe_is_the_tasks_own(short: Problem) -> None:
    env = DistillVecEnv(short, students=2, redraw=False)
    env.reset()
    part, probe = env.episode.run.split, env.episode.probe
    assert all(torch.equal(part.inputs[rows], short.dataset.probe.inputs) for rows in probe)


def test_students_have_new_seeds_every_run_that_no_comparison_uses(short: Problem) -> None:
    env = DistillVecEnv(short, students=16)
    seen: list[int] = []
    for _ in range(3):
        env.reset()
        seen += env.episode.run.seeds
    assert min(seen) >= FIRST_TRAINING_SEED
    assert len(set(seen)) == 48


def test_attributes_and_methods_answer_once_for_every_sample(short: Problem) -> None:
    env = DistillVecEnv(short, students=1)
    assert env.get_attr("students") == [1] * BATCH
    assert env.get_attr("students", [0, 3]) == [1, 1]
    env.set_attr("runs_finished", 5)
    assert env.runs_finished == 5
    assert len(env.env_method("reset", indices=0)) == 1
