"""One small network for every sample, and exploration that a student's whole run shares, on Stable-Baselines3's PPO.

Noise that is drawn afresh for every sample averages out over a run and teaches nothing about its end. So exploration
is one draw of the network's *weights* for each student, kept over its run (parameter-based exploration: Sehnke et al.
2010, doi:10.1016/j.neunet.2009.12.004). The decision that PPO credits is then that draw, one for each run: its
log-probability is that of the weights. To treat one draw as thousands of independent actions, as state-dependent
exploration does, biases the gradient; here it first learned and then drifted into the bounds (docs/experiments.md).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import RolloutBufferSamples, Schedule
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from rltemp.envs.advantages import Judge, group_advantages
from rltemp.envs.episode import LOOKS
from rltemp.envs.vector import DistillVecEnv
from rltemp.policy.features import featurize
from rltemp.policy.policy_file import ACTIVATIONS

STATISTICS_TASKS = 96
"""Tasks of a variety whose observations a policy's features are centred and scaled by."""
KINDS = ("weight", "bias")
"""Of a layer's tensors, in the order of the flat weights."""


class SampleNetwork(nn.Module):
    """An MLP from a normalised observation `[F]` to an action `[A]`, whose weights are one flat vector.

    Args:
        mean: Of the observations, `[F]`.
        std: Likewise, above 0.
        hidden: Widths of the hidden layers; none for a linear policy.
        activation: Between layers, a name of `rltemp.policy.policy_file.ACTIVATIONS`.
        shared: One action for both temperatures: their columns are the same.
        actions: A, 2 (student, teacher) or 3 (and weight).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Tensor,
        std: Tensor,
        hidden: Sequence[int] = (),
        activation: str = "tanh",
        shared: bool = False,
        actions: int = 2,
    ) -> None:
        super().__init__()
        self.activation = activation
        # Which row of the last layer each column of the action comes from.
        self.rows = [0, 0, 1][:actions] if shared else list(range(actions))
        self.widths = [len(mean), *hidden, self.rows[-1] + 1]
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())
        layers = [torch.randn(out, inside) / inside**0.5 for inside, out in pairwise(self.widths)]
        # The last layer starts at zero: the first policy is the reference rule.
        layers[-1].zero_()
        flat = [torch.cat([weight.flatten(), torch.zeros(len(weight))]) for weight in layers]
        self.weights = nn.Parameter(torch.cat(flat))

    @property
    def structure(self) -> Hashable:
        """What an action depends on beside the observation, its statistics and the weights."""
        return type(self), self.activation, tuple(self.rows), tuple(self.widths)

    def normalised_by(self, mean: Tensor, std: Tensor) -> SampleNetwork:
        """The same network with other statistics of the observations."""
        other = copy.copy(self)
        other._buffers = {"mean": mean, "std": std}
        return other

    def layers(self, weights: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The (weight `[S, out, in]`, bias `[S, out]`) of each layer, from flat weights `[S, P]`; the last has A."""
        shapes = [(out, inside) for inside, out in pairwise(self.widths)]
        pieces = torch.split(weights, [out * (inside + 1) for out, inside in shapes], -1)
        layers = [
            (piece[:, : out * inside].view(-1, out, inside), piece[:, out * inside :])
            for piece, (out, inside) in zip(pieces, shapes, strict=True)
        ]
        weight, bias = layers[-1]
        return [*layers[:-1], (weight[:, self.rows], bias[:, self.rows])]

    def tensors(self, weights: Tensor) -> dict[str, Tensor]:
        """Flat weights `[P]` by the names that a policy file has for them."""
        return {
            f"{position}.{kind}": tensor[0].contiguous()
            for position, layer in enumerate(self.layers(weights.detach()[None]))
            for kind, tensor in zip(KINDS, layer, strict=True)
        }

    def forward(self, observation: Tensor, weights: Tensor) -> Tensor:
        """Actions `[S, B, A]` for observations `[S, B, F]` under weights `[S, P]`."""
        value = (observation - self.mean) / self.std
        for position, (weight, bias) in enumerate(self.layers(weights)):
            value = ACTIVATIONS[self.activation](value) if position else value
            value = torch.baddbmm(bias.unsqueeze(1), value, weight.transpose(1, 2))
        return value


class RunPolicy(ActorCriticPolicy):
    """A policy for PPO whose exploration is one draw of its weights for each student, kept over the student's run.

    Args:
        observation_space: Of one sample.
        action_space: Of one sample.
        lr_schedule: PPO's.
        network: Makes it.
        exploration: Standard deviation of the draw, in units of a weight.
        **kwargs: What PPO passes on.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        network: Callable[[], SampleNetwork],
        exploration: float = 0.1,
        **kwargs: Any,
    ) -> None:
        self._make_network = network
        self._exploration = exploration
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        self.network = self._make_network()
        self.register_buffer("log_std", torch.tensor(self._exploration).log())
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    @torch.no_grad()
    def draw(self, students: int) -> tuple[Tensor, Tensor]:
        """Draw the weights of a run's students, `[S, P]`; with the log-probability of each draw, `[S]`."""
        drawn = mirrored_draws(self.network.weights, self.log_std.exp(), students)
        return drawn, self._log_prob(drawn)

    def evaluate_actions(self, obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, None]:
        """Values (none: zero) and log-probabilities of drawn weights `[S, P]`, which `RunBuffer` gives for actions.

        A student's baseline is the mean over its group, which shares its start and its batches.
        """
        return torch.zeros(len(actions), 1), self._log_prob(actions), None

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        weights: Tensor = self.network.weights
        if not deterministic:
            weights = weights + torch.randn_like(weights) * self.log_std.exp()
        actions: Tensor = self.network(observation.view(1, -1, observation.shape[-1]), weights[None])
        return actions.flatten(0, 1)

    def _log_prob(self, drawn: Tensor) -> Tensor:
        normal = torch.distributions.Normal(self.network.weights, self.log_std.exp())
        densities: Tensor = normal.log_prob(drawn)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return densities.sum(-1)


