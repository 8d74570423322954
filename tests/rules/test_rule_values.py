"""Values and gradients, to 1e-6 in float64: the note's vectors, then a second writing of every formula.

The numbers are those of shared/reference/temperature-methods.md, section 15 (u, v, y of the vectors A and B stand in
conftest.py). The second writing is tests/support/reference.py: plain Python, sample by sample, gradients by
differences.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

import pytest
import torch
from support import reference
from support.data import table
from support.reference import HOLDING
from support.signals import started
from torch import Tensor

from rltemp import Signals, TemperatureRule, Temperatures, kd_loss
from rltemp.kd.divergences import DIVERGENCES, log_softmax
from rltemp.kd.losses import cross_entropy
from rltemp.rules import RULES
from rltemp.rules.curriculum import CtkdInstance, LearnedRule

Vector = tuple[Tensor, Tensor, Tensor]


def double(rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def batch(*vectors: Vector) -> Signals:
    teacher, student, label = (torch.stack(column) for column in zip(*vectors, strict=True))
    return Signals(student.clone().requires_grad_(), teacher, label, 0.5)


def of(student: list[float], teacher: list[float]) -> Signals:
    return Signals(double([student]).requires_grad_(), double([teacher]))


def gradient(signals: Signals, temperatures: Temperatures, divergence: str = "kl", **options: Any) -> Tensor:
    loss = kd_loss(signals, temperatures, DIVERGENCES[divergence](**options))
    return torch.autograd.grad(loss.sum(), signals.student_logits)[0]


def close(found: Tensor, wanted: Any, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(found.detach(), double(wanted), rtol=tolerance, atol=tolerance)


# The note's vectors


@pytest.mark.parametrize(("name", "options", "field", "a", "b"), table("rules/values", "rules"))
def test_a_rule_has_the_notes_number_on_both_vectors(
    vector_a: Vector, vector_b: Vector, name: str, options: dict[str, Any], field: str, a: float, b: float
) -> None:
    signals = batch(vector_a, vector_b)
    answer = RULES[name](**options)(signals)
    loss = kd_loss(signals, answer)
    quantities = {"loss": loss, "divergence": loss / answer.weight, "root weight": answer.weight.sqrt()}
    close(quantities[field] if field in quantities else getattr(answer, field), [a, b])


@pytest.mark.parametrize(("divergence", "options", "scale", "a", "b"), table("rules/values", "divergences"))
def test_a_divergence_has_the_notes_number_on_both_vectors(
    vector_a: Vector, vector_b: Vector, divergence: str, options: dict[str, Any], scale: float, a: float, b: float
) -> None:
    signals = batch(vector_a, vector_b)
    found = DIVERGENCES[divergence](**options)(signals.student_logits / 4, signals.teacher_logits / 4, signals.labels)
    close(scale * found, [a, b])


@pytest.mark.parametrize(("name", "options", "rows"), table("rules/values", "gradients"))
def test_a_rule_lets_the_gradient_through_that_the_note_has(
    vector_a: Vector, vector_b: Vector, name: str, options: dict[str, Any], rows: list[list[float]]
) -> None:
    signals = batch(*(vector_a, vector_b)[: len(rows)])
    close(gradient(signals, RULES[name](**options)(signals)), rows)


@pytest.mark.parametrize(("name", "rows"), table("rules/values", "detached_gradients"))
def test_detached_temperatures_give_the_notes_other_gradient_of_sum_zero(
    vector_a: Vector, vector_b: Vector, name: str, rows: list[list[float]]
) -> None:
    signals = batch(*(vector_a, vector_b)[: len(rows)])
    found = gradient(signals, RULES[name]()(signals).detach())
    close(found, rows)
    assert found.sum(-1).abs().max() < 1e-12


def test_dtkds_gradient_as_released_does_not_sum_to_zero(vector_a: Vector) -> None:
    signals = batch(vector_a)
    assert gradient(signals, RULES["dtkd"]()(signals)).sum().item() == pytest.approx(-0.03305267, abs=1e-6)


def test_dtkds_mean_over_a_batch_keeps_each_weight_with_its_sample(vector_a: Vector, vector_b: Vector) -> None:
    signals = batch(vector_a, vector_b)
    mean = kd_loss(signals, RULES["dtkd"]()(signals)).mean().item()
    assert mean == pytest.approx(0.21146632, abs=1e-6)
    assert abs(mean - 0.21546667) > 1e-3  # what the outer product of weights and divergences gives


def test_cross_entropy_and_softened_distributions_are_the_notes(vector_a: Vector, vector_b: Vector) -> None:
    signals = batch(vector_a, vector_b)
    close(cross_entropy(signals), [0.49518190, 0.86488459])
    close(
        log_softmax(signals.teacher_logits / 4).exp(),
        [[0.47020084, 0.22210715, 0.17297722, 0.13471480], [0.21333184, 0.39855635, 0.11418831, 0.27392351]],
    )
    close(
        log_softmax(signals.student_logits / 4).exp(),
        [[0.34031471, 0.26503736, 0.23389465, 0.16075328], [0.27993055, 0.29428289, 0.20225748, 0.22352908]],
    )


def test_the_squared_temperature_keeps_the_loss_at_its_limit(vector_a: Vector, vector_b: Vector) -> None:
    signals = batch(vector_a, vector_b)
    close(kd_loss(signals, RULES["fixed"](1e4)(signals)), [0.4609375, 1.01125], 1e-4)
    apart = RULES["fixed"](2.0, teacher=4.0)(signals)
    assert [float(values[0]) for values in (apart.student, apart.teacher, apart.weight)] == [2.0, 4.0, 8.0]


# What follows from the formulas


def test_dtkd_makes_the_scaled_maxima_equal_and_follows_the_notes_shifts(vector_a: Vector, vector_b: Vector) -> None:
    signals, tau = batch(vector_a, vector_b), RULES["dtkd"]()
    answer = tau(signals)
    close(signals.teacher_logits.amax(-1) / answer.teacher, [0.75, 0.525])
    close(signals.student_logits.amax(-1) / answer.student, [0.75, 0.525])
    close(answer.teacher + answer.student, [8.0, 8.0])
    teacher, student, label = vector_a
    both, one = tau(batch((teacher + 1, student + 1, label))), tau(batch((teacher + 1, student, label)))
    close(torch.cat([both.teacher, both.student]), [5.0, 3.0])
    close(torch.cat([one.teacher, one.student]), [5.71428571, 2.28571429])
    scaled = tau(batch((7 * teacher, 7 * student, label)))
    close(torch.cat([scaled.teacher, scaled.student]), [5.33333333, 2.66666667])


def test_dtkd_of_equal_maxima_is_plain_distillation_at_the_reference() -> None:
    signals = of([3.0, 1.0, 0.0], [3.0, -2.0, 0.5])
    found, plain = (kd_loss(signals, RULES[name](5.0)(signals)) for name in ("dtkd", "fixed"))
    close(found, plain.tolist())


def test_published_dtkd_goes_negative_where_the_default_uses_the_reference() -> None:
    signals = of([-0.5, -1.0, -2.0, -3.0], [4.0, 1.0, 0.0, -1.0])
    published, guarded = RULES["dtkd"](published=True)(signals), RULES["dtkd"]()(signals)
    close(torch.cat([published.teacher, published.student]), [9.14285714, -1.14285714])
    reversed_ranking = (signals.student_logits / published.student).softmax(-1)
    close(reversed_ranking, [[0.06588838, 0.10204991, 0.24480501, 0.58725670]])
    close(torch.cat([guarded.teacher, guarded.student, guarded.weight]), [4.0, 4.0, 16.0])
    assert published.guarded is None
    assert guarded.guarded.tolist() == [True]


def test_published_dtkd_divides_by_zero_and_turns_at_negative_maxima(vector_a: Vector) -> None:
    teacher, student, label = vector_a
    zero = RULES["dtkd"](published=True)(batch((teacher - 3, student - 3, label)))
    assert (zero.teacher.item(), zero.student.item()) == (math.inf, -math.inf)
    unsure = RULES["dtkd"](1.0, published=True)(of([-60.0, -61.0], [-30.0, -31.0]))
    close(torch.cat([unsure.teacher, unsure.student]), [0.66666667, 1.33333333])


def test_the_exact_rule_does_make_the_sharpness_equal(vector_a: Vector, vector_b: Vector) -> None:
    signals = batch(vector_a, vector_b)
    answer = RULES["dtkd_exact"]()(signals)
    close(
        (signals.teacher_logits / answer.teacher.unsqueeze(-1)).logsumexp(-1),
        (signals.student_logits / answer.student.unsqueeze(-1)).logsumexp(-1).tolist(),
    )


@pytest.mark.parametrize("gamma", [0.1, 0.25, 0.5, 0.9])
def test_ttm_is_kd_and_two_entropies(vector_a: Vector, vector_b: Vector, gamma: float) -> None:
    """Equation 15: D(p_T||q) = T D(p_T||q_T) - (T-1) H_1/T(q) + (T-1) H(p_T), H_1/T being Renyi's entropy."""
    signals, temperature = batch(vector_a, vector_b), 1 / gamma
    power = (temperature - 1) / temperature
    p_hot = (signals.teacher_logits / temperature).softmax(-1)
    renyi = (signals.student_logits.softmax(-1) ** gamma).sum(-1).log() / power
    shannon = -(p_hot * p_hot.log()).sum(-1)
    plain = kd_loss(signals, RULES["fixed"](temperature)(signals)) / temperature
    wanted = plain + (temperature - 1) * (shannon - renyi)
    close(kd_loss(signals, RULES["ttm"](gamma)(signals)), wanted.tolist(), 1e-8)


