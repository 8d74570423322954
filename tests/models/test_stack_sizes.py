"""What a trial counts of a network's work, and how many students it makes a stack of."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from rltemp.models.networks import seeded_model
from rltemp.models.stack_sizes import EAGER, Counter, Work, stack_size

DIGITS = Work(operations=888, kept=280, largest=256, kernels=5, weights=1_840)


def counted(network: nn.Module, inputs: Tensor) -> Work:
    counter = Counter()
    with counter.counting():
        logits = network(inputs)
    return counter.work(network, logits)


def of(spec: str, *shape: int, classes: int = 10, samples: int = 2) -> Work:
    inputs = torch.zeros(samples, *shape, dtype=torch.long if len(shape) == 1 else torch.float)
    return counted(seeded_model(spec, shape, classes, 0).train(), inputs)


def test_a_perceptrons_work_is_what_is_counted_by_hand() -> None:
    # Two products of matrices; the pixels and the hidden units are kept; flatten, three of the layers, one transpose.
    assert of("mlp:6", 1, 8, 8) == DIGITS
    assert DIGITS.operations == 2 * (64 * 6 + 6 * 10)
    assert DIGITS.kept == 4 * (64 + 6)
    assert DIGITS.largest == 4 * 64
    assert DIGITS.weights == 4 * (65 * 6 + 7 * 10)


@pytest.mark.parametrize(
    "case", [("cnn:8x16", 1, 8, 8), ("resnet8", 3, 8, 8), ("gpt:16x2", 12)], ids=lambda one: one[0]
)
def test_a_samples_work_does_not_depend_on_how_many_are_tried(case: tuple[str, int]) -> None:
    few, many = of(*case), of(*case, samples=8)
    assert (few.operations, few.kernels, few.weights) == (many.operations, many.kernels, many.weights)
    assert few.kept == pytest.approx(many.kept, rel=0.06)  # means of a batch norm are kept once a batch


def test_a_layer_more_is_more_work_in_more_kernels() -> None:
    one, two = of("mlp:8", 1, 8, 8), of("mlp:8x8", 1, 8, 8)
    assert two.operations - one.operations == 2 * 8 * 8
    assert two.kernels > one.kernels


def test_weights_that_serve_twice_are_counted_once() -> None:
    layer = nn.Linear(6, 6, bias=False)
    found = counted(nn.Sequential(layer, nn.Tanh(), layer), torch.zeros(2, 6))
    assert found.weights == 4 * 36
    assert found.operations == 2 * 2 * 36


@pytest.mark.parametrize(
    ("spec", "shape", "batch", "expected"),
    [
        ("mlp:6", (1, 8, 8), 50, 64),
        ("cnn:8x16", (1, 8, 8), 50, 64),
        ("cnn:8x16", (3, 16, 16), 64, 16),
        ("cnn:16x32", (3, 32, 32), 64, 1),
        ("resnet8", (3, 8, 8), 64, 32),
        ("resnet8", (3, 32, 32), 64, 1),
        ("gpt:32x1", (64,), 16, 16),
        ("mlp:512", (1, 8, 8), 256, 1),
    ],
)
def test_networks_get_the_stack_that_gained_most(spec: str, shape: tuple[int, ...], batch: int, expected: int) -> None:
    assert stack_size(of(spec, *shape, classes=64 if len(shape) == 1 else 10), batch) == expected


@pytest.mark.parametrize("batch", [1, 50, 1_000, 10_000, 100_000])
@pytest.mark.parametrize("largest", [256, 8])
def test_a_stack_is_as_large_as_its_memory_lets_it_be(batch: int, largest: int) -> None:
    work = replace(DIGITS, operations=0, largest=largest)
    size = stack_size(work, batch)
    assert size == 1 or fits(work, batch, size)
    assert size == 64 or not fits(work, batch, 2 * max(size, 2))


def fits(work: Work, batch: int, size: int) -> bool:
    whole = size * (work.weights + batch * work.kept)
    return whole <= EAGER.memory and size * batch * work.largest <= EAGER.tensor


def test_weights_count_in_a_stacks_memory() -> None:
    assert stack_size(replace(DIGITS, weights=8 * 10**6), 50) == 32
    assert stack_size(replace(DIGITS, weights=80 * 10**6), 50) == 1


def test_a_network_that_keeps_nothing_is_stacked() -> None:
    assert stack_size(Work(operations=0, kept=0, largest=0, kernels=1, weights=4), 1) == 64
