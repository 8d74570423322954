"""Random numbers depend on a seed, a purpose and a counter, and leave the global generators as they were."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from rltemp.errors import BadInputError
from rltemp.models.random_numbers import drawing_from, generator_states, random_stream, seeded


def drawn() -> tuple[float, float, float]:
    """One number of each global generator."""
    return float(torch.rand(())), float(np.random.rand()), random.random()  # noqa: NPY002  # what data sets draw from


def test_a_stream_depends_on_all_three_and_on_nothing_else() -> None:
    keys = [(seed, purpose, counter) for seed in (0, 1) for purpose in ("a", "b") for counter in (0, 1)]
    first = [int(torch.randint(2**60, (), generator=random_stream(*key))) for key in keys]
    torch.manual_seed(5)
    assert first == [int(torch.randint(2**60, (), generator=random_stream(*key))) for key in keys]
    assert len(set(first)) == len(keys)
    with pytest.raises(BadInputError, match="seeds must be 0 or more; got -1"):
        random_stream(-1, "a")


def test_within_all_three_libraries_draw_from_the_stream() -> None:
    numbers = []
    for seed in (0, 0, 1):
        with drawing_from(random_stream(seed, "test")):
            numbers.append(drawn())
    assert numbers[0] == numbers[1]
    assert all(one != other for one, other in zip(numbers[0], numbers[2], strict=True))


def test_a_stream_moves_on_from_one_use_to_the_next() -> None:
    stream, numbers = random_stream(0, "test"), []
    for _ in range(2):
        with drawing_from(stream):
            numbers.append(drawn())
    assert numbers[0] != numbers[1]


@pytest.mark.parametrize("fails", [False, True])
def test_afterwards_the_generators_go_on_as_if_nothing_had_been(fails: bool) -> None:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    before = generator_states()
    expected = drawn()
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    try:
        with drawing_from(random_stream(3, "test")):
            drawn()
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert generator_states() == before
    assert drawn() == expected


@pytest.mark.parametrize("number", range(3))
def test_the_states_tell_which_code_draws(number: int) -> None:
    draw = (lambda: torch.rand(()), lambda: np.random.rand(), lambda: random.random())[number]  # noqa: NPY002
    before = generator_states()
    torch.zeros(3).sum()
    assert generator_states() == before
    draw()
    assert generator_states() != before


def test_a_seed_alone_draws_the_weights() -> None:
    def weights(seed: int) -> torch.Tensor:
        with seeded(seed):
            return torch.nn.Linear(3, 2).weight

    state = torch.get_rng_state()
    assert torch.equal(weights(4), weights(4))
    assert not torch.equal(weights(4), weights(5))
    assert torch.equal(torch.get_rng_state(), state)
