"""A user's network or function gives a network for every seed."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from rltemp.errors import BadInputError
from rltemp.models.seeded_network import SeededNetwork, name_of, wants_seed


class Net(nn.Linear):
    def __init__(self, width: int = 3) -> None:
        super().__init__(2, width)


class Wide(nn.Linear):
    def __init__(self, width: int) -> None:
        super().__init__(2, width)


def of_a_seed(seed: int) -> nn.Module:
    return nn.Linear(2, 3 + seed)


def of_nothing() -> nn.Module:
    return nn.Linear(2, 3)


@pytest.mark.parametrize("given", [of_nothing, Net, partial(Wide, 3), lambda seed: nn.Linear(2, 3)])
def test_a_seed_determines_the_weights_and_nothing_else_does(given: Any) -> None:
    make, state = SeededNetwork(given, "net"), torch.get_rng_state()
    first, same, other = make(4), make(4), make(5)
    assert torch.equal(first.weight, same.weight)
    assert first is not same
    assert not torch.equal(first.weight, other.weight)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_function_that_takes_a_seed_gets_it() -> None:
    assert [SeededNetwork(of_a_seed, "net")(seed).out_features for seed in (0, 2)] == [3, 5]


def test_every_student_of_a_network_is_a_copy_of_it() -> None:
    network = nn.Linear(2, 3)
    first, second = (SeededNetwork(network, "net")(seed) for seed in (0, 1))
    assert torch.equal(first.weight, network.weight)
    assert torch.equal(second.weight, network.weight)
    assert len({id(one.weight) for one in (network, first, second)}) == 3


@pytest.mark.parametrize(
    ("function", "wants"),
    [
        (of_a_seed, True),
        (of_nothing, False),
        (lambda seed=0: Net(), True),
        (lambda number: Net(), True),
        (lambda width=3: Net(), False),
        (lambda *args, **options: Net(), False),
        (lambda *, seed: Net(), True),
        (Net, False),
        (Wide, True),
        (partial(Wide, 3), False),
    ],
)
def test_what_takes_a_seed_has_it_by_name_or_needs_a_value(function: Any, wants: bool) -> None:
    assert wants_seed(function) == wants


def narrow(width: int = 3, *, seed: int) -> nn.Module:
    return nn.Linear(seed, width)


def last(width: int = 3, seed: int = 0) -> nn.Module:
    return nn.Linear(seed, width)


@pytest.mark.parametrize("function", [narrow, last, partial(narrow, width=3), lambda number: last(3, number)])
def test_the_seed_goes_to_the_parameter_of_its_name_wherever_that_stands(function: Any) -> None:
    made = SeededNetwork(function, "net")(7)
    assert (made.in_features, made.out_features) == (7, 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: "a word", "net must return a torch module; got a str"),
        (lambda seed: 1 / seed, "net raised ZeroDivisionError: division by zero. --debug shows where"),
    ],
)
def test_a_function_that_fails_is_one_line(given: Any, message: str) -> None:
    with pytest.raises(BadInputError) as caught:
        SeededNetwork(given, "net")(0)
    assert str(caught.value) == message


def test_names_are_those_of_functions_and_classes() -> None:
    assert [name_of(one) for one in (of_nothing, Net, Net(), torch.zeros(1))] == ["of_nothing", "Net", "Net", "Tensor"]
