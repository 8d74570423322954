"""What NumPy computes for a small batch is what torch computes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rltemp import Signals, Temperatures
from rltemp.loading import load_rule
from rltemp.policy import actions as actions_module
from rltemp.policy import features as features_module
from rltemp.policy.actions import ActionScale
from rltemp.policy.arrays import NUMPY, TORCH, arrays_for
from rltemp.policy.features import FEATURES, featurize


def signals(shape: tuple[int, ...], scale: float = 3.0) -> Signals:
    generator = torch.Generator().manual_seed(len(shape) + shape[-1])
    student, teacher = scale * torch.randn(2, *shape, generator=generator)
    student.view(-1, shape[-1])[0], teacher.view(-1, shape[-1])[1] = 1.0, 0.0  # constant
    student.view(-1, shape[-1])[2, :2] = teacher.view(-1, shape[-1])[3, -2:] = 40.0  # two largest
    labels = torch.randint(shape[-1], shape[:-1], generator=generator)
    return Signals(student.requires_grad_(), teacher, labels, 0.3)


def by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (features_module, actions_module):
        monkeypatch.setattr(module, "arrays_for", lambda *_: TORCH)


@pytest.mark.parametrize("shape", [(16, 2), (16, 10), (128, 100), (4, 8, 50)], ids=str)
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_both_libraries_agree_on_every_feature(
    shape: tuple[int, ...], scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = signals(shape, scale)
    assert arrays_for(seen.student_logits, seen.teacher_logits, seen.labels) is NUMPY
    by_numpy = featurize(seen, list(FEATURES))
    by_torch(monkeypatch)
    torch.testing.assert_close(by_numpy, featurize(seen, list(FEATURES)), rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("weight_ratio", [1.0, 3.0])
def test_both_libraries_agree_on_temperatures(
    balanced: bool, weight_ratio: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, scale = signals((64, 20)), ActionScale(ratio=8.0, weight_ratio=weight_ratio, balanced=balanced)
    reference = Temperatures(*(torch.rand(3, 64) * 30))
    action = 3 * torch.rand(64, scale.size) - 1.5
    found = scale.apply(seen, reference, action)
    by_torch(monkeypatch)
    expected = scale.apply(seen, reference, action)
    for name in ("student", "teacher", "weight"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=2e-6, atol=0)


def test_the_shipped_policy_answers_the_same_by_both(monkeypatch: pytest.MonkeyPatch) -> None:
    rule, seen = load_rule("universal"), signals((128, 100))
    found = rule(seen)
    by_torch(monkeypatch)
    expected = rule(seen)
    torch.testing.assert_close(found.student, expected.student, rtol=2e-6, atol=0)
    torch.testing.assert_close(found.weight, expected.weight, rtol=2e-6, atol=0)


@pytest.mark.parametrize(
    "logits",
    [torch.zeros(4, 5).double(), torch.zeros(4, 5).bfloat16(), torch.zeros(5), torch.zeros(400, 100)],
    ids=["float64", "bfloat16", "one sample", "many"],
)
def test_torch_computes_what_numpy_cannot_or_would_not_sooner(logits: Tensor) -> None:
    assert arrays_for(logits) is TORCH


def test_an_action_that_needs_a_gradient_gets_one_in_a_small_batch() -> None:
    seen, reference = signals((8, 10)), Temperatures(*(torch.ones(3, 8) * 4))
    action = torch.zeros(8, 2, requires_grad=True)
    ActionScale(balanced=True).apply(seen, reference, action).weight.sum().backward()  # type: ignore[no-untyped-call]
    assert action.grad is not None
    assert action.grad.abs().min() > 0


def test_a_function_that_torch_follows_gets_no_constants() -> None:
    seen = signals((8, 10))

    def margin(student: Tensor) -> Tensor:
        return featurize(Signals(student, seen.teacher_logits), ["student_margin"])

    other = 2 * seen.student_logits.detach().flip(0)
    traced = torch.jit.trace(margin, seen.student_logits.detach(), check_trace=False)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(traced(other), margin(other))
