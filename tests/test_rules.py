"""Rules: the published numbers, their gradients, the guards, and a contract that every entry of RULES keeps.

Golden numbers are those of shared/reference/temperature-methods.md, section (c), computed there in float64.
Rules and losses compute in float32: temperatures agree to 1e-6 relative; a divergence is a sum that cancels
to a few per cent of its terms and is then multiplied by T^2, so losses agree to 2e-6 or 4e-6 absolute, and
gradients to 2e-6.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rltemp import BadInputError, Signals, Temperatures, kd_loss
from rltemp.checks import check_temperatures
from rltemp.rules import RULES, dtkd, fixed

Vector = tuple[Tensor, Tensor, Tensor]


def signals_of(*vectors: Vector, grad: bool = False) -> Signals:
    """A float32 batch of the note's vectors."""
    teacher, student, label = (torch.stack(column) for column in zip(*vectors, strict=True))
    return Signals(student.float().requires_grad_(grad), teacher.float(), label)


def one(student: list[float], teacher: list[float]) -> Signals:
    return Signals(torch.tensor([student]), torch.tensor([teacher]))


def test_fixed_gives_both_networks_one_temperature_and_its_square_as_weight(vector_a: Vector) -> None:
    temperatures = fixed(3.0)(signals_of(vector_a, vector_a))
    assert temperatures.student.tolist() == temperatures.teacher.tolist() == [3.0, 3.0]
    assert temperatures.weight.tolist() == [9.0, 9.0]


def test_fixed_has_the_golden_loss_and_gradient(vector_a: Vector, vector_b: Vector) -> None:
    signals = signals_of(vector_a, vector_b, grad=True)
    loss = kd_loss(signals, fixed(4.0)(signals))
    torch.testing.assert_close(loss, torch.tensor([0.58827813, 0.85335099]), rtol=0, atol=4e-6)
    loss.sum().backward()
    golden = [
        [-0.51954452, 0.17172085, 0.24366971, 0.10415396],
        [0.26639483, -0.41709382, 0.35227669, -0.20157769],
    ]
    torch.testing.assert_close(signals.student_logits.grad, torch.tensor(golden), rtol=0, atol=2e-6)


def test_dtkd_has_the_golden_temperatures_and_losses(vector_a: Vector, vector_b: Vector) -> None:
    signals = signals_of(vector_a, vector_b)
    temperatures = dtkd(4.0)(signals)
    torch.testing.assert_close(temperatures.teacher, torch.tensor([5.33333333, 5.71428571]), rtol=1e-6, atol=0)
    torch.testing.assert_close(temperatures.student, torch.tensor([2.66666667, 2.28571429]), rtol=1e-6, atol=0)
    loss = kd_loss(signals, temperatures)
    torch.testing.assert_close(loss, torch.tensor([0.12662685, 0.29630579]), rtol=0, atol=2e-6)


def test_dtkds_mean_over_a_batch_keeps_each_weight_with_its_sample(vector_a: Vector, vector_b: Vector) -> None:
    signals = signals_of(vector_a, vector_b)
    mean = kd_loss(signals, dtkd(4.0)(signals)).mean().item()
    assert mean == pytest.approx(0.21146632, abs=1e-6)
    assert abs(mean - 0.21546667) > 1e-3  # what the outer product of weights and divergences gives


def test_dtkd_lets_gradient_through_the_students_maximum_as_released(vector_a: Vector, vector_b: Vector) -> None:
    signals = signals_of(vector_a, vector_b, grad=True)
    kd_loss(signals, dtkd(4.0)(signals)).sum().backward()
    released = [
        [-0.15865115, 0.17118128, 0.14191427, -0.18749708],
        [0.41194154, -0.03581974, 0.12978179, -0.39538988],
    ]
    torch.testing.assert_close(signals.student_logits.grad, torch.tensor(released), rtol=0, atol=2e-6)
    assert signals.student_logits.grad is not None
    assert signals.student_logits.grad[0].sum().item() == pytest.approx(-0.03305267, abs=4e-6)


