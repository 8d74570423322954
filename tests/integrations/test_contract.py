"""The contract that all plugs share: shapes, masks, precision, no wait, one line for what cannot be."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.device_reads import DeviceReads
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

import rltemp.integrations as integrations
from rltemp import BadInputError, Method, Signals, kd_loss, load_method, load_rule
from rltemp.integrations import Controller, HostVersionWarning, trainers
from rltemp.policy.rule import Policy

SHAPES = {"images": ((12,), 10), "tokens": ((3, 6), 32), "proposals": ((2, 9), 4)}
NAMES = ["universal", "dtkd", "fixed:4"]


def drawn(kind: str = "images", dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    shape, classes = SHAPES[kind]
    generator = torch.Generator().manual_seed(0)
    student, teacher = (2 * torch.randn(2, *shape, classes, generator=generator)).to(dtype)
    return student.requires_grad_(), teacher, torch.randint(0, classes, shape, generator=generator)


@pytest.mark.parametrize("kind", sorted(SHAPES))
@pytest.mark.parametrize("name", NAMES)
def test_temperatures_are_the_rules_own_as_constants_one_a_sample(name: str, kind: str) -> None:
    student, teacher, labels = drawn(kind)
    found = Controller(name)(student, teacher, labels, 0.3)
    wanted = load_rule(name)(Signals(student, teacher, labels, 0.3))
    for field in ("student", "teacher", "weight"):
        value = getattr(found, field)
        assert value.shape == labels.shape
        assert value.dtype == torch.float32
        assert not value.requires_grad
        assert torch.equal(value, getattr(wanted, field))


@pytest.mark.parametrize("kind", sorted(SHAPES))
@pytest.mark.parametrize("name", NAMES)
def test_losses_are_those_of_the_method(name: str, kind: str) -> None:
    student, teacher, labels = drawn(kind)
    controller, method = Controller(name), load_method(name)
    signals = Signals(student, teacher, labels, 0.3)
    kd = method.kd_weight * kd_loss(signals, load_rule(name)(signals).detach())
    for found, wanted in (
        (controller.kd(student, teacher, labels, 0.3), kd),
        (controller.loss(student, teacher, labels, 0.3), method.loss(signals)),
    ):
        assert torch.equal(found, wanted)
        gradients = [torch.autograd.grad(each.sum(), student, retain_graph=True)[0] for each in (found, wanted)]
        assert torch.equal(*gradients)


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_of_one_temperature_divides_by_every_samples_own(name: str) -> None:
    student, teacher, _ = drawn("tokens")
    controller, base = Controller(name), 3.0
    found = controller(student, teacher, progress=0.3)
    scaled = controller.rescaled(student, teacher, base, progress=0.3)
    kit = F.kl_div((scaled[0] / base).log_softmax(-1), (scaled[1] / base).softmax(-1), reduction="none").sum(-1)
    torch.testing.assert_close(kit, kd_loss(Signals(student, teacher), replace(found, weight=torch.ones_like(kit))))
    torch.testing.assert_close(scaled[0] / base, student / found.student.unsqueeze(-1))
    same = Controller("fixed:4").rescaled(student, teacher, 4.0)
    assert all(torch.equal(each, logits) for each, logits in zip(same, (student, teacher), strict=True))


def test_a_controller_is_made_from_a_name_a_rule_or_a_method() -> None:
    method = load_method("dtkd")
    assert Controller(method).method is method
    assert repr(Controller(method)) == f"Controller({method!r})"
    rule = load_rule("dtkd")
    made = Controller(rule).method
    assert isinstance(made, Method)
    assert made.rule is rule
    with pytest.raises(BadInputError, match="a controller needs temperatures, and 'none' trains without a teacher"):
        Controller("none")


@pytest.mark.parametrize("call", ["__call__", "temperatures", "kd", "loss", "rescaled"])
@pytest.mark.parametrize("name", ["universal", "linear_schedule"])
def test_a_forgotten_progress_is_refused_where_the_answer_uses_it(name: str, call: str) -> None:
    student, teacher, labels = drawn()
    arguments = {"student_logits": student, "teacher_logits": teacher, "labels": labels}
    more = {"base_temperature": 4.0} if call == "rescaled" else {}
    with pytest.raises(BadInputError, match="uses the progress of the run: give progress, 0 to 1"):
        getattr(Controller(name), call)(**arguments, **more)
    assert getattr(Controller("fixed:4"), call)(**arguments, **more) is not None


def test_only_dtkds_warm_up_uses_the_progress_and_its_temperatures_do_not() -> None:
    controller, arguments = Controller("dtkd"), drawn()
    assert controller.temperatures(*arguments).student.isfinite().all()
    assert controller.kd(*arguments).isfinite().all()
    with pytest.raises(BadInputError, match=r"^dtkd uses the progress"):
        controller.loss(*arguments)


def test_the_old_name_of_the_loss_still_answers_it_and_says_so() -> None:
    arguments = drawn()
    with pytest.warns(DeprecationWarning, match=r"Controller.objective is called Controller.loss now"):
        found = Controller("fixed:4").objective(*arguments)
    assert torch.equal(found, Controller("fixed:4").loss(*arguments))


def test_the_bounds_that_a_function_states_are_checked() -> None:
    def mine(signals: Signals) -> Any:
        return load_rule("fixed:4")(signals)

    mine.bounds = (1, 3)  # type: ignore[attr-defined]
    for call in (Controller(mine), Controller(mine).kd, Controller(mine).loss):
        with pytest.raises(BadInputError, match=r"student temperature must be finite and in \[1, 3\]; got 4.0 .* mine"):
            call(*drawn())
    mine.bounds = (3, 1)  # type: ignore[attr-defined]
    with pytest.raises(BadInputError, match=r"bounds must be two numbers, 0 < lowest < highest; got \(3, 1\)"):
        Controller(mine)


@pytest.mark.parametrize("call", ["__call__", "kd", "loss"])
@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"teacher_logits": torch.zeros(12, 9)}, r"student has 10 class outputs, teacher 9 \(shapes"),
        ({"mask": torch.ones(12)}, "mask has shape .* and type torch.float32; needed"),
        ({"mask": torch.ones(4, dtype=torch.bool)}, r"mask has shape \(4,\)"),
        ({"student_logits": [[0.0] * 10] * 12}, "student_logits must be a tensor; got list"),
        ({"teacher_logits": (torch.zeros(12, 10),)}, "teacher_logits must be a tensor; got tuple"),
        ({"labels": [0] * 12}, "labels must be a tensor; got list"),
        ({"labels": torch.zeros(12, 10)}, r"labels have shape \(12, 10\), needed: \(12,\)"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(call: str, changed: dict[str, Tensor], named: str) -> None:
    student, teacher, labels = drawn()
    arguments = {"student_logits": student, "teacher_logits": teacher, "labels": labels, "progress": 0.3} | changed
    with pytest.raises(BadInputError, match=named) as error:
        getattr(Controller("universal"), call)(**arguments)
    assert "\n" not in str(error.value)


def test_a_host_of_another_version_is_named_and_a_missing_one_refused() -> None:
    with pytest.warns(HostVersionWarning, match=r"torch \S+ is installed; .* was tested with torch <1.0"):
        integrations.tested_with("torch", "<1.0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        integrations.tested_with("torch", ">=2.0")
    with pytest.raises(BadInputError, match=r"needs no-such-host .* not installed"):
        integrations.tested_with("no-such-host", ">=1")


def with_nothing_off_the_mask(kind: str) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
    """Logits and labels with nan and -100 where the mask is false; the samples of the mask alone; and the mask."""
    student, teacher, labels = drawn(kind)
    mask = torch.rand(labels.shape, generator=torch.Generator().manual_seed(1)) < 0.6
    alone = student.detach()[mask].requires_grad_(), teacher[mask], labels[mask]
    student = student.detach().masked_fill(~mask[..., None], torch.nan).requires_grad_()
    return (student, teacher.masked_fill(~mask[..., None], torch.nan), labels.masked_fill(~mask, -100)), alone, mask


@pytest.mark.parametrize("kind", sorted(SHAPES))
@pytest.mark.parametrize("name", [*NAMES, "ttm", "wttm", "normkd", "matched:dtkd"])
def test_what_stands_off_the_mask_reaches_nothing_and_no_step_waits(name: str, kind: str) -> None:
    whole, alone, mask = with_nothing_off_the_mask(kind)
    controller = Controller(name)
    with DeviceReads() as reads:
        found = controller(*whole, 0.5, mask)
        losses = [controller.kd(*whole, 0.5, mask), controller.loss(*whole, 0.5, mask)]
    assert reads.places == []
    assert (found.student[~mask] == 1).all()
    assert (found.weight[~mask] == 0).all()
    torch.testing.assert_close(found.weight[mask], controller(*alone, 0.5).weight, rtol=1e-5, atol=1e-5)
    for loss, wanted in zip(losses, (controller.kd(*alone, 0.5), controller.loss(*alone, 0.5)), strict=True):
        assert (loss[~mask] == 0).all()
        torch.testing.assert_close(loss[mask], wanted, rtol=1e-5, atol=1e-5)
        (gradient,), (expected,) = (
            torch.autograd.grad(value.sum(), of[0]) for value, of in ((loss, whole), (wanted, alone))
        )
        torch.testing.assert_close(gradient[mask], expected, rtol=1e-5, atol=1e-5)
        assert (gradient[~mask] == 0).all()


@pytest.mark.parametrize(("name", "what"), [("universal", "loss"), ("dtkd", "loss"), ("ttm", "kd")])
def test_a_compiled_loss_has_no_graph_break_and_is_compiled_once(name: str, what: str) -> None:
    student, teacher, labels = drawn()
    controller, counter = Controller(name), CompileCounter()
    torch.compiler.reset()

    def step(progress: float | Tensor, mask: Tensor | None = None) -> Tensor:
        loss: Tensor = getattr(controller, what)(student, teacher, labels, progress, mask)
        return loss

    compiled = torch.compile(step, backend=counter, fullgraph=True)
    for done in range(10):
        torch.testing.assert_close(compiled(torch.tensor(done / 10)), step(done / 10))
    assert counter.frame_count == 1
    for done in range(10):
        torch.testing.assert_close(compiled(done / 10 + 0.05), step(done / 10 + 0.05))
    assert counter.frame_count <= 4, "of a float: as a constant, as a variable, and beyond a warm-up"
    mask = torch.arange(12) < 7
    torch.testing.assert_close(compiled(torch.tensor(0.5), mask), step(0.5, mask))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_autocast_changes_no_number(name: str, dtype: torch.dtype) -> None:
    student, teacher, labels = drawn("tokens", dtype)
    controller = Controller(name)
    wanted = controller(student, teacher, labels, 0.3), controller.loss(student, teacher, labels, 0.3)
    single = controller(student.float(), teacher.float(), labels, 0.3)
    with torch.autocast("cpu", dtype=dtype):
        found = controller(student, teacher, labels, 0.3), controller.loss(student, teacher, labels, 0.3)
    for field in ("student", "teacher", "weight"):
        assert torch.equal(getattr(found[0], field), getattr(wanted[0], field))
        torch.testing.assert_close(getattr(found[0], field), getattr(single, field))
    assert torch.equal(found[1], wanted[1])
    assert found[1].dtype == torch.float32


def test_temperatures_stay_within_the_policys_bounds_whatever_the_logits() -> None:
    controller = Controller("universal")
    assert isinstance(controller.method.rule, Policy)
    low, high = controller.method.rule.limits
    for scale in (1e-4, 1.0, 1e3):
        student, teacher, _ = drawn("tokens")
        found = controller(scale * student, scale * teacher, progress=0.3)
        for value in (found.student, found.teacher):
            assert low <= value.min() <= value.max() <= high


def test_a_rule_of_ones_own_compares_a_masks_samples_and_is_checked() -> None:
    def softest(signals: Signals) -> Any:
        return copy.copy(load_rule("fixed:4")(signals)) if signals.mask is None else pytest.fail("a mask arrived")

    whole, alone, mask = with_nothing_off_the_mask("tokens")
    torch.testing.assert_close(
        Controller(softest).kd(*whole, 0.5, mask)[mask], Controller("fixed:4").kd(*alone), rtol=1e-5, atol=1e-5
    )

    def negative(signals: Signals) -> Any:
        found = load_rule("fixed:4")(signals)
        return replace(found, student=-found.student)

    for call in (Controller(negative), Controller(negative).kd, Controller(negative).loss):
        with pytest.raises(
            BadInputError, match=r"student temperature must be finite and above 0; got -4.0 for sample 0"
        ):
            call(*alone)


@pytest.mark.parametrize(
    "shape", [(2, 256, 8192), pytest.param((4, 512, 32000), marks=pytest.mark.slow)], ids=["small", "whole"]
)
def test_a_policy_takes_no_more_memory_than_plain_distillation(shape: tuple[int, ...], monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "scripts"))
    from bench import policy_memory

    found = policy_memory(*shape)  # peaks of losses under a policy over plain distillation's
    assert {name: ratio for name, ratio in found.items() if ratio > 1.1} == {}
    assert found["objective"] > 0.1, "nothing was measured"


def test_a_trainer_of_text_that_is_told_nothing_takes_the_temperature_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Host:
        args = SimpleNamespace(n_gpu=1)

    class Distiller(trainers.ControlledTrainer, Host):
        pass

    monkeypatch.setattr(trainers, "tested_with", lambda *versions: None)
    student, teacher, labels = drawn("tokens")
    found = Distiller().controller.temperatures(student, teacher, labels)
    assert torch.stack([found.student, found.teacher]).unique().tolist() == [1.0]
