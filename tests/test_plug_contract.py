"""The contract that all plugs share: shapes, masks, precision, no wait, one line for what cannot be."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rltemp import BadInputError, Method, Signals, kd_loss, load_method, load_rule, plugs
from rltemp.plugs import Controller, HostVersionWarning

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
        (controller.objective(student, teacher, labels, 0.3), method.loss(signals)),
    ):
        assert torch.equal(found, wanted)
        gradients = [torch.autograd.grad(each.sum(), student, retain_graph=True)[0] for each in (found, wanted)]
        assert torch.equal(*gradients)


@pytest.mark.parametrize("name", NAMES)
def test_a_kit_with_one_temperature_divides_rescaled_logits_by_every_samples_own(name: str) -> None:
    student, teacher, _ = drawn("tokens")
    controller, base = Controller(name), 3.0
    found = controller(student, teacher)
    scaled = controller.rescaled(student, teacher, base)
    kit = F.kl_div((scaled[0] / base).log_softmax(-1), (scaled[1] / base).softmax(-1), reduction="none").sum(-1)
    torch.testing.assert_close(kit, kd_loss(Signals(student, teacher), replace(found, weight=torch.ones_like(kit))))
    torch.testing.assert_close(scaled[0] / base, student / found.student.unsqueeze(-1))


def test_at_the_kits_own_temperature_rescaled_logits_are_the_same_to_the_bit() -> None:
    student, teacher, _ = drawn()
    for found, logits in zip(Controller("fixed:4").rescaled(student, teacher, 4.0), (student, teacher), strict=True):
        assert torch.equal(found, logits)


def test_a_controller_is_made_from_a_name_a_rule_or_a_method() -> None:
    method = load_method("dtkd")
    assert Controller(method).method is method
    rule = load_rule("dtkd")
    made = Controller(rule).method
    assert isinstance(made, Method)
    assert made.rule is rule
    with pytest.raises(BadInputError, match="'none' trains without a teacher and has no temperatures"):
        Controller("none")


@pytest.mark.parametrize("call", ["__call__", "kd", "objective"])
@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"teacher_logits": torch.zeros(12, 9)}, r"student has 10 class outputs, teacher 9 \(shapes"),
        ({"mask": torch.ones(12)}, "mask has shape .* and type torch.float32; needed"),
        ({"mask": torch.ones(4, dtype=torch.bool)}, r"mask has shape \(4,\)"),
        ({"labels": torch.zeros(12, 10)}, r"labels have shape \(12, 10\), needed: \(12,\)"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(call: str, changed: dict[str, Tensor], named: str) -> None:
    student, teacher, labels = drawn()
    arguments = {"student_logits": student, "teacher_logits": teacher, "labels": labels} | changed
    with pytest.raises(BadInputError, match=named) as error:
        getattr(Controller("universal"), call)(**arguments)
    assert "\n" not in str(error.value)


def test_a_host_of_another_version_is_named_and_a_missing_one_refused() -> None:
    with pytest.warns(HostVersionWarning, match=r"torch \S+ is installed; rltemp's plug was tested with torch <1.0"):
        plugs.tested_with("torch", "<1.0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plugs.tested_with("torch", ">=2.0")
    with pytest.raises(BadInputError, match=r"needs no-such-host .* not installed"):
        plugs.tested_with("no-such-host", ">=1")
