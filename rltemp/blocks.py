"""Numbers that a sample's own logits give, computed a few rows at a time, so that every pass over them hits the cache.

A loss over `[4096, 32000]` logits makes a dozen passes over half a gigabyte each, and as many tensors of that size. In
blocks of rows the same operations run in the cache, and nothing of that size is made but the gradient. A batch that
fits into one block is not cut, and gains by the gradients worked out by hand alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from rltemp.types import full_precision

Values = Sequence[Tensor]

_BLOCK_CPU, _BLOCK_ELSEWHERE = 2**17, 2**24
"""Numbers in a block: on a CPU for each thread (half a megabyte: four of them fit the second-level cache)."""


@dataclass(frozen=True)
class Formula:
    """One number a sample, and its gradient worked out by hand.

    Args:
        parts: From the inputs what both the number and its gradient need: tensors, `[N, C]` or `[N]`.
        value: From the parts the number, `[N]`. Torch can follow parts and value, for a gradient of the gradient.
        gradient: From which inputs need one, the derivative by the number `[N]`, the inputs and the parts (neither to
            be changed), the derivative by each input, None where it needs none.
    """

    parts: Callable[..., tuple[Tensor, ...]]
    value: Callable[..., Tensor]
    gradient: Callable[[Sequence[bool], Tensor, Values, Values], tuple[Tensor | None, ...]]

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The number, as torch's own operations compute it."""
        return self.value(*self.parts(*inputs))


