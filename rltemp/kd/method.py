"""A method is what a training step minimises: a temperature rule, a divergence, coefficients and a warm-up.

    loss = ce_weight * CE + min(progress / warmup, 1) * (kd_weight * D(rule) + plain_kd_weight * D(fixed))

Published methods differ by a factor of ten in these coefficients, and a coefficient acts as a learning rate: so they
are options by name (`dtkd:reference=2,kd_weight=0.9,plain_kd_weight=0,ce_weight=0.1,warmup=0` is DTKD's rule at the
usual ones), and `matched:NAME` is the method NAME with its gradient as long as plain distillation's.
`rltemp.rules.published_methods` holds the published ones.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from rltemp.errors import BadInputError
from rltemp.kd.checks import check_shape, check_temperatures, fraction, not_negative, positive
from rltemp.kd.divergences import forward_kl
from rltemp.kd.losses import cross_entropy, kd_loss
from rltemp.kd.signals import Divergence, Signals, full_precision
from rltemp.kd.temperature_rule import TemperatureRule, WrappedRule, as_rule
from rltemp.kd.temperatures import Temperatures

log = logging.getLogger(__name__)

PLAIN_TEMPERATURE, PLAIN_CE_WEIGHT, PLAIN_KD_WEIGHT = 4.0, 0.1, 0.9
"""Plain distillation as CIFAR-100 recipes have it; what `matched:` matches."""


class StepLoss(NamedTuple):
    """A step's loss for every sample, `[...]`, and its temperatures; None in a step that asks for none."""

    loss: Tensor
    temperatures: Temperatures | None


@dataclass(frozen=True)
class NoTeacher:
    """Training on the labels alone: a run's objective that has no temperatures.

    Args:
        name: As it was asked for.
        ce_weight: Coefficient of the cross-entropy with the labels, >= 0.
        label_smoothing: Of the cross-entropy; a run sets its recipe's.
    """

    name: str = "none"
    ce_weight: float = 1.0
    label_smoothing: float = field(default=0.0, repr=False)

    def __post_init__(self) -> None:
        not_negative(self.ce_weight, self.name, "ce_weight")
        fraction(self.label_smoothing, self.name, "label_smoothing")

    uses_progress = False

    def loss(self, signals: Signals) -> Tensor:
        """Return the cross-entropy of every sample, `[...]`, in nats; 0 where the mask has no sample."""
        return self.ce_weight * cross_entropy(signals, self.label_smoothing)

    def step_loss(self, signals: Signals) -> StepLoss:
        """Return the loss, and no temperatures."""
        return StepLoss(self.loss(signals), None)


