"""What must not reach a policy: cases 15, 20 and 21 of docs/reliability.md, under SB3's own PPO."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecCheckNan
from support.processes import events
from torch import Tensor

from rltemp.agents import train as agent
from rltemp.agents.alarms import CollapseCallback, trend
from rltemp.agents.callbacks import RunCallback
from rltemp.agents.config import PolicyConfig
from rltemp.agents.train import make_env, make_model, train_policy
from rltemp.data.batches import Batches
from rltemp.data.problem import Problem
from rltemp.data.tasks import load_task
from rltemp.envs import rewards
from rltemp.envs.distill_env import DistillEnv
from rltemp.envs.played import Stretch
from rltemp.envs.vector import DistillVecEnv
from rltemp.errors import TrainingDivergedError
from rltemp.policy.features import FEATURES, Feature, Statistics
from rltemp.policy.policy_file import read_policy
from rltemp.training.preparation import prepare

pytestmark = pytest.mark.usefixtures("console")

QUICK = PolicyConfig(updates=3, students_per_update=4, replicas=2, validate_every=1, validation_students=2)


class Snapshot(BaseCallback):
    """The policy's weights as they were at the last update, and how many there were."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []
        self.updates = -1

    def _on_rollout_start(self) -> None:
        self.weights = [value.clone() for value in self.model.policy.state_dict().values()]
        self.updates += 1

    def _on_step(self) -> bool:
        return True


# Case 15: what leaves a step is finite


def nan_at_the_end(run_number: int) -> Feature:
    """`student_margin`, but nan for sample 7 in the observation after the last step of a run."""
    ends = count(1)
    return nan_where(lambda s: s.progress == 1.0 and next(ends) == run_number)


def nan_where(broken: Callable[[Statistics], bool]) -> Feature:
    """`student_margin`, but nan for sample 7 of some batches."""

    def compute(s: Statistics) -> Tensor:
        values = s.margins[0].clone()
        if broken(s):
            values[..., 7] = math.nan
        return values

    return Feature(compute, "deviations")


def broken_potential(broken: Callable[[], bool]) -> Callable[[Tensor, Tensor], Tensor]:
    """The smooth accuracy, but nan for student 1 at some looks."""

    def potential(logits: Tensor, labels: Tensor) -> Tensor:
        value = rewards.margin(logits, labels)
        if broken():
            value[1] = math.nan
        return value

    return potential


