"""A method is what a training step minimises: a temperature rule, a divergence, loss weights and a warm-up.

    loss = ce_weight * CE + min(progress / warmup, 1) * (kd_weight * D(rule) + plain_kd_weight * D(fixed))

Published methods differ by a factor of ten in these weights, and a weight acts as a learning rate: so they are options
by name (`dtkd:reference=2,kd_weight=0.9,plain_kd_weight=0,ce_weight=0.1,warmup=0` is DTKD's rule at the usual weights),
and `matched:NAME` is the method NAME at the weight at which it pulls as hard as plain distillation does.
`rltemp.rules.published_methods` holds the published ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rltemp.errors import BadInputError
from rltemp.kd.checks import bounds_of, check_shape, check_temperatures, fraction, not_negative, positive
from rltemp.kd.divergences import forward_kl
from rltemp.kd.losses import cross_entropy, kd_loss
from rltemp.kd.signals import TAKES_MASKS, Divergence, Signals, TemperatureRule, Temperatures, full_precision, scatter

PLAIN_TEMPERATURE, PLAIN_CE_WEIGHT, PLAIN_KD_WEIGHT = 4.0, 0.1, 0.9
"""Plain distillation as CIFAR-100 recipes have it; what `matched:` matches."""

CHECKED = "checked"
"""Attribute of a rule whose answers have been checked where they come from."""


@dataclass(frozen=True)
class Method:
    """What one distillation run minimises.

    Args:
        name: As it was asked for; shown in tables and error messages.
        rule: Temperatures per sample, or None for training without a teacher.
        ce_weight: Weight of the cross-entropy with the labels, >= 0; at 0 no labels are needed for it.
        kd_weight: Weight of the divergence under `rule`, >= 0.
        plain_kd_weight: Weight of a second divergence at one fixed temperature (DTKD's objective has one), >= 0.
        plain_temperature: That temperature, > 0.
        warmup: Fraction of the run over which both divergences grow linearly from 0, 0..1.
        divergence: Of softened logits; see `rltemp.kd.divergences`.
        switch: Fraction of the run that sees the divergences alone; what follows sees the labels alone
            (Annealing-KD's two phases). None: both all the time.
        matched: Scale the divergences, step by step, so that their gradient on the student's logits is on average as
            long as that of plain distillation (T = 4, weight 0.9) on the same logits; warm-up has no effect then.
    """

    name: str
    rule: TemperatureRule | None
    ce_weight: float = PLAIN_CE_WEIGHT
    kd_weight: float = PLAIN_KD_WEIGHT
    plain_kd_weight: float = 0.0
    plain_temperature: float = PLAIN_TEMPERATURE
    warmup: float = 0.0
    divergence: Divergence = forward_kl
    switch: float | None = None
    matched: bool = False

    def __post_init__(self) -> None:
        for option in ("ce_weight", "kd_weight", "plain_kd_weight"):
            not_negative(getattr(self, option), self.name, option)
        positive(self.plain_temperature, self.name, "plain_temperature")
        fraction(self.warmup, self.name, "warmup")
        if self.switch is not None:
            fraction(self.switch, self.name, "switch")

    def loss(self, signals: Signals) -> Tensor:
        """Return the whole objective for every sample, `[...]`, in nats; 0 where the mask has no sample.

        Raises:
            BadInputError: Where the rule answers a temperature that is not positive and finite, or out of the bounds
                that it states, or not one value a sample; or where labels are needed and missing.
        """
        if (mask := signals.mask) is not None:
            if self.rule is not None and not getattr(self.rule, TAKES_MASKS, False):
                return scatter(self.loss(signals.samples()), mask, 0.0)
            return self._objective(signals.made_safe()).masked_fill(~mask, 0.0)
        return self._objective(signals)

    def _objective(self, signals: Signals) -> Tensor:
        hard, soft = self._shares(signals.progress)
        if isinstance(soft, Tensor):  # nobody looks at it
            divergences = (self._match(signals) if self.matched else soft) * self.soft(signals)
            return divergences + hard * cross_entropy(signals)
        if not hard and not soft:  # a warm-up's first step without labels: zero, with a graph to go back through
            return 0.0 * full_precision(signals.student_logits).sum(-1)
        if not soft:
            return hard * cross_entropy(signals)
        divergences = (self._match(signals) if self.matched else soft) * self.soft(signals)
        return hard * cross_entropy(signals) + divergences if hard else divergences

    def soft(self, signals: Signals) -> Tensor:
        """Return the weighted divergences alone, `[...]`, as they are after the warm-up."""
        if self.rule is None:
            raise BadInputError(f"{self.name} trains without a teacher and has no divergence")
        temperatures = self.rule(signals)
        if not getattr(self.rule, CHECKED, False):
            check_shape(temperatures, signals.shape, self.name)
            if not torch.compiler.is_compiling():  # a compiled step looks at no value
                check_temperatures(temperatures, self.name, bounds_of(self.rule))
        soft = self.kd_weight * kd_loss(signals, temperatures, self.divergence)
        if self.plain_kd_weight:
            plain = uniform(signals, self.plain_temperature)
            soft = soft + self.plain_kd_weight * kd_loss(signals, plain, self.divergence)
        return soft

    def _shares(self, progress: float | Tensor) -> tuple[float | Tensor, float | Tensor]:
        """What the cross-entropy and the divergences are multiplied by at this point of the run."""
        if self.rule is None:
            return self.ce_weight, 0.0
        if isinstance(progress, Tensor) and (self.warmup or self.switch is not None):
            if self.switch is None:
                return self.ce_weight, (progress / self.warmup).clamp(max=1.0)
            late = (progress >= self.switch).float()
            return self.ce_weight * late, 1 - late
        if self.switch is not None:
            return (0.0, 1.0) if progress < self.switch else (self.ce_weight, 0.0)
        return self.ce_weight, min(progress / self.warmup, 1.0) if self.warmup else 1.0

    def _match(self, signals: Signals) -> Tensor:
        """The factor that matches, `[]` or, for a stack, `[S, 1, ...]`."""
        logits = full_precision(signals.student_logits).detach().requires_grad_()
        seen = replace(signals, student_logits=logits)
        with torch.enable_grad():
            plain = PLAIN_KD_WEIGHT * kd_loss(seen, uniform(seen, PLAIN_TEMPERATURE))
            lengths = [
                signals.means(torch.autograd.grad(loss.sum(), logits)[0].norm(dim=-1)).squeeze(-1)
                for loss in (plain, self.soft(seen))
            ]
        # Where the method does not pull at all, nothing can be matched.
        factor = torch.where(lengths[1] > 0, lengths[0] / lengths[1].clamp(min=1e-30), 0.0)
        return factor.view(-1, *[1] * (len(signals.shape) - 1)) if signals.stacked else factor.squeeze(0)


def watch(method: Method, on_temperatures: Callable[[Temperatures], None]) -> Method:
    """Return the method with a rule that answers the same and tells `on_temperatures` what it answered."""
    if (inner := method.rule) is None:
        return method

    def rule(signals: Signals) -> Temperatures:
        temperatures = inner(signals)
        on_temperatures(temperatures.detach())
        return temperatures

    for name in ("bounds", CHECKED, TAKES_MASKS):
        if hasattr(inner, name):
            setattr(rule, name, getattr(inner, name))
    return replace(method, rule=rule)


class GuardCount:
    """Counts the samples for which a rule's guard stood in for its formula."""

    def __init__(self) -> None:
        self.samples = 0
        self.last: Temperatures | None = None
        self._guarded: int | Tensor = 0

    def __call__(self, temperatures: Temperatures) -> None:
        """Count a step's."""
        self.last = temperatures
        self.samples += temperatures.weight.numel()
        if temperatures.guarded is not None:
            self._guarded = self._guarded + temperatures.guarded.sum()  # on its device: no step waits for it

    def state(self) -> dict[str, int]:
        """The counts so far."""
        return {"samples": self.samples, "guarded": int(self._guarded)}

    def restore(self, state: dict[str, int]) -> None:
        """Go on counting."""
        self.samples, self._guarded = state["samples"], state["guarded"]

    @property
    def guarded(self) -> int:
        """How many samples so far."""
        return int(self._guarded)

    @property
    def fraction(self) -> float:
        """Of all samples so far, 0..1."""
        return self.guarded / max(self.samples, 1)


def uniform(signals: Signals, temperature: float) -> Temperatures:
    """One temperature for all samples and both networks, and its square as weight."""
    same = signals.full(temperature)
    return Temperatures(same, same, same.square())


def matched(method: Method) -> Method:
    """Return the method with plain distillation's weights: its soft term as strong, its cross-entropy at 0.1."""
    if method.rule is None:
        raise BadInputError(f"{method.name} has no divergence whose weight could be matched")
    return replace(method, matched=True, ce_weight=PLAIN_CE_WEIGHT, warmup=0.0, switch=None)
