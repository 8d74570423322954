"""Numbers that a sample's own logits give, computed a few rows at a time, so that every pass over them hits the cache.

A loss over `[4096, 32000]` logits makes a dozen passes over half a gigabyte each, and as many tensors of that size. In
blocks of rows the same operations run in the cache, and nothing of that size is made but the gradient. A batch that
fits into one block is not cut; there a formula is worth its one node of torch's graph in place of a dozen, and the
gradient is worked out beside the value, while its parts are at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rltemp.kd.signals import bounded, full_precision

Values = Sequence[Tensor]
Slopes = tuple[Any, tuple["Tensor | None", ...], tuple[Tensor, ...]]
"""A formula's value and its gradient without what arrives from above: a slope for each input, `[N, C]` or `[N]`, None
where it needs none, and a factor `[N]` for each variable number, or no factor for the factor 1 of a single number.
The gradient by an input is its slope times sum_i factor_i outer_i."""

_BLOCK_CPU, _BLOCK_ELSEWHERE = 2**17, 2**24
"""Numbers in a block: on a CPU for each thread (half a megabyte: four of them fit the second-level cache)."""


@dataclass(frozen=True)
class Formula:
    """One number a sample, or several, and their gradient worked out by hand: one node of torch's graph.

    Args:
        value: From the inputs, `[N, C]` or `[N]`, the number `[N]`, or a tuple of them, in operations that torch can
            follow: for a gradient of the gradient.
        slopes: From which inputs need a gradient, and the inputs, the same value, and what `Slopes` says. Torch does
            not look, so it may change its own tensors, not the inputs.
        variable: How many of the numbers have a gradient; those behind them are constants of the graph.
        foreign: An input that no slope is worked out for. Where it needs a gradient, torch follows the value.
    """

    value: Callable[..., Any]
    slopes: Callable[..., Slopes]
    variable: int = 1
    foreign: int | None = None

    def __call__(self, *inputs: Tensor) -> Any:
        """The value, as torch's own operations compute it."""
        return self.value(*inputs)


def is_transformed() -> bool:
    """Whether torch.compile or a transform of torch.func follows this call: no value can be read then, or kept."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def rowwise(function: Callable[..., Any], *inputs: Tensor) -> Any:
    """Return function(*inputs), one number a sample, in blocks of samples where they are many.

    A formula's gradient is computed in blocks as well; its own gradient (after `create_graph=True`) over the whole, as
    is that of a function that is none.

    Args:
        function: Of `[N, C]` and `[N]` to `[N]`; a sample's number depends on that sample alone.
        inputs: `[..., C]` first, then more of that shape, or of `[...]`.

    Returns:
        `[...]`, or a tuple of them, as the function does.
    """
    if is_transformed():
        return function(*inputs)  # torch.compile and torch.func make their own of the plain formula
    needed = [value.requires_grad for value in inputs]
    if True not in needed or not torch.is_grad_enabled():
        return _evaluated(function, inputs)
    if not isinstance(function, Formula) or (function.foreign is not None and needed[function.foreign]):
        return function(*inputs)
    return _Node.apply(function, *inputs)


class _Node(torch.autograd.Function):
    """A formula in torch's graph; of one block it finds its slopes beside its value, of many when they are needed."""

    @staticmethod
    def forward(ctx: Any, formula: Formula, *inputs: Tensor) -> Any:
        ctx.formula, ctx.cut = formula, is_cut(inputs[0])
        kept: Sequence[Tensor | None] = ()
        if ctx.cut:
            found = _evaluated(formula, inputs)
        else:
            found, slopes, factors = formula.slopes(ctx.needs_input_grad[1:], *inputs)
            kept = (*slopes, *factors)
            ctx.set_materialize_grads(False)  # a number that nobody used costs no tensor of zeros
        ctx.save_for_backward(*inputs, *kept)
        if isinstance(found, tuple):
            ctx.mark_non_differentiable(*found[formula.variable :])
        return found

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        saved, needed = ctx.saved_tensors, ctx.needs_input_grad[1:]
        count = len(needed)
        if torch.is_grad_enabled():
            return None, *_followed(ctx.formula, needed, outer, saved[:count])
        if ctx.cut:
            return None, *_gradient_in_blocks(ctx.formula, needed, outer, saved)
        return None, *_gradient(outer, saved[count : 2 * count], saved[2 * count :])


def _gradient(outer: Sequence[Tensor | None], slopes: Sequence[Tensor | None], factors: Values) -> list[Tensor | None]:
    """What `Slopes` says; None is what arrives by a number that nobody used."""
    total = outer[0]
    if factors:
        total = None
        for each, factor in zip(outer, factors, strict=False):
            if each is not None:
                total = each * factor if total is None else total.addcmul_(each, factor)
    if total is None:
        return [None] * len(slopes)
    lead = total.dim()
    return [
        None if slope is None else slope * (total if slope.dim() == lead else total.unsqueeze(-1)) for slope in slopes
    ]


