"""Instance reward calibration: a reward that came for many decisions, shared out to them by return decomposition.

A small network learns to predict a student's reward as a mean of contributions, each of one sample's state and action.
A sample is rewarded with its own contribution, and what is left over is shared out equally: the sum stays the reward.
After the code and page (not the text) of RLKD, Zhang et al. (2024), https://arxiv.org/abs/2407.00115, and Arjona-Medina
et al. (2019), https://arxiv.org/abs/1806.07857. The released code replaces the rewards after the advantages are made of
them, which changes nothing, and squares the mean error; here advantages come last, and squares are averaged.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.buffers import RolloutBuffer
from torch import Tensor, nn

HIDDEN = 16
FIT_STEPS = 100
FIT_RATE = 1e-2


def windows(steps: int, interval: int) -> Tensor:
    """Which look at the probe each step waits for: `[steps]`.

    >>> windows(5, 2).tolist()
    [0, 0, 1, 1, 2]
    """
    return torch.arange(steps) // interval


def window_means(values: Tensor, interval: int) -> Tensor:
    """Mean over the samples and steps of every window: `[W, S]` of values `[T, S, B]`."""
    window = windows(len(values), interval)
    sums = values.new_zeros(int(window[-1]) + 1, values.shape[1]).index_add(0, window, values.mean(-1))
    return sums / window.bincount()[:, None]


def calibrate(rewards: Tensor, contributions: Tensor, interval: int) -> Tensor:
    """Contributions plus an equal share of what they leave over: each window's sum is that of its rewards.

    Args:
        rewards: `[T, S, B]`, of T steps of S students on B samples.
        contributions: `[T, S, B]`, in the units of the rewards.
        interval: Steps of a window; the last may have fewer.

    Returns:
        `[T, S, B]`.
    """
    left = window_means(rewards, interval) - window_means(contributions, interval)
    return contributions + left[windows(len(rewards), interval), :, None]


class ContributionModel(nn.Module):
    """What one decision contributes, from its state and action `[..., F + A]`: `[...]`, in deviations of the rewards.

    Args:
        inputs: F + A.
    """

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
        self.optimizer = torch.optim.Adam(self.parameters(), lr=FIT_RATE)
        self.explained = 0.0

    def forward(self, inputs: Tensor) -> Tensor:
        """Contributions `[...]`."""
        values: Tensor = self.layers(inputs)
        return values.squeeze(-1)

    def fit(self, inputs: Tensor, rewards: Tensor, interval: int) -> Tensor:
        """Learn from a rollout, going on from the last, and give its contributions.

        Args:
            inputs: `[T, S, B, F + A]`.
            rewards: `[T, S, B]`.
            interval: Steps of a window.

        Returns:
            `[T, S, B]`, in the units of the rewards; their window means approach those of the rewards.
        """
        means = window_means(rewards, interval)
        mean, deviation = means.mean(), means.std().clamp_min(1e-8)
        wanted = (means - mean) / deviation
        for _ in range(FIT_STEPS):
            self.optimizer.zero_grad()
            loss = (window_means(self(inputs), interval) - wanted).square().mean()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            self.optimizer.step()
        with torch.no_grad():
            contributions: Tensor = self(inputs) * deviation + mean
        found = window_means(contributions, interval)
        self.explained = float(1 - (found - means).square().mean() / deviation.square())
        return contributions


class CalibratedBuffer(RolloutBuffer):
    """SB3's buffer, whose rewards are shared out to the samples before advantages are made of them.

    `DistillVecEnv` gives a student's reward to each of its B samples, so a window's sum is B times the student's; that
    sum is what stays. (To keep the student's own would scale all by 1/B, which normalised advantages do not see.)

    Args:
        *args: As SB3's.
        batch_size: B, samples a student; sub-environments come student by student.
        interval: Steps from one look at the probe to the next.
        **kwargs: As SB3's.
    """

    def __init__(self, *args: Any, batch_size: int, interval: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.batch_size = batch_size
        self.interval = interval
        # Drawn aside, so that a run without calibration begins with the same policy and the same actions.
        with torch.random.fork_rng(devices=[]):
            self.model = ContributionModel(int(np.prod(self.obs_shape)) + self.action_dim)

    def compute_returns_and_advantage(self, last_values: Tensor, dones: NDArray[Any]) -> None:
        """Share the rewards out, then do as SB3 does."""
        shape = (self.buffer_size, self.n_envs // self.batch_size, self.batch_size)
        rewards = torch.from_numpy(self.rewards).view(shape)
        # An action beyond the box acts as the box's edge.
        decisions = np.concatenate([self.observations, self.actions.clip(-1, 1)], -1)
        contributions = self.model.fit(torch.from_numpy(decisions).view(*shape, -1), rewards, self.interval)
        self.rewards = calibrate(rewards, contributions, self.interval).view(self.buffer_size, -1).numpy()
        super().compute_returns_and_advantage(last_values, dones)