@dataclass(frozen=True, repr=False)
class Method:
    """What one distillation run minimises.

    Args:
        name: As it was asked for; shown in tables and error messages.
        rule: Temperatures per sample; a plain function is made a `TemperatureRule`.
        ce_weight: Coefficient of the cross-entropy with the labels, >= 0; at 0 no labels are needed for it.
        kd_weight: Coefficient of the divergence under `rule`, >= 0.
        plain_kd_weight: Coefficient of a second divergence at one fixed temperature (DTKD's objective has one), >= 0.
        plain_temperature: That temperature, > 0.
        warmup: Fraction of the run over which both divergences grow linearly from 0, 0..1.
        divergence: Of softened logits; see `rltemp.kd.divergences`.
        switch: Fraction of the run that sees the divergences alone; what follows sees the labels alone
            (Annealing-KD's two phases). None: both all the time.
        matched: Scale the divergences, step by step, so that their gradient on the student's logits is on average as
            long as that of plain distillation (T = 4, kd_weight 0.9) on the same logits; warm-up has no effect then.
        label_smoothing: Of the cross-entropy, 0 <= share < 1; a run sets its recipe's.

    >>> def warm(signals):
    ...     return Temperatures(*(signals.full(value) for value in (2.0, 4.0, 8.0)))
    >>> Method("warm", warm, ce_weight=0.5, kd_weight=0.5)
    Method('warm', <temperature rule warm>, ce_weight=0.5, kd_weight=0.5)
    """

    name: str
    rule: TemperatureRule
    ce_weight: float = PLAIN_CE_WEIGHT
    kd_weight: float = PLAIN_KD_WEIGHT
    plain_kd_weight: float = 0.0
    plain_temperature: float = PLAIN_TEMPERATURE
    warmup: float = 0.0
    divergence: Divergence = forward_kl
    switch: float | None = None
    matched: bool = False
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "rule", as_rule(self.rule))
        for option in ("ce_weight", "kd_weight", "plain_kd_weight"):
            not_negative(getattr(self, option), self.name, option)
        positive(self.plain_temperature, self.name, "plain_temperature")
        fraction(self.warmup, self.name, "warmup")
        fraction(self.label_smoothing, self.name, "label_smoothing")
        if self.switch is not None:
            fraction(self.switch, self.name, "switch")

    def __repr__(self) -> str:
        """The name, the rule, and the coefficients that are not 0."""
        options = ("ce_weight", "kd_weight", "plain_kd_weight", "warmup", "switch", "matched")
        told = "".join(f", {name}={getattr(self, name):.4g}" for name in options if getattr(self, name))
        return f"Method({self.name!r}, {self.rule!r}{told})"

    @property
    def uses_progress(self) -> bool:
        """Whether the loss depends on how much of the run is done; a call without it is refused then."""
        return self.rule.uses_progress or self.warmup > 0 or self.switch is not None

    def asks(self, progress: float) -> bool:
        """Whether the rule is asked for temperatures at this point of the run: not where no divergence counts."""
        return bool(self._shares(progress)[1])

    def loss(self, signals: Signals) -> Tensor:
        """Return the whole objective for every sample, `[...]`, in nats; 0 where the mask has no sample.

        At most one number is read from the device: whether the temperatures are lawful, of a rule that does not say so
        itself (`TemperatureRule.checked`).

        Raises:
            BadInputError: Where the rule answers a temperature that is not positive and finite, or out of the bounds
                that it states, or not one value a sample; or where labels, or the progress, are needed and missing.
        """
        loss, temperatures = self.step_loss(signals)
        if not torch.compiler.is_compiling():  # a compiled step reads no value
            refuse_unlawful(self, temperatures)
        return loss

    def step_loss(self, signals: Signals) -> StepLoss:
        """Return what `loss` does and the temperatures, whose values are not checked: nothing is read from the device.

        `refuse_unlawful` is the check, `rltemp.kd.checks.unlawful(temperatures, method.rule.bounds)` the same as a
        tensor.
        """
        if self.uses_progress:
            signals.need_progress(self.name)
        if (mask := signals.mask) is None:
            return self._step_loss(signals)
        loss, temperatures = self._step_loss(signals.made_safe())
        return StepLoss(loss.masked_fill(~mask, 0.0), temperatures)

    def _step_loss(self, signals: Signals) -> StepLoss:
        hard, soft = self._shares(signals.progress)
        # A share that is a tensor is not read.
        found = self._divergences(signals, soft) if isinstance(soft, Tensor) or soft else None
        if isinstance(hard, Tensor) or hard:
            own = hard * cross_entropy(signals, self.label_smoothing)
            return StepLoss(own, None) if found is None else found._replace(loss=own + found.loss)
        # A warm-up's first step without labels: zero, with a graph to go back through.
        return found or StepLoss(0.0 * full_precision(signals.student_logits).sum(-1), None)

    def _divergences(self, signals: Signals, share: float | Tensor) -> StepLoss:
        """The divergences at their share of the loss, or matched."""
        if not self.matched:
            loss, temperatures = self._soft(signals)
            return StepLoss(share * loss, temperatures)
        if signals.buckets is not None:
            raise BadInputError(f"{self.name!r} matches gradients on all logits, which a sparse teacher has not")
        student = full_precision(signals.student_logits)
        if not (trains := torch.is_grad_enabled() and student.requires_grad):
            student = student.detach().requires_grad_()
        seen = replace(signals, student_logits=student)
        with torch.enable_grad():
            loss, temperatures = self._soft(seen)
            plain = PLAIN_KD_WEIGHT * kd_loss(seen, uniform(seen, PLAIN_TEMPERATURE))
            wanted, own = (
                seen.means(torch.autograd.grad(each.sum(), student, retain_graph=True)[0].norm(dim=-1))
                for each in (plain, loss)
            )
        # Where the method's gradient is zero, nothing can be matched.
        factor = seen.of_batches(torch.where(own > 0, wanted / own.clamp(min=1e-30), 0.0))
        return StepLoss(factor * (loss if trains else loss.detach()), temperatures)

    def _soft(self, signals: Signals) -> StepLoss:
        """The divergences with their coefficients, `[...]`, as they are after the warm-up."""
        temperatures = self.rule(signals)
        check_shape(temperatures, signals.shape, self.name)
        soft = self.kd_weight * kd_loss(signals, temperatures, self.divergence)
        if self.plain_kd_weight:
            plain = uniform(signals, self.plain_temperature)
            soft = soft + self.plain_kd_weight * kd_loss(signals, plain, self.divergence)
        return StepLoss(soft, temperatures)

    def _shares(self, progress: float | Tensor) -> tuple[float | Tensor, float | Tensor]:
        """What the cross-entropy and the divergences are multiplied by at this point of the run."""
        if isinstance(progress, Tensor) and (self.warmup or self.switch is not None):
            if self.switch is None:
                return self.ce_weight, (progress / self.warmup).clamp(max=1.0)
            late = (progress >= self.switch).float()
            return self.ce_weight * late if self.ce_weight else 0.0, 1 - late
        if self.switch is not None:
            return (0.0, 1.0) if progress < self.switch else (self.ce_weight, 0.0)
        return self.ce_weight, min(progress / self.warmup, 1.0) if self.warmup else 1.0


