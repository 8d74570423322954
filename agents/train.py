"""Train a temperature policy with Stable-Baselines3's PPO: `train_policy`.

Every update trains `students` students to the end of their run, in groups that share initial weights, samples and
batches and differ by a draw of the policy's weights alone. A run's return is the improvement of its student on probe
data; PPO moves the policy towards the draws that did better than their group. The policy that is kept is the running
mean of the weights that does best on validation data, the reference rule itself among the candidates.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import CallbackList, CheckpointCallback, ProgressBarCallback
from stable_baselines3.common.logger import configure
from torch import Tensor

from rltemp.actions import ActionScale
from rltemp.agents.callbacks import RunCallback, SelectionCallback
from rltemp.agents.export import export_policy
from rltemp.agents.network import RunBuffer, RunPolicy
from rltemp.checks import positive
from rltemp.distill import Problem
from rltemp.envs.vector import DistillVecEnv
from rltemp.errors import BadInputError
from rltemp.features import DEFAULT_FEATURES
from rltemp.methods import reference_method

POLICY_FILE = "policy.safetensors"


@dataclass(frozen=True)
class PolicyConfig:
    """How a policy is trained; every field is an option of `rltemp train-policy`."""

    reference: str = "dtkd:1"
    """The method that the policy moves around, with its loss weights: an action of zero is this method exactly."""
    features: tuple[str, ...] = DEFAULT_FEATURES
    """What the policy sees of a sample, in order."""
    ratio: float = 5.0
    """How far an action of 1 moves a temperature, as a factor."""
    minimum: float = 0.5
    """Lowest temperature."""
    maximum: float = 20.0
    """Highest temperature."""
    hidden: tuple[int, ...] = ()
    """Widths of the policy's hidden layers; none for a linear policy."""
    students: int = 64
    """Students trained side by side in one update."""
    replicas: int = 8
    """How many of them share initial weights, samples and batches; divides students."""
    updates: int = 80
    """PPO updates."""
    learning_rate: float = 0.01
    """Of the policy, at the first update; it falls linearly to a tenth."""
    passes: int = 4
    """PPO's passes over the runs of one update."""
    exploration: float = 0.1
    """Standard deviation of the draw of the policy's weights."""
    averaging: float = 0.9
    """Weight of the past in the running mean of the policy's weights, 0 to below 1."""
    validate_every: int = 5
    """Updates from one look at validation data to the next."""
    validation_students: int = 64
    """Students trained for one look at validation data."""
    looks: int = 4
    """How often a run looks at its probe samples; its rewards sum to the same however often."""
    redraw: bool = True
    """Draw training and probe samples afresh for every group, from both parts together."""
    seed: int = 0
    """Determines everything random."""

    def __post_init__(self) -> None:
        for name in ("students", "replicas", "updates", "learning_rate", "passes", "exploration", "looks"):
            positive(getattr(self, name), "train-policy", name)
        positive(self.validate_every, "train-policy", "validate_every")
        positive(self.validation_students, "train-policy", "validation_students")
        if not 0 <= self.averaging < 1:
            raise BadInputError(f"train-policy: averaging must be in [0, 1); got {self.averaging}")
        if self.replicas < 2 or self.students % self.replicas:
            raise BadInputError(
                "train-policy: replicas must be at least 2, so that runs can be compared, and divide students; "
                f"got {self.replicas} and {self.students}"
            )


