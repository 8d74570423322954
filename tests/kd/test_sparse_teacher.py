"""Teachers of which only the top is known: the loss on K + 1 buckets, what is refused, and how near it is to dense."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rltemp import BadInputError, Controller, Signals, SparseTeacher, Temperatures, kd_loss, load_rule
from rltemp.kd.bucketed import bucketed
from rltemp.kd.divergences import DIVERGENCES
from rltemp.rules import RULES
from tests.support.signals import columns, drawn, started

VOCABULARY = 32_000


def at(temperature: float, *shape: int) -> Temperatures:
    same = torch.full(shape, temperature, dtype=torch.float64)
    return Temperatures(same, same, same.square())


def teachers(tokens: int = 8) -> dict[str, Tensor]:
    """Logits [tokens, V]: by Zipf's law, normal, and with one logit far above the others."""
    generator = torch.Generator().manual_seed(0)
    zipf = -1.3 * torch.arange(1.0, VOCABULARY + 1).log()
    orders = [torch.randperm(VOCABULARY, generator=generator) for _ in range(tokens)]
    spike = 2.5 * torch.randn(tokens, VOCABULARY, generator=generator)
    spike[:, 5] = 22.0
    normal = 3 * torch.randn(tokens, VOCABULARY, generator=generator)
    return {"zipf": torch.stack([zipf[order] for order in orders]), "normal": normal, "spike": spike}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("kind", ["zipf", "normal", "spike"])
@pytest.mark.parametrize("tail", [True, False])
def test_the_gradient_is_nearly_the_dense_one(kind: str, temperature: float, tail: bool) -> None:
    if temperature > 1 and not tail:
        pytest.skip("a teacher without a tail is softened up to T = 1")
    teacher = teachers()[kind]
    noise = torch.randn(teacher.shape, generator=torch.Generator().manual_seed(1))
    student = (0.8 * teacher + 0.3 * noise).requires_grad_()
    sparse = SparseTeacher.of_logits(teacher, 64, tail).signals(student)
    gradients = [
        torch.autograd.grad(kd_loss(signals, at(temperature, len(teacher))).sum(), student)[0].flatten()
        for signals in (sparse, Signals(student, teacher))
    ]
    # Above T = 1 most of a normal teacher's mass is in its tail, whose shape is not known.
    least = 0.96 if (kind, temperature) == ("normal", 1.5) else 0.98
    assert torch.cosine_similarity(*gradients, dim=0) > least
    assert 0.97 < gradients[0].norm() / gradients[1].norm() < 1.03


@pytest.mark.parametrize("name", sorted(set(DIVERGENCES) - {"mse"}))
def test_with_all_classes_in_the_top_every_divergence_is_the_dense_one(name: str) -> None:
    dense = drawn((5,), 9, 0, dtype=torch.float64)
    dense.student_logits.requires_grad_()
    teacher = SparseTeacher.of_logits(dense.teacher_logits, 9)
    sparse = teacher.signals(dense.student_logits, dense.labels)
    losses = [kd_loss(signals, at(2.0, 5), DIVERGENCES[name]()) for signals in (sparse, dense)]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss.sum(), dense.student_logits)[0] for loss in losses))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
def test_the_loss_where_a_tail_is_known_is_that_of_summed_classes(temperature: float) -> None:
    dense = drawn((5,), 9, 0, dtype=torch.float64)
    teacher = SparseTeacher.of_logits(dense.teacher_logits, 3)
    rest = torch.ones(5, 9, dtype=torch.bool).scatter(-1, teacher.ids, False)

    def summed(logits: Tensor) -> Tensor:
        p = (logits / temperature).softmax(-1)
        return torch.cat([p.gather(-1, teacher.ids), (p * rest).sum(-1, keepdim=True)], -1)

    p, q = summed(dense.teacher_logits), summed(dense.student_logits)
    found = kd_loss(teacher.signals(dense.student_logits), at(temperature, 5))
    torch.testing.assert_close(found, temperature**2 * (p * (p / q).log()).sum(-1))


