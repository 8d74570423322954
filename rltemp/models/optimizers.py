"""Which optimizer a recipe means: a name of `torch.optim`, a class, a partial of one, or a function of parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from rltemp.errors import BadInputError
from rltemp.kd.names import lookup

OptimizerFactory = Callable[..., Optimizer]

OPTIMIZERS: dict[str, type[Optimizer]] = {
    name.lower(): kind
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, Optimizer) and kind is not Optimizer
}

FIELDS = {"lr": "learning_rate", "momentum": "momentum", "weight_decay": "weight_decay"}
"""The options of an optimizer that are fields of a recipe, with the name that they have there."""


def unpacked(optimizer: str | OptimizerFactory) -> tuple[str | OptimizerFactory, dict[str, float]]:
    """Return the optimizer without what a recipe has fields for, and these fields' values, as far as it brings them.

    Raises:
        BadInputError: Where it is no optimizer, or one that needs a closure.

    >>> unpacked(partial(torch.optim.AdamW, lr=0.003)) == (torch.optim.AdamW, {"learning_rate": 0.003})
    True
    """
    if isinstance(optimizer, str):
        lookup(OPTIMIZERS, optimizer.lower(), "optimizer")
        optimizer = optimizer.lower()
    elif not callable(optimizer):
        said = " ".join(repr(optimizer).split())
        raise BadInputError(f"needed: an optimizer's name or a function of parameters; got {said:.80}")
    kind, options = _kind(optimizer)
    if kind is None:
        made = make(optimizer, [nn.Parameter(torch.zeros(2, 2))])
        kind, options = type(made), made.param_groups[0]
        rest = optimizer
    else:
        own = {name: value for name, value in options.items() if name not in FIELDS}
        rest = optimizer if len(own) == len(options) else partial(kind, **own) if own else kind
    closure = inspect.signature(kind.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise BadInputError(f"optimizer {name_of(optimizer)} needs a closure, which a run has not; choose another one")
    return rest, {field: float(options[name]) for name, field in FIELDS.items() if name in options}


def make(optimizer: str | OptimizerFactory, parameters: Sequence[nn.Parameter], **settings: float | None) -> Optimizer:
    """Make the optimizer of some parameters.

    Args:
        optimizer: As `unpacked` gives it.
        parameters: What it changes.
        **settings: Options of torch's, which a function does not get; None leaves one to the optimizer.

    Raises:
        BadInputError: Where it cannot be made.
    """
    kind, own = _kind(optimizer)
    given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    try:
        if kind is not None:
            made = kind(parameters, **_all_at_once(kind, own), **given, **own)
        elif callable(optimizer):
            made = optimizer(list(parameters))
    except Exception as error:  # a function of the user's may raise anything
        said = str(error) or type(error).__name__
        raise BadInputError(f"optimizer {name_of(optimizer)} cannot be made: {said}") from error
    if not isinstance(made, Optimizer):
        raise BadInputError(
            f"optimizer {name_of(optimizer)} gave a {type(made).__name__}; needed: a torch.optim.Optimizer"
        )
    return made


def described(optimizer: str | OptimizerFactory) -> str:
    """The optimizer's name; of a function, also the options of what it makes: its code may change under one name."""
    if _kind(optimizer)[0] is not None or not callable(optimizer):
        return name_of(optimizer)
    made = make(optimizer, [nn.Parameter(torch.zeros(2, 2))])
    options = ", ".join(f"{name}={value!r}" for name, value in made.defaults.items())
    return f"{name_of(optimizer)} -> {type(made).__name__}({options})"


def name_of(optimizer: str | OptimizerFactory) -> str:
    """The optimizer in a word, with the options that are given beside its class.

    >>> name_of(partial(torch.optim.AdamW, eps=1e-6))
    'adamw(eps=1e-06)'
    """
    if isinstance(optimizer, str):
        return optimizer
    kind, options = _kind(optimizer)
    if kind is None:
        return f"{optimizer.__module__}:{getattr(optimizer, '__qualname__', type(optimizer).__name__)}"
    said = ", ".join(f"{name}={value!r}" for name, value in options.items())
    known = OPTIMIZERS.get(kind.__name__.lower()) is kind
    name = kind.__name__.lower() if known else f"{kind.__module__}:{kind.__qualname__}"
    return f"{name}({said})" if said else name


def default(optimizer: str | OptimizerFactory, option: str) -> float | None:
    """The value that an optimizer gives an option by itself; None where it has no such option, or is a function."""
    kind, _ = _kind(optimizer)
    found = inspect.signature(kind).parameters.get(option) if kind is not None else None
    return None if found is None else float(found.default)


def _kind(optimizer: str | OptimizerFactory) -> tuple[type[Optimizer] | None, dict[str, Any]]:
    """The class, and the options that are given with it; no class of a function."""
    if isinstance(optimizer, str):
        return OPTIMIZERS[optimizer], {}
    kind, options = optimizer, dict[str, Any]()
    if isinstance(optimizer, partial) and not optimizer.args:
        kind, options = optimizer.func, optimizer.keywords
    if isinstance(kind, type) and issubclass(kind, Optimizer):
        return kind, dict(options)
    return None, {}


def _all_at_once(kind: type[Optimizer], own: dict[str, Any]) -> dict[str, Any]:
    """One call for all tensors, where the optimizer can and is not told how: the fastest for many small ones."""
    can = "foreach" in inspect.signature(kind).parameters and not {"foreach", "fused"} & own.keys()
    return {"foreach": True} if can else {}
