"""A network of a user's own as a function of a seed."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable

from torch import nn
from torch.nn.parameter import is_lazy

from rltemp.errors import BadInputError
from rltemp.io.own_code import own_code
from rltemp.models.random_numbers import seeded


class SeededNetwork:
    """Makes a network of a seed: by the user's function, or as a copy of the user's network.

    Args:
        given: A function that returns a network, of a seed if it `wants_seed`, or a network.
        name: For messages.
    """

    def __init__(self, given: nn.Module | Callable[..., nn.Module], name: str) -> None:
        # A copy: the network itself may be the teacher as well, which is frozen.
        self.given = copy.deepcopy(given) if isinstance(given, nn.Module) else given
        self.name = name

    def __call__(self, seed: int) -> nn.Module:
        """The network of a seed; torch's global generator is seeded meanwhile.

        Raises:
            BadInputError: Where the function raises or returns something else.
        """
        if isinstance(self.given, nn.Module):
            return copy.deepcopy(self.given)
        with seeded(seed), own_code(self.name):
            network = _called(self.given, seed)
        if not isinstance(network, nn.Module):
            raise BadInputError(f"{self.name} must return a torch module; got a {type(network).__name__}")
        if any(map(is_lazy, network.parameters())):
            raise BadInputError(f"{self.name} has parameters without a shape (a lazy module); give their sizes")
        return network


def wants_seed(function: Callable[..., object]) -> bool:
    """Whether a function of networks takes a seed: it has a parameter of that name, or one without a default.

    >>> wants_seed(lambda: nn.Linear(2, 2)), wants_seed(lambda seed: nn.Linear(2, 2))
    (False, True)
    """
    parameters = inspect.signature(function).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(one.name == "seed" or (one.default is one.empty and one.kind in positional) for one in parameters)


def _called(function: Callable[..., object], seed: int) -> object:
    """What a function of networks returns for a seed."""
    named = inspect.signature(function).parameters.get("seed")
    if named is not None and named.kind is not named.POSITIONAL_ONLY:
        return function(seed=seed)  # there may be others before it
    return function(seed) if wants_seed(function) else function()


def name_of(given: object) -> str:
    """What to call a network, a function or logits of a user's own."""
    return getattr(given, "__name__", type(given).__name__)
