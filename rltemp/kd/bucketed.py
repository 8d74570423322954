"""A student's logits on the buckets of a sparse teacher, with a gradient that takes the memory of one tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rltemp.kd.classes import ABSENT, bounded_logits
from rltemp.kd.rowwise import blocks, is_transformed
from rltemp.kd.signals import full_precision

_NONE = ABSENT / 1e4
"""A logsumexp below is of classes none of which is there, at any temperature."""


def bucketed(logits: Tensor, ids: Tensor, temperature: Tensor) -> Tensor:
    """Logits over temperatures on K + 1 buckets: those of the ids, and the logsumexp of all others.

    Args:
        logits: `[..., C]`.
        ids: `[..., K]` int64, none twice in a sample.
        temperature: `[...]`.

    Returns:
        `[..., K + 1]`, float32 (float64 for float64 logits).

    >>> bucketed(torch.tensor([[0.0, 3.0, 0.0]]), torch.tensor([[1]]), torch.ones(1))
    tensor([[3.0000, 0.6931]])
    """
    if is_transformed():
        return _buckets(logits, ids, temperature)
    found: Tensor = _Bucketed.apply(logits, ids, temperature)
    return found


def _buckets(logits: Tensor, ids: Tensor, temperature: Tensor) -> Tensor:
    known = bounded_logits(logits)
    over = temperature.unsqueeze(-1)
    top = known.gather(-1, ids)
    rest = (known / over).scatter(-1, ids, ABSENT).logsumexp(-1, keepdim=True)
    return torch.cat([(top / over).masked_fill(top <= ABSENT, ABSENT), rest.masked_fill(rest < _NONE, ABSENT)], -1)


class _Bucketed(torch.autograd.Function):
    """The buckets in blocks of rows, so that nothing of the logits' size is made but the gradient."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, temperature: Tensor) -> Tensor:
        found = torch.empty(
            *ids.shape[:-1], ids.shape[-1] + 1, dtype=full_precision(logits[..., :0]).dtype, device=logits.device
        )
        flat = found.view(-1, found.shape[-1])
        for block, part in blocks(logits, [logits, ids, temperature]):
            flat[block] = _buckets(*part)
        ctx.save_for_backward(logits, ids, temperature, found)
        return found

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        logits, ids, temperature, found = ctx.saved_tensors
        if torch.is_grad_enabled():
            inputs = [value.view_as(value) for value in (logits, temperature)]
            wanted = [value for value in inputs if value.requires_grad]
            again = _buckets(inputs[0], ids, inputs[1])
            each = iter(torch.autograd.grad(again, wanted, outer, create_graph=True))
            by_logits, by_temperature = (next(each) if value.requires_grad else None for value in inputs)
            return by_logits, None, by_temperature
        by_logits, by_temperature = torch.empty_like(logits), torch.empty_like(temperature)
        rows, numbers = by_logits.view(-1, logits.shape[-1]), by_temperature.view(-1)
        for block, part in blocks(logits, [logits, ids, temperature, found, outer]):
            rows[block], numbers[block] = _gradient(*part)
        return by_logits, None, by_temperature


def _gradient(logits: Tensor, ids: Tensor, temperature: Tensor, found: Tensor, outer: Tensor) -> tuple[Tensor, Tensor]:
    """By the logits, of which the tail shares one number, and by the temperature, by which all are divided."""
    known, over = bounded_logits(logits), temperature.unsqueeze(-1)
    arrived = outer / over
    own = arrived[..., :-1].masked_fill(known.gather(-1, ids) <= ABSENT, 0.0)
    rest = found[..., -1:].masked_fill(found[..., -1:] <= ABSENT, 0.0)  # of no class: no exponential is above 0
    gradient = (known / over).sub_(rest).exp_().mul_(arrived[..., -1:]).scatter_(-1, ids, own)
    return gradient, (gradient * known).sum(-1).div_(-temperature)
