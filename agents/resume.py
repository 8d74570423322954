"""Going on with a policy's training exactly where it was: what Stable-Baselines3 saves, and what it does not.

A checkpoint is made between two rollouts, before anything of the next one is drawn. A rollout is one run of students
from fresh initial weights, so environment, students and last observation are those that the generator draws next, from
the state it had when that run began.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter
from torch import Tensor

from rltemp.agents.calibration import CalibratedBuffer
from rltemp.envs.vector import DistillVecEnv
from rltemp.errors import InterruptedRunError, of_this_run
from rltemp.io.interruption import requested
from rltemp.training.checkpoints import Checkpoints, State
from rltemp.training.tensorboard import Tracker


class Resumable(Protocol):
    """A part of the training with a state of its own."""

    def state(self) -> State:
        """Everything that what follows depends on."""
        ...

    def restore(self, state: State) -> None:
        """Go on from there."""
        ...


class Agent:
    """SB3's PPO as a part: its networks, optimizers, counters, and numbers that wait for the next entry in the log.

    Args:
        model: Made with the same arguments each time.
        env: What it learns in.
    """

    def __init__(self, model: PPO, env: DistillVecEnv) -> None:
        self.model = model
        self.env = env

    def state(self) -> State:
        """What `restore` needs."""
        model, buffer = self.model, self.model.rollout_buffer
        found: State = {
            "policy": model.policy.state_dict(),
            "optimizer": model.policy.optimizer.state_dict(),
            "timesteps": model.num_timesteps,
            "updates": model._n_updates,
            "waiting": {name: float(value) for name, value in model.logger.name_to_value.items()},
            "environment": self.env.state(),
        }
        if isinstance(buffer, CalibratedBuffer):
            found["calibration"] = buffer.model.state_dict()
            found["calibration_optimizer"] = buffer.model.optimizer.state_dict()
        return found

    def restore(self, state: State) -> None:
        """Put everything back; `learn` then begins the environment's run anew, since there is no observation yet."""
        model, buffer = self.model, self.model.rollout_buffer
        model.policy.load_state_dict(state["policy"])
        model.policy.optimizer.load_state_dict(state["optimizer"])
        model.num_timesteps, model._n_updates = state["timesteps"], state["updates"]
        for name, value in state["waiting"].items():
            model.logger.record(name, value)
        if isinstance(buffer, CalibratedBuffer):
            buffer.model.load_state_dict(state["calibration"])
            buffer.model.optimizer.load_state_dict(state["calibration_optimizer"])
        self.env.restore(state["environment"])


class CheckpointCallback(BaseCallback):
    """Saves between rollouts and after the last, and leaves in the middle of one where a signal asks for it.

    Stands before every callback that draws or measures at the start of a rollout: after a restart they do it again.

    Args:
        checkpoints: Where to.
        tracker: The log, which a checkpoint's state goes as far as.
        parts: What has a state, by name.

    Attributes:
        update: How many rollouts have been made.
    """

    def __init__(self, checkpoints: Checkpoints, tracker: Tracker, parts: Mapping[str, Resumable]) -> None:
        super().__init__()
        self.checkpoints = checkpoints
        self.tracker = tracker
        self.parts = parts
        self.update = 0

    def restore(self, state: State) -> None:
        """Give every part its state.

        Raises:
            ArtifactRefusedError: Where a part does not know it.
        """
        with of_this_run("training"):
            for name, part in self.parts.items():
                part.restore(state[name])
            self.update = int(state["update"])

    def _on_rollout_start(self) -> None:
        self.checkpoints.tick(self.update, self._state)

    def _on_step(self) -> bool:
        if (number := requested()) is not None:
            raise InterruptedRunError(number, self.checkpoints.standing(self.update))
        return True

    def _on_rollout_end(self) -> None:
        self.update += 1

    def _on_training_end(self) -> None:
        if self.update != self.checkpoints.saved:  # more updates begin here, not at the last one again
            self.checkpoints.tick(self.update, self._state)

    def _state(self) -> State:
        states = {name: part.state() for name, part in self.parts.items()}
        return {**states, "update": self.update, "events": self.tracker.flush()}


class EventWriter(KVWriter):
    """Passes what SB3 logs on to the run's one events file.

    Args:
        tracker: The log.
    """

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Write what is logged at a step."""
        for name, value in sorted(key_values.items()):
            if isinstance(value, Tensor):
                self.tracker.histogram(name, value, step)
            elif name != "time/iterations":  # of this process: a run that goes on would count from 1 again
                self.tracker.scalar(name, float(value), step)

    def close(self) -> None:
        """The tracker closes itself."""
