"""The records check their shapes once, so that nothing after them has to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rltemp import BadInputError, Controller, Signals, Temperatures, load_rule


@pytest.mark.parametrize("shape", [(), (5,), (3, 5), (2, 3, 5)])
def test_signals_take_any_leading_shape_and_name_it(shape: tuple[int, ...]) -> None:
    signals = Signals(torch.zeros(*shape, 4), torch.zeros(*shape, 4), torch.zeros(shape, dtype=torch.long))
    assert (tuple(signals.shape), signals.num_classes) == (shape, 4)
    assert signals.full(2.5).shape == shape
    assert signals.full(2.5).dtype == torch.float32


@pytest.mark.parametrize("student", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("teacher", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_signals_compute_in_float64_where_either_networks_logits_are(
    student: torch.dtype, teacher: torch.dtype
) -> None:
    computed = torch.float64 if torch.float64 in (student, teacher) else torch.float32
    signals = Signals(torch.zeros(3, 4, dtype=student), torch.zeros(3, 4, dtype=teacher))
    assert signals.dtype == signals.full(2.5).dtype == computed


def test_a_masks_samples_are_compacted_in_order_and_are_all_without_it() -> None:
    student = torch.arange(24.0).view(2, 3, 4)
    mask = torch.tensor([[True, False, True], [False, False, True]])
    signals = Signals(student, -student, torch.arange(6).view(2, 3), 0.25, mask)
    samples = signals.samples()
    assert samples.student_logits[:, 0].tolist() == [0.0, 8.0, 20.0]
    assert torch.equal(samples.teacher_logits, -samples.student_logits)
    assert samples.labels.tolist() == [0, 2, 5]
    assert (samples.progress, samples.mask) == (0.25, None)
    assert samples.samples() is samples


def test_what_may_be_compared_is_the_batch_or_each_students_own() -> None:
    logits, values = torch.zeros(2, 3, 4, 5), torch.arange(24).view(2, 3, 4)
    assert Signals(logits, logits).groups(values).tolist() == [list(range(24))]
    stacked = Signals(logits, logits, stacked=True).groups(values)
    assert stacked.tolist() == [list(range(12)), list(range(12, 24))]


@pytest.mark.parametrize("shape", [(4,), (3, 4)])
def test_a_stack_without_an_axis_of_students_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BadInputError, match=r"a stack needs logits \[S, ..., C\]; got shape"):
        Signals(torch.zeros(shape), torch.zeros(shape), stacked=True)


@pytest.mark.parametrize(
    ("student", "teacher", "named"),
    [
        ((5, 4), (5, 10), "student has 4 class outputs, teacher 10"),
        ((5, 4), (4, 4), r"shapes \(5, 4\) and \(4, 4\)"),
        ((5, 4), (1, 4), r"shapes \(5, 4\) and \(1, 4\)"),
        ((), (), "one shape"),
        ((5, 1), (5, 1), "at least 2 classes"),
    ],
)
def test_logits_that_do_not_belong_together_are_refused_with_both_shapes(
    student: tuple[int, ...], teacher: tuple[int, ...], named: str
) -> None:
    with pytest.raises(BadInputError, match=named):
        Signals(torch.zeros(student), torch.zeros(teacher))


@pytest.mark.parametrize("labels", [(4,), (5, 1), (1, 5), ()])
def test_labels_of_another_shape_are_refused(labels: tuple[int, ...]) -> None:
    with pytest.raises(BadInputError, match=r"labels have shape .* needed: \(5,\)"):
        Signals(torch.zeros(5, 4), torch.zeros(5, 4), torch.zeros(labels, dtype=torch.long))


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_labels_are_integers_of_any_type(kind: torch.dtype) -> None:
    logits, labels = torch.randn(2, 5, 4), torch.tensor([0, 3, 1, 2, 0])
    expected = Controller("dtkd").loss(*logits, labels, 0.5)
    assert torch.equal(Controller("dtkd").loss(*logits, labels.to(kind), 0.5), expected)


@pytest.mark.parametrize("kind", [torch.float32, torch.bool])
def test_labels_that_are_no_integers_are_refused(kind: torch.dtype) -> None:
    with pytest.raises(BadInputError, match=rf"^labels must be integers; got {kind}$"):
        Signals(torch.zeros(5, 4), torch.zeros(5, 4), torch.zeros(5, dtype=kind))


@pytest.mark.parametrize("progress", [-0.01, 1.01, float("inf"), "0.5", None, [0.5]])
def test_progress_outside_the_run_is_refused(progress: Any) -> None:
    with pytest.raises(BadInputError, match="progress must be a number between 0 and 1"):
        Signals(torch.zeros(5, 4), torch.zeros(5, 4), progress=progress)


def test_padded_vocabularies_are_named_only_where_the_classes_differ() -> None:
    for teacher, named in ((torch.zeros(5, 6), True), (torch.zeros(3, 4), False)):
        with pytest.raises(BadInputError, match=r"need logits of one shape") as error:
            Signals(torch.zeros(5, 4), teacher)
        assert ("align_classes" in str(error.value)) == named


def test_complex_logits_are_refused() -> None:
    with pytest.raises(BadInputError, match="logits must be real numbers"):
        Signals(torch.zeros(5, 4), torch.zeros(5, 4, dtype=torch.complex64))


@pytest.mark.parametrize("field", ["student", "teacher", "weight"])
def test_a_column_beside_rows_is_refused_as_it_would_become_a_square(field: str) -> None:
    values = {name: torch.ones(5) for name in ("student", "teacher", "weight")}
    values[field] = torch.ones(5, 1)
    with pytest.raises(BadInputError, match=rf"one value per sample; got .*'{field}': \(5, 1\)"):
        Temperatures(**values)


@pytest.mark.parametrize("given", [4.0, np.full(5, 4.0), [4.0] * 5, None])
@pytest.mark.parametrize("field", ["student", "teacher", "weight"])
def test_what_is_no_tensor_is_refused_by_its_type(field: str, given: object) -> None:
    values = {name: torch.ones(5) for name in ("student", "teacher", "weight")}
    with pytest.raises(BadInputError, match=rf"tensors of one shape.* got .*'{field}': '{type(given).__name__}'"):
        Temperatures(**{**values, field: given})


def test_guards_of_another_shape_are_refused() -> None:
    with pytest.raises(BadInputError, match=r"'guarded': \(3,\)"):
        Temperatures(torch.ones(5), torch.ones(5), torch.ones(5), torch.zeros(3, dtype=torch.bool))


def test_detached_temperatures_are_the_same_numbers_without_a_graph() -> None:
    value, guarded = torch.full((3,), 2.0, requires_grad=True), torch.tensor([True, False, True])
    detached = Temperatures(value * 1, value * 2, value * 3, guarded).detach()
    assert detached.guarded is not None
    assert detached.guarded.tolist() == guarded.tolist()
    assert (detached.student[0], detached.teacher[0], detached.weight[0]) == (2.0, 4.0, 6.0)
    assert not any(tensor.requires_grad for tensor in (detached.student, detached.teacher, detached.weight))


def test_progress_may_be_a_tensor_of_one_number_and_of_no_more() -> None:
    logits = torch.zeros(4, 3)
    started = load_rule("linear_schedule:8")(Signals(logits, logits, progress=torch.tensor(0.0)))
    assert started.student.tolist() == [8.0] * 4
    with pytest.raises(BadInputError, match=r"progress must be one number; got shape \(2,\)"):
        Signals(logits, logits, progress=torch.zeros(2))
