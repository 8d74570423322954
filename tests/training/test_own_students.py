"""Students of a user's own, several at once: each learns what it learns alone; stopped and resumed, the same bits."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from support.own_tasks import CLASSES, FEATURES, Double, Noisy, clusters, normalised_student, own_task
from support.tokens import VOCABULARY, chains, token_task
from torch import Tensor, nn

from rltemp import load_method
from rltemp.data.problem import Problem
from rltemp.data.task import Task
from rltemp.models.stack import LoopedStudents, StackedStudents
from rltemp.training.distill import Distillation
from rltemp.training.preparation import prepare
from rltemp.training.steps import plain_step, train

SEEDS = [3, 4, 6]
CLIPPED = {"optimizer": "adamw", "learning_rate": 0.02, "clip": 0.3, "warmup": 0.2}


class OwnGradient(nn.Linear):
    """A student that cannot be stacked, though it draws nothing."""

    def forward(self, rows: Tensor) -> Tensor:
        found: Tensor = Double.apply(super().forward(rows))
        return found


class ConvNet(nn.Module):
    """A convolution with a batch norm; it takes a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.last = nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.Linear(3, 4)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        found: Tensor = self.last(self.norm(self.layer(inputs["pictures"])).relu().amax((2, 3)))
        return found


def pictures(count: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    images = torch.randn(count, 1, 6, 6, generator=generator) + labels.view(-1, 1, 1, 1)
    return {"pictures": images, "labels": labels}


def pictures_task() -> Task:
    parts: dict[str, Any] = {"train": pictures(120, 0), "test": pictures(40, 1), "student": lambda seed: ConvNet()}
    return own_task(**parts, teacher=ConvNet(), **CLIPPED)


class Embedded(nn.Module):
    """A token's logits by what stands before it; it keeps a batch norm of all tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(VOCABULARY + 1, 6), nn.BatchNorm1d(6)
        self.last = nn.Linear(6, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.words(tokens).cumsum(1)
        found: Tensor = self.last(self.norm(hidden.transpose(1, 2)).transpose(1, 2))
        return found


STACKED: dict[str, Any] = {
    "AdamW": lambda: own_task(student=normalised_student),
    "clipped": lambda: own_task(student=normalised_student, **CLIPPED),
    "running mean": lambda: own_task(student=normalised_student, ema=0.8, accumulate=2, label_smoothing=0.1),
    "convolution": pictures_task,
    "padding": lambda: token_task(**CLIPPED),
    "padding and batch norm": lambda: token_task(**CLIPPED, student=lambda seed: Embedded()),
    "drawn data": lambda: own_task(student=normalised_student, train=Noisy(*clusters())),
}
LOOPED: dict[str, Any] = {
    "dropout": own_task,
    "clipped": lambda: own_task(**CLIPPED),
    "own gradient": lambda: own_task(student=lambda: OwnGradient(FEATURES, CLASSES)),
    "whole tensors": lambda: own_task(student=normalised_student, optimizer="adafactor"),
    "drawn data": lambda: own_task(train=Noisy(*clusters())),
    "running mean": lambda: own_task(ema=0.8, accumulate=2, label_smoothing=0.1),
}


def alone(problem: Problem, seed: int, method: str) -> dict[str, Tensor]:
    return train(Distillation(problem, seed), load_method(method)).state_dict()


@pytest.mark.parametrize("method", ["universal", "none"])
@pytest.mark.parametrize("name", STACKED)
def test_after_a_whole_run_a_stacked_student_is_the_one_alone(name: str, method: str) -> None:
    problem = prepare(STACKED[name]())
    together = train(Distillation(problem, SEEDS), load_method(method))
    assert isinstance(together, StackedStudents)
    begun = problem.students(SEEDS)
    for place, seed in enumerate(SEEDS):
        expected = alone(problem, seed, method)
        for key, value in together.unstack(place).items():
            torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-5)
        assert any(not torch.allclose(value, begun.unstack(place)[key]) for key, value in expected.items())


@pytest.mark.parametrize("name", LOOPED)
def test_a_looped_student_is_the_one_alone_in_a_step_and_after_a_run(name: str) -> None:
    problem, method = prepare(LOOPED[name]()), load_method("universal")
    together = Distillation(problem, SEEDS)
    assert isinstance(together.student, LoopedStudents)
    first = together.observe()
    train(together, method)
    for place, seed in enumerate(SEEDS):
        single = Distillation(problem, seed)
        assert torch.equal(single.observe().student_logits, first.student_logits[place])
        train(single, method)
        for key, value in together.student.unstack(place).items():  # losses of one and of three round otherwise
            torch.testing.assert_close(value, single.student.state_dict()[key], rtol=0, atol=1e-5)
    assert not torch.equal(first.student_logits[0], first.student_logits[1])


@pytest.mark.parametrize("seeds", [3, SEEDS], ids=["one", "three"])
@pytest.mark.parametrize("name", ["dropout", "drawn data", "running mean"])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(name: str, seeds: Any) -> None:
    problem, method = prepare(LOOPED[name]()), load_method("universal")
    whole, first, second = (Distillation(problem, seeds) for _ in range(3))
    train(whole, method)
    attached = first.attach(method)
    for _ in range(5):
        plain_step(first, attached)
    file = io.BytesIO()
    torch.save(first.state(), file)
    torch.manual_seed(7)  # nothing hangs on the global generator
    file.seek(0)
    second.restore(torch.load(file, weights_only=True))
    train(second, method)
    for key, value in whole.evaluated.state_dict().items():
        assert torch.equal(second.evaluated.state_dict()[key], value), key


def test_what_students_say_of_padding_changes_nothing() -> None:
    states = []
    for padding in (torch.nan, 0.0, 1e4):
        problem = prepare(token_task(padding, **CLIPPED))
        states.append(train(Distillation(problem, 3), load_method("universal")).state_dict())
    for state in states[1:]:
        assert all(torch.equal(value, states[0][key]) for key, value in state.items())
    tokens, _ = chains(240, 1)
    assert (tokens == VOCABULARY).any()