def test_dtkd_detached_has_the_golden_gradient_which_sums_to_zero(vector_a: Vector, vector_b: Vector) -> None:
    signals = signals_of(vector_a, vector_b, grad=True)
    kd_loss(signals, dtkd(4.0)(signals).detach()).sum().backward()
    detached = [
        [-0.12559847, 0.17118128, 0.14191427, -0.18749708],
        [0.41194154, -0.14633345, 0.12978179, -0.39538988],
    ]
    torch.testing.assert_close(signals.student_logits.grad, torch.tensor(detached), rtol=0, atol=2e-6)
    assert signals.student_logits.grad is not None
    assert signals.student_logits.grad.sum(-1).abs().max() < 2e-6


def test_dtkd_follows_the_hand_worked_shifts_of_vector_a(vector_a: Vector) -> None:
    teacher, student, label = vector_a
    both = dtkd(4.0)(signals_of((teacher + 1, student + 1, label)))
    assert (both.teacher.item(), both.student.item()) == (5.0, 3.0)
    teacher_only = dtkd(4.0)(signals_of((teacher + 1, student, label)))
    assert teacher_only.teacher.item() == pytest.approx(5.71428571, rel=1e-6)
    assert teacher_only.student.item() == pytest.approx(2.28571429, rel=1e-6)


def test_dtkd_of_equal_maxima_is_plain_distillation_at_the_reference() -> None:
    signals = one([3.0, 1.0, 0.0], [3.0, -2.0, 0.5])
    torch.testing.assert_close(kd_loss(signals, dtkd(5.0)(signals)), kd_loss(signals, fixed(5.0)(signals)))


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ([-0.5, -1.0, -2.0, -3.0], [4.0, 1.0, 0.0, -1.0]),  # as published: T_s = -1.14, the ranking reversed
        ([2.0, 1.0, 0.5, -1.0], [-0.5, -1.0, -2.0, -3.0]),
        ([-60.0, -61.0, -62.0, -70.0], [-30.0, -31.0, -32.0, -40.0]),
        ([-1.0, -2.0, -3.0, -4.0], [1.0, -2.0, -3.0, -4.0]),  # as published: x + y = 0, inf and -inf
        ([0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]),
        ([0.0, -1.0, -2.0, -3.0], [4.0, 1.0, 0.0, -1.0]),
    ],
)
def test_dtkd_falls_back_to_the_reference_where_a_largest_logit_is_not_positive(
    student: list[float], teacher: list[float]
) -> None:
    signals = Signals(torch.tensor([student], requires_grad=True), torch.tensor([teacher]))
    temperatures = dtkd(4.0)(signals)
    assert (temperatures.student.item(), temperatures.teacher.item()) == (4.0, 4.0)
    assert temperatures.weight.item() == 16.0
    kd_loss(signals, temperatures).sum().backward()
    assert signals.student_logits.grad is not None
    assert signals.student_logits.grad.isfinite().all()
    plain = Signals(torch.tensor([student], requires_grad=True), torch.tensor([teacher]))
    kd_loss(plain, fixed(4.0)(plain)).sum().backward()
    torch.testing.assert_close(signals.student_logits.grad, plain.student_logits.grad)


def test_a_guarded_sample_leaves_its_neighbours_alone(vector_a: Vector) -> None:
    teacher, student, label = vector_a
    signals = signals_of(vector_a, (teacher, student - 2.5, label), vector_a, grad=True)
    temperatures = dtkd(4.0)(signals)
    assert temperatures.student[1] == 4.0
    assert temperatures.student[0] == temperatures.student[2] != 4.0
    kd_loss(signals, temperatures).sum().backward()
    assert signals.student_logits.grad is not None
    assert signals.student_logits.grad.isfinite().all()
    assert signals.student_logits.grad[0, 0].item() == pytest.approx(-0.15865115, abs=2e-6)