def rowwise(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Return function(*inputs), one number a sample, in blocks of samples where they are many.

    A formula's gradient is computed in blocks as well; its own gradient (after `create_graph=True`) over the whole, as
    is that of a function that is none.

    Args:
        function: Of `[N, C]` and `[N]` to `[N]`; a sample's number depends on that sample alone.
        inputs: `[..., C]` first, then more of that shape, or of `[...]`.

    Returns:
        `[...]`.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return function(*inputs)  # torch.compile and torch.func make their own of the plain formula
    if not torch.is_grad_enabled() or not any(value.requires_grad for value in inputs):
        return _evaluated(function, inputs)
    if not isinstance(function, Formula):
        return function(*inputs)
    return _Rowwise.apply(function, *inputs)  # type: ignore[no-any-return]


class _Rowwise(torch.autograd.Function):
    """A formula in torch's graph. Remembers its parts where they are one block; else finds them again, by block."""

    @staticmethod
    def forward(ctx: Any, formula: Formula, *inputs: Tensor) -> Tensor:
        ctx.formula, ctx.count = formula, len(inputs)
        parts = () if is_cut(inputs[0]) else formula.parts(*inputs)
        ctx.save_for_backward(*inputs, *parts)
        return formula.value(*parts) if parts else _evaluated(formula, inputs)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        inputs, parts = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
        needed = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():
            return None, *_followed(ctx.formula, needed, outer, inputs)
        if parts:
            return None, *ctx.formula.gradient(needed, outer, inputs, parts)
        return None, *_gradient_in_blocks(ctx.formula, needed, outer, inputs)


def _followed(formula: Formula, needed: Sequence[bool], outer: Tensor, inputs: Values) -> list[Tensor | None]:
    """The gradient with a graph of its own."""
    own = [value.view_as(value) for value in inputs]  # one input may depend on another, which must not count twice
    wanted = [value for value, need in zip(own, needed, strict=True) if need]
    found = iter(torch.autograd.grad(formula(*own), wanted, outer, create_graph=True))
    return [next(found) if need else None for need in needed]


def _gradient_in_blocks(formula: Formula, needed: Sequence[bool], outer: Tensor, inputs: Values) -> list[Tensor | None]:
    found = [
        torch.empty(value.shape, dtype=value.dtype, device=value.device) if need else None
        for value, need in zip(inputs, needed, strict=True)
    ]
    flat = [None if value is None else _flat(value, inputs[0]) for value in found]
    for block, (part_outer, *part) in _blocks(inputs[0], [outer, *inputs]):
        gradients = formula.gradient(needed, part_outer, part, formula.parts(*part))
        for target, gradient in zip(flat, gradients, strict=True):
            if target is not None and gradient is not None:
                target[block] = gradient
    return found


def _evaluated(function: Callable[..., Tensor], inputs: Values) -> Tensor:
    logits = inputs[0]
    if not is_cut(logits):
        return function(*inputs)
    return torch.cat([function(*part) for _, part in _blocks(logits, inputs)]).view(logits.shape[:-1])


def _blocks(logits: Tensor, values: Values) -> Iterator[tuple[slice, list[Tensor]]]:
    """Slices of samples, and the flattened values there."""
    flat, rows = [_flat(value, logits) for value in values], _rows(logits)
    for start in range(0, len(flat[0]), rows):
        block = slice(start, start + rows)
        yield block, [value[block] for value in flat]


def _flat(value: Tensor, logits: Tensor) -> Tensor:
    return value.reshape(-1, logits.shape[-1]) if value.dim() == logits.dim() else value.reshape(-1)


def is_cut(logits: Tensor) -> bool:
    """Tell whether logits `[..., C]` are more than one block."""
    return logits.numel() > _rows(logits) * logits.shape[-1]


def _rows(logits: Tensor) -> int:
    numbers = _BLOCK_CPU * torch.get_num_threads() if logits.device.type == "cpu" else _BLOCK_ELSEWHERE
    return max(1, numbers // logits.shape[-1])


def largest(logits: Tensor) -> Tensor:
    """The largest logit of every sample, `[..., C]` to `[...]`; equal ones share the gradient, as torch has it."""
    return rowwise(_LARGEST, logits)


def logsumexp(logits: Tensor) -> Tensor:
    """Logarithm of the summed exponentials of every sample's logits, `[..., C]` to `[...]`."""
    return rowwise(_LOGSUMEXP, logits)


def deviation(logits: Tensor, correction: int = 1, floor: float = 0.0) -> Tensor:
    """The standard deviation of every sample's logits, `[..., C]` to `[...]`.

    Args:
        logits: `[..., C]`.
        correction: C less this is the divisor of the variance.
        floor: What a smaller deviation counts as; it has no gradient there.
    """
    return rowwise(_deviation(correction, floor), logits)


@cache
def _deviation(correction: int, floor: float) -> Formula:
    def parts(logits: Tensor) -> tuple[Tensor]:
        variance = _centred(logits).square().sum(-1) / (logits.shape[-1] - correction)
        # The variance is raised, not its root, whose gradient at zero is infinite.
        return ((variance.clamp(min=floor * floor) if floor else variance).sqrt(),)

    def gradient(needed: Sequence[bool], outer: Tensor, inputs: Values, parts: Values) -> tuple[Tensor]:
        logits, found = inputs[0], parts[0]
        factor = outer / (found * (logits.shape[-1] - correction))
        if floor:
            factor = factor.masked_fill_(found <= floor, 0.0)
        return (_centred(logits).mul_(factor.unsqueeze(-1)),)

    return Formula(parts, _same, gradient)


def _same(value: Tensor) -> Tensor:
    return value


def _by_largest(needed: Sequence[bool], outer: Tensor, inputs: Values, parts: Values) -> tuple[Tensor]:
    # 1 where a logit is the largest, 0 elsewhere: three times as fast as by way of bool.
    reached = (full_precision(inputs[0]) - parts[0].unsqueeze(-1)).sign_().add_(1)
    return (reached.mul_((outer / reached.sum(-1)).unsqueeze(-1)),)


def _by_logsumexp(needed: Sequence[bool], outer: Tensor, inputs: Values, parts: Values) -> tuple[Tensor]:
    return (full_precision(inputs[0]).softmax(-1).mul_(outer.unsqueeze(-1)),)


def _centred(logits: Tensor) -> Tensor:
    logits = full_precision(logits)
    return logits - logits.mean(-1, keepdim=True)


_LARGEST = Formula(lambda logits: (full_precision(logits).amax(-1),), _same, _by_largest)
_LOGSUMEXP = Formula(lambda logits: (full_precision(logits).logsumexp(-1),), _same, _by_logsumexp)
