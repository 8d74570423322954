"""Blocks change neither a number nor a gradient, whatever is cut, and keep memory down."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rltemp import Signals, Temperatures, kd_loss
from rltemp.kd import rowwise as blocks
from rltemp.kd.divergences import forward_kl
from rltemp.rules import RULES

SHAPES = [(), (1,), (7,), (2, 5), (2, 3, 4)]
CLASSES = 20


@pytest.fixture(params=[1, 45, 2**17], ids=["rows of one", "two rows", "whole"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(blocks, "_BLOCK_CPU", request.param // torch.get_num_threads() or 1)
    return int(request.param)


def drawn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def problem(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Student's and teacher's logits, both temperatures and the weight; all but the teacher's with a gradient."""
    logits = 3 * drawn(*shape, CLASSES, dtype=dtype), 3 * drawn(*shape, CLASSES, dtype=dtype, seed=1)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    rest = (drawn(*shape, dtype=exact, seed=seed).exp() for seed in (2, 3, 4))
    student, teacher, *rest = (*logits, *rest)
    return student.requires_grad_(), teacher, *(value.requires_grad_() for value in rest)


def loss(student: Tensor, teacher: Tensor, student_t: Tensor, teacher_t: Tensor, weight: Tensor) -> Tensor:
    return kd_loss(Signals(student, teacher), Temperatures(student_t, teacher_t, weight))


def plain(student: Tensor, teacher: Tensor, student_t: Tensor, teacher_t: Tensor, weight: Tensor) -> Tensor:
    exact = torch.float64 if student.dtype == torch.float64 else torch.float32
    student, teacher = student.to(exact) / student_t.unsqueeze(-1), teacher.to(exact) / teacher_t.unsqueeze(-1)
    return weight * forward_kl(student, teacher)


def assert_same(values: tuple[Tensor, ...], digits: float | None = None) -> None:
    """The loss and all its gradients are those of the plain formula."""
    for ours, theirs in zip(outcome(loss, values), outcome(plain, values), strict=True):
        assert ours.dtype == theirs.dtype
        atol = None if digits is None else digits * max(1.0, theirs.abs().max().item())
        torch.testing.assert_close(ours, theirs, rtol=digits, atol=atol)


def outcome(function: Callable[..., Tensor], values: tuple[Tensor, ...]) -> list[Tensor]:
    """The value and its gradient under an uneven outer one."""
    value = function(*values)
    outer = torch.linspace(-1, 2, max(value.numel(), 1), dtype=value.dtype).view(value.shape)
    wanted = [each for each in values if each.requires_grad]
    return [value, *torch.autograd.grad(value, wanted, outer)]


# Temperatures go down to 0.05 here: in float32 both formulas then differ from float64 by up to 2e-5.
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("dtype", "digits"), [(torch.float64, 1e-12), (torch.float32, 3e-5), (torch.bfloat16, 1e-2)], ids=str
)
def test_the_loss_and_all_its_gradients_are_those_of_the_plain_formula(
    block: int, shape: tuple[int, ...], dtype: torch.dtype, digits: float
) -> None:
    assert_same(problem(shape, dtype), digits)


@pytest.mark.parametrize("constant", ["student", "student_t", "teacher_t", "both temperatures"])
def test_what_needs_no_gradient_gets_none(block: int, constant: str) -> None:
    names = ("student", "teacher", "student_t", "teacher_t", "weight")
    held = ("student_t", "teacher_t") if constant == "both temperatures" else (constant,)
    assert_same(tuple(v.detach() if name in held else v for name, v in zip(names, problem((7,)), strict=True)))


def test_the_gradients_gradient_is_right_for_temperatures_from_the_logits(block: int) -> None:
    student, teacher, _, teacher_t, weight = problem((3,))

    def along(function: Callable[..., Tensor]) -> Tensor:
        values = student, teacher, student.amax(-1).exp() + teacher_t, teacher_t + student.logsumexp(-1), weight
        (first,) = torch.autograd.grad(function(*values).sum(), student, create_graph=True)
        return torch.cat([g.flatten() for g in torch.autograd.grad(first.square().sum(), [student, teacher_t, weight])])

    torch.testing.assert_close(along(loss), along(plain))


