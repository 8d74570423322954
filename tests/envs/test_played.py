"""A run that is played gives what the same run gives when it is stepped under the same network."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from rltemp.agents.network import SampleNetwork, mirrored_draws
from rltemp.compiling.step import CompiledStep
from rltemp.data.problem import Problem
from rltemp.envs.episode import Decision
from rltemp.envs.played import NetworkRule, play
from rltemp.envs.rewards import WORST
from rltemp.envs.vector import DistillVecEnv
from rltemp.errors import TrainingDivergedError
from rltemp.kd.method import Objective
from rltemp.policy.actions import ActionScale
from rltemp.policy.features import DEFAULT_FEATURES
from rltemp.training.distill import Distillation
from rltemp.training.steps import Taken, plain_step

STUDENTS, STEPS = 6, 20


def drawn_network(features: int = 8, actions: int = 2, seed: int = 0) -> tuple[SampleNetwork, torch.Tensor]:
    """A network, and weights for each student."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = SampleNetwork(torch.zeros(features), torch.ones(features), actions=actions)
        return network, mirrored_draws(network.weights.detach(), 0.3, STUDENTS)


class Kept:
    """A plain step that keeps the run."""

    run: Distillation

    def __call__(self, run: Distillation, method: Objective) -> Taken:
        self.run = run
        return plain_step(run, method)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reward_interval": 7},
        {"mixup_runs": 1},
        {"method": "dtkd:reference=2"},
        {"method": "annealing"},
        {"method": "ctkd"},
        {"scale": ActionScale(weight_ratio=4.0, balanced=True)},
    ],
    ids=str,
)
def test_a_played_run_has_the_rewards_and_the_students_of_a_stepped_one(short: Problem, options: dict) -> None:
    kept = Kept()
    stepped, playing = (DistillVecEnv(short, STUDENTS, replicas=2, step=kept, **options) for _ in range(2))
    network, weights = drawn_network(actions=stepped.decision.scale.size)
    episode, rewards = stepped.episode, []
    for _ in range(STEPS):
        with torch.no_grad():
            action = network(episode.observation, weights).clamp(-1, 1)
        stepped.step(action.flatten(0, 1).numpy())
        rewards.append(episode.reward)
    stretches = [*playing.play(network, weights)]
    ends = np.cumsum([stretch.steps for stretch in stretches])
    assert ends[-1] == STEPS
    assert len(ends) == -(-STEPS // episode.reward_interval)
    sums = np.add.reduceat(rewards, [0, *ends[:-1]])
    np.testing.assert_allclose([stretch.reward for stretch in stretches], sums, atol=1e-5)
    for mine, theirs in zip(kept.run.student.parameters(), episode.run.student.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
    np.testing.assert_allclose(playing.finished.potential, stepped.finished.potential, atol=1e-5)
    np.testing.assert_array_equal(playing.reset(), stepped.reset())


def test_a_look_is_at_the_last_step_of_its_stretch(short: Problem) -> None:
    stretches = [*DistillVecEnv(short, STUDENTS, reward_interval=5).play(*drawn_network())]
    assert [stretch.looks[0].signals.progress for stretch in stretches] == [0.2, 0.45, 0.7, 0.95]
    for stretch in stretches:
        assert not stretch.looks[0].signals.student_logits.requires_grad
        assert stretch.looks[0].temperatures.student.shape == stretch.looks[0].loss.shape == (STUDENTS, 50)


def test_a_student_whose_numbers_break_stays_so_and_stops_nobody(short: Problem) -> None:
    def breaking(run: Distillation, method: Objective) -> Taken:
        if run.step == 7:
            with torch.no_grad():
                next(run.student.parameters())[1] = math.nan
        return plain_step(run, method)

    calm, env = (DistillVecEnv(short, STUDENTS, reward_interval=5, step=step) for step in (plain_step, breaking))
    whole, stretches = ([*one.play(*drawn_network())] for one in (calm, env))
    others = np.arange(STUDENTS) != 1
    for mine, theirs in zip(stretches, whole, strict=True):
        np.testing.assert_allclose(mine.reward[others], theirs.reward[others], atol=1e-6)
        assert np.isfinite(mine.reward).all()
        assert not mine.lost[others].any()
    assert [bool(stretch.lost[1]) for stretch in stretches] == [False, True, True, True]
    assert [stretch.potential[1] for stretch in stretches[1:]] == [WORST["margin"]] * 3
    assert [stretch.reward[1] for stretch in stretches[1:]] == [-stretches[0].potential[1], 0.0, 0.0]
    assert env.finished.lost.tolist() == [False, True, False, False, False, False]


def test_a_teachers_nan_is_named_though_no_feature_shows_it(short: Problem) -> None:
    logits = short.teacher_logits.clone()
    logits[5] = math.nan
    run = Distillation(replace(short, teacher_logits=logits), [1, 2])
    network, weights = drawn_network(1)
    decision = Decision.make("fixed:4", ("progress",))
    named = r"non-finite teacher logits: 1 of 100 samples \(first sample \d+ of student \d\) at step \d+"
    with pytest.raises(TrainingDivergedError, match=named):
        [*play(run, decision, torch.arange(10).expand(2, -1), [5], network, weights[:2])]


def test_a_network_rule_holds_other_weights_and_leaves_its_own(short: Problem) -> None:
    network, weights = drawn_network()
    signals, decision = Distillation(short, [*range(STUDENTS)]).observe(), Decision.make("fixed:4")
    rule = NetworkRule(network, weights, decision)
    other, shifted = (
        rule.holding([torch.zeros_like(weights), *rule.tensors[1:]]),
        rule.holding([weights, torch.ones(8), torch.ones(8)]),
    )
    assert (other(signals).student == 4).all()
    assert not torch.equal(shifted(signals).student, rule(signals).student)
    assert rule.structure == other.structure == NetworkRule(network, weights, replace(decision)).structure
    assert rule(signals).student.std() > 0.1
    assert torch.equal(rule.holding(rule.tensors)(signals).student, rule(signals).student)


def test_a_network_rule_says_what_its_features_and_its_reference_use() -> None:
    network, weights = drawn_network()
    plain = NetworkRule(network, weights, Decision.make("fixed:4", ("student_margin",)))
    assert (plain.uses_progress, plain.uses_labels) == (False, False)
    assert NetworkRule(network, weights, Decision.make("fixed:4", DEFAULT_FEATURES)).uses_progress
    # A feature of the labels needs none: the teacher's choice stands in.
    assert not NetworkRule(network, weights, Decision.make("fixed:4", ("student_loss",))).uses_labels


def test_a_compiled_step_plays_the_run_that_a_plain_one_plays(short: Problem) -> None:
    rules = {"reward_interval": 5, "scale": ActionScale(weight_ratio=4.0, balanced=True)}
    plain, compiled = (DistillVecEnv(short, STUDENTS, step=step, **rules) for step in (plain_step, CompiledStep()))
    for seed in range(2):
        network, weights = drawn_network(actions=3, seed=seed)
        for mine, theirs in zip(compiled.play(network, weights), plain.play(network, weights), strict=True):
            np.testing.assert_allclose(mine.reward, theirs.reward, atol=1e-5)
            torch.testing.assert_close(mine.looks[0].temperatures.student, theirs.looks[0].temperatures.student)
    step = compiled.runs.step
    assert len(step._graphs) == 1, "runs and draws share a graph"
    assert None not in step._graphs.values()
