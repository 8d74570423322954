"""The integration of Liger's chunked distillation loss, against our own loss of whole logits and against Liger's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.hosts import OF_HOSTS, run_block
from torch import Tensor
from torch.nn import functional as F

from rltemp import BadInputError, Controller, load_method
from rltemp.kd.divergences import DIVERGENCES

chunked = pytest.importorskip("liger_kernel.chunked_loss")
LigerDistillationLoss = pytest.importorskip("rltemp.integrations.liger").LigerDistillationLoss

pytestmark = OF_HOSTS
ROWS, CLASSES = 40, 64


def drawn(bias: bool = False) -> tuple[dict[str, Tensor], Tensor]:
    """Rows and heads of both networks, and labels, a third of which are -100."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    found = {
        "student_input": normal(ROWS, 8).requires_grad_(),
        "student_weight": normal(CLASSES, 8).requires_grad_(),
        "teacher_input": normal(ROWS, 6),
        "teacher_weight": normal(CLASSES, 6),
    }
    if bias:
        found |= {"student_bias": normal(CLASSES).requires_grad_(), "teacher_bias": normal(CLASSES)}
    labels = torch.randint(0, CLASSES, (ROWS,), generator=generator)
    return found, labels.masked_fill(torch.arange(ROWS) % 3 == 0, -100)


def gradients(loss: Tensor, rows: dict[str, Tensor]) -> list[Tensor]:
    return [*torch.autograd.grad(loss, [value for value in rows.values() if value.requires_grad])]


def whole(rows: dict[str, Tensor], labels: Tensor, controller: Controller, progress: float) -> Tensor:
    """Our own loss, of all logits."""
    student, teacher = (
        F.linear(rows[f"{name}_input"], rows[f"{name}_weight"], rows.get(f"{name}_bias"))
        for name in ("student", "teacher")
    )
    kept = labels != -100
    return controller.kd(student, teacher, labels, progress, kept).sum() / kept.sum()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", ["dtkd", "normkd", "fixed:2", "idts", "universal"])
def test_value_and_gradient_are_those_of_whole_logits(name: str, bias: bool) -> None:
    rows, labels = drawn(bias)
    controller = Controller(name)
    found = LigerDistillationLoss(controller)(**rows, true_labels=labels, progress=0.5)
    wanted = whole(rows, labels, controller, 0.5)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    for own, other in zip(gradients(3 * found, rows), gradients(3 * wanted, rows), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


def test_chunks_change_nothing_for_a_rule_of_single_samples() -> None:
    rows, labels = drawn()
    losses = [
        LigerDistillationLoss("dtkd", chunk_size=size)(**rows, true_labels=labels, progress=0.5) for size in (7, 99)
    ]
    torch.testing.assert_close(*losses)
    for own, other in zip(*(gradients(loss, rows) for loss in losses), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("divergence", "beta"), [("kl", 0.0), ("reverse_kl", 1.0)])
def test_at_temperature_1_it_is_ligers_own_loss(divergence: str, beta: float) -> None:
    rows, labels = drawn()
    method: Any = replace(load_method("fixed:temperature=1,kd_weight=1"), divergence=DIVERGENCES[divergence]())
    found = LigerDistillationLoss(method)(**rows, true_labels=labels)
    host = chunked.LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, compiled=False)
    wanted = host(*list(rows.values()), labels)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    for own, other in zip(gradients(found, rows), gradients(wanted, rows), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


def test_the_block_of_the_page_runs_as_it_stands() -> None:
    rows, labels = drawn()
    names = dict(zip(("student_rows", "student_head", "teacher_rows", "teacher_head"), rows.values(), strict=True))
    assert run_block("liger", **names, labels=labels)["loss"] > 0


def test_a_batch_without_a_token_has_no_loss() -> None:
    rows, labels = drawn()
    assert LigerDistillationLoss("dtkd")(**rows, true_labels=labels.fill_(-100), progress=0.5) == 0


def test_what_ligers_chunks_cannot_carry_names_the_call_to_use() -> None:
    with pytest.raises(BadInputError, match=r"call Controller\.loss with whole logits"):
        LigerDistillationLoss("dkd")
    rows, labels = drawn()
    rows["teacher_weight"] = rows["teacher_weight"][:60]
    with pytest.raises(BadInputError, match=r"64 classes, the teacher's 60: cut .* \(weight\[:classes\]\)"):
        LigerDistillationLoss("fixed:1")(**rows, true_labels=labels)
