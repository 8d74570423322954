"""CTKD: a temperature that is learned with the student, against it.

These rules are modules with parameters. A run puts them into its optimizer (`Distillation.attach`); in a loop of your
own, give `rule.parameters()` to the optimizer beside the student's. The gradient arrives reversed, so that the
optimizer that lowers the loss for the student raises it for the temperature.

    rule = rltemp.load_rule("ctkd_instance")
    rule.initialise(num_classes=100, seeds=0)  # its parameters; by the first call at the latest
    optimizer = torch.optim.SGD([*student.parameters(), *rule.parameters()], lr=0.05, momentum=0.9)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Hashable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rltemp.errors import BadInputError
from rltemp.kd.checks import fraction, positive
from rltemp.kd.signals import Signals, full_precision
from rltemp.kd.temperature_rule import TemperatureRule, WrappedRule
from rltemp.kd.temperatures import Temperatures

HIDDEN = 32
"""Hidden units of the per-sample network."""


Own = TypeVar("Own", bound="Learned")


class Learned(nn.Module):
    """A part of a method that has parameters of its own, which a run trains beside its student's."""

    def fresh(self: Own, num_classes: int, seeds: int | Sequence[int] = 0) -> Own:
        """Return a copy with initial parameters: for one student, or for each student of a stack."""
        made = copy.deepcopy(self)
        made.initialise(num_classes, seeds)
        return made

    def initialise(self, num_classes: int, seeds: int | Sequence[int]) -> None:
        """Make the parameters."""
        raise NotImplementedError


class LearnedRule(Learned, TemperatureRule):
    """A rule with parameters of its own: T = start + span sigmoid(logit), the logit learned by gradient reversal.

    Args:
        start: Lowest temperature, > 0.
        span: Of the range, > 0: temperatures lie between `start` and `start + span`.
        ramp: Fraction of the run over which the reversed gradient grows from nothing to its full size.
    """

    per_sample = checked = pure = True

    def __init__(self, name: str, start: float, span: float, ramp: float) -> None:
        super().__init__()
        self.start, self.span = positive(start, name, "start"), positive(span, name, "span")
        self.ramp = fraction(ramp, name, "ramp")
        self.uses_progress = self.ramp > 0

    @property
    def tensors(self) -> list[Tensor]:
        """The parameters."""
        return list(self.parameters())

    def holding(self, tensors: Sequence[Tensor]) -> TemperatureRule:
        """The rule with other tensors as its parameters."""
        held = dict(zip((name for name, _ in self.named_parameters()), tensors, strict=True))
        return WrappedRule(self, lambda signals, rule: functional_call(self, held, (signals,)))

    @property
    def structure(self) -> Hashable:
        """The kind and the range."""
        return type(self), self.start, self.span, self.ramp

    def logits(self, signals: Signals) -> Tensor:
        """One number a sample, `[...]`, with the graph of the parameters."""
        raise NotImplementedError

    def reversal(self, progress: float | Tensor) -> float | Tensor:
        """The factor of the gradient, from 0 down to -1 over the ramp.

        Li et al. (2023), https://arxiv.org/abs/2211.16231: -1 + (1 + cos(pi e / E)) / 2 at epoch e of E.
        """
        if not self.ramp:
            return -1.0
        if isinstance(progress, Tensor):
            return -1 + (1 + (math.pi * (progress / self.ramp).clamp(max=1.0)).cos()) / 2
        return -1 + (1 + math.cos(math.pi * min(progress / self.ramp, 1.0))) / 2

    forward = TemperatureRule.__call__

    def answer(self, signals: Signals) -> Temperatures:
        """Temperatures `[...]`."""
        logit = self.logits(signals).to(signals.dtype)
        factor = self.reversal(signals.progress)
        # Same value, gradient times the factor: what a gradient-reversal layer is.
        reversed_logit = torch.lerp(logit.detach(), logit, factor.to(logit) if isinstance(factor, Tensor) else factor)
        temperature = torch.sigmoid(reversed_logit).mul(self.span).add(self.start)
        return Temperatures(temperature, temperature, temperature.square())


class Ctkd(LearnedRule):
    """One learned temperature for all samples."""

    def __init__(self, start: float, span: float, ramp: float, initial: float) -> None:
        super().__init__("ctkd", start, span, ramp)
        if isinstance(initial, bool) or not isinstance(initial, (int, float)) or not math.isfinite(initial):
            raise BadInputError(f"ctkd: initial must be finite; got {initial!r}")
        self.initial = float(initial)
        self.initialise(2, 0)

    def initialise(self, num_classes: int, seeds: int | Sequence[int]) -> None:
        """Make the parameter, one number, or one for each student."""
        shape = () if isinstance(seeds, int) else (len(seeds),)
        self.theta = nn.Parameter(torch.full(shape, self.initial))

    def logits(self, signals: Signals) -> Tensor:
        """The same number for every sample of a student."""
        theta: Tensor = self.theta
        if theta.dim():
            theta = theta.reshape([*theta.shape, *[1] * (len(signals.shape) - theta.dim())])
        return theta.expand(signals.shape)


