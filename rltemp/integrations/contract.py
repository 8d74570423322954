"""What all plugs share: a method, asked for temperatures and losses with the tensors that a loop has at hand.

Shapes: classes are the last axis, C; `...` is any leading shape: `[B]` of images, `[B, T]` of tokens, `[B, A]` of
proposals. Everything runs on the logits' device and nothing waits for it, as long as the rule looks at each sample
alone (a rule that compares samples gathers those that a mask leaves).
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from rltemp.errors import BadInputError
from rltemp.kd.checks import bounds_of, check_shape, check_temperatures, positive
from rltemp.kd.losses import kd_loss
from rltemp.kd.method import CHECKED, Method
from rltemp.kd.signals import TAKES_MASKS, Signals, TemperatureRule, Temperatures, per_sample
from rltemp.loading import load_method
from rltemp.optional_imports import import_library
from rltemp.rules.curriculum import LearnedRule
from rltemp.rules.table import masked


class Controller:
    """A method in a loop of somebody else's: temperatures, losses and rescaled logits.

    Args:
        method: What `rltemp.load_method` reads (`"universal"`, `"dtkd"`, the path of a policy file), a rule, which
            gets plain distillation's weights, or a `Method`.

    Attributes:
        method: The `rltemp.Method`.

    Every call takes the same arguments: `student_logits` and `teacher_logits` `[..., C]`, `labels` `[...]` where the
    method needs them, `progress` 0..1 of the run, a float or a tensor of one number (which is not looked at: no step
    waits for it), and `mask` `[...]`, False where there is no sample.

    Raises:
        BadInputError: Where there is no temperature rule, and, from every call, before any arithmetic, where shapes
            disagree.
    """

    def __init__(self, method: str | Method | TemperatureRule = "universal") -> None:
        if isinstance(method, str):
            method = load_method(method)
        self.method = method if isinstance(method, Method) else Method(getattr(method, "__name__", "rule"), method)
        if self.method.rule is None:
            raise BadInputError(
                f"{self.method.name!r} trains without a teacher and has no temperatures; give a rule or a policy"
            )
        self._method = replace(self.method, rule=_looked_at(self.method))

    def __call__(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor | None = None,
        progress: float | Tensor = 0.0,
        mask: Tensor | None = None,
    ) -> Temperatures:
        """Temperatures and weights `[...]`, float32, constants of the graph; T = 1 and weight 0 off the mask."""
        return self._temperatures(self.signals(student_logits, teacher_logits, labels, progress, mask))

    def kd(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor | None = None,
        progress: float | Tensor = 0.0,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The weighted divergence of every sample, `[...]`, in nats: what stands in for a loop's own soft loss.

        It is `kd_weight * weight * D(student / T_s, teacher / T_t)` at constant temperatures; 0 off the mask. A
        method's cross-entropy, warm-up and second divergence (DTKD has both) are in `objective` alone.
        """
        signals = self.signals(student_logits, teacher_logits, labels, progress, mask)
        return self.method.kd_weight * kd_loss(signals, self._temperatures(signals), self.method.divergence)

    def objective(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor | None = None,
        progress: float | Tensor = 0.0,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The method's whole objective for every sample, `[...]`, in nats: what `rltemp distill` minimises."""
        return self._method.loss(self.signals(student_logits, teacher_logits, labels, progress, mask))

    def rescaled(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        base_temperature: float,
        labels: Tensor | None = None,
        progress: float | Tensor = 0.0,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits z T0 / T_i for a kit that divides by one temperature T0: it then divides by T_i, sample by sample.

        The weights are not in them: the kit's own factor (T0^2 or none) is every sample's. Where the mask has no
        sample, the logits come back as they are.

        Args:
            student_logits: `[..., C]`.
            teacher_logits: `[..., C]`.
            base_temperature: T0, what the kit divides by; > 0.
            labels: `[...]`.
            progress: Of the run, 0..1.
            mask: `[...]`.

        Returns:
            The student's and the teacher's logits `[..., C]`, each in its type.
        """
        base = positive(base_temperature, "rescaled", "base_temperature")
        found = self(student_logits, teacher_logits, labels, progress, mask)
        factors = (base / found.student, base / found.teacher)
        if mask is not None:
            factors = (factors[0].masked_fill(~mask, 1.0), factors[1].masked_fill(~mask, 1.0))
        student, teacher = (
            (logits * factor.unsqueeze(-1)).to(logits.dtype)
            for logits, factor in zip((student_logits, teacher_logits), factors, strict=True)
        )
        return student, teacher

    @staticmethod
    def signals(
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor | None = None,
        progress: float | Tensor = 0.0,
        mask: Tensor | None = None,
    ) -> Signals:
        """The arguments of a call as `rltemp.Signals`, with the teacher's graph cut."""
        return Signals(student_logits, teacher_logits.detach(), labels, progress, mask)

    def _temperatures(self, signals: Signals) -> Temperatures:
        rule = self._method.rule
        assert rule is not None  # checked above
        found = rule(replace(signals, student_logits=signals.student_logits.detach())).detach()
        return Temperatures(found.student.float(), found.teacher.float(), found.weight.float(), found.guarded)


def _looked_at(method: Method) -> TemperatureRule:
    """The method's rule, its answer off the mask made harmless and, where it is not one of rltemp's own, checked.

    A rule of rltemp's keeps the law by itself, but for logits that are not finite: those are left to the loop, whose
    gradient scaler may want to see them.
    """
    inner = method.rule
    assert inner is not None  # checked where the method came from
    own, rule = getattr(inner, TAKES_MASKS, False), masked(inner)

    def answer(signals: Signals) -> Temperatures:
        found = rule(signals)
        check_shape(found, signals.shape, method.name)
        if not own and not torch.compiler.is_compiling():
            check_temperatures(found, method.name, bounds_of(inner))
        return found

    setattr(answer, CHECKED, True)
    return per_sample(answer)


def without_parameters(controller: Controller) -> Controller:
    """The controller, for a host whose optimizer would not get to see the parameters of its rule.

    Raises:
        BadInputError: Where its rule learns in every run anew: nothing there would train it.
    """
    if isinstance(controller.method.rule, LearnedRule):
        raise BadInputError(
            f"{controller.method.name!r} has parameters to learn, which this host would not train: take another "
            "method, or a loop of your own whose optimizer gets them (rltemp.rules.curriculum says how)"
        )
    return controller


class HostVersionWarning(UserWarning):
    """The installed version of a host lies outside of those that its plug was tested with."""


def tested_with(host: str, version_range: str) -> None:
    """Warn where the host's installed version is not one that its plug was tested with.

    Args:
        host: The distribution's name, as pip has it.
        version_range: As pip has it: `">=5.0,<6"`.

    Raises:
        BadInputError: Where the host is not installed.
    """
    try:
        found = version(host)
    except PackageNotFoundError:
        raise BadInputError(
            f"this plug needs {host} ({version_range}), which is not installed: pip install {host}"
        ) from None
    specifiers = import_library("packaging.specifiers", "this integration", "integrations")
    if not specifiers.SpecifierSet(version_range).contains(found, prereleases=True):
        warnings.warn(
            f"{host} {found} is installed; rltemp's plug was tested with {host} {version_range}",
            HostVersionWarning,
            stacklevel=3,
        )
