"""Rules: their options and guards, and a contract that every entry of RULES keeps, read off its docstring.

Their values stand in test_rule_values.py, masks in test_masks.py, what is learned in test_curriculum.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from inspect import signature
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.data import table
from support.device_reads import DeviceReads
from support.signals import columns, drawn, started
from torch import Tensor
from torch.nn import functional as F

from rltemp import BadInputError, Signals, Temperatures, kd_loss
from rltemp.kd.checks import check_temperatures
from rltemp.rules import RULES, dtkd, fixed
from rltemp.rules.catalogue import facts
from rltemp.rules.curriculum import LearnedRule

Vector = tuple[Tensor, Tensor, Tensor]


def one(student: list[float], teacher: list[float]) -> Signals:
    return Signals(torch.tensor([student], requires_grad=True), torch.tensor([teacher]))


def gradient_of(signals: Signals, temperatures: Temperatures) -> Tensor:
    return torch.autograd.grad(kd_loss(signals, temperatures).sum(), signals.student_logits)[0]


# Options and guards

POSITIVE = {"temperature", "reference", "gamma", "start", "end", "span", "strength", "step", "ratio", "sure", "unsure"}


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        *(
            (name, {option: value}, f"{name}: {option} must be finite and above 0; got {value!r}")
            for name, factory in RULES.items()
            for option in sorted(POSITIVE & signature(factory).parameters.keys())
            for value in (0, -4.0, math.inf, math.nan, True, "warm")
        ),
        ("random", {"maximum": math.nan}, "random: maximum must be finite and above 0; got nan"),
        ("ctkd", {"initial": math.inf}, "ctkd: initial must be finite; got inf"),
        *table("rules/refused_options"),
    ],
)
def test_options_are_checked_where_the_rule_is_made(name: str, options: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInputError, match=named):
        RULES[name](**options)


@pytest.mark.parametrize("value", [0.0, -2.5, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["student", "teacher"])
def test_a_bad_temperature_is_refused_by_field_value_sample_and_source(value: float, field: str) -> None:
    good, bad = torch.full((2, 3), 4.0), torch.full((2, 3), 4.0)
    bad[1, 2] = value
    fields = {"student": good, "teacher": good, "weight": good, field: bad}
    with pytest.raises(BadInputError, match=rf"^{field} temperature .* got {value} for sample 5 from my_rule$"):
        check_temperatures(Temperatures(**fields), "my_rule")
    check_temperatures(Temperatures(good, good, good), "my_rule")


@pytest.mark.parametrize(("student", "teacher"), table("rules/values", "dtkd_without_a_positive_logit"))
def test_dtkd_falls_back_to_plain_distillation_without_a_positive_logit(
    student: list[float], teacher: list[float]
) -> None:
    signals = one(student, teacher)
    temperatures, plain = dtkd(4.0)(signals), fixed(4.0)(signals)
    assert columns(temperatures).tolist() == [[4.0, 4.0, 16.0]]
    assert temperatures.guarded.item()
    torch.testing.assert_close(gradient_of(signals, temperatures), gradient_of(signals, plain))


def test_a_guarded_sample_leaves_its_neighbours_alone(vector_a: Vector) -> None:
    teacher, student, _ = vector_a
    signals = Signals(torch.stack([student, student - 2.5, student]).requires_grad_(), torch.stack([teacher] * 3))
    temperatures = dtkd(4.0)(signals)
    assert temperatures.guarded.tolist() == [False, True, False]
    assert temperatures.student.tolist() == pytest.approx([2.66666667, 4.0, 2.66666667])
    gradient = gradient_of(signals, temperatures)
    assert gradient.isfinite().all()
    assert gradient[0, 0].item() == pytest.approx(-0.15865115, abs=1e-6)


def test_dtkds_bounds_keep_a_fresh_students_temperature_up_and_say_so() -> None:
    signals = one([0.01, -0.02, 0.0], [9.99, 1.0, 0.0])
    bounded, published = dtkd(16.0)(signals), dtkd(16.0, published=True)(signals)
    assert columns(bounded).tolist() == [[0.5, 20.0, 10.0]]
    assert bounded.guarded.item()
    # 2 * 0.01 / 10 * 16 and 2 * 9.99 / 10 * 16
    assert published.student.item() == pytest.approx(0.032)
    assert published.teacher.item() == pytest.approx(31.968)


def test_the_exact_rule_falls_back_where_no_shift_makes_both_as_sharp() -> None:
    signals = one([1e4, 0.0, -1e4], [1.0, 0.0, -1.0])
    answer = RULES["dtkd_exact"](3.0)(signals)
    assert columns(answer).tolist() == [[3.0, 3.0, 9.0]]
    assert answer.guarded.item()


def test_idts_gives_equal_networks_the_reference() -> None:
    logits = torch.randn(5, 4)
    answer = RULES["idts"](2.0)(Signals(logits, logits + 1))
    assert answer.student.tolist() == pytest.approx([2.0] * 5, rel=0.02)


def test_energy_moves_the_surest_and_the_least_sure_by_one_step() -> None:
    teacher = torch.arange(10.0).unsqueeze(-1) * torch.tensor([1.0, 0.0])
    answer = RULES["energy"]()(Signals(torch.zeros(10, 2), teacher))
    assert answer.student.tolist() == [2.0] * 3 + [4.0] * 4 + [6.0] * 3
    assert RULES["energy"](share=0.0)(Signals(torch.zeros(10, 2), teacher)).student.tolist() == [4.0] * 10


def test_cswt_gives_the_most_similar_sample_the_lowest_temperature() -> None:
    teacher = torch.tensor([[5.0, 0.0]] * 3)
    answer = RULES["cswt"]()(Signals(torch.tensor([[0.0, 5.0], [5.0, 0.0], [2.0, 2.0]]), teacher))
    assert answer.student[:2].tolist() == pytest.approx([6.0, 2.0])
    assert 2 < answer.student[2] < 6
    assert not answer.guarded.any()


def test_random_temperatures_are_log_uniform_and_new_each_step_and_seed() -> None:
    signals = Signals(
        torch.zeros(4000, 10), torch.randn(4000, 10, generator=torch.Generator().manual_seed(0)), progress=0.0
    )
    drawn = RULES["random"]()(signals).student
    place = drawn.log() / math.log(10)
    ordered = place.sort().values
    assert (ordered - torch.linspace(0, 1, 4000)).abs().max() < 0.03  # Kolmogorov-Smirnov at 0.1 %: 1.95 / sqrt 4000
    later, other = RULES["random"]()(replace(signals, progress=0.01)), RULES["random"](seed=1)(signals)
    for again in (later.student, other.student):
        pair = torch.stack([place, again.log() / math.log(10)])
        assert torch.corrcoef(pair)[0, 1].abs() < 0.06


@pytest.mark.parametrize(
    ("name", "quarters"),
    [
        ("linear_schedule", [8.0, 6.25, 4.5, 2.75, 1.0]),
        ("cosine_schedule", [8.0, 4.5 + 3.5 / math.sqrt(2), 4.5, 4.5 - 3.5 / math.sqrt(2), 1.0]),
        ("step_schedule", [8.0, 4.0, 2.0, 1.0, 1.0]),
    ],
)
def test_a_schedule_starts_at_its_start_and_ends_at_its_end(name: str, quarters: list[float]) -> None:
    signals = one([1.0, 0.0], [2.0, 0.0])
    found = [RULES[name]()(replace(signals, progress=quarter / 4)).student.item() for quarter in range(5)]
    assert found == pytest.approx(quarters)


# The contract: whatever is put into RULES keeps it, unasked.

SHAPES = [(), (1,), (7,), (2, 5), (3, 2, 2)]
every_rule = pytest.mark.parametrize("name", sorted(RULES))
seeds = st.integers(0, 10**6)
Change = Callable[[Signals], Signals]


def chosen(signals: Signals, index: Tensor) -> Signals:
    fields = ("student_logits", "teacher_logits", "labels")
    return replace(signals, stacked=False, **{name: getattr(signals, name)[index] for name in fields})


def compares(name: str) -> bool:
    return facts(RULES[name]).get("Batch") == "compared"


def assert_answer_is_usable(name: str, temperatures: Temperatures, signals: Signals) -> None:
    dtype = torch.float64 if signals.student_logits.dtype == torch.float64 else torch.float32
    low, high = (float(bound) for bound in facts(RULES[name])["Bounds"].split(" to "))
    for field in ("student", "teacher", "weight"):
        values = getattr(temperatures, field)
        assert tuple(values.shape) == tuple(signals.shape), field
        assert values.dtype == dtype, field
        assert values.isfinite().all(), field
        if field != "weight":
            assert ((values >= low * (1 - 1e-6)) & (values <= high * (1 + 1e-6))).all(), field
    check_temperatures(temperatures, "contract")
    assert (temperatures.weight >= 0).all()
    if temperatures.guarded is not None:
        assert temperatures.guarded.dtype == torch.bool
    loss = kd_loss(signals, temperatures)
    assert loss.dtype == dtype
    assert loss.isfinite().all()


@every_rule
def test_every_rule_says_what_it_is_and_what_it_keeps_to(name: str) -> None:
    told = facts(RULES[name])
    assert {"Formula", "Source", "Labels", "Bounds", "Invariant", "Guard"} <= told.keys()
    assert told["Labels"] in ("yes", "no")
    assert told["Invariant"] in ("none", "shift", "scale", "shift, scale", "shift, equivariant")
    assert told.get("Batch", "compared") == "compared"


@every_rule
@given(
    shape=st.sampled_from(SHAPES),
    classes=st.sampled_from([2, 3, 10, 100, 1000]),
    seed=seeds,
    scale=st.sampled_from([0.0, 1e-6, 0.01, 1.0, 10.0, 1e4]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
@settings(max_examples=40)
def test_every_rule_answers_a_positive_number_a_sample_within_its_bounds(
    name: str, shape: tuple[int, ...], classes: int, seed: int, scale: float, dtype: torch.dtype
) -> None:
    signals = drawn(shape, classes, seed, scale, dtype)
    if facts(RULES[name])["Labels"] == "no":
        signals = replace(signals, labels=None)
    assert_answer_is_usable(name, started(RULES[name](), classes)(signals), signals)


@pytest.mark.filterwarnings("ignore:var\\(\\):UserWarning")  # torch's, of no sample at all
@every_rule
def test_every_rule_takes_a_hundred_thousand_classes_and_no_sample_at_all(name: str) -> None:
    for shape, classes in (((2,), 100_000), ((0,), 10)):
        signals = drawn(shape, classes, 0)
        assert_answer_is_usable(name, started(RULES[name](), classes)(signals), signals)


@every_rule
@given(seed=seeds)
@settings(max_examples=15)
def test_every_rule_is_blind_to_order_and_to_what_it_does_not_compare(name: str, seed: int) -> None:
    signals, rule = drawn((9,), 6, seed), started(RULES[name](), 6)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    answer = columns(rule(signals))
    torch.testing.assert_close(columns(rule(chosen(signals, order))), answer[order])
    if not compares(name):
        torch.testing.assert_close(columns(rule(chosen(signals, order[:4]))), answer[order[:4]])


@pytest.mark.parametrize("name", [name for name in sorted(RULES) if compares(name)])
def test_a_rule_that_says_so_does_look_at_the_rest_of_the_batch(name: str) -> None:
    signals, rule = drawn((9,), 6, 0), started(RULES[name](), 6)
    alone = columns(rule(chosen(signals, torch.arange(4))))
    assert (alone - columns(rule(signals))[:4]).abs().max() > 0.01


@every_rule
@given(seed=seeds, amounts=st.tuples(st.floats(-20, 20), st.floats(-20, 20)), factor=st.floats(0.25, 4))
@settings(max_examples=15)
def test_every_rule_is_invariant_to_what_it_says(
    name: str, seed: int, amounts: tuple[float, float], factor: float
) -> None:
    signals, rule = drawn((6,), 8, seed, dtype=torch.float64), started(RULES[name](), 8)
    kept, answer = facts(RULES[name])["Invariant"], rule(signals)
    if "shift" in kept:
        torch.testing.assert_close(columns(rule(shifted(*amounts)(signals))), columns(answer), rtol=1e-6, atol=1e-6)
    if "scale" in kept:
        torch.testing.assert_close(columns(rule(scaled(factor, factor)(signals))), columns(answer))
    if "equivariant" in kept:
        for factors in ((factor, 1.0), (1.0, factor)):
            found = rule(scaled(*factors)(signals))
            torch.testing.assert_close(found.student, factors[0] * answer.student)
            torch.testing.assert_close(found.teacher, factors[1] * answer.teacher)


def shifted(student: float, teacher: float) -> Change:
    """Another constant for each sample, to either network's logits."""

    def change(signals: Signals) -> Signals:
        steps = torch.linspace(1, 2, signals.shape.numel(), dtype=signals.dtype).view(*signals.shape, 1)
        moved = (signals.student_logits + student * steps, signals.teacher_logits + teacher * steps)
        return replace(signals, student_logits=moved[0], teacher_logits=moved[1])

    return change


