"""Integrations of TRL's trainers: a temperature and a weight for every token of a completion.

    from trl import DistillationTrainer
    from rltemp.integrations.trl import DistillationTrainerMixin

    class Distiller(DistillationTrainerMixin, DistillationTrainer):
        pass

    Distiller(model=student, teacher_model=teacher, controller="fixed:1", args=..., train_dataset=...).train()

`GKDTrainerMixin` does the same for `trl.experimental.gkd.GKDTrainer`. Both divide logits by the token's temperatures,
compute the host's own divergence of them (its `beta` says which), and multiply it by the token's weight and by the
method's `kd_weight`. `rltemp.integrations.trl_server` has the trainer whose teacher is a server.
docs/integrations/trl.md says what they leave out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rltemp.errors import BadInputError
from rltemp.integrations.trainers import IGNORED, HostLossTrainer
from rltemp.kd.temperatures import Temperatures

_KERNEL = "ChunkedDivergenceFunction"
"""The host's autograd function of hidden rows, in the module of its trainer: one divergence a row."""


class DistillationTrainerMixin(HostLossTrainer):
    """A base class to name before `trl.DistillationTrainer`.

    The host's kernel takes hidden rows and one temperature. This class divides each row by its token's temperature,
    which gives the same logits up to rounding in the rows' type, where the head has neither bias nor soft cap. It
    multiplies the kernel's answer, one number a token, by the token's weight. `temperature` of `DistillationConfig`
    is used for sampling alone.

    Attributes:
        tokens_per_chunk: Number of tokens whose logits exist at once while temperatures are computed. A rule that
            compares a sample with its batch (the gradient matching of `universal` does) compares it with its chunk.

    Raises:
        BadInputError: In a step, where a head has a bias or a soft cap, or this process lacks its weights (ZeRO-3).
    """

    host = "trl"
    tested = ">=1.16,<1.17"
    tokens_per_chunk = 1024

    def _compute_loss(
        self, unwrapped_student: nn.Module, inputs: Mapping[str, Any], num_items_in_batch: Tensor | int | None
    ) -> Any:
        """Run the host's method with a kernel that asks the controller."""
        mask = inputs["completion_mask"] != 0
        if "tool_mask" in inputs:
            mask = mask & (inputs["tool_mask"] != 0)
        tokens, kept = inputs["completion_ids"].flatten(), mask.flatten()
        module = import_module("trl.trainer.distillation_trainer")
        kernel = getattr(module, _KERNEL)

        def tempered(*arguments: Any) -> tuple[Tensor, Tensor]:
            found, changed = self._tempered(tokens, kept, arguments)
            divergence, entropy = kernel.apply(*changed)
            return self.controller.method.kd_weight * found.weight * divergence, entropy

        with _standing_in(module, _KERNEL, SimpleNamespace(apply=tempered)):
            return super()._compute_loss(unwrapped_student, inputs, num_items_in_batch)  # type: ignore[misc]

    def _tempered(self, tokens: Tensor, kept: Tensor, arguments: tuple[Any, ...]) -> tuple[Temperatures, list[Any]]:
        """The temperatures of the kernel's rows, and its arguments with every row divided by its own."""
        rows_s, head_s, bias_s, rows_t, head_t, bias_t, beta, _, scale_s, cap_s, scale_t, cap_t = arguments
        _refuse(bias_s, cap_s, head_s, "student")
        _refuse(bias_t, cap_t, head_t, "teacher")
        tokens, kept = tokens.to(rows_s.device), kept.to(rows_s.device)
        if len(rows_s) != len(kept):  # the host has left out what the mask leaves out, as it does on a GPU
            tokens, kept = tokens[kept], kept[kept]
        logits_s, logits_t = partial(_logits, rows_s, head_s, scale_s), partial(_logits, rows_t, head_t, scale_t)
        found = self._temperatures(logits_s, logits_t, tokens, kept)
        rows_s, rows_t = (
            (rows / temperature.unsqueeze(-1)).to(rows.dtype)
            for rows, temperature in ((rows_s, found.student), (rows_t, found.teacher))
        )
        return found, [rows_s, head_s, None, rows_t, head_t, None, beta, 1.0, scale_s, None, scale_t, None]

    @torch.no_grad()
    def _temperatures(
        self,
        student: Callable[[slice], Tensor],
        teacher: Callable[[slice], Tensor],
        tokens: Tensor,
        kept: Tensor,
    ) -> Temperatures:
        """Temperatures `[N]` of N tokens, from the logits of a chunk of them at a time."""
        starts = range(0, max(len(tokens), 1), self.tokens_per_chunk)
        chunks = [slice(start, start + self.tokens_per_chunk) for start in starts]
        found = [
            self.watched(kept[c]).temperatures(student(c), teacher(c), tokens[c], self.progress, kept[c])
            for c in chunks
        ]
        return Temperatures.joined(found)


class GKDTrainerMixin(HostLossTrainer):
    """A base class to name before `trl.experimental.gkd.GKDTrainer`.

    The host uses its `temperature` for sampling alone, with or without this class. It computes its loss from whole
    logits, so any head will do.
    """

    host = "trl"
    tested = ">=1.16,<1.17"

    def generalized_jsd_loss(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor,
        beta: float = 0.5,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """The loss of logits `[B, T, V]` and labels `[B, T]`, -100 for no sample, as the host calls it."""
        mask = labels != IGNORED
        found = self.watched(mask).temperatures(student_logits, teacher_logits, labels, self.progress, mask)
        divergence: Tensor = super().generalized_jsd_loss(  # type: ignore[misc]
            student_logits=student_logits / found.student.unsqueeze(-1),
            teacher_logits=teacher_logits / found.teacher.unsqueeze(-1),
            labels=labels,
            beta=beta,
            reduction="none",
        )
        weighted = self.controller.method.kd_weight * found.weight[mask] * divergence.sum(-1)
        return self.over_items(weighted, mask, num_items_in_batch)


def _logits(rows: Tensor, head: Tensor, scale: float, chunk: slice) -> Tensor:
    return F.linear(rows[chunk], head.to(rows.dtype)) * scale


def _refuse(bias: Tensor | None, softcap: float | None, head: Tensor, whose: str) -> None:
    has = "a bias" if bias is not None else "a soft cap on its logits" if softcap is not None else None
    if has is None and not head.numel():
        has = "no weights on this process (DeepSpeed ZeRO-3)"
    if has is not None:
        raise BadInputError(
            f"the {whose}'s output head has {has}: hidden rows over a temperature give other logits than the logits "
            "over it; use GKDTrainerMixin of this module with GKDTrainer (lmbda=1), whose loss is of whole logits"
        )


@contextmanager
def _standing_in(module: ModuleType, name: str, value: object) -> Iterator[None]:
    """Give a name of a module another value while the context is open."""
    own = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, own)
