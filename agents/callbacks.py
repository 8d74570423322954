"""What TensorBoard shows of the run of a rollout."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import fields

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback

from rltemp.agents.calibration import CalibratedBuffer
from rltemp.envs.episode import Look
from rltemp.envs.vector import DistillVecEnv
from rltemp.kd.temperatures import Temperatures, temperature_scalars
from rltemp.training.tensorboard import step_scalars

SAMPLES = 10
"""Steps of a run that are looked at where it is stepped; where it is played, each look at the probe shows one."""


class RunCallback(BaseCallback):
    """Watches the run of a rollout: tells its progress, and logs at its end what happened.

    Args:
        env: The environment under PPO.
        progress: Told, as often as SB3 tells it, how many steps the training has taken.

    Attributes:
        temperatures: Of some steps of the last run.
    """

    def __init__(self, env: DistillVecEnv, progress: Callable[[int], None]) -> None:
        super().__init__()
        self.env = env
        self.progress = progress
        self.steps = env.run_steps
        self.every = max(1, self.steps // SAMPLES)
        self.temperatures: list[Temperatures] = []
        self._scalars: list[dict[str, float]] = []
        self._started = 0.0

    def _on_rollout_start(self) -> None:
        self.temperatures, self._scalars = [], []
        self._started = time.perf_counter()

    def _on_step(self) -> bool:
        self.progress(self.num_timesteps)
        if (stretch := self.locals.get("stretch")) is not None:
            for look in stretch.looks.values():
                self._keep(look)
        # At the last step of a run the environment is already in the next one, which has taken no step.
        elif (episode := self.env.episode).taken and episode.taken % self.every == 0:
            self._keep(episode.look())
        return True

    def _keep(self, look: Look) -> None:
        self.temperatures.append(look.temperatures.of_samples(look.signals.mask))
        self._scalars.append(step_scalars(look.signals, look.loss))

    def _on_rollout_end(self) -> None:
        seconds = time.perf_counter() - self._started
        buffer, finished = self.model.rollout_buffer, self.env.finished  # type: ignore[attr-defined]
        assert finished is not None  # a rollout is one run
        # A student's mean over its samples, which is the same however its reward is shared out to them.
        returns = buffer.rewards.sum(0).reshape(self.env.students, -1).mean(1)
        values = {
            "reward/run_mean": float(returns.mean()),
            "reward/run_std": float(returns.std()),
            "reward/probe_potential": float(finished.potential.mean()),
            "student/diverged": int(finished.lost.sum()),
            "time/step_ms": 1000 * seconds / self.steps,
        }
        if isinstance(buffer, CalibratedBuffer):
            values["reward/explained"] = buffer.model.explained
        for name in self._scalars[0] if self._scalars else ():
            values[name] = float(np.mean([scalars[name] for scalars in self._scalars]))
        if self.temperatures:
            together = _together(self.temperatures)
            values |= temperature_scalars(together)
            self.logger.record("temperature/student", together.student, exclude="stdout")
            self.logger.record("temperature/teacher", together.teacher, exclude="stdout")
        for name, value in values.items():
            self.logger.record(name, value)


def _together(steps: Sequence[Temperatures]) -> Temperatures:
    """The temperatures of several steps of one method as one row."""
    found = {field.name: [getattr(step, field.name) for step in steps] for field in fields(Temperatures)}
    rows = {name: values for name, values in found.items() if None not in values}
    return Temperatures(**{name: torch.cat([value.flatten() for value in row]) for name, row in rows.items()})
