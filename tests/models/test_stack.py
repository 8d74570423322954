"""A stack answers for each student what that student would answer alone."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from rltemp.errors import BadInputError
from rltemp.models.networks import seeded_model
from rltemp.models.random_numbers import drawing_from, random_stream
from rltemp.models.stack import (
    LoopedStudents,
    StackedStudents,
    Students,
    logits_of,
    normalises_batches,
    put_back,
    students_of,
)


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


# Students in a loop, and what both kinds have in common


class Paired(nn.Module):
    """Takes a dictionary of a table and of a pair of tables; it has a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)

    def forward(self, inputs: dict[str, Tensor | tuple[Tensor, Tensor]]) -> Tensor:
        left, right = inputs["pair"]
        found: Tensor = self.norm(self.layer(inputs["table"] + left - 2 * right))
        return found


def pairs(*shape: int) -> dict[str, Tensor | tuple[Tensor, Tensor]]:
    stream = random_stream(0, "test")
    table, left, right = (torch.randn(*shape, 3, generator=stream) for _ in range(3))
    return {"table": table, "pair": (left, right)}


def rows_of(inputs: dict[str, Tensor | tuple[Tensor, Tensor]], place: int) -> dict[str, Tensor | tuple[Tensor, Tensor]]:
    left, right = inputs["pair"]
    return {"table": inputs["table"][place], "pair": (left[place], right[place])}


def paired(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return Paired()


def dropping(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 64), nn.Dropout(0.5), nn.Linear(64, 2))


KINDS = pytest.mark.parametrize("kind", [StackedStudents, LoopedStudents])


@KINDS
def test_nested_inputs_reach_each_student(kind: type[Students]) -> None:
    students, inputs = [paired(seed) for seed in range(3)], pairs(3, 5)
    together = kind([copy.deepcopy(student) for student in students]).train()
    logits = together(inputs)
    assert logits.shape == (3, 5, 4)
    for place, student in enumerate(students):
        torch.testing.assert_close(logits[place], student(rows_of(inputs, place)), atol=1e-6, rtol=0)
        for name, value in student.state_dict().items():  # the statistics have moved alike
            torch.testing.assert_close(together.unstack(place)[name], value, atol=1e-6, rtol=0)


@KINDS
def test_a_student_alone_is_a_copy_that_answers_as_it_does_together(kind: type[Students]) -> None:
    together, inputs = kind([paired(seed) for seed in range(3)]), pairs(3, 5)
    for _ in range(3):
        together.train()(inputs)
    before = together.eval()(inputs)
    for place in range(3):
        alone = together.alone(place).eval()
        torch.testing.assert_close(alone(rows_of(inputs, place)), before[place], atol=1e-6, rtol=0)
        for value in alone.parameters():
            value.detach().zero_()
    assert torch.equal(together(inputs), before)


@KINDS
def test_marked_students_are_put_back_and_the_others_stay(kind: type[Students]) -> None:
    students, fresh = (kind([paired(seed) for seed in range(3)]) for _ in range(2))
    initial = [fresh.unstack(place) for place in range(3)]
    students.train()(pairs(3, 5))
    with torch.no_grad():
        for value in students.parameters():
            value += 1
    moved = [students.unstack(place) for place in range(3)]
    put_back(students, fresh, torch.tensor([True, False, True]))
    for place, expected in enumerate((initial[0], moved[1], initial[2])):
        for name, value in students.unstack(place).items():
            assert torch.equal(value, expected[name]), (place, name)
    assert not torch.equal(moved[0]["norm.running_mean"], initial[0]["norm.running_mean"])


def test_looped_students_are_the_very_modules_and_exactly_as_alone() -> None:
    students, rows = [dropping(seed).eval() for seed in range(2)], torch.randn(2, 4, 3)
    together = LoopedStudents(students)
    assert torch.equal(together(rows), torch.stack([student(rows[place]) for place, student in enumerate(students)]))
    assert together.skeleton is students[0]
    assert [len(own) for own in together.each()] == [4, 4]
    assert together.each()[1][0] is students[1][0].weight


def test_each_looped_student_draws_from_its_own_stream() -> None:
    students, rows = [dropping(seed).train() for seed in range(3)], torch.randn(3, 4, 3)
    together, state = LoopedStudents(students).train(), torch.get_rng_state()
    logits = together(rows, [random_stream(seed, "student", 7) for seed in (5, 6, 7)])
    assert torch.equal(torch.get_rng_state(), state)
    for place, seed in enumerate((5, 6, 7)):
        with drawing_from(random_stream(seed, "student", 7)):
            assert torch.equal(logits[place], students[place](rows[place]))
    assert not torch.equal(logits, together(rows, [random_stream(seed, "student", 8) for seed in (5, 6, 7)]))


@pytest.mark.parametrize(("stacked", "kind"), [(True, StackedStudents), (False, LoopedStudents)])
def test_students_of_seeds_are_of_the_kind_that_is_asked_for(stacked: bool, kind: type[Students]) -> None:
    together = students_of(paired, [4, 2, 4], stacked)
    assert type(together) is kind
    for place, seed in enumerate((4, 2, 4)):
        assert torch.equal(together.unstack(place)["layer.weight"], paired(seed).layer.weight)
    assert isinstance(students_of(paired, 4, stacked), Paired)
    with torch.no_grad():
        for value in together.parameters():
            (value[0] if stacked else together.students[0].layer.weight).zero_()
    assert together.unstack(2)["layer.weight"].abs().sum() > 0  # replicas of one seed share no weights


@pytest.mark.parametrize(
    "made", [paired, lambda seed: StackedStudents([paired(0)]), lambda seed: LoopedStudents([paired(0)])]
)
def test_a_batch_norm_is_found_in_a_student_and_in_several(made: Callable[[int], nn.Module]) -> None:
    assert normalises_batches(made(0))


@KINDS
def test_no_batch_norm_is_found_where_there_is_none(kind: type[Students]) -> None:
    assert not normalises_batches(kind([dropping(0)]))


def test_logits_are_the_answer_or_what_it_calls_logits() -> None:
    class Answer:
        logits = torch.ones(2, 3)

    assert logits_of(Answer()) is Answer.logits
    assert logits_of(Answer.logits) is Answer.logits
    with pytest.raises(BadInputError, match=r"must answer with logits \[B, ..., C\], a tensor; got a tuple"):
        logits_of((Answer.logits,))
