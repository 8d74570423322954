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
from rltemp.models.stack_sizes import Counter, Work

CLOSE = 1e-3
"""How far the logits of a stacked student may lie from those of the same student alone, relative to the largest."""


@dataclass(frozen=True)
class Traits:
    """What a trial has shown of a network.

    Args:
        outputs: Shape of the logits of one sample: `(C,)`, or `(T, C)` of tokens.
        draws: Whether it draws random numbers in training, as dropout does.
        alone: Why its students cannot be stacked; empty where they can.
        work: What it does for a sample.
    """

    outputs: tuple[int, ...]
    draws: bool
    alone: str
    work: Work


def tried(make: Callable[[int], nn.Module], inputs: Inputs, name: str) -> Traits:
    """Run the network of two seeds on a few samples, in training mode.

    Args:
        make: From a seed to a network, on the device of the inputs.
        inputs: Two samples or more.
        name: Of the network, for messages.

    Raises:
        BadInputError: Where the network cannot take the inputs, or answers with something other than logits.
    """
    first, again, second = make(0).train(), make(0), make(1).train()
    _check_same(first, again, second, name)
    if not any(value.requires_grad for value in first.parameters()):
        raise BadInputError(f"{name} has no parameters to train")
    device = next(tensors(inputs)).device
    # Whatever is under way where the answer is first asked for: half precision, or no gradients.
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        with drawing_from(random_stream(0, "trial"), device):
            before, counter = generator_states(), Counter()
            with counter.counting():
                logits = answered(first, inputs, name)
            work = counter.work(first, logits)
            draws = generator_states() != before
            _check_training(again, logits, inputs, name)
        alone = _why_alone(first, second, inputs, draws)
    return Traits(tuple(logits.shape[1:]), draws, alone, work)


def answered(network: nn.Module, inputs: Inputs, name: str) -> Tensor:
    """What a network answers, `[B, ..., C]`.

    Raises:
        BadInputError: Where it cannot take the inputs, or answers with something other than logits.
    """
    try:
        logits = logits_of(network(inputs))
    except BadInputError as error:
        raise BadInputError(f"{name}: {error}") from error
    except (Exception, SystemExit) as error:  # whatever a network of the user's own may raise
        raise BadInputError(
            f"{name} cannot take the task's inputs ({type(error).__name__}: {_first_line(error)})"
        ) from error
    size = len(next(tensors(inputs)))
    if logits.dim() < 2 or len(logits) != size or logits.shape[-1] < 2 or not logits.is_floating_point():
        raise BadInputError(
            f"{name} must answer with logits [B, ..., C] of 2 classes or more; of {size} samples it makes "
            f"{tuple(logits.shape)}, {logits.dtype}"
        )
    if not bool(logits.detach().isfinite().any()):
        raise BadInputError(f"{name} answers with no finite number; look for NaN in its weights and its inputs")
    return logits


def _check_same(first: nn.Module, again: nn.Module, second: nn.Module, name: str) -> None:
    """Refuse networks that a seed does not determine: no run could be repeated or go on."""
    if first is again or first is second:
        raise BadInputError(f"{name} returns the same network for every seed; return a new one, or give the network")
    one, other = first.state_dict(), again.state_dict()
    if one.keys() != other.keys() or any(_raw(value) != _raw(other[key]) for key, value in one.items()):
        raise BadInputError(
            f"{name} is another network each time for one seed; draw weights from torch's generator or from the seed"
        )


def _raw(value: object) -> object:
    """What a network holds by a name, to be compared: tensors bit by bit."""
    return value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes() if isinstance(value, Tensor) else value


def _check_training(network: nn.Module, logits: Tensor, inputs: Inputs, name: str) -> None:
    """Refuse a network that gradients do not reach, or that answers otherwise in eval mode."""
    if not logits.requires_grad:
        raise BadInputError(f"{name} answers without a graph, so that it cannot learn; leave out detach and no_grad")
    try:
        logits.sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    except (Exception, SystemExit) as error:  # own autograd functions
        raise BadInputError(f"{name} has no gradient ({type(error).__name__}: {_first_line(error)})") from error
    with torch.no_grad():
        shape = answered(network.eval(), inputs, f"{name}, in eval mode,").shape
    if shape != logits.shape:
        raise BadInputError(f"{name} answers {tuple(logits.shape)} in training and {tuple(shape)} in eval mode")


def _why_alone(first: nn.Module, second: nn.Module, inputs: Inputs, draws: bool) -> str:
    """Why students cannot be stacked, in words; empty where they are."""
    if draws:
        return "it draws random numbers in training, as dropout does"
    both = mapped(lambda tensor: torch.stack([tensor, tensor]), inputs)
    try:
        students = StackedStudents([first, second])
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


def _first_line(error: BaseException) -> str:
    return one_line(str(error).partition("\n")[0])
