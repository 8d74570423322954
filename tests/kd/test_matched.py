"""`matched:NAME` pulls as hard as plain distillation does: T = 4, weight 0.9, and 0.1 of the cross-entropy."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.signals import gradient_norm, started, uneven

from rltemp import Signals, load_method
from rltemp.kd.losses import cross_entropy
from rltemp.rules.published_methods import METHODS

every_method = pytest.mark.parametrize("name", [name for name in sorted(METHODS) if name != "none"])


@every_method
def test_a_matched_method_pulls_as_hard_as_plain_distillation(name: str) -> None:
    signals = uneven(16)
    plain, matched = load_method("fixed:4"), started(load_method(f"matched:{name}"), 10)
    torch.testing.assert_close(gradient_norm(matched, signals), gradient_norm(plain, signals))
    rest = matched.loss(signals) - replace(matched, ce_weight=0.0).loss(signals)
    torch.testing.assert_close(rest, 0.1 * cross_entropy(signals))


@every_method
def test_each_student_of_a_stack_is_matched_by_itself(name: str) -> None:
    signals, matched = uneven(3, 8, stacked=True), started(load_method(f"matched:{name}"), 10)
    found = gradient_norm(matched, signals)
    assert found.max() > 1.2 * found.min()
    torch.testing.assert_close(found, gradient_norm(load_method("fixed:4"), signals))


def test_students_of_a_stack_with_more_axes_are_matched_as_with_one() -> None:
    flat, matched = uneven(3, 8, stacked=True), load_method("matched:dtkd")
    logits = (value.view(3, 4, 2, 10) for value in (flat.student_logits, flat.teacher_logits))
    folded = Signals(*logits, flat.labels.view(3, 4, 2), flat.progress, stacked=True)
    torch.testing.assert_close(matched.loss(folded).flatten(1), matched.loss(flat))


def test_a_published_method_does_not_pull_as_hard_as_plain_distillation() -> None:
    signals = uneven(16)
    plain = gradient_norm(load_method("fixed:4"), signals)
    assert gradient_norm(load_method("ttm:pair=resnet110-resnet32"), signals) > 3 * plain
    assert gradient_norm(load_method("lskd:kd_weight=0.9"), signals) < 0.7 * plain


def test_matched_plain_distillation_is_plain_distillation() -> None:
    signals = uneven(16)
    torch.testing.assert_close(load_method("matched:fixed").loss(signals), load_method("fixed").loss(signals))


@pytest.mark.parametrize(
    ("once", "ten_times"),
    [
        ("matched:lskd", "matched:lskd:kd_weight=90"),
        ("matched:dtkd", "matched:dtkd:kd_weight=30,plain_kd_weight=10"),
        ("matched:dkd", "matched:dkd:target=10,non_target=80"),
        ("matched:fixed", "matched:fixed:ce_weight=5,kd_weight=9,warmup=1"),
    ],
)
def test_the_weights_a_method_had_are_forgotten(once: str, ten_times: str) -> None:
    signals = uneven(16)
    torch.testing.assert_close(load_method(once).loss(signals), load_method(ten_times).loss(signals))


def test_warm_up_and_phases_are_forgotten_too() -> None:
    for name in ("dtkd", "dkd", "annealing"):
        method = load_method(f"matched:{name}")
        assert (method.ce_weight, method.warmup, method.switch) == (0.1, 0.0, None)
        for progress in (0.0, 1.0):
            signals = replace(uneven(6), progress=progress)
            torch.testing.assert_close(gradient_norm(method, signals), gradient_norm(load_method("fixed:4"), signals))


@pytest.mark.parametrize(
    ("spec", "classes", "equal"),
    [
        ("matched:fixed:kd_weight=0", 10, False),
        ("matched:fixed:divergence=nckd", 2, False),  # two classes leave nothing beside the label's
        ("matched:fixed:divergence=mse", 10, True),
    ],
)
def test_a_method_that_does_not_pull_at_all_leaves_the_cross_entropy(spec: str, classes: int, equal: bool) -> None:
    signals = uneven(6)
    student = signals.student_logits.detach()[:, :classes].clone()
    teacher = student.clone() if equal else signals.teacher_logits[:, :classes]
    few = Signals(student.requires_grad_(), teacher, torch.zeros(6, dtype=torch.long), 0.5)
    loss = load_method(spec).loss(few)
    torch.testing.assert_close(loss, 0.1 * cross_entropy(few))
    loss.sum().backward()
    assert few.student_logits.grad.isfinite().all()


def test_the_factor_is_a_constant_of_the_graph() -> None:
    signals = uneven(5)
    matched, plain = load_method("matched:lskd:ce_weight=0"), load_method("lskd:ce_weight=0")
    found, wanted = (
        torch.autograd.grad(replace(method, ce_weight=0.0).loss(signals).sum(), signals.student_logits)[0]
        for method in (matched, plain)
    )
    torch.testing.assert_close(found / wanted, (found / wanted)[0, 0].expand_as(found))


def test_a_matched_method_is_called_what_it_was_asked_for() -> None:
    assert load_method("matched:dtkd:reference=2").name == "matched:dtkd:reference=2"
