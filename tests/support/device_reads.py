"""Counts the times that Python waits for a device: numbers read from tensors, and shapes that depend on them."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_AS_NUMBERS = {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal"}
_AS_SHAPES = {"aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::repeat_interleave.Tensor"}
_AS_ARRAYS: set[Callable[..., Any]] = {Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__array__}


class DeviceReads:
    """Everything that would wait for an accelerator while this context is open, seen on a CPU as well.

    `float(tensor)`, `bool(tensor)`, `tensor.item()` and `torch.equal` read a number; `tensor[mask]` and `nonzero` need
    one for the shape of their answer; `tolist`, `numpy` and `cpu` copy a tensor.

    >>> with DeviceReads() as reads:
    ...     _ = torch.ones(3).sum() > 2  # stays where it is
    ...     _ = bool(torch.ones(()) > 0)
    >>> reads.count
    1

    Attributes:
        places: What was read and by which line of code, in order.
    """

    def __init__(self) -> None:
        self.places: list[str] = []
        self._modes = _Operations(), _Methods()  # type: ignore[no-untyped-call]

    @property
    def count(self) -> int:
        """How many reads so far."""
        return len(self.places)

    def __enter__(self) -> DeviceReads:
        for mode in self._modes:
            mode.places = self.places
            mode.__enter__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return self

    def __exit__(self, *error: object) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)  # type: ignore[no-untyped-call]


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees the operations of torch itself, those of the backward pass too."""

    places: list[str]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        chooses = name in ("aten::index.Tensor", "aten::index_put_", "aten::index_put") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if name in _AS_NUMBERS or name in _AS_SHAPES or chooses:
            self.places.append(_place(name))
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    """Sees the calls that copy a tensor to the host, which are no operations of torch on a CPU."""

    places: list[str]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _AS_ARRAYS:
            self.places.append(_place(func.__name__))
        return func(*args, **(kwargs or {}))


def _place(name: str) -> str:
    """What was read, and the innermost line outside torch and this file."""
    lines = [line for line in traceback.extract_stack() if "/torch/" not in line.filename and line.filename != __file__]
    return f"{name} in {Path(lines[-1].filename).name}:{lines[-1].lineno} {lines[-1].line}" if lines else name