def scaled(student: float, teacher: float) -> Change:
    return lambda signals: replace(
        signals, student_logits=student * signals.student_logits, teacher_logits=teacher * signals.teacher_logits
    )


@every_rule
@pytest.mark.parametrize("claim", ["shift", "scale", "equivariant"])
def test_what_a_rule_does_not_say_it_is_invariant_to_moves_it(name: str, claim: str) -> None:
    if claim in facts(RULES[name])["Invariant"]:
        return
    rule, moved = started(RULES[name](), 8), 0.0
    change = {"shift": shifted(1.0, 2.0), "scale": scaled(0.05, 0.05), "equivariant": scaled(2.0, 1.0)}[claim]
    for seed in range(5):
        signals = drawn((6,), 8, seed, dtype=torch.float64)
        before, after = columns(rule(signals)), columns(rule(change(signals)))
        if claim == "equivariant":
            before, after = before[:, :2] * torch.tensor([2.0, 1.0]), after[:, :2]
        moved = max(moved, (after - before).abs().max().item())
    assert moved > 1e-3


@every_rule
@given(seed=seeds, shape=st.sampled_from([(3, 8), (2, 3, 4), (1, 1)]))
@settings(max_examples=10)
def test_every_rule_gives_a_stack_what_it_gives_each_student(name: str, seed: int, shape: tuple[int, ...]) -> None:
    signals, rule = replace(drawn(shape, 6, seed), stacked=True), started(RULES[name](), 6)
    answer = columns(rule(signals))
    for student in range(shape[0]):
        alone = columns(rule(chosen(signals, torch.tensor(student))))
        torch.testing.assert_close(answer[student], alone)


