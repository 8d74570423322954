"""What a network takes: a tensor, or tuples, lists and dictionaries of tensors inside each other.

The first axis of every tensor counts the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

Inputs = Any
"""A tensor, or a nested structure of tensors."""


def mapped(function: Callable[..., Tensor], inputs: Inputs, *others: Inputs) -> Inputs:
    """Apply a function to every tensor of a structure, and of others of the same form; all else stays as it is.

    >>> mapped(torch.add, {"a": torch.ones(1)}, {"a": torch.ones(1)})
    {'a': tensor([2.])}
    """
    if isinstance(inputs, Tensor):
        return function(inputs, *others)
    if isinstance(inputs, Mapping):
        return {name: mapped(function, value, *(one[name] for one in others)) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        values = [mapped(function, *each) for each in zip(inputs, *others, strict=True)]
        return type(inputs)(*values) if hasattr(inputs, "_fields") else type(inputs)(values)
    return inputs


def tensors(inputs: Inputs) -> Iterator[Tensor]:
    """Every tensor of a structure, in order."""
    if isinstance(inputs, Tensor):
        yield inputs
    elif isinstance(inputs, (Mapping, tuple, list)):
        for value in inputs.values() if isinstance(inputs, Mapping) else inputs:
            yield from tensors(value)


def rows(inputs: Inputs, index: Tensor) -> Inputs:
    """The samples at some positions, of any shape: `[*index.shape, ...]` of every tensor."""
    return mapped(lambda tensor: taken(tensor, index.to(tensor.device)), inputs)


def taken(tensor: Tensor, index: Tensor) -> Tensor:
    """The rows at some positions, of any shape: `[*index.shape, ...]`; row by row, a tenth of what indexing takes."""
    return tensor.index_select(0, index.flatten()).view(*index.shape, *tensor.shape[1:])


def joined(first: Inputs, second: Inputs) -> Inputs:
    """The samples of the first and then those of the second."""
    return mapped(lambda one, other: torch.cat([one, other]), first, second)