def broken_teacher(problem: Problem) -> Problem:
    """The problem with a teacher that is nan on one training sample."""
    teacher = problem.teacher

    class Broken(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            logits = teacher(images).clone()
            logits[0, 3] = math.nan
            return logits

    return replace(problem, teacher=Broken(), teacher_logits=None)


@pytest.mark.parametrize("kind", ["run", "sample"])
@pytest.mark.parametrize("broken", ["observation", "reward"])
def test_a_nan_raises_in_its_step_and_no_weight_of_the_policy_changes(short, monkeypatch, broken, kind):
    """Case 15, in the third run, after two updates that did change weights."""
    config, snapshot, looks = replace(QUICK, agent=kind), Snapshot(), count(1)
    if broken == "reward":
        # A run that is stepped begins, with a look, at the end of the one before.
        last = QUICK.looks + (kind == "run")
        at_last = broken_potential(lambda: snapshot.updates == 2 and next(looks) == last)
        monkeypatch.setitem(rewards.POTENTIALS, "margin", at_last)
        named = r"reward: the potential margin of student 1 is nan at step 20"
    else:
        # Of a run that is stepped, the observation after the last step.
        progress, step = (0.5, 10) if kind == "run" else (1.0, 20)
        feature = nan_where(lambda s: snapshot.updates == 2 and s.progress >= progress)
        monkeypatch.setitem(FEATURES, "student_margin", feature)
        named = rf"feature student_margin is nan for sample 7 of student 0 at step {step}"
    env = make_env(short, config)
    model = make_model(env, config)
    first = [value.clone() for value in model.policy.state_dict().values()]
    with pytest.raises(TrainingDivergedError, match=named) as error:
        model.learn(10 * model.n_steps * env.num_envs, callback=snapshot)
    assert error.value.exit_code == 4
    assert snapshot.updates == 2
    assert not all(torch.equal(a, b) for a, b in zip(first, snapshot.weights, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(snapshot.weights, model.policy.state_dict().values(), strict=True))


def test_sb3s_own_guard_lets_such_an_observation_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 15: why there is a guard of our own. If this fails, SB3 has closed the hole."""
    # torch.compile switches it off for the whole process; another test may have compiled something.
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)

    class Ends(gym.Env[Any, Any]):
        observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            self.steps = 0
            return np.zeros(2, np.float32), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            self.steps += 1
            ends = self.steps == 4
            return np.full(2, math.nan if ends else 0.0, np.float32), 0.0, False, ends, {}

    model = PPO("MlpPolicy", VecCheckNan(DummyVecEnv([Ends])), n_steps=8, batch_size=8, n_epochs=1)
    with pytest.raises(ValueError, match="nan"):
        model.learn(16)
    assert any(not bool(value.isfinite().all()) for value in model.policy.parameters())


def test_a_teachers_nan_is_named_before_a_student_learns_from_it(short: Problem, tmp_path: Path) -> None:

    def play(env: Any, shape: tuple[int, ...]) -> None:
        env.reset()
        for _ in range(20):
            env.step(np.zeros(shape, np.float32))

    named = r"non-finite teacher logits: \d+ of \d+ samples \(first sample"
    with pytest.raises(TrainingDivergedError, match=named):
        play(DistillVecEnv(broken_teacher(short), 2), (100, 2))
    with pytest.raises(TrainingDivergedError, match=named):
        train_policy(broken_teacher(short), replace(QUICK, normalise=False), tmp_path)
    with pytest.raises(TrainingDivergedError, match=named):
        play(DistillEnv(broken_teacher(short)), (50, 2))


def test_a_feature_that_breaks_down_is_named_in_the_flat_environment_too(short, monkeypatch):
    monkeypatch.setitem(FEATURES, "student_margin", nan_at_the_end(1))
    env = DistillEnv(short)
    env.reset(seed=0)
    action = np.zeros((50, 2), np.float32)
    for _ in range(19):
        env.step(action)
    with pytest.raises(TrainingDivergedError, match="feature student_margin is nan for sample 7 at step 20"):
        env.step(action)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_a_student_that_diverges_is_still_no_error(short: Problem, value: float) -> None:
    env = DistillVecEnv(short, 3)
    env.reset()
    with torch.no_grad():
        next(env.episode.run.student.parameters())[1] = value
    for _ in range(20):
        observation, reward, _, infos = env.step(np.zeros((150, 2), np.float32))
        assert np.isfinite(observation).all()
        assert np.isfinite(reward).all()
        assert all(np.isfinite(info["terminal_observation"]).all() for info in infos if "terminal_observation" in info)


def test_an_empty_batch_is_rewarded_with_nothing(short: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 18: no nan, and no look at the probe."""
    env = DistillEnv(short, reward_interval=1)
    env.reset(seed=0)
    episode = env.episode
    index = Batches.positions
    monkeypatch.setattr(Batches, "positions", lambda run, step: index(run, step)[: 0 if step == 1 else None])
    episode.step(torch.zeros(50, 2))
    potential = episode.potential
    assert float(episode.step(torch.zeros(0, 2))) == 0.0
    assert torch.equal(potential, episode.potential)
    assert math.isfinite(float(episode.step(torch.zeros(50, 2))))


# Case 20: a policy that collapses


class Greedy(DistillVecEnv):
    """What must never be: the reward is minus the training loss."""

    def play(self, network: torch.nn.Module, weights: Tensor) -> Iterator[Stretch]:
        for stretch in super().play(network, weights):
            yield replace(stretch, reward=-stretch.looks[0].loss.mean(-1).numpy())


FAST = PolicyConfig(
    reference="fixed:4",
    ratio=10.0,
    balanced=False,
    weight_ratio=1.0,
    students_per_update=16,
    replicas=8,
    learning_rate=0.1,
    exploration=0.3,
    updates=14,
    validate_every=7,
    validation_students=4,
    vary=False,
)


def scalars(folder: Path, tag: str) -> list[float]:
    return [event.value for event in events(folder / "tensorboard").Scalars(tag)]


def test_a_reward_of_minus_the_training_loss_raises_the_alarm(short, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(agent, "DistillVecEnv", Greedy)
    found = train_policy(short, FAST, tmp_path)
    assert found["collapsed"] is True
    assert re.match(
        r"\d+\.\d % of the samples are within 1 % of the bounds 0.5 and 20, in 5 updates", found["collapse"]
    )
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rltemp: warning: alarm: ")]
    assert len(said) == 1
    assert re.search(
        r"Reward -\d.*, -\d.*; validation potential 0\.\d{4}, the reference's 0\.\d{4}; training goes", said[0]
    )
    collapsed, near = scalars(tmp_path, "warning/collapsed"), scalars(tmp_path, "warning/at_bounds")
    assert (collapsed[0], collapsed[-1]) == (0.0, 1.0)
    assert collapsed == sorted(collapsed)
    first = collapsed.index(1.0)
    assert min(near[first - 4 : first + 1]) > 0.95 >= near[first - 5]


def test_on_collapse_stop_is_an_error_and_fallback_exports_the_reference(short, tmp_path, monkeypatch):
    monkeypatch.setattr(agent, "DistillVecEnv", Greedy)
    with pytest.raises(TrainingDivergedError, match=r"the policy has collapsed: .*Reward -\d.*--on-collapse fallback"):
        train_policy(short, replace(FAST, on_collapse="stop"), tmp_path / "stop")
    assert not (tmp_path / "stop" / "policy.safetensors").exists()
    assert scalars(tmp_path / "stop", "warning/collapsed")[-1] == 1.0
    found = train_policy(short, replace(FAST, on_collapse="fallback"), tmp_path / "fallback")
    assert (found["collapsed"], found["kept_update"]) == (True, 0)
    weights = read_policy(tmp_path / "fallback" / "policy.safetensors").weights
    assert not any(bool(value.any()) for value in weights.values())
    assert len(scalars(tmp_path / "fallback", "warning/collapsed")) < FAST.updates


def test_the_default_policy_raises_none(short: Problem, tmp_path: Path, capsys: Any) -> None:
    config = PolicyConfig(updates=7, students_per_update=16, replicas=8, validate_every=1, validation_students=4)
    found = train_policy(short, config, tmp_path)
    assert (found["collapsed"], found["collapse"]) == (False, None)
    assert "alarm" not in capsys.readouterr().err
    assert set(scalars(tmp_path, "warning/collapsed")) == {0.0}


@pytest.mark.faults
def test_a_reward_that_rises_while_students_get_worse_raises_the_alarm(tmp_path, monkeypatch, capsys):
    """Case 20: the default policy is too bounded to reach a bound quickly, and is found out by its students."""
    monkeypatch.setattr(agent, "DistillVecEnv", Greedy)
    config = PolicyConfig(updates=30, students_per_update=32, validate_every=5, validation_students=16, vary=False)
    found = train_policy(prepare(load_task("digits", epochs=2)), config, tmp_path)
    assert found["collapsed"] is True
    assert "the reward rises and the validation potential falls" in found["collapse"]
    curves = re.search(r"Reward ([^;]*); validation potential ([\d., ]*), the reference", capsys.readouterr().err)
    rising, falling = ([float(value) for value in text.split(", ")] for text in curves.groups())
    assert trend(rising) >= 8
    assert trend(falling) <= -8


def test_the_alarms_memory_goes_into_a_checkpoint_and_back(short: Problem) -> None:
    env = make_env(short, QUICK)
    alarms = [CollapseCallback(RunCallback(env, print), None, QUICK) for _ in range(2)]  # type: ignore[arg-type]
    alarms[0].at_bounds, alarms[0].rewards, alarms[0].looks = [0.5, 0.99], [1.0], [(1.0, 0.5)]
    alarms[1].restore(alarms[0].state())
    assert alarms[1].state() == alarms[0].state()
    assert alarms[1].at_bounds == [0.5, 0.99]