def train_policy(problem: Problem, config: PolicyConfig, out: Path, progress: bool = True) -> dict[str, Any]:
    """Train a policy on a problem and leave its file, checkpoints and TensorBoard events in a folder.

    Args:
        problem: The task, loaded.
        config: How.
        out: The folder; gets `policy.safetensors`, `checkpoints/` and `tensorboard/`.
        progress: Show SB3's progress bar.

    Returns:
        What came out: the policy's file and SHA-256, the update that was kept, potentials on validation data of the
        kept policy and of the reference, and the throughput.
    """
    started = time.monotonic()
    env = make_env(problem, config)
    model = make_model(env, config)
    model.set_logger(configure(str(out / "tensorboard"), ["tensorboard"]))
    selection = SelectionCallback(problem, env.decision, config)
    callbacks = [
        RunCallback(env),
        selection,
        # SB3's own checkpoints are pickles: they are for going on with one's own run, never to be exchanged.
        CheckpointCallback(config.validate_every * model.n_steps, str(out / "checkpoints"), name_prefix="ppo"),
        *([ProgressBarCallback()] if progress else []),
    ]
    model.learn(config.updates * model.n_steps * env.num_envs, callback=CallbackList(callbacks), log_interval=1)
    seconds = time.monotonic() - started
    policy = _policy(model)
    provenance: dict[str, str | int | float] = {
        "task": problem.task.name,
        "teacher": problem.task.teacher,
        "student": problem.task.student,
        **{name: str(value) for name, value in asdict(config).items()},
        "kept_update": selection.kept_update,
        "validation_potential": selection.kept_potential,
        "reference_validation_potential": selection.reference_potential,
    }
    sha256 = export_policy(out / POLICY_FILE, policy.network, selection.kept, env.decision, provenance)
    return {
        "policy": POLICY_FILE,
        "sha256": sha256,
        "kept_update": selection.kept_update,
        "validation_potential": selection.kept_potential,
        "reference_validation_potential": selection.reference_potential,
        "students_trained": config.updates * config.students,
        "student_steps_per_second": config.updates * config.students * model.n_steps / seconds,
    }


def make_env(problem: Problem, config: PolicyConfig) -> DistillVecEnv:
    """The environment that a configuration trains in."""
    steps = problem.task.recipe.steps(len(problem.dataset.train))
    return DistillVecEnv(
        problem,
        config.students,
        replicas=config.replicas,
        method=reference_method(config.reference),
        features=config.features,
        scale=ActionScale(config.ratio, config.minimum, config.maximum),
        redraw=config.redraw,
        reward_interval=max(1, steps // config.looks),
        seed=config.seed,
    )


def make_model(env: DistillVecEnv, config: PolicyConfig) -> PPO:
    """SB3's PPO with the network, the exploration and the buffer of `rltemp.agents.network`."""
    mean, std = observation_statistics(env)
    steps = env.episode.run.steps
    return PPO(
        RunPolicy,
        env,
        n_steps=steps,
        batch_size=steps * env.num_envs,
        n_epochs=config.passes,
        learning_rate=_falling(config.learning_rate),
        gamma=1.0,
        gae_lambda=1.0,
        normalize_advantage=False,
        vf_coef=0.0,
        # SB3 averages its last 100 episodes; a run ends one for every sample of every student.
        stats_window_size=env.num_envs,
        max_grad_norm=float("inf"),
        rollout_buffer_class=RunBuffer,
        rollout_buffer_kwargs={"batch_size": env.batch_size, "replicas": config.replicas},
        policy_kwargs={
            "network": {"mean": mean, "std": std, "hidden": config.hidden},
            "batch_size": env.batch_size,
            "exploration": config.exploration,
            # Few updates, each noisy: a shorter memory of the gradient's size than Adam's default thousand.
            "optimizer_kwargs": {"betas": (0.9, 0.99)},
        },
        seed=config.seed,
        device="cpu",
    )


def observation_statistics(env: DistillVecEnv) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation `[F]` of the observations of one run under the reference rule."""
    action = np.zeros((env.num_envs, 2), np.float32)
    observations: list[Any] = [env.reset()]
    for _ in range(env.episode.run.steps - 1):
        observations.append(env.step(action)[0])
    every = torch.from_numpy(np.concatenate(observations))
    # A feature that never moves is divided by one, not by nothing.
    std = every.std(0)
    return every.mean(0), torch.where(std < 1e-4, torch.ones_like(std), std)


def _falling(rate: float) -> Callable[[float], float]:
    return lambda remaining: rate * (0.1 + 0.9 * remaining)


def _policy(model: PPO) -> RunPolicy:
    policy = model.policy
    assert isinstance(policy, RunPolicy)  # `make_model` builds no other
    return policy