def test_dtkds_bounds_keep_a_fresh_students_temperature_up() -> None:
    signals = one([0.01, -0.02, 0.0], [9.99, 1.0, 0.0])
    bounded, published = dtkd(16.0)(signals), dtkd(16.0, minimum=0, maximum=1e9)(signals)
    assert (bounded.student.item(), bounded.teacher.item(), bounded.weight.item()) == (0.5, 20.0, 10.0)
    # 2 * 0.01 / 10 * 16 and 2 * 9.99 / 10 * 16
    assert published.student.item() == pytest.approx(0.032)
    assert published.teacher.item() == pytest.approx(31.968)


@given(st.floats(0.01, 50), st.floats(0.01, 50), st.floats(0.1, 100), st.floats(0.5, 10))
def test_dtkd_as_published_shares_twice_the_reference_and_ignores_a_common_scale(
    student_max: float, teacher_max: float, scale: float, reference: float
) -> None:
    rule = dtkd(reference, minimum=0, maximum=1e9)
    signals = one([student_max, -1.0], [teacher_max, -2.0])
    scaled = Signals(scale * signals.student_logits, scale * signals.teacher_logits)
    answer, again = rule(signals), rule(scaled)
    assert (answer.student + answer.teacher).item() == pytest.approx(2 * reference, rel=1e-5)
    assert (student_max / answer.student).item() == pytest.approx(teacher_max / answer.teacher.item(), rel=1e-5)
    torch.testing.assert_close(answer.student, again.student, rtol=1e-5, atol=0)
    torch.testing.assert_close(answer.teacher, again.teacher, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"reference": 0}, "reference must be finite and above 0; got 0"),
        ({"reference": -4.0}, "got -4.0"),
        ({"reference": math.inf}, "got inf"),
        ({"reference": math.nan}, "got nan"),
        ({"reference": True}, "got True"),
        ({"reference": "warm"}, "got 'warm'"),
        ({"minimum": -1}, "minimum must be finite and above 0"),
        ({"minimum": 5.0, "maximum": 5.0}, "minimum must be below maximum; got 5.0 and 5.0"),
    ],
)
def test_dtkds_options_are_checked_where_the_rule_is_made(options: dict[str, float], named: str) -> None:
    with pytest.raises(BadInputError, match=named):
        dtkd(**options)


@pytest.mark.parametrize("temperature", [0, -1.0, math.inf, math.nan, True, "4", None])
def test_fixed_refuses_what_is_no_temperature(temperature: float) -> None:
    with pytest.raises(BadInputError, match="fixed: temperature must be finite and above 0"):
        fixed(temperature)


@pytest.mark.parametrize("value", [0.0, -2.5, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["student", "teacher"])
def test_a_temperature_that_is_none_is_refused_by_field_value_sample_and_source(value: float, field: str) -> None:
    good, bad = torch.full((2, 3), 4.0), torch.full((2, 3), 4.0)
    bad[1, 2] = value
    fields = {"student": good, "teacher": good, "weight": good, field: bad}
    with pytest.raises(BadInputError, match=rf"^{field} temperature .* got {value} for sample 5 from my_rule$"):
        check_temperatures(Temperatures(**fields), "my_rule")
    check_temperatures(Temperatures(good, good, good), "my_rule")


# The contract: whatever is put into RULES keeps it, unasked.

SHAPES = [(), (1,), (7,), (2, 5)]
every_rule = pytest.mark.parametrize("name", sorted(RULES))


def random_signals(
    shape: tuple[int, ...], classes: int, seed: int, scale: float = 3.0, dtype: torch.dtype = torch.float32
) -> Signals:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(2, *shape, classes, generator=generator) * scale).to(dtype)
    labels = torch.randint(0, classes, shape, generator=generator)
    return Signals(student, teacher, labels, progress=torch.rand((), generator=generator).item())


