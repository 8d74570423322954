"""SB3's own PPO with a decision for every sample: an actor, a critic, and noise of each action's own.

As in the code and page (not the text) of RLKD, Zhang et al. (2024), https://arxiv.org/abs/2407.00115, but for time.
There a batch is an episode whose steps are its samples, and the reward is measured before the temperatures act. Here a
step is an update of the student: the reward is measured after it, and advantages run along one student's updates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from rltemp.agents.calibration import CalibratedBuffer
from rltemp.agents.config import PolicyConfig
from rltemp.agents.network import SampleNetwork
from rltemp.envs.vector import DistillVecEnv

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


class SampleEnv(VecEnvWrapper):
    """`DistillVecEnv` as SB3's own policy needs it: normalised, with one action for both temperatures if so asked.

    The end of a run is an end: no improvement comes after it, so nothing is to be bootstrapped there.

    Args:
        venv: The environment.
        network: What the actor will be exported as. Its `mean` and `std` normalise the observations; its `rows`
            may make one action of two.
    """

    def __init__(self, venv: DistillVecEnv, network: SampleNetwork) -> None:
        super().__init__(venv, action_space=spaces.Box(-1.0, 1.0, (network.widths[-1],), np.float32))
        self.network = network
        self._mean, self._std = network.mean.numpy(), network.std.numpy()

    def reset(self) -> NDArray[np.float32]:
        """Begin a new run."""
        return self._normalised(self.venv.reset())

    def step_async(self, actions: NDArray[Any]) -> None:
        """Take the actions, `[S * B, 1]` where one stands for both temperatures."""
        self.venv.step_async(actions[:, self.network.rows])

    def step_wait(self) -> VecEnvStepReturn:
        """Run the step."""
        observation, rewards, ended, infos = self.venv.step_wait()
        for i in np.flatnonzero(ended):
            infos[i]["TimeLimit.truncated"] = False
            infos[i]["terminal_observation"] = self._normalised(infos[i]["terminal_observation"])
        return self._normalised(observation), rewards, ended, infos

    def _normalised(self, observation: Any) -> NDArray[np.float32]:
        return np.asarray((observation - self._mean) / self._std, np.float32)


def sample_model(
    env: DistillVecEnv, network: Callable[[], SampleNetwork], config: PolicyConfig, common: dict[str, Any]
) -> PPO:
    """SB3's PPO with its own policy: actor and critic of the same widths, each on the state.

    Args:
        env: What it learns in.
        network: Makes what the actor will be exported as.
        config: How.
        common: PPO's arguments that both agents have.
    """
    widths = list(config.hidden)
    calibrated = {"batch_size": env.batch_size, "interval": env.episode.reward_interval}
    return PPO(
        ActorCriticPolicy,
        SampleEnv(env, network()),
        # As many gradient steps a pass as the run has updates: the released code takes `passes` for every batch.
        batch_size=env.num_envs,
        stats_window_size=env.num_envs,  # SB3 averages its last 100 episodes; here every sample has one
        rollout_buffer_class=CalibratedBuffer if config.calibration else None,
        rollout_buffer_kwargs=calibrated if config.calibration else None,
        policy_kwargs={
            "net_arch": {"pi": widths, "vf": widths},
            "activation_fn": ACTIVATIONS[config.activation],
            "log_std_init": math.log(config.exploration),
        },
        **common,
    )


def actor_weights(policy: ActorCriticPolicy) -> Tensor:
    """The actor's weights as `SampleNetwork` has them, flat `[P]`: what it does without its noise."""
    actor = nn.ModuleList([policy.mlp_extractor.policy_net, policy.action_net])
    return parameters_to_vector(actor.parameters()).detach()