def test_gradgradcheck_passes(block: int) -> None:
    student, teacher, *rest = problem((2,))
    assert torch.autograd.gradcheck(lambda *values: loss(values[0], teacher, *values[1:]), (student, *rest))
    assert torch.autograd.gradgradcheck(lambda *values: loss(values[0], teacher, *values[1:]), (student, *rest))


@pytest.mark.parametrize("name", sorted(RULES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_rule_is_the_same_in_blocks(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = RULES[name]()
    answers = []
    for numbers in (2**17, 2 * CLASSES):
        monkeypatch.setattr(blocks, "_BLOCK_CPU", numbers)
        torch.manual_seed(0)
        student = (2 * drawn(3, 5, CLASSES, dtype=dtype)).requires_grad_()
        labels = torch.zeros(3, 5, dtype=torch.long)
        signals = Signals(student, 3 * drawn(3, 5, CLASSES, dtype=dtype, seed=1), labels, 0.3)
        value = kd_loss(signals, rule(signals))
        value.sum().backward()
        answers.append((value.detach(), student.grad))
    for cut, whole in zip(*answers, strict=True):
        torch.testing.assert_close(cut, whole)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (partial(blocks.rowwise, blocks.LARGEST), lambda logits: logits.amax(-1)),
        (blocks.logsumexp, lambda logits: logits.logsumexp(-1)),
    ],
    ids=["largest", "logsumexp"],
)
@pytest.mark.parametrize("tied", [False, True])
def test_statistics_are_torchs_own_to_the_second_derivative(
    block: int, ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], tied: bool
) -> None:
    logits = (drawn(7, CLASSES).round() if tied else drawn(7, CLASSES)).requires_grad_()
    for each, other in zip(outcome(ours, (logits,)), outcome(theirs, (logits,)), strict=True):
        torch.testing.assert_close(each, other)
    seconds = []
    for function in (ours, theirs):
        (first,) = torch.autograd.grad(function(logits).square().sum(), logits, create_graph=True)
        seconds += torch.autograd.grad(first.square().sum(), logits)
    torch.testing.assert_close(*seconds)


THROUGH = [
    (name, options)
    for name, choices in {
        "dtkd": [{}, {"published": True}, {"minimum": 3.5, "maximum": 4.2}],
        "dtkd_logsumexp": [{}, {"published": True}, {"minimum": 3.5, "maximum": 4.2}],
        "normkd": [{}, {"published": True}],
        "lskd": [{}, {"divisor": "K"}, {"published": True}],
        "atkd": [{}, {"reading": "teacher_absolute"}, {"reading": "teacher_signed"}, {"published": True}],
    }.items()
    for options in choices
]
"""Rules whose gradient flows through the student's temperature: each one node, worked out by hand."""


