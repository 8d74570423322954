"""Environments in processes of their own, whose errors arrive: `WorkerVecEnv`.

In SB3's `SubprocVecEnv` an exception ends the worker, and all that the parent sees of it is an `EOFError`. (Gymnasium's
`AsyncVectorEnv` forwards them; SB3 does not take it.) Whoever trains on `DistillVecEnv` needs no processes.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import wait
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import SubprocVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from rltemp.errors import RltempError

Make = Callable[[], "gym.Env[Any, Any]"]
FAILURE = "worker_failure"


class WorkerError(RltempError, RuntimeError):
    """An environment in another process failed; the message has the worker's number and its own traceback."""


class WorkerVecEnv(SubprocVecEnv):
    """`SubprocVecEnv` that raises what its workers raised, with the traceback they raised it with.

    Args:
        makers: Each makes one environment, in its process; picklable.
        start_method: As in `SubprocVecEnv`. Torch does not work in a process forked from one that has used it: leave
            it out for environments of this package.
        timeout: Seconds that a `step` may take.

    Raises:
        WorkerError: Where an environment cannot be made, raises in `reset` or `step`, does not answer, or its process
            was killed.
    """

    def __init__(self, makers: Sequence[Make], start_method: str | None = None, timeout: float = 120.0) -> None:
        self.timeout = timeout
        super().__init__([partial(_made, make) for make in makers], start_method)
        self._raise([{FAILURE: failure} if failure else {} for failure in self.get_attr("failure")])

    def reset(self) -> VecEnvObs:
        """Reset all environments."""
        observation: VecEnvObs = self._alive(super().reset)
        self._raise(self.reset_infos)
        return observation

    def step_async(self, actions: np.ndarray[Any, Any]) -> None:
        """Send each environment its action."""
        self._alive(partial(super().step_async, actions))

    def step_wait(self) -> VecEnvStepReturn:
        """Wait for all environments."""
        self._wait()
        found: VecEnvStepReturn = self._alive(super().step_wait)
        self._raise(found[3])
        return found

    def _wait(self) -> None:
        """Wait until every worker has answered; one that has ended never will, whoever still holds its pipe."""
        for index, (remote, process) in enumerate(zip(self.remotes, self.processes, strict=True)):
            ready = wait([remote, process.sentinel], self.timeout)
            if not ready:
                self._stop()
                raise WorkerError(
                    f"env worker {index} has not answered for {self.timeout:g} s. If its environment may take as long, "
                    "give WorkerVecEnv a larger timeout"
                )
            if remote not in ready:
                self._dead()

    def _alive(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (EOFError, ConnectionError):
            self._dead()

    def _dead(self) -> NoReturn:
        for process in self.processes:
            process.join(1.0)
        dead = [(i, p.exitcode) for i, p in enumerate(self.processes) if p.exitcode is not None]
        self._stop()
        said = ", ".join(f"env worker {i} ended with code {code}" for i, code in dead) or "an env worker ended"
        raise WorkerError(f"{said} (a negative code is a signal: -9 is a kill, often for lack of memory)") from None

    def _raise(self, infos: Sequence[dict[str, Any]]) -> None:
        for i, info in enumerate(infos):
            if FAILURE in info:
                self._stop()
                raise WorkerError(f"env worker {i} failed; its own traceback:\n{info[FAILURE]}")

    def _stop(self) -> None:
        """End the processes without asking: one that is gone would never answer."""
        for process, remote in zip(self.processes, self.remotes, strict=True):
            process.terminate()
            process.join()
            remote.close()
        self.closed = True


class _Forwarding(gym.Wrapper[Any, Any, Any, Any]):
    """Answers an exception as the info of a step, since infos are what reaches the parent."""

    failure: str | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        try:
            return self.env.reset(seed=seed, options=options)
        except Exception:
            return self._failed()

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        try:
            return self.env.step(action)
        except Exception:
            observation, info = self._failed()
            return observation, 0.0, False, False, info

    def _failed(self) -> tuple[Any, dict[str, Any]]:
        # The parent raises before anybody looks at the observation; it only has to have a shape.
        return self.observation_space.sample(), {FAILURE: traceback.format_exc()}


class _Unmade(gym.Env[Any, Any]):
    """Stands for an environment that could not be made, until the parent has read why."""

    def __init__(self, failure: str) -> None:
        self.failure = failure
        self.observation_space = self.action_space = gym.spaces.Discrete(2)


def _made(make: Make) -> gym.Env[Any, Any]:
    try:
        return _Forwarding(make())
    except Exception:
        return _Unmade(traceback.format_exc())
