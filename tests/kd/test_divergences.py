"""A contract that every entry of DIVERGENCES keeps, read off its docstring; and DKD, which underflows as published.

Their values stand in test_rule_values.py.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rltemp import BadInputError, Signals, kd_loss
from rltemp.kd.divergences import DIVERGENCES, dkd, log_softmax, tckd
from rltemp.kd.signals import Divergence
from rltemp.rules import fixed
from rltemp.rules.catalogue import facts

every_divergence = pytest.mark.parametrize("name", sorted(DIVERGENCES))
seeds = st.integers(0, 10**6)
# Of the teacher's logits, where a divergence from the student is zero: everywhere at q = p, but veto's.
ZERO_AT = {"veto": 0.7}
# Rounding in float32 of a sum of terms of the size of the largest; an 8 stands before DKD's second part.
ROUNDING = 1e-5


def drawn(
    shape: tuple[int, ...], classes: int, seed: int, scale: float = 3.0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """The student's and the teacher's softened logits, and labels."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (scale * torch.randn(2, *shape, classes, generator=generator)).to(dtype)
    return student.requires_grad_(), teacher, torch.randint(0, classes, shape, generator=generator)


@every_divergence
@given(
    shape=st.sampled_from([(), (1,), (7,), (2, 5), (3, 2, 2)]),
    classes=st.sampled_from([2, 3, 15, 16, 100, 1000]),
    seed=seeds,
    scale=st.sampled_from([0.0, 1e-6, 0.01, 1.0, 10.0, 1e4]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=40)
def test_every_divergence_is_one_finite_number_a_sample_and_not_negative(
    name: str, shape: tuple[int, ...], classes: int, seed: int, scale: float, dtype: torch.dtype
) -> None:
    student, teacher, labels = drawn(shape, classes, seed, scale, dtype)
    found = DIVERGENCES[name]()(student, teacher, labels)
    assert found.shape == shape
    assert found.dtype == dtype
    assert found.isfinite().all()
    assert (found >= -ROUNDING).all()
    found.sum().backward()
    assert student.grad.isfinite().all()
    assert teacher.grad is None


def assert_nothing_between_equals(name: str, student: Tensor, labels: Tensor) -> None:
    found = DIVERGENCES[name]()(student, ZERO_AT.get(name, 1.0) * student.detach().clone(), labels)
    found.sum().backward()
    assert found.abs().max() < ROUNDING
    assert student.grad.abs().max() < ROUNDING


@every_divergence
@given(shape=st.sampled_from([(), (5,), (2, 3)]), classes=st.sampled_from([2, 10, 100]), seed=seeds)
@settings(max_examples=15)
def test_every_divergence_is_zero_between_equals_and_its_gradient_too(
    name: str, shape: tuple[int, ...], classes: int, seed: int
) -> None:
    student, _, labels = drawn(shape, classes, seed)
    assert_nothing_between_equals(name, student, labels)


@every_divergence
@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e4, -1e4])
def test_every_divergence_takes_constant_logits(name: str, value: float) -> None:
    assert_nothing_between_equals(name, torch.full((3, 5), value, requires_grad=True), torch.arange(3))


@every_divergence
def test_every_divergence_is_above_zero_and_changes_no_input(name: str) -> None:
    tensors = drawn((200,), 10, 0)
    before = [tensor.detach().clone() for tensor in tensors]
    found = DIVERGENCES[name]()(*tensors)
    found.sum().backward()
    assert (found > 0).all()
    assert all(torch.equal(tensor, old) for tensor, old in zip(tensors, before, strict=True))


@every_divergence
def test_every_divergence_describes_itself_and_its_need_of_labels(name: str) -> None:
    told = facts(DIVERGENCES[name])
    assert {"Formula", "Source", "Labels", "Guard"} <= told.keys()
    assert told["Labels"] in ("yes", "no")
    student, teacher, labels = drawn((5,), 7, 0)
    divergence = DIVERGENCES[name]()
    if told["Labels"] == "yes":
        with pytest.raises(BadInputError, match="needs labels; these signals carry none"):
            divergence(student, teacher, None)
        assert not torch.allclose(divergence(student, teacher, labels), divergence(student, teacher, (labels + 1) % 7))
    else:
        torch.testing.assert_close(divergence(student, teacher, None), divergence(student, teacher, labels))


@every_divergence
@given(seed=seeds, amounts=st.tuples(st.floats(-20, 20), st.floats(1, 20)))
@settings(max_examples=15)
def test_every_divergence_of_distributions_ignores_a_shift_of_logits(
    name: str, seed: int, amounts: tuple[float, float]
) -> None:
    student, teacher, labels = drawn((6,), 8, seed, dtype=torch.float64)
    steps = torch.linspace(1, 2, 6, dtype=torch.float64).unsqueeze(-1)
    divergence = DIVERGENCES[name]()
    found = divergence(student, teacher, labels)
    moved = divergence(student + amounts[0] * steps, teacher + amounts[1] * steps, labels)
    if name != "mse":
        torch.testing.assert_close(moved, found)
    elif abs(amounts[0] - amounts[1]) > 0.1:
        assert not torch.allclose(moved, found)


