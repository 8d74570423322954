"""PESF-KD: an adapter on the teacher's logits, which learns with each student for itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from support import reference
from support.signals import drawn, started
from torch import Tensor

from rltemp import BadInputError, Controller, Method, Signals, load_method
from rltemp.data.problem import Problem
from rltemp.data.recipe import Recipe
from rltemp.integrations.contract import controller_of
from rltemp.rules.adapter import AdaptedTeacher
from rltemp.rules.published_methods import reference_method
from rltemp.training.distill import Distillation

SHORT = Recipe(epochs=1, batch_size=100, learning_rate=0.1, momentum=0.9)


def moved(classes: int, temperature: float = 4.0, anchor: float = 1.0) -> AdaptedTeacher:
    """An adapter in float64 that does not begin where it begins."""
    made = AdaptedTeacher(temperature, anchor)
    made.initialise(classes, 3)
    generator = torch.Generator().manual_seed(1)
    for value in made.parameters():
        value.data += 0.3 * torch.randn(value.shape, generator=generator)
    return made.double()


def again(made: AdaptedTeacher, u: Sequence[float], v: Sequence[float], label: int) -> float:
    """Its loss of one sample in plain Python, times the square of the temperature."""
    inner, outer = made.inner.tolist(), made.outer.tolist()
    middle = sum(u) / len(u)
    sums = (sum((x - middle) * row[h] for x, row in zip(u, inner, strict=True)) for h in range(len(outer)))
    hidden = [max(0.0, total + bias) for total, bias in zip(sums, made.inner_bias.tolist(), strict=True)]
    added = [
        bias + sum(one * row[k] for one, row in zip(hidden, outer, strict=True))
        for k, bias in enumerate(made.outer_bias.tolist())
    ]
    adapted, degree = [x + more for x, more in zip(u, added, strict=True)], made.temperature
    soft = reference.kl([x / degree for x in v], [x / degree for x in adapted], label)
    return degree**2 * soft + made.anchor * (reference.logsumexp(adapted) - adapted[label])


def parameters(run: Distillation) -> dict[str, Tensor]:
    assert run.learned is not None
    return {name: value.detach().clone() for name, value in run.learned.named_parameters()}


def trained(problem: Problem, seeds: int | Sequence[int]) -> Distillation:
    run = Distillation(problem, seeds, recipe=SHORT)
    method = run.attach(load_method("pesf_kd"))
    assert run.attach(method) is method
    while not run.done:
        run.update(method.loss(run.observe()))
    return run


@pytest.mark.parametrize(("temperature", "anchor"), [(4.0, 1.0), (1.5, 0.3), (2.0, 0.0)])
def test_value_and_gradients_are_those_of_the_second_writing(temperature: float, anchor: float) -> None:
    signals, made = drawn((3,), 5, 0, dtype=torch.float64), moved(5, temperature, anchor)
    student = signals.student_logits.requires_grad_()
    found = temperature**2 * made(student / temperature, signals.teacher_logits / temperature, signals.labels)
    u, v, labels = (values.tolist() for values in (signals.teacher_logits, student, signals.labels))

    def total(rows: Sequence[Sequence[float]]) -> float:
        return sum(again(made, *sample) for sample in zip(u, rows, labels, strict=True))

    wanted = [again(made, *sample) for sample in zip(u, v, labels, strict=True)]
    torch.testing.assert_close(found.detach(), torch.tensor(wanted).double(), rtol=1e-6, atol=1e-6)
    names = ("inner", "inner_bias", "outer", "outer_bias")
    by_student, *by_adapter = torch.autograd.grad(found.sum(), [student, *(getattr(made, name) for name in names)])
    by_hand = torch.tensor(reference.gradient(total, v)).double()
    torch.testing.assert_close(by_student, by_hand, rtol=1e-6, atol=1e-6)
    for name, by in zip(names, by_adapter, strict=True):
        value = getattr(made, name).data
        place = torch.unravel_index(by.abs().argmax(), by.shape)

        def moved_by(rows: Sequence[Sequence[float]], value: Tensor = value, place: Any = place) -> float:
            kept, value[place] = value[place].item(), rows[0][0]
            found = total(v)
            value[place] = kept
            return found

        wanted = reference.gradient(moved_by, [[value[place].item()]])[0][0]
        assert by[place].item() == pytest.approx(wanted, rel=1e-6, abs=1e-6)


def test_it_begins_as_plain_distillation_for_the_student() -> None:
    signals = drawn((6,), 7, 0, progress=0.5)
    signals.student_logits.requires_grad_()
    gradients = [
        torch.autograd.grad(started(load_method(name), 7).loss(signals).sum(), signals.student_logits)[0]
        for name in ("pesf_kd", "fixed:4")
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("scale", [0.0, 3.0, 1e4, 1e30])
def test_every_finite_logit_has_a_finite_loss_and_gradient(scale: float) -> None:
    signals = drawn((6,), 7, 0, scale)
    signals.student_logits.requires_grad_()
    loss = load_method("pesf_kd").loss(signals)
    assert loss.isfinite().all()
    assert torch.autograd.grad(loss.sum(), signals.student_logits)[0].isfinite().all()


def test_each_student_of_a_stack_learns_what_it_learns_alone(digits: Problem) -> None:
    found = parameters(trained(digits, [3, 5]))
    for place, seed in enumerate((3, 5)):
        for key, value in parameters(trained(digits, seed)).items():
            torch.testing.assert_close(found[key][place], value, rtol=1e-4, atol=1e-5)
    assert found["outer"].abs().amax((1, 2)).min() > 1e-3


def test_two_runs_of_one_method_share_nothing(digits: Problem) -> None:
    method = load_method("pesf_kd")
    assert isinstance(method, Method)
    owns = [Distillation(digits, 0, recipe=SHORT).attach(method).divergence for _ in range(2)]
    assert len({id(one) for one in (*owns, method.divergence)}) == 3


def test_it_is_refused_where_nothing_would_train_it_and_without_labels() -> None:
    with pytest.raises(BadInputError, match="has parameters to learn, which this host would not train"):
        controller_of(Controller("pesf_kd"))
    with pytest.raises(BadInputError, match="learns them in every run anew"):
        reference_method("pesf_kd")
    with pytest.raises(BadInputError, match="PESF-KD ties its adapter to the labels; these signals carry none"):
        load_method("pesf_kd:ce_weight=0").loss(Signals(torch.zeros(2, 3), torch.zeros(2, 3)))
    with pytest.raises(BadInputError, match="pesf_kd: anchor must be finite and at least 0; got -1"):
        load_method("pesf_kd:anchor=-1")
    with pytest.raises(BadInputError, match="pesf_kd was made for 5 classes; got 3"):
        moved(5)(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))