@pytest.mark.parametrize("kind", ["zipf", "normal", "spike"])
def test_the_sum_of_a_tail_is_near_at_every_temperature(kind: str) -> None:
    logits = teachers(2)[kind]
    teacher = SparseTeacher.of_logits(logits, 64)
    rest = logits.log_softmax(-1).scatter(-1, teacher.ids, -math.inf)
    assert teacher.tail is not None
    assert (teacher.limit, replace(teacher, tail=teacher.tail[:, :4]).limit) == (math.inf, 4.0)
    for temperature, within in ((0.3, 0.3), (0.7, 0.07), (1.5, 0.005), (3.0, 0.001), (6.0, 0.001), (20.0, 0.001)):
        found = teacher.softened(torch.full((2,), temperature), VOCABULARY)[:, -1]
        torch.testing.assert_close(found, (rest / temperature).logsumexp(-1), rtol=0, atol=within)


def test_the_gradient_is_right_and_may_be_differentiated() -> None:
    logits = torch.randn(4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ids = torch.tensor([[0, 3], [1, 2], [6, 5], [4, 0]])
    temperature = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(bucketed, (logits, ids, temperature))
    assert torch.autograd.gradgradcheck(bucketed, (logits, ids, temperature))


@pytest.mark.parametrize("name", sorted(RULES))
def test_every_rule_answers_and_its_teacher_is_kept_within_what_is_known(name: str) -> None:
    dense = drawn((2, 6), 40, 0)
    sparse = SparseTeacher.of_logits(dense.teacher_logits, 4, tail=False)
    signals = sparse.signals(dense.student_logits, dense.labels, 0.5)
    found = started(RULES[name](), 5)(signals)
    assert found.teacher.max() <= 1
    assert columns(found).isfinite().all()
    assert kd_loss(signals, found).isfinite().all()


def test_a_temperature_above_what_is_known_counts_as_guarded_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    dense = drawn((6,), 40, 0)
    bare, full = (SparseTeacher.of_logits(dense.teacher_logits, 4, tail) for tail in (False, True))
    controller, within = Controller("fixed:4"), Controller("fixed:4")
    with caplog.at_level(logging.WARNING, "rltemp"):
        for _ in range(100):
            found = controller.temperatures(dense.student_logits, bare)
    assert (found.student[0], found.teacher[0], controller.guarded) == (4.0, 1.0, 1.0)
    assert "a teacher of which only the top is known" in caplog.text
    assert within.temperatures(dense.student_logits, full).teacher[0] == 4.0
    assert within.guarded == 0


@pytest.mark.parametrize("spec", ["universal", "dtkd", "normkd", "dkd", "fixed:1"])
def test_a_controllers_loss_heeds_labels_and_masks(spec: str) -> None:
    dense = drawn((2, 5), 40, 0)
    teacher = SparseTeacher.of_logits(dense.teacher_logits, 6)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3:] = False
    student, ids, labels = dense.student_logits.clone(), teacher.ids.clone(), dense.labels
    assert labels is not None
    student[1, 3:], ids[1, 3:], labels[1, 3:] = math.nan, -7, -100
    student.requires_grad_()
    padded = Controller(spec).loss(student, replace(teacher, ids=ids), labels, 0.5, mask)
    gradient = torch.autograd.grad(padded.sum(), student)[0]
    assert gradient.isfinite().all()
    assert gradient[1, 3:].count_nonzero() == padded[1, 3:].count_nonzero() == 0
    if load_rule(spec).per_sample and spec != "universal":
        first = teacher.each(lambda values: values[:1])
        torch.testing.assert_close(Controller(spec).loss(student[:1], first, labels[:1], 0.5), padded[:1])


def test_many_tokens_in_blocks_are_as_few() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(60, 5000, generator=generator, requires_grad=True)
    ids, ones = logits.topk(8, -1).indices, torch.ones(60)
    found = bucketed(logits, ids, ones)
    parts = torch.cat([bucketed(logits[i : i + 1], ids[i : i + 1], ones[:1]) for i in range(60)])
    torch.testing.assert_close(found, parts)
    torch.testing.assert_close(*(torch.autograd.grad(each.square().sum(), logits)[0] for each in (found, parts)))


