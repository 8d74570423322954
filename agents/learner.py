"""Learning from runs that others made: PPO on what they report, without an environment of its own.

A decision is the draw of a policy's weights for one student's run, as in `rltemp.agents.network`; a run's return is the
improvement of its student. A run is judged against the others of its group, which share its start and its batches: its
advantage is its return less the mean return of the others. The groups need not be of one size. Each update gives a new
version: the mean parameters, around which the next draws are, and their running mean, which is what is served.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.logger import Logger
from torch import Tensor

from rltemp.agents.config import LearnerConfig
from rltemp.agents.network import KINDS, RunBuffer, RunPolicy, SampleNetwork
from rltemp.errors import TrainingDivergedError, of_this_run
from rltemp.policy.features import LIMIT
from rltemp.policy.policy_file import PolicyFile

Array = NDArray[np.float32]
State = dict[str, Any]


@dataclass(frozen=True)
class FinishedRun:
    """One student's run, as the learner needs it.

    Args:
        group: Runs of one group share their start and their batches.
        observation: Mean features of its first batch, `[F]`.
        action: The drawn weights, `[P]`.
        log_probability: Of the draw, under the version that it was drawn from.
        improvement: Of the student's potential over the run; the sum of its rewards.
    """

    group: str
    observation: Array
    action: Array
    log_probability: float
    improvement: float


class Learner:
    """A policy that gets better by the runs that are made under it.

    Args:
        layout: Features, their normalisation, network and action; every version of the policy has these.
        config: How it learns.
        keep_weights: Begin with the layout's weights rather than with the reference rule (a last layer of zeros).

    Attributes:
        version: 1 before the first update, one more with each.
        served_parameters: The running mean of the mean parameters, `[P]`.
        runs: That were learned from.
    """

    def __init__(self, layout: PolicyFile, config: LearnerConfig, keep_weights: bool = False) -> None:
        self.config = config
        # What the runs show is learned from, wherever it lies: the file's own training no longer says what was seen.
        features = tuple(one.model_copy(update={"low": None, "high": None}) for one in layout.manifest.features)
        self.layout = layout.manifest.model_copy(update={"features": features})
        self._network = network_of(layout)
        if not keep_weights:
            inside, out = layout.manifest.layers[-1]
            with torch.no_grad():
                self._network.weights[-out * (inside + 1) :] = 0.0
        self._ppo = _ppo(self._network, layout.manifest.action.size, config)
        self.served_parameters = self.mean_parameters
        self.version = 1
        self.runs = 0

    @property
    def mean_parameters(self) -> Tensor:
        """What the next draws are around, `[P]`; a copy."""
        return self._network.weights.detach().clone()

    def tensors(self, weights: Tensor) -> dict[str, Tensor]:
        """Flat weights `[P]` as a policy file has them."""
        return self._network.tensors(weights)

    def update(self, runs: Sequence[FinishedRun]) -> dict[str, float]:
        """Learn from runs, each in a group of two or more, and be the next version.

        Returns:
            What TensorBoard and metrics want to know of the update.

        Raises:
            TrainingDivergedError: Where the weights are not finite afterwards; the learner is of no use then.
        """
        buffer = self._ppo.rollout_buffer
        assert isinstance(buffer, RunBuffer)  # `_ppo` gives no other
        improvements = np.array([run.improvement for run in runs], np.float32)
        _, groups = np.unique([run.group for run in runs], return_inverse=True)
        buffer.fill(
            torch.from_numpy(np.stack([run.action for run in runs])),
            torch.tensor([run.log_probability for run in runs]),
            improvements[None],
            groups,
        )
        self._ppo.train()
        if not bool(self.mean_parameters.isfinite().all()):
            raise TrainingDivergedError(f"the update after version {self.version} gave weights that are not finite")
        weight = self.config.averaging
        self.served_parameters = weight * self.served_parameters + (1 - weight) * self.mean_parameters
        self.version += 1
        self.runs += len(runs)
        found = {name: float(value) for name, value in self._ppo.logger.name_to_value.items()}
        return {
            "improvement": float(improvements.mean()),
            "clip_fraction": found["train/clip_fraction"],
            "kl": found["train/approx_kl"],
        }

    def state(self) -> State:
        """Everything that what follows depends on; a copy."""
        live = {
            "policy": self._ppo.policy.state_dict(),
            "optimizer": self._ppo.policy.optimizer.state_dict(),
            "mean": self.served_parameters,
            "version": self.version,
            "runs": self.runs,
        }
        return deepcopy(live)

    def restore(self, state: State) -> None:
        """Go on from what `state` gave.

        Raises:
            ArtifactRefusedError: Where it is another policy's.
        """
        with of_this_run("online policy"):
            self._ppo.policy.load_state_dict(state["policy"])
            self._ppo.policy.optimizer.load_state_dict(state["optimizer"])
            self.served_parameters = state["mean"]
            self.version, self.runs = int(state["version"]), int(state["runs"])


def network_of(policy: PolicyFile) -> SampleNetwork:
    """The network of a policy file, with its weights as one flat vector."""
    manifest = policy.manifest
    features = manifest.features
    mean, std = (torch.tensor([getattr(feature, name) for feature in features]) for name in ("mean", "std"))
    hidden = [out for _, out in manifest.layers[:-1]]
    with torch.random.fork_rng(devices=[]):
        network = SampleNetwork(mean, std, hidden, manifest.activation, actions=manifest.action.size)
    ordered = [policy.weights[f"{i}.{kind}"].flatten() for i in range(len(manifest.layers)) for kind in KINDS]
    with torch.no_grad():
        network.weights.copy_(torch.cat(ordered))
    return network


def log_probability(action: Tensor, mean: Tensor, exploration: float) -> Tensor:
    """Of draws `[..., P]` of independent normal weights around a mean `[P]`: `[...]`, in nats."""
    deviations = (action.double() - mean.double()) / exploration
    return -0.5 * deviations.square().sum(-1) - len(mean) * (math.log(exploration) + 0.5 * math.log(2 * math.pi))


def _ppo(network: SampleNetwork, actions: int, config: LearnerConfig) -> PPO:
    """SB3's PPO on runs that come from elsewhere: set up as SB3 does it where it loads a model without environment."""
    ppo = PPO(
        RunPolicy,
        None,  # type: ignore[arg-type]  # as its own `load` does
        n_steps=1,
        n_epochs=config.passes,
        learning_rate=config.learning_rate,
        clip_range=config.clip,
        normalize_advantage=False,
        vf_coef=0.0,
        max_grad_norm=math.inf,
        rollout_buffer_class=RunBuffer,
        policy_kwargs={
            "network": lambda: network,
            "exploration": config.exploration,
            "optimizer_kwargs": {"betas": (0.9, 0.99)},
        },
        device="cpu",
        _init_setup_model=False,
    )
    ppo.observation_space = spaces.Box(-LIMIT, LIMIT, (len(network.mean),), np.float32)
    ppo.action_space = spaces.Box(-1.0, 1.0, (actions,), np.float32)
    ppo.n_envs = 1
    with torch.random.fork_rng(devices=[]):
        ppo._setup_model()
    ppo.set_logger(Logger(folder=None, output_formats=[]))
    return ppo