def test_kl_is_its_two_parts_and_normkd_is_lskd_by_teacher_variance(vector_a: Vector, vector_b: Vector) -> None:
    signals = batch(vector_a, vector_b)
    soft = [logits / 4 for logits in (signals.student_logits, signals.teacher_logits)]
    whole, target, rest = (DIVERGENCES[name]()(*soft, signals.labels) for name in ("kl", "tckd", "nckd"))
    own = soft[1].softmax(-1).gather(-1, signals.labels.unsqueeze(-1)).squeeze(-1)
    close(target + (1 - own) * rest, whole.tolist(), 1e-12)
    norm, standard = (kd_loss(signals, RULES[name]()(signals)) for name in ("normkd", "lskd"))
    close(norm / standard, signals.teacher_logits.var(-1).tolist(), 1e-12)
    assert (norm / standard)[0].item() == pytest.approx(4.6666667)


def test_cist_neither_stretches_nor_shrinks_a_students_logits(vector_a: Vector, vector_b: Vector) -> None:
    signals = batch(vector_a, vector_b)
    answer = RULES["cist"]()(signals)
    along = [gradient(signals, each) * signals.student_logits for each in (answer, answer.detach())]
    close(along[0].sum(-1), [0.0, 0.0], 1e-12)
    assert along[1].sum(-1).abs().min() > 1e-3  # with constants it would