def assert_answer_is_usable(temperatures: Temperatures, signals: Signals) -> None:
    for field in ("student", "teacher", "weight"):
        values = getattr(temperatures, field)
        assert tuple(values.shape) == tuple(signals.shape), field
        assert values.dtype == torch.float32, field
        assert values.isfinite().all(), field
    check_temperatures(temperatures, "contract")
    assert (temperatures.weight >= 0).all()
    assert kd_loss(signals, temperatures).isfinite().all()


@every_rule
@given(
    shape=st.sampled_from(SHAPES),
    classes=st.sampled_from([2, 3, 10, 100, 1000]),
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([0.0, 1e-6, 0.01, 1.0, 10.0, 1e4]),
)
@settings(max_examples=60)
def test_every_rule_answers_positive_finite_numbers_one_a_sample(
    name: str, shape: tuple[int, ...], classes: int, seed: int, scale: float
) -> None:
    signals = random_signals(shape, classes, seed, scale)
    assert_answer_is_usable(RULES[name]()(signals), signals)


@every_rule
@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e4, -1e4])
def test_every_rule_takes_constant_logits(name: str, value: float) -> None:
    signals = Signals(torch.full((3, 5), value), torch.full((3, 5), value), torch.zeros(3, dtype=torch.long))
    assert_answer_is_usable(RULES[name]()(signals), signals)


@every_rule
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_rule_answers_in_float32_whatever_the_logits_are(name: str, dtype: torch.dtype) -> None:
    for scale in (1.0, 1e4):
        signals = random_signals((6,), 10, 0, scale, dtype)
        assert_answer_is_usable(RULES[name]()(signals), signals)


@every_rule
@given(seed=st.integers(0, 10**6))
@settings(max_examples=20)
def test_every_rule_is_blind_to_the_order_of_samples_and_to_the_others_in_the_batch(name: str, seed: int) -> None:
    signals, rule = random_signals((9,), 6, seed), RULES[name]()
    answer = rule(signals)
    assert signals.labels is not None
    chosen = torch.randperm(9, generator=torch.Generator().manual_seed(seed))[:4]
    part = rule(
        Signals(
            signals.student_logits[chosen],
            signals.teacher_logits[chosen],
            signals.labels[chosen],
            signals.progress,
        )
    )
    torch.testing.assert_close(part.student, answer.student[chosen])
    torch.testing.assert_close(part.teacher, answer.teacher[chosen])
    torch.testing.assert_close(part.weight, answer.weight[chosen])


@every_rule
def test_every_rule_gives_a_stack_what_it_gives_each_student(name: str) -> None:
    signals, rule = random_signals((3, 8), 10, 1), RULES[name]()
    assert signals.labels is not None
    stacked = rule(signals)
    for student in range(3):
        alone = rule(
            Signals(
                signals.student_logits[student],
                signals.teacher_logits[student],
                signals.labels[student],
                signals.progress,
            )
        )
        torch.testing.assert_close(stacked.student[student], alone.student)
        torch.testing.assert_close(stacked.weight[student], alone.weight)


@every_rule
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([0.0, 0.01, 3.0, 1e3]))
@settings(max_examples=20)
def test_every_rules_loss_has_a_finite_gradient(name: str, seed: int, scale: float) -> None:
    signals = random_signals((8,), 10, seed, scale)
    signals.student_logits.requires_grad_()
    kd_loss(signals, RULES[name]()(signals)).mean().backward()
    assert signals.student_logits.grad is not None
    assert signals.student_logits.grad.isfinite().all()


@every_rule
def test_every_rule_changes_nothing_that_it_is_given(name: str) -> None:
    signals = random_signals((5,), 4, 2)
    before = signals.student_logits.clone(), signals.teacher_logits.clone()
    RULES[name]()(signals)
    assert torch.equal(signals.student_logits, before[0])
    assert torch.equal(signals.teacher_logits, before[1])
