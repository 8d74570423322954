"""Tasks drawn at random: each of its own, the same for the same seed, and a policy learns from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rltemp import BadInputError
from rltemp.agents.config import PolicyConfig
from rltemp.agents.network import SampleNetwork
from rltemp.agents.selection import VarietyTrial, judged
from rltemp.agents.train import make_env, train_policy
from rltemp.data.problem import Problem
from rltemp.envs.episode import Decision
from rltemp.envs.variety import BATCH, RATES, STEPS, STUDENTS, Family, Variety
from rltemp.policy.rule import Policy
from rltemp.runs.train_policy import TrainPolicyOptions


@pytest.fixture(scope="module")
def variety() -> Variety:
    return Variety(seed=3, size=3, kinds=(("digits", 3), ("formula", 5)))


def test_a_group_trains_and_probes_on_other_samples_of_one_data_set(variety: Variety) -> None:
    generator = np.random.default_rng(0)
    for _ in range(10):
        given = variety.draw(generator, groups=4)
        for train, probe in zip(given.train.tolist(), given.probe.tolist(), strict=True):
            assert not set(train) & set(probe)
            assert len(set(train)) == len(train)
            each = len(given.pool) // 3
            assert len({position // each for position in (*train, *probe)}) == 1


def test_draws_differ_in_classes_students_sizes_and_rates_and_not_in_steps(variety: Variety) -> None:
    generator = np.random.default_rng(2)
    drawn = [variety.draw(generator, groups=2) for _ in range(60)]
    assert {given.problem.dataset.num_classes for given in drawn} == {3, 5}
    assert {given.problem.task.student for given in drawn} == set(STUDENTS)
    assert {given.train.shape[1] for given in drawn} == {100, 250, 500, 1000}
    assert {given.problem.task.recipe.batch_size for given in drawn} == {BATCH}
    assert {given.problem.task.recipe.steps(given.train.shape[1]) for given in drawn} == {STEPS}
    rates = [given.problem.task.recipe.learning_rate for given in drawn]
    assert RATES[0] <= min(rates) < 0.02 < 0.08 < max(rates) <= RATES[1]


@pytest.mark.parametrize("kind", ["digits", "formula"])
def test_a_seed_gives_the_same_data_and_teachers_and_another_gives_others(kind: str) -> None:
    one, again, other = (Family(kind, 3, size=1, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(one.pool.inputs, again.pool.inputs)
    assert torch.equal(one.teacher_logits, again.teacher_logits)
    assert not torch.equal(one.pool.inputs, other.pool.inputs)


def test_teachers_beat_chance_and_their_sharpness_is_drawn_every_run(variety: Variety) -> None:
    for family in variety.families:
        right = family.teacher_logits[family.probe].argmax(-1) == family.pool.labels[family.probe]
        assert right.float().mean() > 1.5 / family.problem.dataset.num_classes
    generator = np.random.default_rng(0)
    scales = []
    for _ in range(20):
        given = variety.draw(generator, groups=1)
        own = next(family for family in variety.families if family.pool is given.pool)
        scales.append(float(given.teacher_logits[0, 0] / own.teacher_logits[0, 0]))
    assert 0.5 <= min(scales) < 0.8 < 1.3 < max(scales) <= 2.0


def test_columns_from_the_formula_are_standardised(variety: Variety) -> None:
    images = variety.families[1].pool.inputs[:2000, :, 0, 0]
    torch.testing.assert_close(images.mean(0), torch.zeros(32), atol=1e-5, rtol=0)
    torch.testing.assert_close(images.std(0), torch.ones(32), atol=1e-2, rtol=0)


def test_labels_are_wrong_in_some_training_samples_and_in_no_probe_sample() -> None:
    family = Family("digits", 5, size=8, seed=1)
    wrong = family.teacher_logits.argmax(-1) != family.pool.labels
    assert float(wrong[family.probe].float().mean()) < 0.05
    shares = wrong[family.train].float().mean(1)
    assert float(shares.max()) > 0.1 > 0.02 > float(shares.min())


def test_digits_that_are_reported_on_are_in_no_family(digits: Problem) -> None:
    family = Family("digits", 10, size=2, seed=1)
    used = {tuple(image.flatten().tolist()) for image in family.pool.inputs}
    for part in (digits.dataset.validation, digits.dataset.test):
        held_out = {tuple(image.flatten().tolist()) for image in digits.dataset.normalise(part.inputs)}
        assert not used & held_out


def test_the_tasks_that_a_policy_is_selected_on_are_others(variety: Variety) -> None:
    images = [family.pool.inputs for family in (*variety.families, *variety.other().families)]
    firsts = {tuple(image[0].flatten().tolist()) for image in images}
    assert len(firsts) == len(images)


def test_the_environment_meets_another_task_in_every_run(variety: Variety) -> None:
    config = PolicyConfig(reference="fixed:4", students=4, replicas=2, seed=1)
    env = make_env(variety, config)
    tasks = set()
    for _ in range(6):
        env.reset()
        tasks.add((env.episode.run.problem.task.student, env.episode.run.recipe.learning_rate))
        assert env.episode.run.steps == STEPS
    assert len(tasks) == 6


def test_a_better_method_is_worth_more_on_a_variety_and_the_trial_repeats(variety: Variety) -> None:
    network, weights = SampleNetwork(torch.zeros(8), torch.ones(8)), torch.zeros(18)
    good, bad = (
        judged(VarietyTrial(variety, 8, Decision.make(reference), tasks=3))
        for reference in ("fixed:4", "fixed:temperature=4,ce_weight=0,kd_weight=0")
    )
    assert good(network, weights) > bad(network, weights) + 0.1
    assert good(network, weights) == good(network, weights)


def test_a_policy_trained_on_a_variety_is_written_and_names_it(variety: Variety, tmp_path: Path) -> None:
    config = PolicyConfig(students=4, replicas=2, updates=1, validate_every=1, validation_students=2)
    result = train_policy(variety, config, tmp_path)
    policy = Policy.load(tmp_path / result["policy"])
    assert policy.manifest.provenance["task"] == "variety:3"
    assert policy.scale.size == 3
    assert policy.scale.balanced


def test_a_variety_refuses_the_options_of_one_task(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="--task variety draws every task's own student; leave --student out"):
        TrainPolicyOptions(task="variety", student="mlp:3", out=tmp_path / "p").run()
    assert not (tmp_path / "p").exists()
