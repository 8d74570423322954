"""The operations that features, actions and balances are made of, by torch and by NumPy.

At a hundred samples with a hundred classes a torch operation costs its call: NumPy's costs a third of that. So a small
batch on a CPU whose numbers need no graph is computed by NumPy, and everything else by torch, from one definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_SMALL = 2**15
"""Logits up to which NumPy is the faster one."""
_NUMPY_TYPES = (torch.float32, torch.int64)


@dataclass(frozen=True)
class Arrays:
    """One library's operations; `C` is the last axis.

    Args:
        exp: And the next four: element by element.
        clip: Of values, lowest and highest.
        at_least: Of values and lowest.
        stack: Along a new first axis.
        pair: Two `[..., C]` as one `[2, ..., C]`, float32.
        full: A number in the shape `[...]` of logits `[..., C]`.
        total: Sums over C.
        dot: Sums over C of the products.
        length: Roots of the sums over C of the squares.
        place: Where the largest stands, the first of equal ones, `[..., 1]`.
        at: What stands at places `[..., 1]`, `[...]`.
        largest_but: The largest over C but for what stands at places, `[...]`.
    """

    exp: Callable[..., Any]
    log: Callable[..., Any]
    log1p: Callable[..., Any]
    expm1: Callable[..., Any]
    where: Callable[..., Any]
    clip: Callable[..., Any]
    at_least: Callable[..., Any]
    stack: Callable[..., Any]
    pair: Callable[..., Any]
    full: Callable[..., Any]
    total: Callable[..., Any]
    dot: Callable[..., Any]
    length: Callable[..., Any]
    place: Callable[..., Any]
    at: Callable[..., Any]
    largest_but: Callable[..., Any]


def _torch_pair(student: Tensor, teacher: Tensor) -> Tensor:
    return torch.stack([student.detach().float(), teacher.detach().float()])


def _torch_full(logits: Tensor, value: float | Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(logits).reshape(()).expand(logits.shape[:-1])
    return logits.new_full(logits.shape[:-1], value)


TORCH = Arrays(
    exp=torch.exp,
    log=torch.log,
    log1p=torch.log1p,
    expm1=torch.expm1,
    where=torch.where,
    clip=torch.clamp,
    at_least=torch.clamp_min,
    stack=torch.stack,
    pair=_torch_pair,
    full=_torch_full,
    total=lambda values: values.sum(-1),
    dot=lambda one, other: (one * other).sum(-1),
    length=lambda values: torch.linalg.vector_norm(values, dim=-1),
    place=lambda values: values.max(-1, keepdim=True).indices,  # half the time of `argmax`
    at=lambda values, places: values.gather(-1, places).squeeze(-1),
    largest_but=lambda values, places: values.scatter(-1, places, -math.inf).amax(-1),
)


def _numpy_pair(student: Tensor, teacher: Tensor) -> Any:
    pair = np.empty((2, *student.shape), np.float32)
    pair[0], pair[1] = student.detach().numpy(), teacher.detach().numpy()
    return pair


def _at(values: Any, places: Any) -> Any:
    rows = np.arange(0, values.size, values.shape[-1]).reshape(values.shape[:-1])
    return values.reshape(-1)[rows + places[..., 0]]


def _largest_but(values: Any, places: Any) -> Any:
    rest = values.copy()
    flat = rest.reshape(-1)
    flat[np.arange(0, rest.size, rest.shape[-1]) + places.reshape(-1)] = -math.inf
    return _at(rest, rest.argmax(-1)[..., None])  # half the time of `max`


NUMPY = Arrays(
    exp=np.exp,
    log=np.log,
    log1p=np.log1p,
    expm1=np.expm1,
    where=np.where,
    clip=lambda values, low, high: np.minimum(np.maximum(values, low), high),
    at_least=np.maximum,
    stack=np.array,
    pair=_numpy_pair,
    full=lambda logits, value: np.full(logits.shape[:-1], float(value), logits.dtype),
    total=lambda values: np.einsum("...c->...", values),  # a third of the time of `sum`
    dot=lambda one, other: np.einsum("...c,...c->...", one, other),
    length=lambda values: np.sqrt(np.einsum("...c,...c->...", values, values)),
    place=lambda values: values.argmax(-1)[..., None],
    at=_at,
    largest_but=_largest_but,
)


def arrays_for(logits: Tensor, *others: Tensor | None) -> Arrays:
    """The library to compute with: NumPy where all is float32 or integers on a CPU, few, and followed by nobody."""
    if torch.compiler.is_compiling() or logits.numel() > _SMALL or logits.dim() < 2:
        return TORCH
    for value in (logits, *others):
        if value is not None and not (value.is_cpu and value.dtype in _NUMPY_TYPES):
            return TORCH
    followed = torch._C._are_functorch_transforms_active() or torch._C._get_tracing_state()
    return TORCH if followed or torch._C._len_torch_dispatch_stack() else NUMPY
