"""Controls: a method with a part of what its temperatures do taken away, to see which part it is that helps.

Each wraps a method whose rule answers temperatures by a formula or a policy, and is used by name: `shuffled:SPEC` is
SPEC under the control `shuffled`, as `matched:SPEC` is SPEC with a matched gradient, and both nest. Coefficients,
warm-up, divergence and DTKD's second divergence stay as they are; only the rule's answer changes. In a stack each
student has a batch of its own, and a mask takes samples out of it.

Temperatures under a control are constants of the graph. Some rules (DTKD's, and a policy around it) let gradient
through the student's temperature; `detached` is the control that takes this and nothing else away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from rltemp.errors import BadInputError
from rltemp.kd.losses import kd_loss
from rltemp.kd.method import PLAIN_TEMPERATURE, Method, matched, uniform
from rltemp.kd.signals import Divergence, Signals, full_precision
from rltemp.kd.temperature_rule import Ask, RuleFunction, TemperatureRule, WrappedRule
from rltemp.kd.temperatures import Temperatures
from rltemp.rules.curriculum import Learned
from rltemp.rules.difficulty import random

LEAST_LENGTH = 1e-6
"""A gradient shorter than this per unit of weight counts as this long: two equal networks have no direction."""

_ORDER = random(seed=2_041)
"""Puts a batch in a random order that its teacher logits and the progress determine."""


def detached(method: Method) -> Method:
    """The same temperatures as constants of the graph."""
    return _controlled(method, lambda signals, rule: rule(signals))


def shuffled(method: Method) -> Method:
    """The same temperatures and weights in every batch, each sample with another one's.

    Their distribution and their course over the run stay, the link to the sample goes. Who gets whose depends on the
    batch's teacher logits and the progress alone; no sample of two or more keeps its own.
    """

    def answer(signals: Signals, rule: TemperatureRule) -> Temperatures:
        order = signals.groups(_ORDER(signals).student).argsort(-1)
        source = order.scatter(-1, order, order.roll(1, -1))  # the neighbour's in the random order
        return _in_groups(signals, rule(signals), lambda values: values.gather(-1, source))

    return _controlled(method, answer, uses_progress=True)


def averaged(method: Method) -> Method:
    """Every sample of a batch with its geometric mean temperatures and its mean weight: a schedule without a state."""

    def mean(values: Tensor) -> Tensor:
        return values.mean(-1, keepdim=True).expand_as(values)

    def answer(signals: Signals, rule: TemperatureRule) -> Temperatures:
        found = rule(signals)
        logarithms = replace(found, student=found.student.log(), teacher=found.teacher.log())
        same = _in_groups(signals, logarithms, mean)
        return replace(same, student=same.student.exp(), teacher=same.teacher.exp())

    return _controlled(method, answer)


def weighting(method: Method) -> Method:
    """T = 4 for both networks, and every sample's gradient as long as under the method: its weights alone."""

    def answer(signals: Signals, rule: TemperatureRule) -> Temperatures:
        wanted = gradient_lengths(signals, rule, method.divergence)
        return with_lengths(signals, uniform(signals, PLAIN_TEMPERATURE), wanted, method.divergence)

    return _controlled(method, answer)


def softness(method: Method) -> Method:
    """The method's temperatures, and every sample's gradient as long as plain distillation's: no weights."""

    def answer(signals: Signals, rule: TemperatureRule) -> Temperatures:
        wanted = gradient_lengths(signals, lambda seen: uniform(seen, PLAIN_TEMPERATURE), method.divergence)
        return with_lengths(signals, rule(signals).detach(), wanted, method.divergence)

    return _controlled(method, answer)


def gradient_lengths(signals: Signals, rule: RuleFunction, divergence: Divergence) -> Tensor:
    """Length of the gradient on the student's logits, `[...]`, of each sample's divergence under the rule.

    For KL at constant temperatures it is w / T_s |softmax(v / T_s) - softmax(u / T_t)|; where the rule lets gradient
    through its temperatures, or for another divergence, it is what it is there.
    """
    logits = full_precision(signals.student_logits).detach().requires_grad_()
    seen = replace(signals, student_logits=logits)
    with torch.enable_grad():
        loss = kd_loss(seen, rule(seen), divergence)
    lengths: Tensor = torch.autograd.grad(loss.sum(), logits)[0].norm(dim=-1)
    return lengths


def with_lengths(signals: Signals, temperatures: Temperatures, lengths: Tensor, divergence: Divergence) -> Temperatures:
    """The temperatures, with weights at which every sample's gradient has the given length, `[...]`.

    Where the two distributions all but coincide, the gradient stays shorter, which counts as guarded.
    """
    unit = replace(temperatures, weight=torch.ones_like(temperatures.weight), guarded=None)
    own = gradient_lengths(signals, lambda seen: unit, divergence)
    return replace(unit, weight=lengths / own.clamp(min=LEAST_LENGTH), guarded=own < LEAST_LENGTH)


class _ControlledRule(WrappedRule):
    """A rule under a control, which sees the batch."""

    per_sample = uses_progress = False

    def __init__(self, inner: TemperatureRule, ask: Ask, uses_progress: bool) -> None:
        super().__init__(inner, lambda signals, rule: ask(signals, rule).detach())
        self.uses_progress = uses_progress or inner.uses_progress
        self.pure = inner.pure and not inner.tensors


def _controlled(method: Method, ask: Ask, uses_progress: bool = False) -> Method:
    """The method with the control's answer in place of its rule's."""
    if isinstance(method.rule, Learned):
        raise BadInputError(
            f"a control needs temperatures by a formula or a policy; {method.name} learns its own in every run anew"
        )
    return replace(method, rule=_ControlledRule(method.rule, ask, uses_progress))


def _in_groups(signals: Signals, found: Temperatures, change: Callable[[Tensor], Tensor]) -> Temperatures:
    """Change temperatures and weight, each as `[G, N]`: a row for each batch."""
    values = found.student, found.teacher, found.weight
    student, teacher, weight = (change(signals.groups(value)).reshape(signals.shape) for value in values)
    return Temperatures(student, teacher, weight, found.guarded)


CONTROLS: dict[str, Callable[[Method], Method]] = {
    "detached": detached,
    "shuffled": shuffled,
    "averaged": averaged,
    "weighting": weighting,
    "softness": softness,
}

WRAPPERS: dict[str, Callable[[Method], Method]] = {"matched": matched, **CONTROLS}
"""What may stand before a method's name: `matched:shuffled:dtkd`."""
