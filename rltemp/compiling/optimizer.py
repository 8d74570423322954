"""Torch's own optimizers in a graph: their step on tensors that are traced, and the state that they begin with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from rltemp.compiling.graph import as_compiling

Group = dict[str, Any]
State = dict[str, Tensor]


def _momentum(group: Group, parameter: Tensor) -> State:
    """A momentum of zero is as good as none: the first gradient is added to it, undampened."""
    return {"momentum_buffer": torch.zeros_like(parameter)} if group["momentum"] else {}


def _moments(group: Group, parameter: Tensor) -> State:
    names = ["exp_avg", "exp_avg_sq"] + ["max_exp_avg_sq"] * group["amsgrad"]
    return {"step": torch.zeros(()), **{name: torch.zeros_like(parameter) for name in names}}


INITIAL: dict[type[Optimizer], Callable[[Group, Tensor], State]] = {SGD: _momentum, Adam: _moments, AdamW: _moments}
"""The state of a parameter before its first step, of the optimizers that a graph can hold."""


def fits(optimizer: Optimizer) -> bool:
    """Whether a graph can hold an optimizer's step."""
    return type(optimizer) in INITIAL and not any(
        group.get("dampening") or group.get("differentiable") or group.get("fused") for group in optimizer.param_groups
    )


def begin(optimizer: Optimizer) -> None:
    """Give every parameter that has had no step the state that an optimizer begins with."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if not optimizer.state[parameter]:
                optimizer.state[parameter] = INITIAL[type(optimizer)](group, parameter)


def states(optimizer: Optimizer) -> list[Tensor]:
    """Every tensor that the optimizer keeps, in the order of its parameters."""
    return [value for parameter in _parameters(optimizer) for value in optimizer.state[parameter].values()]


def stepped(
    optimizer: Optimizer,
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    state: Sequence[Tensor],
    rates: Sequence[Tensor],
) -> None:
    """Take a step of an optimizer like this one on other tensors, all of which change in place.

    Args:
        optimizer: Begun; it stays as it is.
        parameters: In its order.
        gradients: Of each; a parameter without one stays as it is.
        state: As `states` lists it.
        rates: The learning rate of each of its groups, a tensor of one number.
    """
    values, kept, groups = iter(parameters), iter(state), list[Group]()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        own = {"params": [next(values) for _ in group["params"]], "lr": rate, "foreach": True}
        groups.append({**group, **own, **({"capturable": True} if "capturable" in group else {})})
    kind: Callable[[list[Group]], Optimizer] = type(optimizer)  # which has defaults for all else
    twin = kind(groups)
    for parameter, real, gradient in zip(parameters, _parameters(optimizer), gradients, strict=True):
        twin.state[parameter] = {name: next(kept) for name in optimizer.state[real]}
        parameter.grad = gradient
    with as_compiling():
        twin.step()


def _parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]