@every_rule
@given(
    seed=seeds,
    classes=st.sampled_from([2, 10]),
    scale_and_dtype=st.sampled_from(
        [(scale, dtype) for scale in (0.0, 0.01, 3.0, 1e4) for dtype in (torch.float32, torch.float64, torch.bfloat16)]
        + [(scale, torch.float16) for scale in (0.0, 3.0, 30.0)]
    ),
)
@settings(max_examples=20)
def test_every_rules_loss_has_a_finite_gradient(
    name: str, seed: int, classes: int, scale_and_dtype: tuple[float, torch.dtype]
) -> None:
    signals = drawn((8,), classes, seed, *scale_and_dtype)
    signals.student_logits.requires_grad_()
    gradient = gradient_of(signals, started(RULES[name](), classes)(signals))
    assert gradient.dtype == scale_and_dtype[1]
    assert gradient.isfinite().all()


@every_rule
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_rule_computes_in_float32_under_autocast(name: str, dtype: torch.dtype) -> None:
    inputs, weight = torch.randn(2, 6, 4), torch.randn(4, 10, requires_grad=True)
    rule = started(RULES[name](), 10)
    with torch.autocast("cpu", dtype):
        student, teacher = inputs @ weight
        assert student.dtype == dtype
        signals = Signals(student, teacher.detach(), torch.zeros(6, dtype=torch.long), 0.5)
        answer = rule(signals)
        loss = kd_loss(signals, answer)
    assert_answer_is_usable(name, answer, signals)
    torch.testing.assert_close(loss, kd_loss(signals, rule(signals)), rtol=1e-6, atol=1e-6)
    loss.mean().backward()
    assert weight.grad.isfinite().all()