@pytest.mark.parametrize(("name", "options"), THROUGH)
@pytest.mark.parametrize("foreign", [False, True], ids=["teacher fixed", "teacher trains"])
def test_a_rules_node_is_its_plain_formula_to_the_second_derivative(
    block: int, name: str, options: dict[str, object], foreign: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = RULES[name](**options)
    student, teacher = (3 * drawn(7, CLASSES, seed=seed) for seed in (0, 1))
    student[0] = student[0] - 20 if name.startswith("dtkd") else 1.5  # a guarded sample
    if options.get("published"):
        student[0] = drawn(CLASSES, seed=2)
    student.requires_grad_()
    wanted = [student, teacher.requires_grad_()] if foreign else [student]

    def found() -> list[Tensor]:
        answer = rule(Signals(student, teacher))
        columns = [answer.student, answer.teacher, answer.weight]
        total = sum(((index + 2) * value.square()).sum() for index, value in enumerate(columns))
        by_hand = torch.autograd.grad(total, wanted, retain_graph=True)
        first = torch.autograd.grad(total, wanted, create_graph=True)
        second = torch.autograd.grad(sum(each.square().sum() for each in first), wanted)
        return [*columns, *by_hand, *first, *second]

    ours = found()
    monkeypatch.setattr(blocks, "rowwise", None)
    for module in ("sharpness", "standard_deviation"):
        monkeypatch.setattr(f"rltemp.rules.{module}.rowwise", lambda formula, *inputs: formula(*inputs))
    for each, other in zip(ours, found(), strict=True):
        torch.testing.assert_close(each, other)


def test_what_a_rule_does_not_let_gradient_through_is_a_constant(block: int) -> None:
    signals = Signals(drawn(7, CLASSES).requires_grad_(), drawn(7, CLASSES, seed=1))
    for name in ("normkd", "lskd", "atkd"):
        answer = RULES[name]()(signals)
        assert answer.student.requires_grad
        assert not answer.teacher.requires_grad
        assert not answer.weight.requires_grad
        assert not answer.guarded.requires_grad


def test_a_mask_leaves_its_samples_and_their_gradient_alone(block: int) -> None:
    student, teacher, student_t, teacher_t, weight = problem((4, 5))
    mask = drawn(4, 5, seed=7) > 0
    broken = student.detach().clone()
    broken[~mask] = torch.nan
    broken.requires_grad_()
    temperatures = Temperatures(student_t, teacher_t, weight)
    found = kd_loss(Signals(broken, teacher, mask=mask), temperatures)
    whole = kd_loss(Signals(student, teacher), temperatures)
    torch.testing.assert_close(found, torch.where(mask, whole, 0.0))
    found.sum().backward()
    (expected,) = torch.autograd.grad(whole[mask].sum(), student)
    torch.testing.assert_close(broken.grad, expected)


def test_logits_that_are_not_contiguous_are_followed(block: int) -> None:
    student, teacher, *rest = problem((4, 5))
    swapped = student.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    loss(swapped, teacher, *rest).sum().backward()
    loss(student, teacher, *rest).sum().backward()
    torch.testing.assert_close(swapped.grad, student.grad)


def test_a_graph_can_be_used_twice_if_it_is_kept_and_not_otherwise(block: int) -> None:
    values = problem((7,))
    value = loss(*values).sum()
    first, second = (torch.autograd.grad(value, values[0], retain_graph=again)[0] for again in (True, False))
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(value, values[0])


def test_one_temperature_serves_all_and_a_training_teacher_gets_gradient(block: int) -> None:
    student, teacher, *rest = problem((7,))
    two = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    assert_same((student, teacher, two, two, two))
    assert_same((student, teacher.requires_grad_(), *rest))


def test_torch_func_differentiates_the_plain_formula(block: int) -> None:
    student, teacher, *rest = problem((7,))
    (expected,) = torch.autograd.grad(loss(student, teacher, *rest).sum(), student)
    found = torch.func.grad(lambda logits: loss(logits, teacher, *rest).sum())(student.detach())
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["fixed", "dtkd", "normkd", "cswt"])
def test_large_logits_cost_little_more_memory_than_their_gradient(name: str) -> None:
    samples, classes = 64, 2**15  # 8 MB a tensor, 16 blocks of one thread
    student, rule = torch.randn(samples, classes, requires_grad=True), RULES[name]()
    signals = Signals(student, torch.randn(samples, classes))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kd_loss(signals, rule(signals)).mean().backward()
    events = profile.profiler.kineto_results.events()
    held = peak = 0
    for _, bytes_ in sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"):
        held += bytes_
        peak = max(peak, held)
    assert student.numel() * 4 <= peak < 2.8 * student.numel() * 4


def test_the_benchmark_measures_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "scripts"))
    from bench import rule_to_plain

    time, memory = rule_to_plain(RULES["fixed"](), (32, 8192), 1)
    assert 0 < time < 100
    assert 0 < memory <= 1.1  # a count of bytes, the same on every run
