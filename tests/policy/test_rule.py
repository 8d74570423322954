"""A policy file becomes a rule: by hand, for any leading shape, and without the libraries that trained it."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.policies import feature, policy_of, random_policy
from support.signals import drawn
from torch import Tensor

import rltemp
from rltemp import ArtifactRefusedError, BadInputError, Signals, kd_loss
from rltemp.kd.losses import cross_entropy
from rltemp.policy.features import DEFAULT_FEATURES, featurize
from rltemp.policy.rule import Policy

Vector = tuple[Tensor, Tensor, Tensor]
ROOT = Path(__file__).parents[2]
HEAVY = {"gymnasium", "stable_baselines3", "torchvision", "matplotlib", "scipy", "sklearn", "tensorboard"}


@pytest.fixture
def known(tmp_path: Path) -> str:
    """Student action: the first feature. Teacher action: half the second, plus 1/4."""
    weights = {"0.weight": torch.tensor([[1.0, 0.0], [0.0, 0.5]]), "0.bias": torch.tensor([0.0, 0.25])}
    features = (feature("progress", mean=0.25, std=0.5), feature("teacher_margin", mean=0.1))
    return str(policy_of(tmp_path / "known.safetensors", weights, features))


def test_a_policy_of_known_weights_gives_the_temperatures_worked_by_hand(known: str, vector_a: Vector) -> None:
    teacher, student, label = vector_a
    signals = Signals(student.float()[None], teacher.float()[None], label[None], progress=0.75)
    temperatures = rltemp.load_rule(known)(signals)
    # Progress 0.75 is the feature 0.5, normalised (0.5 - 0.25) / 0.5 = 0.5: the student's factor is 4^0.5.
    # The teacher's margin is 3 over its deviation sqrt(3.5), less 1, less the mean 0.1: half of it, plus 1/4.
    factor = 4 ** (0.5 * (3 / math.sqrt(3.5) - 1 - 0.1) + 0.25)
    assert temperatures.student.item() == pytest.approx(8.0, rel=1e-6)
    assert temperatures.teacher.item() == pytest.approx(4 * factor, rel=1e-6)
    assert temperatures.weight.item() == pytest.approx(16 * 2 * factor, rel=1e-6)


def test_an_action_beyond_the_box_is_clipped_to_it(tmp_path: Path) -> None:
    weights = {"0.weight": torch.zeros(2, 1), "0.bias": torch.tensor([50.0, -50.0])}
    path = policy_of(tmp_path / "p.safetensors", weights, (feature("progress"),), reference="fixed:2")
    temperatures = rltemp.load_rule(str(path))(drawn((3,), 10))
    assert temperatures.student.tolist() == [8.0] * 3
    assert temperatures.teacher.tolist() == [0.5] * 3
    assert temperatures.weight.tolist() == [4.0] * 3


@pytest.mark.parametrize("reference", ["fixed:4", "fixed:50", "dtkd", "dtkd:reference=2"])
def test_a_policy_of_zeros_is_its_reference_exactly(tmp_path: Path, reference: str) -> None:
    path, signals = random_policy(tmp_path / "p.safetensors", reference=reference, gain=0.0), drawn((40,), 10)
    temperatures, expected = rltemp.load_rule(str(path))(signals), rltemp.load_rule(reference)(signals)
    for field in ("student", "teacher", "weight"):
        assert torch.equal(getattr(temperatures, field), getattr(expected, field)), field
    assert torch.equal(rltemp.load_method(str(path)).loss(signals), rltemp.load_method(reference).loss(signals))


def test_a_policys_method_has_the_weights_of_its_training_reference(tmp_path: Path) -> None:
    reference = "dtkd:reference=2,ce_weight=0.2,kd_weight=0.7,plain_kd_weight=0.3,warmup=0.5"
    path = random_policy(tmp_path / "p.safetensors", 16, reference=reference)
    signals = drawn((20,), 10, progress=0.25)
    method = rltemp.load_method(str(path))
    assert method.name == str(path)
    soft = 0.7 * kd_loss(signals, rltemp.load_rule(str(path))(signals))
    plain = 0.3 * kd_loss(signals, rltemp.load_rule("fixed:2")(signals))
    torch.testing.assert_close(method.loss(signals), 0.2 * cross_entropy(signals) + 0.5 * (soft + plain))


def test_a_stack_gets_what_each_student_gets_alone_and_samples_differ(tmp_path: Path) -> None:
    rule = rltemp.load_rule(str(random_policy(tmp_path / "p.safetensors", 16)))
    signals = drawn((3, 8), 10, progress=0.3)
    stacked = rule(signals)
    assert stacked.student.shape == (3, 8)
    assert stacked.student.unique().numel() > 12
    for position in range(3):
        alone = rule(Signals(signals.student_logits[position], signals.teacher_logits[position], None, 0.3))
        torch.testing.assert_close(stacked.student[position], alone.student)
        torch.testing.assert_close(stacked.teacher[position], alone.teacher)
    single = rule(Signals(signals.student_logits[0, 0], signals.teacher_logits[0, 0], None, 0.3))
    torch.testing.assert_close(single.student, stacked.student[0, 0])


def test_a_policy_takes_any_number_of_classes(tmp_path: Path) -> None:
    rule = rltemp.load_rule(str(random_policy(tmp_path / "p.safetensors", 16)))
    for classes in (2, 100, 1000):
        temperatures = rule(drawn((5,), classes))
        assert ((temperatures.student >= 0.5) & (temperatures.student <= 20)).all()


def test_no_gradient_flows_through_the_policy(tmp_path: Path) -> None:
    rule = rltemp.load_rule(str(random_policy(tmp_path / "p.safetensors", 16)))
    signals = drawn((8,), 10)
    signals.student_logits.requires_grad_()
    temperatures = rule(signals)
    assert not temperatures.student.requires_grad
    assert not temperatures.weight.requires_grad
    kd_loss(signals, temperatures).sum().backward()
    # With constant temperatures the gradient is weight / T_s (q - p), and sums to zero over the classes.
    q = (signals.student_logits / temperatures.student[:, None]).softmax(-1)
    p = (signals.teacher_logits / temperatures.teacher[:, None]).softmax(-1)
    expected = (temperatures.weight / temperatures.student)[:, None] * (q - p)
    torch.testing.assert_close(signals.student_logits.grad, expected.detach(), rtol=1e-4, atol=1e-5)


def test_the_action_is_the_network_on_normalised_features(tmp_path: Path) -> None:
    policy = Policy.load(random_policy(tmp_path / "p.safetensors", 16))
    signals = drawn((6,), 10)
    observation = (featurize(signals, DEFAULT_FEATURES) - 0.1) / 0.7
    weights = policy._weights
    hidden = torch.tanh(observation @ weights["0.weight"].T + weights["0.bias"])
    expected = hidden @ weights["1.weight"].T + weights["1.bias"]
    torch.testing.assert_close(policy.action_of(policy.featurize(signals)), expected)


def test_a_policy_that_sees_labels_takes_the_teachers_choice_without(tmp_path: Path) -> None:
    weights = {"0.weight": torch.ones(2, 1), "0.bias": torch.zeros(2)}
    rule = rltemp.load_rule(str(policy_of(tmp_path / "p.safetensors", weights, (feature("student_loss"),))))
    signals = drawn((3,), 10)
    chosen = replace(signals, labels=signals.teacher_logits.argmax(-1))
    assert torch.equal(rule(replace(signals, labels=None)).student, rule(chosen).student)
    assert not torch.equal(rule(signals).student, rule(chosen).student)


def test_a_feature_of_another_version_is_refused(tmp_path: Path) -> None:
    weights = {"0.weight": torch.ones(2, 1), "0.bias": torch.zeros(2)}
    path = policy_of(tmp_path / "p.safetensors", weights, (feature("progress", version=9),))
    with pytest.raises(ArtifactRefusedError, match=r"progress v9 .* in policy, v1 .* here"):
        rltemp.load_rule(str(path))


@pytest.mark.parametrize("reference", ["none", "fixd:4", "fixed:-4", "fixed:temprature=4"])
def test_a_reference_that_is_no_rule_of_ours_is_refused(tmp_path: Path, reference: str) -> None:
    path = random_policy(tmp_path / "p.safetensors", 16, reference=reference)
    with pytest.raises(BadInputError, match=r"reference|temperature"):
        rltemp.load_rule(str(path))


def test_importing_rltemp_and_using_a_policy_load_nothing_unneeded(known: str) -> None:
    code = (
        "import sys, torch, rltemp\n"
        f"rltemp.load_rule({known!r})(rltemp.Signals(torch.zeros(1, 3), torch.zeros(1, 3), progress=0.5))\n"
        f"print(sorted({HEAVY} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
