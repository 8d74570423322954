"""A problem on its way to another process: tensors as arrays, which any transport between processes takes as they are.

Torch's own way would put every tensor into shared memory, of which a container may have no more than 64 MiB.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rltemp.data.dataset import Dataset, Split
from rltemp.data.problem import Problem

_PARTS = ("train", "probe", "validation", "test")

Array = np.ndarray[Any, Any]


class Parcel:
    """A problem without tensors.

    Args:
        problem: As it is in memory.
    """

    def __init__(self, problem: Problem) -> None:
        dataset = problem.dataset
        self._rest = {name: getattr(problem, name) for name in ("task", "teacher_accuracy", "teacher_mark")}
        self._facts: dict[str, Any] = {name: getattr(dataset, name) for name in ("name", "num_classes", "augment")}
        self._moments = _array(dataset.mean), _array(dataset.std)
        parts = {name: getattr(dataset, name) for name in _PARTS}
        self._parts = {name: (_array(part.images), _array(part.labels)) for name, part in parts.items()}
        self._logits = None if problem.teacher_logits is None else _array(problem.teacher_logits)
        self._weights = [_array(value) for value in _tensors(problem.teacher)]
        # Without numbers, but with the order in memory, which decides how a convolution is computed.
        self._teacher = copy.deepcopy(problem.teacher).to("meta")
        self._device = problem.device.type

    def opened(self) -> Problem:
        """The problem, on the same kind of device."""
        parts: dict[str, Any] = {
            name: Split(_tensor(images), _tensor(labels)) for name, (images, labels) in self._parts.items()
        }
        mean, std = map(_tensor, self._moments)
        dataset = Dataset(**{**self._facts, **parts}, mean=mean, std=std)
        teacher = copy.deepcopy(self._teacher).to_empty(device="cpu").eval().requires_grad_(False)
        with torch.no_grad():
            for value, array in zip(_tensors(teacher), self._weights, strict=True):
                value.copy_(_tensor(array))
        logits = None if self._logits is None else _tensor(self._logits).to(self._device)
        problem = Problem(dataset=dataset, teacher=teacher, teacher_logits=logits, **self._rest)
        return replace(problem, dataset=dataset.to(self._device), teacher=teacher.to(self._device))


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _array(tensor: Tensor) -> Array:
    found: Array = tensor.detach().cpu().contiguous().numpy()
    return found


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(array.copy())  # one's own: what came may lie in memory that is not to be written