def test_atkds_temperature_stays_within_what_standardized_logits_can_be() -> None:
    one_up, half_up = [1.0] + [0.0] * 99, [1.0, -1.0] * 50
    highest, lowest = (RULES["atkd"]()(of(row, row)).weight.sqrt() for row in (one_up, half_up))
    close(torch.cat([highest, lowest]), [13.52365150, 1.35917812])
    close(RULES["atkd"]()(of([5.0, -1.0], [0.3, 0.2])).weight.sqrt(), [0.96592583])


def test_ctkds_factor_falls_from_nothing_to_minus_one_in_ten_epochs() -> None:
    learned = RULES["ctkd"]()
    factors = [learned.reversal(epoch / 240) for epoch in range(1, 11)]
    wanted = [-0.024472, -0.095492, -0.206107, -0.345492, -0.5, -0.654508, -0.793893, -0.904508, -0.975528, -1]
    assert factors == pytest.approx(wanted, abs=1e-6)
    assert learned.reversal(0.0) == 0.0
    assert learned.reversal(1.0) == -1.0


def test_annealing_kd_scales_the_teacher_by_one_seventh_to_one() -> None:
    signals = of([2.0, 1.0], [4.0, 1.0])
    seven = RULES["annealing"](maximum=7, until=0.7)
    phases = [1 / seven(replace(signals, progress=0.1 * stage + 0.05)).teacher.item() for stage in range(10)]
    assert phases == pytest.approx([*(stage / 7 for stage in range(1, 8)), 1, 1, 1])


def test_idts_at_a_quarter_to_four_times_the_median_distance() -> None:
    # Distributions (1/2, 1/2) and (cos^2 f, sin^2 f) overlap by cos(f - pi/4), which is one minus the squared distance.
    angles = [math.pi / 4 + math.acos(1 - (0.1 * ratio) ** 2) for ratio in (0.25, 0.5, 1, 2, 4)]
    student = double([[2 * math.log(math.cos(f)), 2 * math.log(math.sin(f))] for f in angles])
    answer = RULES["idts"]()(Signals(student, torch.zeros_like(student)))
    close(answer.student, [1.554535, 1.349859, 1.0, 0.740818, 0.643279])