@every_divergence
def test_every_divergence_is_blind_to_other_samples_and_takes_any_size(name: str) -> None:
    student, teacher, labels = drawn((9,), 20, 1)
    divergence, order = DIVERGENCES[name](), torch.randperm(9)[:4]
    part = divergence(student[order], teacher[order], labels[order])
    torch.testing.assert_close(part, divergence(student, teacher, labels)[order])
    assert divergence(*drawn((2,), 100_000, 0)).isfinite().all()
    assert divergence(*drawn((0,), 10, 0)).shape == (0,)


@every_divergence
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_divergence_is_float32_on_half_precision_or_autocast(name: str, dtype: torch.dtype) -> None:
    student, teacher, labels = drawn((6,), 10, 0, dtype=dtype)
    signals, divergence = Signals(student, teacher, labels), DIVERGENCES[name]()
    wide = Signals(student.float(), teacher.float(), labels)
    wanted = kd_loss(wide, fixed()(wide), divergence)
    with torch.autocast("cpu", dtype):
        inside = kd_loss(signals, fixed()(signals), divergence)
    for found in (inside, kd_loss(signals, fixed()(signals), divergence)):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    inside.sum().backward()
    assert student.grad.isfinite().all()


# DKD


@pytest.mark.parametrize("divergence", [dkd(), tckd(), dkd(target=2.0, non_target=0.5)], ids=["dkd", "tckd", "both"])
@pytest.mark.parametrize(("student_gap", "teacher_gap"), [(120.0, 3.0), (3.0, 120.0), (120.0, 140.0), (-120.0, 5.0)])
def test_dkd_is_right_where_a_probability_underflows(
    divergence: Divergence, student_gap: float, teacher_gap: float
) -> None:
    def found(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        student = torch.tensor([[student_gap, 0.0, -1.0]], dtype=dtype, requires_grad=True)
        teacher = torch.tensor([[teacher_gap, -1.0, 0.0]], dtype=dtype)
        value = divergence(student, teacher, torch.tensor([0]))
        return value, torch.autograd.grad(value.sum(), student)[0]

    for narrow, wide in zip(found(torch.float32), found(torch.float64), strict=True):
        # A float32 near 120 resolves 8e-6, and DKD's second part counts eight times.
        torch.testing.assert_close(narrow.double(), wide, rtol=1e-5, atol=2e-5)
        assert wide.isfinite().all()


def test_dkd_as_published_is_not() -> None:
    student, teacher = torch.tensor([[120.0, 0.0, -1.0]], requires_grad=True), torch.tensor([[3.0, 0.0, 1.0]])
    labels = torch.tensor([0])
    published = dkd(published=True)(student, teacher, labels)
    assert not published.isfinite().any()
    # The float64 value by hand: q_rest = (1 + 1/e) e^-120 to first order, and NCKD does not see the gap.
    rest = (1 + math.e) / (math.e**3 + 1 + math.e)
    target = rest * (math.log(rest) + 120 - math.log(1 + 1 / math.e)) + (1 - rest) * math.log(1 - rest)
    p, q = 1 / (1 + math.e), 1 / (1 + 1 / math.e)
    others = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert dkd()(student, teacher, labels).item() == pytest.approx(target + 8 * others, rel=1e-6)


@given(seed=seeds, classes=st.sampled_from([2, 3, 10, 100]))
@settings(max_examples=20)
def test_dkd_as_published_or_by_logs_is_one_function_without_underflow(seed: int, classes: int) -> None:
    student, teacher, labels = drawn((6,), classes, seed, scale=1.0, dtype=torch.float64)
    torch.testing.assert_close(dkd(published=True)(student, teacher, labels), dkd()(student, teacher, labels))


def test_two_classes_leave_nothing_beside_the_target() -> None:
    student, teacher, labels = drawn((50,), 2, 0)
    found = DIVERGENCES["nckd"]()(student, teacher, labels)
    found.sum().backward()
    assert (found == 0).all()
    assert (student.grad == 0).all()
    torch.testing.assert_close(tckd()(student, teacher, labels), DIVERGENCES["kl"]()(student, teacher, labels))


@pytest.mark.parametrize("name", ["dkd", "tckd", "nckd"])
def test_one_class_has_nothing_beside_the_target(name: str) -> None:
    with pytest.raises(BadInputError, match=r"DKD needs at least 2 classes; got logits of shape \(3, 1\)"):
        DIVERGENCES[name]()(torch.ones(3, 1), torch.zeros(3, 1), torch.zeros(3, dtype=torch.long))


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("dkd", {"target": -1.0}, "dkd: target must be finite and at least 0; got -1.0"),
        ("dkd", {"non_target": math.inf}, "dkd: non_target must be finite and at least 0; got inf"),
        ("dkd", {"published": "yes"}, "dkd: published must be true or false; got 'yes'"),
        ("dkd", {"target": 0.0, "non_target": 0.0}, "dkd: target or non_target must be above 0"),
        ("veto", {"beta": 0}, "veto: beta must be finite and above 0; got 0"),
        ("veto", {"beta": 1.0}, "veto: beta must be above 0 and below 1; got 1.0"),
        ("multi", {"lowest": 1.5}, "multi: lowest must be below highest; got 1.5 and 1.5"),
        ("multi", {"count": 1}, "multi: count must be a whole number of 2 or more; got 1"),
        ("multi", {"highest": math.nan}, "multi: highest must be finite and above 0; got nan"),
        ("top_k", {"count": 0}, "top_k: count must be a whole number of 1 or more; got 0"),
        ("top_k", {"count": 2.0}, "top_k: count must be a whole number of 1 or more; got 2.0"),
    ],
)
def test_options_are_checked_where_a_divergence_is_made(name: str, options: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInputError, match=named):
        DIVERGENCES[name](**options)


