"""Integration of Liger's chunked distillation loss: a temperature and a weight for every row, without whole logits.

    from rltemp.integrations.liger import LigerDistillationLoss

    distillation = LigerDistillationLoss("fixed:1")
    loss = distillation(student_rows, student_head, teacher_rows, teacher_head, labels, progress=step / steps)

`LigerFusedLinearJSDLoss` adds up its tokens before a weight could reach them. This loss is a function of the same base
of Liger's, which projects the rows onto the vocabulary, chunk by chunk, and finds the gradient beside the value.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from liger_kernel.chunked_loss.fused_linear_distillation import LigerFusedLinearDistillationBase
from torch import Tensor, nn

from rltemp.errors import BadInputError
from rltemp.integrations.contract import MethodLike, controller_of
from rltemp.integrations.host_versions import tested_with
from rltemp.integrations.trainers import IGNORED
from rltemp.kd.classes import softened
from rltemp.kd.signals import Divergence
from rltemp.kd.temperatures import Temperatures


class LigerDistillationLoss(nn.Module):
    """The distillation term of a method, from rows of hidden numbers and the heads that make logits of them.

    Its arguments are those of `LigerFusedLinearJSDLoss`. The value is the sum over tokens of `kd_weight * weight *
    D(student / T_s, teacher / T_t)` over their count; the loss of the labels is the loop's own.

    Args:
        controller: What `Controller` takes.
        chunk_size: Tokens whose logits exist at once. A rule that compares samples compares those of a chunk.
        compiled: Compile the chunk's function with `torch.compile`.

    Raises:
        BadInputError: For a rule that learns, or, from a call, a method whose divergence needs labels, or vocabularies
            of two sizes.
    """

    def __init__(self, controller: MethodLike = "fixed:1", chunk_size: int = 1024, compiled: bool = False) -> None:
        super().__init__()
        tested_with("liger-kernel", ">=0.8,<0.9")
        self.controller = controller_of(controller)
        self.chunk_size, self.compiled = chunk_size, compiled
        if getattr(self.controller.method.divergence, "uses_labels", False):
            raise BadInputError(
                f"the divergence of {self.controller.method.name!r} needs labels, which Liger's chunks do not carry: "
                "call Controller.loss with whole logits"
            )

    def forward(
        self,
        student_input: Tensor,
        student_weight: Tensor,
        teacher_input: Tensor,
        teacher_weight: Tensor,
        true_labels: Tensor,
        student_bias: Tensor | None = None,
        teacher_bias: Tensor | None = None,
        progress: float | Tensor = math.nan,
    ) -> Tensor:
        """The mean loss of the rows `[N, H]` whose label is not -100, in nats."""
        if len(student_weight) != len(teacher_weight):
            raise BadInputError(
                f"the student's head has {len(student_weight)} classes, the teacher's {len(teacher_weight)}: cut the "
                "longer one's padding off (weight[:classes])"
            )
        kept = true_labels != IGNORED
        student, teacher = (student_input, student_weight, student_bias), (teacher_input, teacher_weight, teacher_bias)
        found = self._temperatures(student, teacher, true_labels, kept, progress)
        # Liger tells a chunk its targets alone: the place of a row stands in for its label.
        places = torch.arange(len(kept), device=kept.device).masked_fill(~kept, IGNORED)
        loss: Tensor = _Tempered.apply(*student, *teacher, places, found, self.controller.method.divergence, self)
        return self.controller.method.kd_weight * loss

    @torch.no_grad()
    def _temperatures(
        self, student: Any, teacher: Any, labels: Tensor, kept: Tensor, progress: float | Tensor
    ) -> Temperatures:
        """Temperatures `[N]`, from the logits of a chunk at a time."""
        chunks = [slice(start, start + self.chunk_size) for start in range(0, max(len(kept), 1), self.chunk_size)]

        def logits(of: Any, chunk: slice) -> Tensor:
            rows, head, bias = of
            return nn.functional.linear(rows[chunk], head, bias)

        found = [
            self.controller.temperatures(logits(student, c), logits(teacher, c), labels[c], progress, kept[c])
            for c in chunks
        ]
        return Temperatures.joined(found)


class _Tempered(LigerFusedLinearDistillationBase):  # type: ignore[misc]  # a host, maybe not here
    """Liger's function of rows, with a divergence at every row's own temperatures."""

    @staticmethod
    def distillation_loss_fn(
        student_logits: Tensor,
        teacher_logits: Tensor,
        target: Tensor,
        ignore_index: int,
        beta: float,
        found: Temperatures,
        divergence: Divergence,
    ) -> Tensor:
        """The summed loss of a chunk; `beta` is Liger's, and means nothing here."""
        there = target != ignore_index
        places = target.clamp(min=0)
        own = found.each(lambda values, _: values[places])
        losses = own.weight * divergence(
            softened(student_logits, own.student), softened(teacher_logits, own.teacher), None
        )
        return losses.masked_fill(~there, 0.0).sum()

    @classmethod
    def forward(cls, ctx: Any, *arguments: Any) -> Tensor:
        """As `apply` is called by `LigerDistillationLoss`."""
        rows_s, head_s, bias_s, rows_t, head_t, bias_t, places, found, divergence, options = arguments
        loss: Tensor = LigerFusedLinearDistillationBase.forward(
            cls,
            ctx,
            rows_s,
            head_s,
            rows_t,
            head_t,
            places,
            bias_s,
            bias_t,
            chunk_size=options.chunk_size,
            ignore_index=IGNORED,
            weight_hard_loss=0.0,
            weight_soft_loss=1.0,
            compute_ce_loss=False,
            compiled=options.compiled,
            found=found,
            divergence=divergence,
        )
        return loss

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        """By the student's rows, head and bias."""
        rows, head, _, _, _, bias = LigerFusedLinearDistillationBase.backward(ctx, outer)
        return (rows, head, bias, *[None] * 7)
