"""A stack answers for each student what that student would answer alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from rltemp.models.networks import seeded_model
from rltemp.models.stack import StackedStudent


@pytest.mark.parametrize("spec", ["linear", "mlp:8", "mlp:8x4"])
def test_each_student_sees_its_own_images_through_its_own_weights(spec: str) -> None:
    students = [seeded_model(spec, (1, 4, 4), 5, seed) for seed in (1, 2, 3)]
    images = torch.randn(3, 6, 1, 4, 4)
    logits = StackedStudent(students)(images)
    assert logits.shape == (3, 6, 5)
    for student, own, answer in zip(students, images, logits, strict=True):
        torch.testing.assert_close(answer, student(own))


def test_a_students_loss_reaches_its_own_weights_only() -> None:
    stack = StackedStudent([seeded_model("mlp:8", (1, 4, 4), 5, seed) for seed in (1, 2)])
    stack(torch.randn(2, 6, 1, 4, 4))[1].square().sum().backward()
    for parameter in stack.parameters():
        assert parameter.grad is not None
        assert (parameter.grad[0] == 0).all()
        assert (parameter.grad[1] != 0).any()


def test_the_weights_are_copies_and_come_back_one_student_at_a_time() -> None:
    students = [seeded_model("mlp:8", (1, 4, 4), 5, seed) for seed in (1, 2)]
    before = copy.deepcopy(students[0].state_dict())
    stack = StackedStudent(students)
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter[0] += 1
    for name, value in stack.unstack(0).items():
        torch.testing.assert_close(value, before[name] + 1)
        assert torch.equal(students[0].state_dict()[name], before[name])
    for name, value in stack.unstack(1).items():
        assert torch.equal(value, students[1].state_dict()[name])


def test_the_optimizer_sees_the_stacked_weights_and_nothing_else() -> None:
    stack = StackedStudent([nn.Linear(3, 2), nn.Linear(3, 2)])
    assert [tuple(parameter.shape) for parameter in stack.parameters()] == [(2, 2, 3), (2, 2)]


def test_train_and_eval_mode_reach_the_students() -> None:
    stack = StackedStudent([nn.Sequential(nn.Flatten(), nn.Dropout(0.5)) for _ in range(2)])
    images = torch.ones(2, 3, 4)
    assert torch.equal(stack.eval()(images), images)


def test_normalisation_statistics_are_each_students_own_and_leave_as_the_module_alone_has_them() -> None:
    students = [seeded_model("resnet8", (3, 8, 8), 4, seed) for seed in (1, 2)]
    alone = copy.deepcopy(students)
    stack = StackedStudent(students).train()
    images = torch.randn(2, 4, 3, 8, 8)
    logits = stack(images)
    for position, student in enumerate(alone):
        torch.testing.assert_close(logits[position], student.train()(images[position]), rtol=1e-4, atol=1e-5)
        for name, value in stack.unstack(position).items():
            torch.testing.assert_close(value, student.state_dict()[name], rtol=1e-4, atol=1e-6)