def test_on_constant_logits_published_normkd_is_nan_and_lskd_is_uniform() -> None:
    signals = of([3.0, 3.0, 3.0], [3.0, 3.0, 3.0])
    assert kd_loss(signals, RULES["normkd"](published=True)(signals)).isnan().all()
    assert kd_loss(signals, RULES["atkd"](published=True)(signals)).isnan().all()
    assert kd_loss(signals, RULES["lskd"](published=True)(signals)).item() == 0.0


# The second writing, on logits of one's own

CASES = [*((name, {}) for name in RULES), *table("rules/values", "options_of_the_second_writing")]
THROUGH_THE_STUDENT = {"dtkd", "dtkd_logsumexp", "normkd", "lskd", "atkd", "cist"}


def drawn(classes: int, samples: int = 4) -> tuple[Signals, list[list[float]], list[list[float]], list[int]]:
    """A batch at 37 % of the run, as signals and as lists of teacher, student and labels."""
    draw = Random(classes)
    u, v = ([[draw.gauss(0.5, 2) for _ in range(classes)] for _ in range(samples)] for _ in range(2))
    labels = [draw.randrange(classes) for _ in range(samples)]
    return Signals(double(v).requires_grad_(), double(u), torch.tensor(labels), 0.37), u, v, labels


def built(name: str, classes: int, options: dict[str, Any]) -> tuple[TemperatureRule, dict[str, Any]]:
    """A rule, and the options of its second writing: what it learned is among them."""
    made = started(RULES[name](**options), classes, 7)
    if isinstance(made, LearnedRule):
        made.double()
    if isinstance(made, CtkdInstance):
        options = {key: value.detach().tolist() for key, value in made.named_parameters()}
    return made, options


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
@pytest.mark.parametrize("classes", [5, 7])
def test_a_rule_has_the_value_and_the_gradient_of_its_second_writing(
    name: str, options: dict[str, Any], classes: int
) -> None:
    signals, u, v, labels = drawn(classes)
    made, again = built(name, classes, options)

    def formula(moved: reference.Batch, held: reference.Batch) -> list[reference.Answer]:
        answers: list[reference.Answer] = getattr(reference, name)(reference.Step(u, moved, held, 0.37), **again)
        return answers

    answer, wanted = made(signals), formula(v, v)
    close(torch.stack([answer.student, answer.teacher, answer.weight], -1), wanted)

    def loss(answers: list[reference.Answer], moved: reference.Batch) -> float:
        samples = zip(answers, moved, u, labels, strict=True)
        return math.fsum(reference.loss(reference.kl, *sample) for sample in samples)

    through = double(reference.gradient(lambda moved: loss(formula(moved, v), moved), v))
    held = double(reference.gradient(lambda moved: loss(formula(v, v), moved), v))
    close(kd_loss(signals, answer).sum(), loss(wanted, v))
    close(gradient(signals, answer), through.tolist())
    close(gradient(signals, answer.detach()), held.tolist())
    # So that the comparison tells one from the other.
    apart = (through - held).abs().max()
    assert apart > 1e-3 if name in THROUGH_THE_STUDENT else apart < 1e-9


@pytest.mark.parametrize("classes", [2, 5, 7, 19])
@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in DIVERGENCES), *table("rules/values", "divergences_of_the_second_writing")],
    ids=str,
)
def test_a_divergence_has_the_value_and_the_gradient_of_its_second_writing(
    name: str, options: dict[str, Any], classes: int
) -> None:
    signals, u, v, labels = drawn(classes, samples=3)
    formula = getattr(reference, name)
    answers = [(1.3, 2.1, 1.7), (2.0, 3.0, 5.0), (4.0, 1.0, 0.4)]
    temperatures = Temperatures(*double(answers).unbind(-1))
    formulas = [
        partial(formula, **options, **({"held": [value / answer[0] for value in row]} if formula in HOLDING else {}))
        for answer, row in zip(answers, v, strict=True)
    ]

    def losses(moved: reference.Batch) -> list[float]:
        samples = zip(formulas, answers, moved, u, labels, strict=True)
        return [reference.loss(*sample) for sample in samples]

    close(kd_loss(signals, temperatures, DIVERGENCES[name](**options)), losses(v))
    found = gradient(signals, temperatures, name, **options)
    close(found, reference.gradient(lambda moved: math.fsum(losses(moved)), v))