Objective = Method | NoTeacher
"""What a run minimises. Whoever needs temperatures asks for a `Method`."""


def needs_labels(objective: Objective) -> bool:
    """Tell whether any step of a run under the objective needs labels.

    The cross-entropy does; a rule or a divergence does where its attribute `uses_labels` is true.
    """
    if isinstance(objective, NoTeacher) or objective.ce_weight:
        return True
    return objective.rule.uses_labels or getattr(objective.divergence, "uses_labels", False)


AnyObjective = TypeVar("AnyObjective", bound=Objective)


def refuse_unlawful(objective: Objective, temperatures: Temperatures | None) -> None:
    """Refuse a step's temperatures that a rule must not answer; one number is read, where the rule is not `checked`.

    Raises:
        BadInputError: Where one is not positive and finite, or out of the bounds that the rule states.
    """
    if temperatures is not None and isinstance(objective, Method) and not objective.rule.checked:
        check_temperatures(temperatures, objective.name, objective.rule.bounds)


def watch(objective: AnyObjective, on_temperatures: Callable[[Temperatures], None]) -> AnyObjective:
    """Return the same objective, which tells `on_temperatures` what its rule answers, if it has one."""
    if not isinstance(objective, Method):
        return objective

    def told(signals: Signals, rule: TemperatureRule) -> Temperatures:
        temperatures = rule(signals)
        on_temperatures(temperatures.detach())
        return temperatures

    return replace(objective, rule=WrappedRule(objective.rule, told))


def uniform(signals: Signals, temperature: float) -> Temperatures:
    """One temperature for all samples and both networks, and its square as weight."""
    same = signals.full(temperature)
    return Temperatures(same, same, same.square())


def matched(method: Method) -> Method:
    """Return the method with plain distillation's gradient length and its cross-entropy at 0.1."""
    return replace(method, matched=True, ce_weight=PLAIN_CE_WEIGHT, warmup=0.0, switch=None)


def soft_part(method: Method) -> tuple[Method, float]:
    """A method's divergences without its cross-entropy, scaled to coefficient 1, and the method's own coefficient.

    For hosts that add a soft loss and a cross-entropy themselves, each with a coefficient of the host.

    Raises:
        BadInputError: For a method with two phases, which a sum of two losses cannot express.
    """
    if method.switch is not None:
        raise BadInputError(f"{method.name!r} has two phases, and this host adds two losses: take another method")
    unit = 1.0 if method.matched else method.kd_weight or 1.0
    kd_weight, plain_kd_weight = method.kd_weight / unit, method.plain_kd_weight / unit
    return replace(method, ce_weight=0.0, kd_weight=kd_weight, plain_kd_weight=plain_kd_weight), unit