@every_rule
def test_every_rule_changes_nothing_that_it_is_given(name: str) -> None:
    signals, rule = drawn((5,), 4, 2), started(RULES[name](), 4)
    tensors = [signals.student_logits, signals.teacher_logits, signals.labels]
    tensors += list(rule.parameters()) if isinstance(rule, LearnedRule) else []
    before = [tensor.clone() for tensor in tensors if tensor is not None]
    first, second = columns(rule(signals)), columns(rule(signals))
    assert torch.equal(first, second)
    assert all(torch.equal(tensor, old) for tensor, old in zip(tensors, before, strict=True))


@every_rule
@pytest.mark.parametrize(
    ("kind", "scale"),
    [(kind, scale) for kind in ("spread", "signs", "one") for scale in (1e19, 1e37, 3e38)]
    + [("constant", value) for value in (0.0, 3.0, -3.0, 1e4, -1e4)],
)
def test_every_rule_and_its_gradient_is_finite_for_every_finite_logit(name: str, scale: float, kind: str) -> None:
    drawn = torch.randn(2, 8, 6, generator=torch.Generator().manual_seed(3))
    unit = {
        "spread": drawn / drawn.abs().max(),
        "signs": drawn.sign(),
        "one": F.one_hot(drawn.argmax(-1), 6).float(),
        "constant": torch.ones_like(drawn),
    }[kind]
    signals = Signals(scale * unit[0].requires_grad_(), scale * unit[1], torch.zeros(8, dtype=torch.long), 0.5)
    found = started(RULES[name](), 6)(signals)
    if kind == "constant":
        assert_answer_is_usable(name, found, signals)
    check_temperatures(found, name)
    assert columns(found).isfinite().all()
    loss = kd_loss(signals, found)
    assert loss.isfinite().all()
    assert torch.autograd.grad((loss + columns(found).sum(-1)).sum(), signals.student_logits)[0].isfinite().all()