# Those of tokens


def test_todis_value_is_the_sum_of_both_divergences() -> None:
    student, teacher, _ = drawn((50,), 9, 0, dtype=torch.float64)
    both = DIVERGENCES["kl"]()(student, teacher, None) + DIVERGENCES["reverse_kl"]()(student, teacher, None)
    found = DIVERGENCES["todi"]()(student, teacher, None)
    torch.testing.assert_close(found, both)
    gradients = [torch.autograd.grad(each.sum(), student, retain_graph=True)[0] for each in (found, both)]
    assert (gradients[0] - gradients[1]).abs().max() > 0.01


def test_many_temperatures_around_four_are_the_mean_of_plain_ones() -> None:
    student, teacher, labels = drawn((20,), 9, 0, dtype=torch.float64)
    signals = Signals(student, teacher, labels)
    each = torch.stack([kd_loss(signals, fixed(float(temperature))(signals)) for temperature in (2, 3, 4, 5, 6)])
    torch.testing.assert_close(kd_loss(signals, fixed(4.0)(signals), DIVERGENCES["multi"]()), each.mean(0))


@pytest.mark.parametrize("count", [1, 3, 19])
def test_the_top_of_a_teacher_says_less_than_all_of_it(count: int) -> None:
    student, teacher, _ = drawn((50,), 20, 0, dtype=torch.float64)
    found, whole = DIVERGENCES["top_k"](count)(student, teacher, None), DIVERGENCES["kl"]()(student, teacher, None)
    if count == 19:  # a bucket of one class is that class
        torch.testing.assert_close(found, whole)
    else:
        assert (found < whole).all()


def test_jensen_shannon_stays_below_log_two_and_is_the_same_both_ways() -> None:
    student, teacher, _ = drawn((100,), 5, 0, scale=30.0)
    forth, back = (DIVERGENCES["jensen_shannon"]()(*pair, None) for pair in ((student, teacher), (teacher, student)))
    torch.testing.assert_close(forth, back)
    assert forth.max() <= math.log(2) + ROUNDING
    assert forth.max() > 0.9 * math.log(2)


@pytest.mark.parametrize("classes", [2, 15, 16, 17, 100])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_log_softmax_is_torchs_whichever_axis_it_runs_along(classes: int, shape: tuple[int, ...]) -> None:
    logits = torch.randn(*shape, classes) * 5
    torch.testing.assert_close(log_softmax(logits), torch.log_softmax(logits, -1))


@every_divergence
@pytest.mark.parametrize("scale", [1e19, 1e37, 3e38])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_every_divergence_and_its_gradient_is_finite_on_finite_logits(
    name: str, scale: float, temperature: float
) -> None:
    student, teacher, labels = drawn((8,), 6, 0)
    largest = max(student.abs().max().item(), teacher.abs().max().item())
    signals = Signals((scale / largest) * student, (scale / largest) * teacher, labels)
    loss = kd_loss(signals, fixed(temperature)(signals), DIVERGENCES[name]())
    assert loss.isfinite().all()
    assert torch.autograd.grad(loss.sum(), student)[0].isfinite().all()


@every_divergence
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_reaches_the_loss_of_its_sample_alone(name: str, value: float) -> None:
    student, teacher, labels = drawn((4,), 6, 0)
    student = student.detach().clone()
    student[1, 2] = value
    signals = Signals(student, teacher, labels)
    loss = kd_loss(signals, fixed()(signals), DIVERGENCES[name]())
    assert loss.isfinite().tolist() == [True, False, True, True]
