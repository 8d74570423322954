"""The agent that decides for every sample: SB3's own PPO, one shared temperature, a causal reward, the same export."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure
from stable_baselines3.common.policies import ActorCriticPolicy
from support.processes import events
from torch import nn

from rltemp import BadInputError, Signals, load_method, load_rule
from rltemp.agents.calibration import CalibratedBuffer
from rltemp.agents.config import PRESETS, PolicyConfig, preset
from rltemp.agents.policy_export import export_policy
from rltemp.agents.train import controller, make_env, make_model, train_policy
from rltemp.data.problem import Problem
from rltemp.envs.vector import DistillVecEnv
from rltemp.kd.temperatures import Temperatures
from rltemp.policy.actions import ActionScale
from rltemp.policy.features import RLKD_FEATURES, featurize
from rltemp.training.tensorboard import TAGS

RLKD = PolicyConfig(**preset("rlkd"))
QUICK = replace(RLKD, updates=2, students_per_update=2, passes=1, hidden=(8,), validate_every=1, validation_students=2)
FIELDS = ("student", "teacher", "weight")


def quiet(model: PPO) -> PPO:
    model.set_logger(configure(None, []))
    return model


def test_the_preset_is_the_published_agent() -> None:
    assert RLKD.features == RLKD_FEATURES
    assert (RLKD.hidden, RLKD.activation, RLKD.agent, RLKD.shared) == ((256, 256), "relu", "sample", True)
    assert (RLKD.clip, RLKD.passes, RLKD.learning_rate, RLKD.learning_rate_end) == (0.2, 5, 1e-4, 1.0)
    assert (RLKD.discount, RLKD.gae_lambda, RLKD.max_gradient) == (0.99, 0.95, 2.0)
    assert pytest.approx(0.6065, abs=1e-4) == RLKD.exploration
    assert RLKD.calibration
    assert RLKD.mixup > 0
    assert PolicyConfig(**preset("default")) == PolicyConfig()


def test_a_preset_is_a_copy_and_a_wrong_name_is_answered_with_the_closest() -> None:
    preset("rlkd")["mixup"] = 0.0
    assert PRESETS["rlkd"]["mixup"] > 0
    with pytest.raises(BadInputError, match="unknown preset 'rlkdd': did you mean 'rlkd'"):
        preset("rlkdd")


def test_actor_and_critic_are_networks_of_their_own_that_see_the_state(short: Problem) -> None:
    config = replace(RLKD, students_per_update=2)
    policy = make_model(make_env(short, config), config).policy
    assert type(policy) is ActorCriticPolicy
    for network, head in ((policy.mlp_extractor.policy_net, policy.action_net), (policy.mlp_extractor.value_net, None)):
        shapes = [tuple(layer.weight.shape) for layer in network if isinstance(layer, nn.Linear)]
        assert shapes == [(256, 3), (256, 256)]
        assert sum(isinstance(layer, nn.ReLU) for layer in network) == 2
        assert tuple((policy.value_net if head is None else head).weight.shape) == (1, 256)
    assert policy.log_std.detach().exp().tolist() == [pytest.approx(math.exp(-0.5))]
    states = torch.rand(5, 3)
    assert policy.predict_values(states).std() > 0


def test_the_action_is_one_temperature_for_both_networks(short: Problem) -> None:
    env = make_env(short, QUICK)
    model = make_model(env, QUICK)
    assert model.action_space.shape == (1,)
    model.env.reset()
    signals = env.episode.signals
    actions = np.linspace(-2, 2, env.num_envs, dtype=np.float32)[:, None]
    model.env.step(actions)
    used = env.episode.temperatures
    assert torch.equal(used.student, used.teacher)
    wanted = 5 * 2 ** torch.from_numpy(actions).clamp(-1, 1).view(signals.shape)
    torch.testing.assert_close(used.student, wanted)
    torch.testing.assert_close(used.weight, wanted**2)


def test_without_sharing_there_are_two_temperatures(short: Problem) -> None:
    config = replace(QUICK, shared=False)
    env = make_env(short, config)
    model = make_model(env, config)
    assert model.action_space.shape == (2,)
    model.env.reset()
    model.env.step(np.tile(np.float32([-1.0, 1.0]), (env.num_envs, 1)))
    assert env.episode.temperatures.student.unique().tolist() == [2.5]
    assert env.episode.temperatures.teacher.unique().tolist() == [10.0]


@pytest.mark.parametrize("action", [-1.0, -0.5, 0.0])
def test_the_presets_map_is_the_released_codes_sigmoid_below_its_middle(action: float) -> None:
    reference = Temperatures(*(torch.full((1,), value) for value in (5.0, 5.0, 25.0)))
    scale = ActionScale(RLKD.ratio, RLKD.minimum, RLKD.maximum)
    signals = Signals(torch.zeros(1, 2), torch.zeros(1, 2))
    mine = scale.apply(signals, reference, torch.full((1, 2), action)).student.item()
    assert mine == pytest.approx(10 / (1 + math.exp(-action)), rel=0.08)


def exported_as_trained(model: PPO, env: DistillVecEnv, action: np.ndarray, folder: Path) -> Temperatures:
    """The exported policy's temperatures, which are those of the trained one's actions."""
    network, weights = controller(model)
    export_policy(folder / "p.safetensors", network, weights(), env.decision)
    signals = env.episode.signals
    trained = env.decision.temperatures(signals, torch.from_numpy(action).view(*signals.shape, -1))
    loaded = load_rule(str(folder / "p.safetensors"))(signals)
    for name in FIELDS:
        torch.testing.assert_close(getattr(loaded, name), getattr(trained, name), rtol=1e-5, atol=1e-5)
    return loaded


@pytest.mark.parametrize("change", [{}, {"shared": False}, {"normalise": True}, {"hidden": ()}, {"activation": "tanh"}])
def test_the_exported_policy_acts_as_the_trained_one_without_noise(short, tmp_path, change):
    config = replace(QUICK, **change)
    env = make_env(short, config)
    model = make_model(env, config)
    observation = model.env.reset()
    with torch.no_grad():
        for value in model.policy.parameters():
            value.normal_(std=0.7)
        # Not to be at the bounds, where every policy acts alike.
        model.policy.action_net.bias -= model.policy.get_distribution(torch.from_numpy(observation)).mode().mean(0)
    action, _ = model.predict(observation, deterministic=True)
    loaded = exported_as_trained(model, env, np.broadcast_to(action, (env.num_envs, 2)).copy(), tmp_path)
    assert loaded.student.std() > 0.01
    assert torch.equal(loaded.student, loaded.teacher) is config.shared


def test_the_reward_is_measured_after_the_step_that_used_the_action(short: Problem) -> None:
    """Two environments that differ by one step's actions differ in that very step's reward."""
    rewards = []
    for action in (0.0, -1.0):
        config = replace(QUICK, mixup=0.0)
        env = make_env(short, config)
        model = make_model(env, config)
        assert env.episode.reward_interval == 1
        model.env.reset()
        rewards.append(model.env.step(np.full((env.num_envs, 1), action, np.float32))[1])
    assert np.abs(rewards[0] - rewards[1]).min() > 1e-6


def test_advantages_run_along_a_students_steps_not_across_its_batch(short: Problem) -> None:
    config = replace(QUICK, calibration=False)
    buffer = make_model(make_env(short, config), config).rollout_buffer
    rows, steps = buffer.n_envs, buffer.buffer_size

    def advantages(bonus: float) -> np.ndarray:
        buffer.reset()
        for step in range(steps):
            reward, nothing = np.full(rows, 0.1), torch.zeros(rows)
            reward[7] += bonus * (step == 2)
            buffer.add(np.zeros((rows, 3)), np.zeros((rows, 1)), reward, nothing.numpy(), nothing[:, None], nothing)
        buffer.compute_returns_and_advantage(torch.zeros(rows), np.ones(rows))
        return buffer.advantages.copy()

    moved = advantages(1.0) - advantages(0.0)
    np.testing.assert_allclose(moved[:3, 7], [(0.99 * 0.95) ** 2, 0.99 * 0.95, 1.0], rtol=1e-5)
    assert np.count_nonzero(moved) == 3


def test_the_end_of_a_run_is_not_bootstrapped(short: Problem) -> None:
    """Rewards in the buffer are the environment's: SB3 would add the critic's value where a run is cut off."""
    config = replace(QUICK, calibration=False, mixup=0.0)
    env = make_env(short, config)
    model = quiet(make_model(env, config))
    model.learn(env.num_envs * env.episode.run.steps)
    by_student = model.rollout_buffer.rewards.reshape(-1, 2, env.batch_size)
    assert np.ptp(by_student, axis=2).max() == 0
    assert (by_student.sum(0)[:, 0] < env.finished.potential).all()


def test_each_part_can_be_switched_off_alone(short: Problem) -> None:
    def parts(config: PolicyConfig) -> tuple[bool, bool, int]:
        env = make_env(short, config)
        model = make_model(env, config)
        return isinstance(model.rollout_buffer, CalibratedBuffer), env.runs.mixup_runs > 0, len(env.decision.features)

    assert parts(QUICK) == (True, True, 3)
    assert parts(replace(QUICK, calibration=False)) == (False, True, 3)
    assert parts(replace(QUICK, mixup=0.0)) == (True, False, 3)
    assert parts(replace(QUICK, features=PolicyConfig.features)) == (True, True, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"replicas": 1}, "replicas"),
        ({"students_per_update": 10, "replicas": 4}, "divide students_per_update"),
        ({"updates": 0}, "updates"),
        ({"averaging": 1.0}, "averaging"),
        ({"calibration": True}, "calibration has no effect where a run is one decision"),
        ({"discount": 0.9}, "discount has no effect"),
        ({"gae_lambda": 0.9}, "gae_lambda has no effect"),
        ({"mixup": 1.5}, "mixup is a fraction"),
        ({"agent": "sampel"}, "did you mean 'sample'"),
        ({"activation": "elu"}, "did you mean 'relu'"),
        ({"clip": 0.0}, "clip must be above 0"),
        ({"max_gradient": -1.0}, "max_gradient must be"),
    ],
)
def test_options_that_cannot_learn_or_take_effect_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        PolicyConfig(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [{"shared": True}, {"mixup": 0.5}, {"normalise": False}, {"activation": "relu"}, {"reference": "fixed:4"}],
)
def test_the_agent_of_whole_runs_takes_the_parts_that_make_sense_to_it(short, tmp_path, change):
    config = PolicyConfig(updates=2, students_per_update=4, replicas=2, hidden=(5,), validation_students=2, **change)  # type: ignore[arg-type]
    env = make_env(short, config)
    model = make_model(env, config)
    with torch.no_grad():
        model.policy.network.weights.normal_(std=0.5)  # not to be at the bounds
    observation = featurize(env.episode.signals, env.decision.features).reshape(env.num_envs, -1).numpy()
    action, _ = model.predict(observation, deterministic=True)
    assert exported_as_trained(model, env, action, tmp_path).student.std() > 0.01
    assert (env.runs.mixup_runs == 1) is (config.mixup > 0)
    action_pairs = action.reshape(-1, env.decision.scale.size)
    assert bool((action_pairs[:, 0] == action_pairs[:, 1]).all()) is config.shared


def test_training_writes_known_tags_and_a_policy_that_loads_and_repeats(short: Problem, tmp_path: Path) -> None:
    result, again = (train_policy(short, QUICK, tmp_path / name) for name in "ab")
    assert result["sha256"] == again["sha256"]
    assert result["students_trained"] == 4
    signals = Signals(torch.randn(7, 10), torch.randn(7, 10))
    method = load_method(str(tmp_path / "a" / "policy.safetensors"))
    temperatures = method.rule(signals)
    assert torch.equal(temperatures.student, temperatures.teacher)
    assert ((temperatures.student >= 2.5) & (temperatures.student <= 10)).all()
    assert (method.ce_weight, method.kd_weight) == (0.1, 0.9)
    found = events(tmp_path / "a" / "tensorboard")
    written = set(found.Tags()["scalars"])
    assert "reward/explained" in written
    assert {tag for tag in written if tag.startswith(("reward/", "temperature/"))} <= set(TAGS)
    assert -1 < found.Scalars("reward/run_mean")[0].value < 1


def test_the_agent_prefers_what_is_rewarded(short: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paid for high temperatures where the teacher is sure and low ones elsewhere, it learns to tell them apart."""
    original = DistillVecEnv.step_wait

    def paying(self: DistillVecEnv) -> object:
        sure = self.episode.observation[..., 1].reshape(-1).numpy() > 0.99
        action = self._action.numpy()[:, 0].clip(-1, 1)
        observation, _, done, infos = original(self)
        return observation, np.where(sure, action, -action).astype(np.float32), done, infos

    monkeypatch.setattr(DistillVecEnv, "step_wait", paying)
    quick = {"hidden": (32,), "learning_rate": 3e-3, "passes": 4, "discount": 0.01, "normalise": True}
    config = replace(QUICK, calibration=False, mixup=0.0, **quick)  # type: ignore[arg-type]
    env = make_env(short, config)
    model = quiet(make_model(env, config))
    model.learn(3 * env.num_envs * env.episode.run.steps)
    network, weights = controller(model)
    states = torch.tensor([[[0.3, 0.9999, 0.15], [0.3, 0.8, 0.15]]])
    sure, unsure = network(states, weights()[None])[0, :, 0].tolist()
    assert sure > unsure + 0.3
