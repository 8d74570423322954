"""A mask takes places out of a batch: what is left is as if it stood alone, and what is out reaches nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.signals import started
from torch import Tensor

from rltemp import BadInputError, Signals, kd_loss, load_method, load_rule
from rltemp.kd.divergences import DIVERGENCES
from rltemp.kd.losses import cross_entropy
from rltemp.rules import RULES
from rltemp.rules.published_methods import METHODS

# Images [B, C], tokens [B, T, V], proposals [B, A, C]: leading shape and classes.
SHAPES = {"images": ((12,), 10), "tokens": ((3, 6), 32), "proposals": ((2, 9), 4)}
every_shape = pytest.mark.parametrize("kind", sorted(SHAPES))
every_method = pytest.mark.parametrize("name", [*sorted(METHODS), "matched:dtkd", "matched:idts", "fixed:ce_weight=0"])


def drawn(kind: str, seed: int = 0) -> tuple[Signals, Signals]:
    """Signals with a mask, nan logits and label -100 where it is false; and the batch of the others alone."""
    shape, classes = SHAPES[kind]
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, *shape, classes, generator=generator) * 2
    labels = torch.randint(0, classes, shape, generator=generator)
    mask = torch.rand(shape, generator=generator) < 0.6
    compact = Signals(student[mask].requires_grad_(), teacher[mask], labels[mask], 0.5)
    student[~mask], teacher[~mask] = torch.nan, torch.nan
    return Signals(student.requires_grad_(), teacher, labels.masked_fill(~mask, -100), 0.5, mask), compact


def mask_of(signals: Signals) -> Tensor:
    assert 0 < signals.mask.sum() < signals.mask.numel()
    return signals.mask


def assert_the_mask_is_kept(loss: Tensor, alone: Tensor, signals: Signals, compact: Signals) -> None:
    mask = mask_of(signals)
    # Rows lie elsewhere in the vector registers; T^2 is up to 240 times the divergence's last digit.
    torch.testing.assert_close(loss[mask], alone, rtol=1e-5, atol=5e-5)
    assert loss.shape == signals.shape
    assert (loss[~mask] == 0).all()
    gradient, wanted = (
        torch.autograd.grad(found.sum(), of.student_logits)[0] for found, of in ((loss, signals), (alone, compact))
    )
    torch.testing.assert_close(gradient[mask], wanted)
    assert (gradient[~mask] == 0).all()


@every_method
@every_shape
def test_a_methods_loss_under_a_mask_is_that_of_the_samples_left(name: str, kind: str) -> None:
    signals, compact = drawn(kind)
    method = started(load_method(name), SHAPES[kind][1])
    assert_the_mask_is_kept(method.loss(signals), method.loss(compact), signals, compact)


@pytest.mark.filterwarnings("ignore:var\\(\\):UserWarning")  # torch's, of no sample at all
@every_method
@every_shape
def test_a_batch_that_is_all_padding_costs_nothing_and_goes_backward(name: str, kind: str) -> None:
    signals, _ = drawn(kind)
    signals = replace(signals, mask=torch.zeros_like(mask_of(signals)))
    nothing = torch.full_like(signals.student_logits, torch.nan)
    signals = replace(signals, student_logits=nothing.requires_grad_(), teacher_logits=nothing.detach().clone())
    loss = started(load_method(name), SHAPES[kind][1]).loss(signals)
    loss.mean().backward()
    assert (loss == 0).all()
    assert loss.shape == signals.shape
    assert (signals.student_logits.grad == 0).all()


@pytest.mark.parametrize("name", sorted(RULES))
@every_shape
def test_a_rule_sees_the_samples_a_mask_leaves_and_weighs_no_others(name: str, kind: str) -> None:
    signals, compact = drawn(kind)
    mask, rule = mask_of(signals), started(load_rule(name), SHAPES[kind][1])
    answer, alone = rule(signals), rule(compact)
    for field, elsewhere in (("student", 1.0), ("teacher", 1.0), ("weight", 0.0)):
        torch.testing.assert_close(getattr(answer, field)[mask], getattr(alone, field))
        assert (getattr(answer, field)[~mask] == elsewhere).all(), field
    assert_the_mask_is_kept(kd_loss(signals, answer), kd_loss(compact, alone), signals, compact)


@pytest.mark.parametrize("name", sorted(DIVERGENCES))
@every_shape
def test_under_a_mask_the_losses_are_those_of_the_samples_left(name: str, kind: str) -> None:
    signals, compact = drawn(kind)
    answers, divergence = [load_rule("normkd")(each) for each in (signals, compact)], DIVERGENCES[name]()
    losses = [kd_loss(each, answer, divergence) for each, answer in zip((signals, compact), answers, strict=True)]
    assert_the_mask_is_kept(losses[0], losses[1], signals, compact)
    assert_the_mask_is_kept(cross_entropy(signals), cross_entropy(compact), signals, compact)


def test_the_rules_that_take_masks_are_those_that_compare_no_samples() -> None:
    compared = {name for name, factory in RULES.items() if "Batch: compared" in (factory.__doc__ or "")}
    assert compared == {name for name, factory in RULES.items() if not factory().per_sample}


def test_what_is_masked_changes_nothing_for_a_rule_that_compares_samples() -> None:
    signals, _ = drawn("tokens")
    rows = mask_of(signals).unsqueeze(-1)
    for name in ("idts", "energy", "cswt"):
        answers = [
            load_rule(name)(replace(signals, teacher_logits=torch.where(rows, signals.teacher_logits, fill)))
            for fill in (-1e4, 1e4)
        ]
        assert torch.equal(answers[0].student, answers[1].student)


def test_a_mask_of_trues_is_no_mask() -> None:
    student, teacher = torch.randn(2, 3, 4, 5)
    signals = Signals(student, teacher, torch.zeros(3, 4, dtype=torch.long), 0.5)
    masked = replace(signals, mask=torch.ones(3, 4, dtype=torch.bool))
    torch.testing.assert_close(load_method("dtkd").loss(masked), load_method("dtkd").loss(signals))


@pytest.mark.parametrize(
    ("mask", "named"),
    [
        (torch.ones(4, dtype=torch.bool), r"mask has shape \(4,\) and type torch.bool; needed: \(4, 3\), torch.bool"),
        (torch.ones(4, 3, 1, dtype=torch.bool), r"mask has shape \(4, 3, 1\)"),
        (torch.ones(4, 3), r"mask has shape \(4, 3\) and type torch.float32"),
        (torch.ones(4, 3, dtype=torch.long), r"type torch.int64; needed: \(4, 3\), torch.bool"),
    ],
)
def test_a_mask_of_another_shape_or_type_is_refused(mask: Tensor, named: str) -> None:
    with pytest.raises(BadInputError, match=named):
        Signals(torch.zeros(4, 3, 2), torch.zeros(4, 3, 2), mask=mask)