class RunBuffer(RolloutBuffer):
    """Whole runs, each of which is one decision and one row: its drawn weights stand in the place of an action."""

    def reset(self) -> None:
        """Forget all runs."""
        nothing = torch.zeros(0)
        self._hold(nothing, nothing, np.zeros((1, 0), np.float32), np.zeros(0, np.float32))

    def fill(
        self,
        drawn: Tensor,
        log_probs: Tensor,
        rewards: NDArray[np.float32],
        groups: NDArray[np.int64],
        judge: Judge = group_advantages,
    ) -> None:
        """Hold these runs and no others.

        Args:
            drawn: Weights, `[N, P]`.
            log_probs: Of the draws, `[N]`.
            rewards: Of every look, `[L, N]`; their sum is a run's return, for whose advantage see `group_advantages`.
            groups: The number of each run's group, from 0, `[N]`.
            judge: From returns and groups to advantages, `[N]`.
        """
        self._hold(drawn, log_probs, rewards, judge(rewards.sum(0), groups))

    def _hold(
        self, drawn: Tensor, log_probs: Tensor, rewards: NDArray[np.float32], advantages: NDArray[np.float32]
    ) -> None:
        self.drawn, self.rewards, self.advantages = drawn, rewards, advantages
        self.log_probs, self.returns = log_probs.numpy(), rewards.sum(0)
        self.values = np.zeros_like(self.returns)

    def get(self, batch_size: int | None = None) -> Generator[RolloutBufferSamples, None, None]:
        """All runs as one batch; no observation is needed."""
        yield RolloutBufferSamples(
            observations=torch.zeros(len(self.drawn), 0),
            actions=self.drawn,
            old_values=self.to_torch(self.values),
            old_log_prob=self.to_torch(self.log_probs),
            advantages=self.to_torch(self.advantages),
            returns=self.to_torch(self.returns),
        )


class RunPPO(PPO):
    """SB3's PPO on a `DistillVecEnv` whose runs are played: a rollout is one run of all students."""

    judge: Judge = staticmethod(group_advantages)  # as in `RunBuffer.fill`

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Draw the weights of the students, play their run, and fill the buffer.

        Callbacks are called as SB3 calls them, `on_step` once a stretch, which is the local `stretch`.

        Returns:
            Whether no callback has stopped it.
        """
        policy = self.policy
        assert isinstance(env, DistillVecEnv)
        assert isinstance(policy, RunPolicy)
        assert isinstance(rollout_buffer, RunBuffer)
        callback.on_rollout_start()
        drawn, log_probs = policy.draw(env.students)
        rewards = []
        for stretch in env.play(policy.network, drawn):
            rewards.append(stretch.reward)
            callback.update_locals(locals())
            if not callback.on_step():
                return False
        # Runs differ in length where their tasks do: every one counts as a typical one.
        self.num_timesteps += n_rollout_steps * env.num_envs
        groups = np.arange(env.students) // env.replicas
        rollout_buffer.fill(drawn, log_probs, np.stack(rewards), groups, self.judge)
        ended = [{"episode": {"r": float(value), "l": n_rollout_steps}} for value in rollout_buffer.returns]
        self._update_info_buffer(ended)
        callback.on_rollout_end()
        return True


def mirrored_draws(
    mean: Tensor, deviation: float | Tensor, count: int, generator: torch.Generator | None = None
) -> Tensor:
    """Draw weights `[count, P]` around a mean `[P]`, in mirrored pairs: what a pair shares cancels out."""
    half = torch.randn((count + 1) // 2, len(mean), generator=generator) * deviation
    return mean + torch.stack([half, -half], 1).flatten(0, 1)[:count]


def observed(env: DistillVecEnv, seed: int = 0) -> Tensor:
    """Observations `[N, F]` of some tasks' runs under the reference rule."""
    count = len(env.decision.features)
    network = SampleNetwork(torch.zeros(count), torch.ones(count), actions=env.decision.scale.size)
    runs, generator = replace(env.runs, looks=LOOKS), np.random.default_rng(seed)
    idle, found = network.weights.detach().zero_().expand(env.students, -1), list[Tensor]()
    for _ in range(-(-STATISTICS_TASKS // tasks) if (tasks := env.runs.tasks) > 1 else 1):
        for stretch in runs.play(runs.draw(generator), 0, network, idle):
            found += [
                featurize(look.signals.samples(), env.decision.features).flatten(0, -2)
                for look in stretch.looks.values()
            ]
    return torch.cat(found).cpu()


def observation_statistics(observations: Tensor) -> tuple[Tensor, Tensor]:
    """Centre and scale `[F]` of observations `[N, F]`.

    They are the median and half of the distance between the quantiles of 0.16 and 0.84: those of a normal distribution
    are its mean and standard deviation, and a student that has collapsed does not stretch them.
    """
    low, middle, high = torch.from_numpy(np.quantile(observations.numpy(), (0.16, 0.5, 0.84), axis=0)).float()
    # A feature that never moves is divided by one, not by nothing.
    scale = (high - low) / 2
    return middle, torch.where(scale < 1e-3, torch.ones_like(scale), scale)
