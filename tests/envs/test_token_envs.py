"""Environments whose samples are tokens: a sub-environment for every place, and padding that changes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.tokens import LENGTH, token_problem

from rltemp import load_method
from rltemp.agents.config import PolicyConfig
from rltemp.agents.network import observation_statistics, observed
from rltemp.agents.train import train_policy
from rltemp.data.problem import Problem
from rltemp.envs.distill_env import DistillEnv
from rltemp.envs.vector import DistillVecEnv
from rltemp.training.distill import Distillation
from rltemp.training.steps import train


@pytest.fixture(scope="module")
def tokens() -> Problem:
    return token_problem()


def test_every_place_of_a_sequence_is_a_sub_environment(tokens: Problem) -> None:
    env = DistillVecEnv(tokens, students=3)
    assert env.num_envs == 3 * 16 * LENGTH
    observation, mask = env.reset(), env.episode.seen.mask
    assert mask is not None
    assert mask.shape == (3, 16 * LENGTH)
    assert 0.3 < mask.mean() < 1
    assert (observation[~mask.ravel()] == 0).all()
    alone = DistillEnv(tokens)
    assert alone.reset(seed=0)[0].shape == (16 * LENGTH, 8)


@pytest.mark.parametrize("method", ["fixed:2", "dtkd:2", "matched:fixed:2", "idts"])
def test_actions_of_zero_train_the_reference_methods_students(tokens: Problem, method: str) -> None:
    env = DistillVecEnv(tokens, students=2, method=method)
    env.reset()
    run, action = env.episode.run, np.zeros((env.num_envs, 2), np.float32)
    for _ in range(run.steps):
        observation, rewards, _, _ = env.step(action)
        assert np.isfinite(observation).all()
        assert np.isfinite(rewards).all()
    plain = train(
        Distillation(tokens, run.seeds, train=run.split, subset=run.batches.subset, teacher_logits=run.teacher_logits),
        load_method(method),
    )
    for mine, theirs in zip(run.student.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


def test_what_a_network_says_of_padding_and_actions_there_change_nothing(tokens: Problem) -> None:
    found = []
    for problem, noise in ((tokens, 0.0), (tokens, 1.0), (token_problem(padding=1e30), 1.0)):
        env = DistillVecEnv(problem, students=2, seed=3)
        env.reset()
        drawn, total = np.random.default_rng(0), np.zeros(env.num_envs)
        for _ in range(10):
            action = noise * drawn.uniform(-1, 1, (env.num_envs, 2)).astype(np.float32)
            action[env.episode.seen.mask.ravel()] = 0.5
            total += env.step(action)[1]
        found.append([total, *(value.detach().numpy() for value in env.episode.run.student.parameters())])
    for other in found[1:]:
        for mine, theirs in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_the_statistics_of_observations_are_those_of_the_samples(tokens: Problem) -> None:
    env = DistillVecEnv(tokens, students=2)
    mean, _ = observation_statistics(observed(env))
    observations, action = [env.reset()], np.zeros((env.num_envs, 2), np.float32)
    masks = [env.episode.seen.mask.ravel()]
    for _ in range(env.episode.steps - 1):
        observations.append(env.step(action)[0])
        masks.append(env.episode.seen.mask.ravel())
    kept, every = np.concatenate(observations)[np.concatenate(masks)], np.concatenate(observations)
    margin = list(env.decision.features).index("teacher_margin")
    own, padded = np.median(kept[:, margin]), np.median(every[:, margin])
    assert abs(own - padded) > 0.05
    assert abs(float(mean[margin]) - own) < abs(own - padded) / 4  # of another run


def test_a_policy_is_trained_on_padded_tokens(tokens: Problem, tmp_path: Path) -> None:
    config = PolicyConfig(updates=2, students_per_update=4, replicas=2, validation_students=2)
    found = train_policy(tokens, config, tmp_path)
    assert found["students_trained"] == 8
    method = load_method(str(tmp_path / "policy.safetensors"))
    run = Distillation(tokens, [3, 4])
    loss = method.loss(run.observe())
    assert loss.shape == (2, 16 * LENGTH)
    assert loss.isfinite().all()
