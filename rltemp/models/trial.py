"""What a network does with a few samples, tried before anything is trained: what it answers, whether it stacks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rltemp.errors import BadInputError, one_line
from rltemp.models.nested import Inputs, mapped, tensors
from rltemp.models.random_numbers import drawing_from, generator_states, random_stream
from rltemp.models.stack import StackedStudents, logits_of

LARGE = 100_000
"""Parameters from which a network fills a machine: to stack it gains nothing."""
CLOSE = 1e-3
"""How far the logits of a stacked student may lie from those of the same student alone, relative to the largest."""


@dataclass(frozen=True)
class Traits:
    """What a trial has shown of a network.

    Args:
        outputs: Shape of the logits of one sample: `(C,)`, or `(T, C)` of tokens.
        draws: Whether it draws random numbers in training, as dropout does.
        alone: Why its students are not stacked; empty where they are.
        convolves: Whether it has a convolution.
    """

    outputs: tuple[int, ...]
    draws: bool
    alone: str
    convolves: bool

    @property
    def stacks(self) -> bool:
        """Whether students are stacked."""
        return not self.alone


def tried(make: Callable[[int], nn.Module], inputs: Inputs, name: str) -> Traits:
    """Run the network of two seeds on a few samples, in training mode.

    Args:
        make: From a seed to a network, on the device of the inputs.
        inputs: Two samples or more.
        name: Of the network, for messages.

    Raises:
        BadInputError: Where the network cannot take the inputs, or answers with something other than logits.
    """
    first, second = make(0).train(), make(1).train()
    if first is second:
        raise BadInputError(f"{name} returns the same network for every seed; return a new one, or give the network")
    if not any(value.requires_grad for value in first.parameters()):
        raise BadInputError(f"{name} has no parameters to train")
    with drawing_from(random_stream(0, "trial")):
        before = generator_states()
        logits = _answer(first, inputs, name)
        draws = generator_states() != before
    convolves = any(isinstance(module, nn.modules.conv._ConvNd) for module in first.modules())
    alone = _why_alone(first, second, inputs, draws)
    return Traits(tuple(logits.shape[1:]), draws, alone, convolves)


def _answer(network: nn.Module, inputs: Inputs, name: str) -> Tensor:
    try:
        logits = logits_of(network(inputs))
    except BadInputError as error:
        raise BadInputError(f"{name}: {error}") from error
    except Exception as error:  # whatever a network of the user's own may raise
        raise BadInputError(
            f"{name} cannot take the task's inputs ({type(error).__name__}: {_first_line(error)})"
        ) from error
    size = len(next(tensors(inputs)))
    if logits.dim() < 2 or len(logits) != size or logits.shape[-1] < 2 or not logits.is_floating_point():
        raise BadInputError(
            f"{name} must answer with logits [B, ..., C] of 2 classes or more; of {size} samples it makes "
            f"{tuple(logits.shape)}, {logits.dtype}"
        )
    return logits


def _why_alone(first: nn.Module, second: nn.Module, inputs: Inputs, draws: bool) -> str:
    """Why students are not stacked, in words; empty where they are."""
    if draws:
        return "it draws random numbers in training, as dropout does"
    if (size := sum(value.numel() for value in first.parameters())) >= LARGE:
        return f"it is large ({size:,} parameters)"
    both, students = mapped(lambda tensor: torch.stack([tensor, tensor]), inputs), StackedStudents([first, second])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # where vmap falls back to a loop, it warns
            stacked: Tensor = students.train()(both)
            stacked.sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            with torch.no_grad():
                students.eval()(both)
    except Exception as error:  # in-place updates, own autograd functions, shapes that depend on values
        return f"torch.func.vmap refuses it ({_first_line(error)[:160]})"
    separate = torch.stack([logits_of(network.train()(inputs)) for network in (first, second)])
    # What a network says of padding need be no number.
    scale = float(separate.detach().nan_to_num(0.0, 0.0, 0.0).abs().max().clamp(min=1.0))
    if not torch.allclose(stacked, separate, rtol=0.0, atol=CLOSE * scale, equal_nan=True):
        return "stacked it answers otherwise than alone"
    return ""


def _first_line(error: Exception) -> str:
    return one_line(str(error).partition("\n")[0])