def _followed(
    formula: Formula, needed: Sequence[bool], outer: Sequence[Tensor | None], inputs: Values
) -> list[Tensor | None]:
    """The gradient with a graph of its own."""
    own = [value.view_as(value) for value in inputs]  # one input may depend on another, which must not count twice
    wanted = [value for value, need in zip(own, needed, strict=True) if need]
    value = formula(*own)
    values = value[: formula.variable] if isinstance(value, tuple) else [value]
    used = [(value, each) for value, each in zip(values, outer, strict=False) if each is not None]
    if not used:
        return [None] * len(needed)
    values, arrived = zip(*used, strict=True)
    found = iter(torch.autograd.grad(values, wanted, arrived, create_graph=True))
    return [next(found) if need else None for need in needed]


def _gradient_in_blocks(formula: Formula, needed: Sequence[bool], outer: Values, inputs: Values) -> list[Tensor | None]:
    found = [
        torch.empty(value.shape, dtype=value.dtype, device=value.device) if need else None
        for value, need in zip(inputs, needed, strict=True)
    ]
    flat = [None if value is None else _flat(value, inputs[0]) for value in found]
    for block, part in blocks(inputs[0], [*outer, *inputs]):
        _, slopes, factors = formula.slopes(needed, *part[len(outer) :])
        for target, gradient in zip(flat, _gradient(part, slopes, factors), strict=True):
            if target is not None and gradient is not None:
                target[block] = gradient
    return found


def _evaluated(function: Callable[..., Any], inputs: Values) -> Any:
    logits = inputs[0]
    if not is_cut(logits):
        return function(*inputs)
    found = [function(*part) for _, part in blocks(logits, inputs)]
    if isinstance(found[0], tuple):
        return tuple(torch.cat(column).view(logits.shape[:-1]) for column in zip(*found, strict=True))
    return torch.cat(found).view(logits.shape[:-1])


def blocks(logits: Tensor, values: Values) -> Iterator[tuple[slice, list[Tensor]]]:
    """Slices of samples of logits `[..., C]`, and there the values, `[..., N]` or `[...]`, flattened."""
    flat, rows = [_flat(value, logits) for value in values], _rows(logits)
    for start in range(0, len(flat[0]), rows):
        block = slice(start, start + rows)
        yield block, [value[block] for value in flat]


def _flat(value: Tensor, logits: Tensor) -> Tensor:
    return value.reshape(-1, value.shape[-1]) if value.dim() == logits.dim() else value.reshape(-1)


def is_cut(logits: Tensor) -> bool:
    """Tell whether logits `[..., C]` are more than one block."""
    numbers = logits.numel()
    return numbers > _BLOCK_CPU and numbers > _rows(logits) * logits.size(-1)  # few numbers are not, on any device


def _rows(logits: Tensor) -> int:
    numbers = _BLOCK_CPU * torch.get_num_threads() if logits.is_cpu else _BLOCK_ELSEWHERE
    return max(1, numbers // logits.size(-1))


def paired(first: Tensor, second: Tensor) -> Tensor:
    """Both logits as one tensor, `[2, ..., C]`, in the memory order of the first: classes that lie apart stay so."""
    if first.stride(-1) == 1:
        return torch.stack([first, second])
    return torch.stack([logits.movedim(-1, 0) for logits in (first, second)], 1).movedim(0, -1)


def logsumexp(logits: Tensor) -> Tensor:
    """Logarithm of the summed exponentials of every sample's logits, `[..., C]` to `[...]`."""
    found: Tensor = rowwise(LOGSUMEXP, logits)
    return found


def _largest_slopes(needed: Sequence[bool], logits: Tensor) -> Slopes:
    logits = full_precision(logits)
    found = logits.amax(-1)
    # 1 where a logit is the largest, 0 elsewhere: three times as fast as by way of bool.
    reached = torch.eq(logits, found.unsqueeze(-1), out=torch.empty_like(logits))
    return bounded(found), (reached,), (reached.sum(-1).reciprocal_(),)


def _logsumexp_slopes(needed: Sequence[bool], logits: Tensor) -> Slopes:
    logits = full_precision(logits)
    largest = logits.amax(-1)
    terms = (logits - largest.unsqueeze(-1)).exp_()
    total = terms.sum(-1)
    return bounded(total.log().add_(largest)), (terms,), (total.reciprocal_(),)


LARGEST = Formula(lambda logits: bounded(full_precision(logits).amax(-1)), _largest_slopes)
"""The largest logit of every sample, `[..., C]` to `[...]`; equal ones share the gradient, as torch has it."""
LOGSUMEXP = Formula(lambda logits: bounded(full_precision(logits).logsumexp(-1)), _logsumexp_slopes)
