"""What an optimizer can train, found out by trying it on two small tensors: a layer alone, and a stack of students."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from rltemp.models.optimizers import OptimizerFactory, default, make


@functools.cache
def usable_fault(optimizer: str | OptimizerFactory) -> str:
    """Why an optimizer cannot train a layer's matrix, by trying it; empty where it can."""
    if optimizer == "sgd":  # the one that all built-in tasks use
        return ""
    return _fault(lambda: _trained(optimizer, [torch.randn(2, 3, generator=_stream())]))


@functools.cache
def stacking_fault(optimizer: str | OptimizerFactory) -> str:
    """Why an optimizer would train a stack otherwise than its students alone, by trying both; empty where it would not.

    >>> stacking_fault("adamw"), stacking_fault("adafactor")
    ('', 'it does not work element by element')
    """
    return "" if optimizer == "sgd" else _fault(lambda: _compare(optimizer))


def _fault(trial: Callable[[], object]) -> str:
    try:
        trial()
    except Exception as error:  # an optimizer of the user's may raise anything
        return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
    return ""


def _compare(optimizer: str | OptimizerFactory) -> None:
    """Raise ValueError where two students of a vector and a matrix move otherwise in a stack than alone."""
    stream = _stream()
    stack = [torch.randn(2, *shape, generator=stream) for shape in ((3,), (2, 3))]
    together = _trained(optimizer, stack)
    for student in range(2):
        alone = _trained(optimizer, [value[student] for value in stack], student)
        for one, other in zip(alone, together, strict=True):
            if not torch.allclose(one, other[student], rtol=1e-4, atol=1e-6):
                raise ValueError("it does not work element by element")


def _trained(optimizer: str | OptimizerFactory, start: Sequence[Tensor], student: int | None = None) -> list[Tensor]:
    """Weights after three steps; the gradient of the second student is far longer than that of the first."""
    values, stream = [nn.Parameter(value.clone()) for value in start], _stream()
    made = make(optimizer, values, lr=0.01, momentum=default(optimizer, "momentum"))
    for _ in range(3):
        for value in values:
            shape = value.shape if student is None else (2, *value.shape)
            gradient = torch.randn(shape, generator=stream)
            gradient[1:] *= 100.0
            value.grad = gradient if student is None else gradient[student]
        made.step()
    return [value.detach() for value in values]


def _stream() -> torch.Generator:
    return torch.Generator().manual_seed(0)