class CtkdInstance(LearnedRule):
    """A temperature for every sample, from a network that sees both distributions."""

    inner: nn.Parameter
    inner_bias: nn.Parameter
    outer: nn.Parameter
    outer_bias: nn.Parameter

    def __init__(self, start: float, span: float, ramp: float) -> None:
        super().__init__("ctkd_instance", start, span, ramp)

    def initialise(self, num_classes: int, seeds: int | Sequence[int]) -> None:
        """Make two layers; each student of a stack has its own, from its own seed."""
        alone = isinstance(seeds, int)
        sets = [self._initial(num_classes, seed) for seed in ([seeds] if isinstance(seeds, int) else seeds)]
        for name in sets[0]:
            stacked = torch.stack([values[name] for values in sets])
            setattr(self, name, nn.Parameter(stacked[0] if alone else stacked))

    def logits(self, signals: Signals) -> Tensor:
        """The network's answer to both distributions at T = 1, which are constants here."""
        if "inner" not in self._parameters:
            self.initialise(signals.num_classes, 0)
        with torch.no_grad():
            seen = [full_precision(value).softmax(-1) for value in (signals.teacher_logits, signals.student_logits)]
        inputs = torch.cat(seen, -1).to(self.inner.dtype)
        if inputs.shape[-1] != self.inner.shape[-2]:
            raise BadInputError(
                f"ctkd_instance was made for {self.inner.shape[-2] // 2} classes; got {signals.num_classes}"
            )
        flat = inputs.flatten(1, -2) if self.inner.dim() == 3 else inputs.reshape(-1, inputs.shape[-1])
        with torch.autocast(flat.device.type, enabled=False):
            hidden = torch.relu(flat @ self.inner + self.inner_bias.unsqueeze(-2))
            answer = (hidden @ self.outer.unsqueeze(-1)).squeeze(-1) + self.outer_bias.unsqueeze(-1)
        return answer.reshape(signals.shape)

    @staticmethod
    def _initial(num_classes: int, seed: int) -> dict[str, Tensor]:
        """Torch's own initialisation of a linear layer, and a start at the middle of the range."""
        generator = torch.Generator().manual_seed(seed)
        bound = 1 / math.sqrt(2 * num_classes)

        def uniform(*shape: int, bound: float) -> Tensor:
            return (2 * torch.rand(*shape, generator=generator) - 1) * bound

        return {
            "inner": uniform(2 * num_classes, HIDDEN, bound=bound),
            "inner_bias": uniform(HIDDEN, bound=bound),
            "outer": uniform(HIDDEN, bound=1 / math.sqrt(HIDDEN)),
            "outer_bias": torch.zeros(()),
        }


def ctkd(start: float = 1.0, span: float = 20.0, ramp: float = 10 / 240, initial: float = 1.0) -> TemperatureRule:
    """Learn one temperature for all samples, with the student and against it.

    The student's optimizer trains it, momentum and weight decay included, to raise the loss; T^2 is part of what it
    raises, so it drifts upwards.

    Formula: T = start + span sigmoid(theta), weight T^2; theta's gradient is multiplied by a factor that falls from
    0 to -1 along half a cosine over the first `ramp` of the run.
    Source: Li et al. (2023), https://arxiv.org/abs/2211.16231.
    Labels: no
    Bounds: 1 to 21
    Invariant: shift, scale
    Guard: none.

    Args:
        start: Lowest T, > 0.
        span: Of the range, > 0.
        ramp: Fraction of the run, 0..1; 10 of 240 epochs in the paper.
        initial: theta at the start; 1 gives T = 15.6.
    """
    return Ctkd(start, span, ramp, initial)


def ctkd_instance(start: float = 1.0, span: float = 20.0, ramp: float = 10 / 240) -> TemperatureRule:
    """Learn a temperature for every sample from both distributions, with the student and against it.

    The authors' code of this variant is not public; the network (2C-32-1, ReLU) and its start are ours.

    Formula: T = start + span sigmoid(network(teacher's and student's distribution at T = 1)), else as ctkd.
    Source: Li et al. (2023), https://arxiv.org/abs/2211.16231, the variant called Instance-T.
    Labels: no
    Bounds: 1 to 21
    Invariant: shift
    Guard: none.

    Args:
        start: Lowest T, > 0.
        span: Of the range, > 0.
        ramp: Fraction of the run, 0..1.
    """
    return CtkdInstance(start, span, ramp)
