"""Classes that are not there (-inf): every rule, divergence and feature gives the value over those that are."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rltemp import BadInputError, Controller, Signals, load_rule
from rltemp.kd.divergences import DIVERGENCES
from rltemp.kd.losses import cross_entropy, kd_loss
from rltemp.policy.features import FEATURES, featurize
from rltemp.rules import RULES, fixed
from tests.support.signals import columns, drawn, started

KEPT = torch.tensor([0, 2, 3, 5, 6, 7])
LOWEST = torch.finfo(torch.float32).min


def masked_and_cut(value: float = -math.inf) -> tuple[Signals, Signals]:
    """Signals of 9 classes three of which are not there, and the same without these columns."""
    whole = drawn((7,), 9, 0, dtype=torch.float64, progress=0.5)
    gone = torch.ones(9, dtype=torch.bool)
    gone[KEPT] = False
    labels = torch.arange(7) % len(KEPT)
    both = [logits.masked_fill(gone, value) for logits in (whole.student_logits, whole.teacher_logits)]
    masked = Signals(both[0].requires_grad_(), both[1], KEPT[labels], 0.5)
    cut = Signals(both[0][:, KEPT].detach().requires_grad_(), both[1][:, KEPT], labels, 0.5)
    return masked, cut


def assert_same(masked: tuple[Tensor, Signals], cut: tuple[Tensor, Signals]) -> None:
    """The same values and, of the classes that are there, the same gradient; none of the others."""
    torch.testing.assert_close(masked[0], cut[0], rtol=1e-6, atol=1e-6)
    if not cut[0].requires_grad:
        return
    own, wanted = (
        torch.autograd.grad(value.sum(), signals.student_logits, materialize_grads=True)[0]
        for value, signals in (masked, cut)
    )
    torch.testing.assert_close(own[:, KEPT], wanted, rtol=1e-5, atol=1e-6)
    assert own.count_nonzero() == own[:, KEPT].count_nonzero()


@pytest.mark.parametrize("name", sorted(set(RULES) - {"ctkd_instance"}))
def test_every_rule_is_over_the_classes_that_are_there(name: str) -> None:
    masked, cut = masked_and_cut()
    answers = [columns(started(RULES[name](), signals.num_classes)(signals)) for signals in (masked, cut)]
    assert_same((answers[0].sum(-1), masked), (answers[1].sum(-1), cut))


def test_a_rule_with_a_network_gets_zeros_for_classes_that_are_not_there() -> None:
    masked, cut = masked_and_cut()
    whole, less = started(RULES["ctkd_instance"](), 9), started(RULES["ctkd_instance"](), len(KEPT))
    with torch.no_grad():
        for name, value in whole.named_parameters():
            own = value[torch.cat([KEPT, KEPT + 9])] if name == "inner" else value
            getattr(less, name).copy_(own)
    torch.testing.assert_close(columns(whole(masked)), columns(less(cut)))


@pytest.mark.parametrize("name", sorted(DIVERGENCES))
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_every_divergence_is_over_the_classes_that_are_there(name: str, temperature: float) -> None:
    masked, cut = masked_and_cut()
    losses = [kd_loss(each, fixed(temperature)(each), DIVERGENCES[name]()) for each in (masked, cut)]
    assert_same((losses[0], masked), (losses[1], cut))


@pytest.mark.parametrize("spec", ["universal", "universal@1", "normkd", "matched:dtkd", "dkd", "annealing"])
def test_every_kind_of_method_is_over_the_classes_that_are_there(spec: str) -> None:
    masked, cut = masked_and_cut()
    controller = Controller(spec)
    found = [controller.loss(each.student_logits, each.teacher_logits, each.labels, 0.5) for each in (masked, cut)]
    assert_same((found[0], masked), (found[1], cut))


@pytest.mark.parametrize("name", sorted(FEATURES))
def test_every_feature_is_over_the_classes_that_are_there(name: str) -> None:
    masked, cut = masked_and_cut()
    torch.testing.assert_close(featurize(masked, [name]), featurize(cut, [name]), rtol=1e-6, atol=1e-6)


def test_the_lowest_float_means_the_same_as_minus_infinity() -> None:
    infinite, lowest = (masked_and_cut(value)[0] for value in (-math.inf, LOWEST))
    for name in ("kl", "reverse_kl", "mse"):
        values = [kd_loss(each, load_rule("normkd")(each), DIVERGENCES[name]()) for each in (infinite, lowest)]
        torch.testing.assert_close(*values)


def test_smoothing_spreads_over_the_classes_that_are_there() -> None:
    masked, cut = masked_and_cut()
    assert_same((cross_entropy(masked, 0.1), masked), (cross_entropy(cut, 0.1), cut))


def test_classes_that_the_teacher_alone_lacks_add_nothing_to_the_loss() -> None:
    torch.manual_seed(0)
    student, teacher = 2 * torch.randn(4, 6), 3 * torch.randn(4, 6)
    teacher[:, 3:] = -math.inf
    student.requires_grad_()
    wanted = 0.9 * 16 * F.kl_div((student / 4).log_softmax(-1), (teacher / 4).softmax(-1), reduction="batchmean")
    found = Controller("fixed:4").kd(student, teacher).mean()
    torch.testing.assert_close(found, wanted)
    assert found.item() == pytest.approx(14.309, abs=1e-3)
    torch.testing.assert_close(*(torch.autograd.grad(each, student)[0] for each in (found, wanted)))


@pytest.mark.parametrize("name", ["kl", "dkd"])
def test_a_teacher_is_renormalised_over_the_classes_that_the_student_has(name: str) -> None:
    signals = drawn((5,), 6, 1)
    student = signals.student_logits.index_fill(-1, torch.tensor([1, 4]), -math.inf)
    kept, labels = torch.tensor([0, 2, 3, 5]), torch.arange(5) % 4
    found = Signals(student, signals.teacher_logits, kept[labels])
    wanted = Signals(student[:, kept], signals.teacher_logits[:, kept], labels)
    losses = [kd_loss(each, fixed(2.0)(each), DIVERGENCES[name]()) for each in (found, wanted)]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("network", ["student_logits", "teacher_logits"])
def test_a_sample_without_any_class_is_not_finite(network: str) -> None:
    signals = drawn((3,), 4, 0)
    getattr(signals, network)[1] = -math.inf
    assert kd_loss(signals, fixed(1.0)(signals)).isfinite().tolist() == [True, False, True]


def test_vocabularies_padded_unlike_are_cut_to_the_shorter(caplog: pytest.LogCaptureFixture) -> None:
    signals = drawn((2, 3), 8, 0)
    student, teacher = signals.student_logits.requires_grad_(), signals.teacher_logits[..., :6]
    with pytest.raises(BadInputError, match=r'student has 8 class outputs, teacher 6.*align_classes="shorter"'):
        Controller("fixed:1").kd(student, teacher)
    controller = Controller("fixed:1", align_classes="shorter")
    with caplog.at_level("INFO", "rltemp"):
        found = [controller.kd(*pair) for pair in ((student, teacher), (student, teacher))]
    torch.testing.assert_close(found[0], Controller("fixed:1").kd(student[..., :6], teacher))
    assert caplog.text.count("student has 8 classes and the teacher 6: the first 6 are compared") == 1
    gradient = torch.autograd.grad(found[0].sum(), student)[0]
    assert gradient[..., 6:].count_nonzero() == 0


def test_another_way_to_align_classes_is_refused() -> None:
    with pytest.raises(BadInputError, match=r"unknown align_classes .longer."):
        Controller("fixed:1", align_classes="longer")
