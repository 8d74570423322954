"""A stack answers for each student what that student would answer alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from rltemp.models.networks import seeded_model
from rltemp.models.stack import StackedStudents


@pytest.mark.parametrize("spec", ["linear", "mlp:8", "mlp:8x4", "cnn:8x16", "resnet8"])
def test_students_stacked_answer_train_and_keep_statistics_as_each_alone(spec: str) -> None:
    students = [seeded_model(spec, (3, 16, 16), 5, seed).train() for seed in range(3)]
    stack = StackedStudents(students).train()
    images = torch.randn(3, 6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    together = stack(images)
    assert together.shape == (3, 6, 5)
    together[:2].square().sum().backward()
    gradients = [parameter.grad for parameter in stack.parameters()]
    assert len(gradients) == len(list(students[0].parameters()))  # the optimizer sees these and nothing else
    for position, student in enumerate(students):
        alone = student(images[position])
        alone.square().sum().backward()
        torch.testing.assert_close(together[position], alone, atol=1e-5, rtol=0)
        for parameter, gradient in zip(student.parameters(), gradients, strict=True):
            expected = parameter.grad if position < 2 else torch.zeros_like(parameter)
            torch.testing.assert_close(gradient[position], expected, atol=1e-4, rtol=1e-4)
        state = stack.unstack(position)
        for name, buffer in student.named_buffers():
            torch.testing.assert_close(state[name], buffer, atol=1e-5, rtol=0)


def test_the_weights_are_copies_and_come_back_one_student_at_a_time() -> None:
    students = [seeded_model("mlp:8", (1, 4, 4), 5, seed) for seed in (1, 2)]
    before = copy.deepcopy(students[0].state_dict())
    stack = StackedStudents(students)
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter[0] += 1
    for name, value in stack.unstack(0).items():
        torch.testing.assert_close(value, before[name] + 1)
        assert torch.equal(students[0].state_dict()[name], before[name])
    for name, value in stack.unstack(1).items():
        assert torch.equal(value, students[1].state_dict()[name])


def test_train_and_eval_mode_reach_the_students() -> None:
    stack = StackedStudents([nn.Sequential(nn.Flatten(), nn.Dropout(0.5)) for _ in range(2)])
    images = torch.ones(2, 3, 4)
    assert torch.equal(stack.eval()(images), images)
