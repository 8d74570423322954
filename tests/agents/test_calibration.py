"""Calibration: sums stay, advantages change, and a sample is paid for what it did."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.buffers import RolloutBuffer
from torch import Tensor

from rltemp.agents.calibration import CalibratedBuffer, ContributionModel, calibrate, window_means

STEPS, STUDENTS, BATCH, INTERVAL = 60, 4, 20, 2
SPACES = spaces.Box(-10, 10, (1,)), spaces.Box(-1, 1, (1,))


def toy(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States, actions, true contributions and rewards `[T, S, B]`: a sample's action counts where its state is > 0.

    The reward of a window comes with its last step, to every sample alike.
    """
    generator = torch.Generator().manual_seed(seed)
    states, actions = torch.randn(2, STEPS, STUDENTS, BATCH, generator=generator)
    true = (states > 0) * actions.clamp(-1, 1)
    rewards = torch.zeros_like(true)
    rewards[INTERVAL - 1 :: INTERVAL] = INTERVAL * window_means(true, INTERVAL)[:, :, None]
    return states, actions, true, rewards


def filled(buffer: RolloutBuffer, states: Tensor, actions: Tensor, rewards: Tensor) -> RolloutBuffer:
    rows = [value.reshape(STEPS, -1).numpy() for value in (states, actions, rewards)]
    for state, action, reward in zip(*rows, strict=True):
        starts, value, log_prob = np.zeros(len(reward)), torch.zeros(len(reward), 1), torch.zeros(len(reward))
        buffer.add(state[:, None], action[:, None], reward, starts, value, log_prob)
    buffer.compute_returns_and_advantage(torch.zeros(STUDENTS * BATCH), np.ones(STUDENTS * BATCH))
    return buffer


def buffers(states: Tensor, actions: Tensor, rewards: Tensor) -> tuple[CalibratedBuffer, RolloutBuffer]:
    torch.manual_seed(0)
    common = {"n_envs": STUDENTS * BATCH, "gamma": 0.99, "gae_lambda": 0.95, "device": "cpu"}
    on = CalibratedBuffer(STEPS, *SPACES, batch_size=BATCH, interval=INTERVAL, **common)
    off = RolloutBuffer(STEPS, *SPACES, **common)
    return filled(on, states, actions, rewards), filled(off, states, actions, rewards)


def correlation(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> float:
    return float(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])


@given(seed=st.integers(0, 10**6), interval=st.sampled_from([1, 2, 7, 60, 100]))
@settings(max_examples=30)
def test_every_windows_sum_stays_whatever_the_model_says(seed: int, interval: int) -> None:
    rewards, said = torch.randn(2, STEPS, 3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    shared = calibrate(rewards, 100 * said, interval)
    for start in range(0, STEPS, interval):
        window = slice(start, start + interval)
        torch.testing.assert_close(shared[window].sum((0, 2)), rewards[window].sum((0, 2)))
    assert not torch.allclose(shared, rewards)


def test_what_is_left_over_is_shared_out_equally() -> None:
    # One window of two steps and two samples: 8 in all, 2 of it contributed, so 6 are left: 1.5 for each.
    rewards = torch.tensor([[[0.0, 0.0]], [[4.0, 4.0]]])
    said = torch.tensor([[[1.0, -1.0]], [[2.0, 0.0]]])
    assert calibrate(rewards, said, 2).tolist() == [[[2.5, 0.5]], [[3.5, 1.5]]]


def test_where_only_some_samples_matter_they_are_paid_and_sums_stay() -> None:
    """Before, a sample's reward knows nothing of its own part in it; after, most of what it did."""
    states, actions, true, rewards = toy()
    on, off = buffers(states, actions, rewards)
    assert np.abs(on.advantages - off.advantages).max() > 0.1
    assert correlation(on.advantages, off.advantages) < 0.9
    sums = [buffer.rewards.reshape(STEPS // INTERVAL, INTERVAL, STUDENTS, BATCH).sum((1, 3)) for buffer in (on, off)]
    np.testing.assert_allclose(*sums, rtol=1e-4, atol=1e-4)
    assert abs(correlation(off.rewards, true)) < 0.3
    assert correlation(on.rewards, true) > 0.8
    assert on.model.explained > 0.5
    matters = (states > 0).reshape(STEPS, -1).numpy()
    acted = actions.clamp(-1, 1).reshape(STEPS, -1).numpy()
    slope, idle = (np.polyfit(acted[rows], on.rewards[rows], 1)[0] for rows in (matters, ~matters))
    assert slope > 2 * abs(idle)


def test_rewards_that_come_with_a_feature_go_to_the_samples_that_have_it() -> None:
    states, actions, _, rewards = toy()
    counts = (states > 0).float()
    rewards[INTERVAL - 1 :: INTERVAL] = INTERVAL * window_means(counts, INTERVAL)[:, :, None]
    on, off = buffers(states, actions, rewards)
    assert abs(correlation(off.rewards, states)) < 0.2
    assert correlation(on.rewards, states) > 0.5


def test_rewards_that_nothing_explains_are_shared_out_almost_equally() -> None:
    states, actions, _, _ = toy()
    rewards = torch.ones(STEPS, STUDENTS, BATCH)
    on, _ = buffers(states, actions, rewards)
    np.testing.assert_allclose(on.rewards, 1.0, atol=1e-4)


def test_the_model_goes_on_from_rollout_to_rollout() -> None:
    torch.manual_seed(0)
    model = ContributionModel(2)
    explained = []
    for seed in range(4):
        states, actions, _, rewards = toy(seed)
        model.fit(torch.stack([states, actions], -1), rewards, INTERVAL)
        explained.append(model.explained)
    assert explained[-1] > explained[0]
    assert explained[-1] > 0.8


def test_opposite_errors_do_not_cancel() -> None:
    """The released code squares the mean error, for which +1 and -1 are no error at all."""
    torch.manual_seed(0)
    states = torch.tensor([1.0, -1.0]).repeat(10)[:, None, None].expand(20, 1, 5)
    model = ContributionModel(1)
    found = model.fit(states[..., None], states.clone(), 1)
    assert correlation(found, states) == pytest.approx(1.0, abs=1e-3)
    assert model.explained > 0.9