@every_rule
@pytest.mark.parametrize(("tensor", "number"), [(0.3, 0.3), (0.77, 0.77), (1.3, 1.0), (-0.2, 0.0)])
def test_every_rule_takes_progress_as_a_tensor_and_never_reads_it(name: str, tensor: float, number: float) -> None:
    signals, rule = drawn((9,), 6, 0), started(RULES[name](), 6)
    wanted = columns(rule(replace(signals, progress=number)))
    done = torch.tensor(tensor, dtype=torch.float64)
    with DeviceReads() as reads:
        found = columns(rule(replace(signals, progress=done)))
    assert reads.places == []
    torch.testing.assert_close(found, wanted)


@every_rule
def test_a_rule_that_uses_progress_says_so_and_refuses_a_call_without_it(name: str) -> None:
    signals, rule = drawn((9,), 6, 0), started(RULES[name](), 6)
    early, late = (columns(rule(replace(signals, progress=done))) for done in (0.0, 1.0))
    unknown = replace(signals, progress=math.nan)
    if not rule.uses_progress:
        assert torch.equal(early, late)
        assert torch.equal(columns(rule(unknown)), late)
        return
    assert isinstance(rule, LearnedRule) or not torch.equal(early, late)  # of one that learns, the gradient does
    with pytest.raises(BadInputError, match=f"^{rule.name} uses the progress of the run: give progress, 0 to 1"):
        rule(unknown)