GOOD = SparseTeacher(torch.tensor([[[1, 0], [2, 1]]]), torch.tensor([[[0.6, 0.3], [0.5, 0.2]]]).log())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"ids": torch.tensor([[[1, 0], [2, 5]]])}, "has an id that is no class; needed: 0 to 4"),
        ({"ids": torch.tensor([[[1, 0], [-1, 2]]])}, "has an id that is no class"),
        ({"ids": torch.tensor([[[1, 0], [2, 2]]])}, "has an id twice"),
        ({"log_probs": torch.tensor([[[-0.5, -2.0], [0.1, -2.0]]])}, "has a log-probability that is not 0 or less"),
        ({"log_probs": torch.tensor([[[-0.5, -2.0], [math.nan, -2.0]]])}, "has a log-probability that is not"),
        ({"log_probs": torch.tensor([[[-0.5, -2.0], [-2.0, -1.0]]])}, "not in order, the likeliest first"),
        ({"log_probs": torch.tensor([[[-0.5, -2.0], [-0.3, -0.9]]])}, "has probabilities that sum to more than 1"),
        ({"tail": torch.zeros(1, 2, 4)}, "has a tail that does not add up to 1 with its top"),
    ],
)
def test_what_is_no_top_of_a_distribution_is_refused_by_its_token(change: dict[str, Tensor], named: str) -> None:
    GOOD.check(5)
    with pytest.raises(BadInputError, match=rf"^the sparse teacher's token \[0, [01]\] .*{named}"):
        Controller("fixed:1").kd(torch.zeros(1, 2, 5), replace(GOOD, **change))


def test_a_tail_that_contradicts_its_top_or_itself_is_refused() -> None:
    good = SparseTeacher.of_logits(drawn((3,), 9, 0).teacher_logits, 2)
    good.check(9)
    assert good.tail is not None
    for place, change, named in (
        (3, 3.0, "has a tail above what classes less likely than its top"),
        (2, -3.0, "has a tail whose sums contradict each other"),
        (0, math.nan, "has a tail above what classes less likely than its top"),
        (4, 9.0, "has a mean above its top, or a deviation that is none"),
        (5, -9.0, "has a mean above its top, or a deviation that is none"),
    ):
        tail = good.tail.clone()
        tail[1, place] += change
        with pytest.raises(BadInputError, match=rf"token \[1\] {named}"):
            replace(good, tail=tail).check(9)


@pytest.mark.parametrize(
    ("ids", "log_probs", "tail", "named"),
    [
        (torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, 0), None, "K of 1 or more"),
        (torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 2), None, r"shapes .*'log_probs': \(2, 2\)"),
        (torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3), torch.zeros(2, 3), r"a tail \[..., 4\]"),
        (torch.zeros(2, 3), torch.zeros(2, 3), None, "ids has type torch.float32; needed: integers"),
        ([[1]], torch.zeros(1, 1), None, "ids must be a tensor; got list"),
    ],
)
def test_other_shapes_and_types_are_refused(ids: Tensor, log_probs: Tensor, tail: Tensor | None, named: str) -> None:
    with pytest.raises(BadInputError, match=named):
        SparseTeacher(ids, log_probs, tail)


def test_what_needs_all_logits_of_the_teacher_says_so() -> None:
    student = torch.zeros(1, 2, 5)
    with pytest.raises(BadInputError, match=r"needed are \[..., C\] and \[..., K\]"):
        Controller("fixed:1").kd(student[0], GOOD)
    with pytest.raises(BadInputError, match="rescaled needs all logits"):
        Controller("fixed:1").rescaled(student, GOOD, 2.0)
    with pytest.raises(BadInputError, match="this divergence compares logits"):
        kd_loss(GOOD.signals(student), at(1.0, 1, 2), DIVERGENCES["mse"]())
    with pytest.raises(BadInputError, match="matches gradients on all logits"):
        Controller("matched:dtkd").loss(student, GOOD, torch.zeros(1, 2, dtype=torch.long), 0.5)
