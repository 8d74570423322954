"""How many students are worth a stack, told by what a trial counts: a clock would make results depend on its machine.

A small network's step is the launching of its kernels, which a stack shares. What it gains falls with the work of a
kernel, and is lost again where a tensor of the stack does not fit the cache. The limits were read off a table of
measured steps (`python scripts/stacking.py`, docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from torch.autograd.graph import Node, saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

MOST, FEWEST = 64, 4
"""Students in a stack: more bring nothing, fewer are not worth it."""


@dataclass(frozen=True)
class Work:
    """What one student's forward pass on one sample amounts to.

    Args:
        operations: Floating-point operations of its products of matrices and its convolutions.
        kept: Bytes that it keeps for the way back.
        largest: Bytes of the largest tensor among them.
        kernels: Nodes of its graph; their number does not grow with the batch.
        weights: Bytes of its parameters; they do not either.
    """

    operations: int
    kept: int
    largest: int
    kernels: int
    weights: int


@dataclass(frozen=True)
class StackLimits:
    """Up to where a stack gains.

    Args:
        operations: Of one student's batch, for each of its kernels.
        tensor: Bytes of the largest tensor that all students keep together.
        memory: Bytes of their weights, and of all that is kept.
    """

    operations: int
    tensor: int
    memory: int


EAGER = StackLimits(operations=3_500_000, tensor=8 * 2**20, memory=256 * 2**20)
"""Of steps whose kernels are launched one by one."""


def stack_size(work: Work, batch_size: int, limits: StackLimits = EAGER) -> int:
    """How many students to stack, a power of two up to 64; 1 where a stack gains nothing.

    >>> digits, resnet8 = Work(888, 280, 256, 5, 1_840), Work(25_003_264, 654_208, 65_536, 31, 312_168)
    >>> stack_size(digits, batch_size=50), stack_size(resnet8, batch_size=64)
    (64, 1)
    """
    if work.operations * batch_size > limits.operations * work.kernels:
        return 1
    room = min(
        limits.tensor // max(work.largest * batch_size, 1), limits.memory // (work.weights + work.kept * batch_size)
    )
    size = min(MOST, 2 ** (room.bit_length() - 1)) if room else 1
    return size if size >= FEWEST else 1


class Counter:
    """Counts the work of the forward passes that a network makes within `counting`."""

    def __init__(self) -> None:
        self._flops, self._kept = FlopCounterMode(display=False), dict[int, int]()

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Within, operations are counted, and what is kept."""
        with self._flops, saved_tensors_hooks(self._keep, lambda tensor: tensor):
            yield

    def work(self, network: nn.Module, logits: Tensor) -> Work:
        """What a network has done for logits `[B, ...]`, which still have their graph."""
        weights = {value.untyped_storage().data_ptr(): value.nbytes for value in network.parameters()}
        kept = [size for place, size in self._kept.items() if place not in weights]
        counted = self._flops.get_total_flops(), sum(kept), max(kept, default=0)
        operations, total, largest = (count // len(logits) for count in counted)
        return Work(operations, total, largest, _kernels(logits), sum(weights.values()))

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._kept[storage.data_ptr()] = storage.nbytes()
        return tensor


def _kernels(logits: Tensor) -> int:
    """Nodes of the graph of logits, but for those that hold weights."""
    found: set[Node] = set()
    ahead = [logits.grad_fn]
    while ahead:
        if (node := ahead.pop()) is not None and node not in found and node.next_functions:
            found.add(node)
            ahead += [following for following, _ in node.next_functions]
    return len(found)
