"""The controller: a method in a training loop of somebody else's; and what the integrations of hosts share.

Shapes: classes are the last axis, C; `...` is any leading shape: `[B]` of images, `[B, T]` of tokens, `[B, A]` of
proposals. Everything runs on the logits' device, which nothing waits for under the rules of this project that look at
each sample alone. A rule of your own has its temperatures checked; one that compares samples gathers those of a mask.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rltemp.errors import BadInputError
from rltemp.io.files import atomic_write
from rltemp.kd.checks import check_shape, positive
from rltemp.kd.classes import ALIGNMENTS, Alignment, aligned
from rltemp.kd.guard_count import GuardCount
from rltemp.kd.losses import kd_loss
from rltemp.kd.method import Method, Objective, refuse_unlawful, watch
from rltemp.kd.names import lookup
from rltemp.kd.rowwise import is_transformed
from rltemp.kd.signals import Signals
from rltemp.kd.sparse_teacher import SparseTeacher
from rltemp.kd.temperature_rule import RuleFunction, TemperatureRule, as_rule
from rltemp.kd.temperatures import Temperatures
from rltemp.loading import load_method, with_teacher
from rltemp.rules.adapter import learns

if TYPE_CHECKING:
    from rltemp.integrations.own_runs import OwnRuns


class Controller:
    """A method in a loop of somebody else's: its loss, its temperatures, rescaled logits.

        controller = Controller("universal")
        loss = controller.loss(student_logits, teacher_logits, labels, progress=step / steps).mean()

    Args:
        method: What `rltemp.load_method` reads (`"universal"`, `"dtkd"`, the path of a policy file), a rule, which
            gets plain distillation's coefficients, a `Method`, or a controller, whose method it shares. With `learn`
            what learning begins as, by name: a policy or a closed-form method; at a service, what is learned there.
        learn: Learn a policy from the runs of this loop: a folder for the learner, or the URL of a service
            (`rltemp serve --learn`). Every run is then between `begin` and `report`.
        align_classes: `"equal"` refuses networks of unlike numbers of classes; `"shorter"` compares the first classes
            of both, for vocabularies of one tokenizer that are padded unlike.
        **options: Of the learner; docs/own-loop.md lists them.

    Attributes:
        method: The `rltemp.Method`; with `learn` that of the run that is open.

    Every call takes the same arguments: `student_logits` and `teacher_logits` `[..., C]`, or a `SparseTeacher` in place
    of the latter; `labels` `[...]`, where needed; `progress`, how much of the run is done, 0..1, where the method uses
    it (a float, or a tensor of one number, which is never read); and `mask` `[...]`, False where there is no sample.

    Raises:
        BadInputError: Without a temperature rule or a usable `learn`; from a call, where shapes disagree, or labels or
            the progress are needed and missing.
    """

    method: Method

    def __init__(
        self,
        method: MethodLike = "universal",
        *,
        learn: str | Path | None = None,
        align_classes: Alignment = "equal",
        **options: Any,
    ) -> None:
        self._runs: OwnRuns | None = None
        if learn is not None:
            from rltemp.integrations.own_runs import runs_of  # SB3 takes a second

            self._runs = runs_of(method, learn, options)
            method = self._runs.between
        elif options:
            raise BadInputError(f"a controller without learn= has no options; got {', '.join(options)}")
        self.align_classes = lookup(ALIGNMENTS, align_classes, "align_classes")
        if isinstance(method, Controller):
            self.align_classes = self.align_classes if align_classes != "equal" else method.align_classes
            method = method.method
        elif isinstance(method, (str, Path)):
            method = load_method(method)
        if not isinstance(method, Objective):
            rule = as_rule(method)
            method = Method(rule.name, rule)
        self.method = with_teacher(method, "a controller")
        self._guards = GuardCount()

    def __repr__(self) -> str:
        return f"Controller({self.method!r})"

    def loss(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor | SparseTeacher,
        labels: Tensor | None = None,
        progress: float | Tensor = math.nan,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The method's whole objective for every sample, `[...]`, in nats, cross-entropy and warm-up among it."""
        loss, found = self.method.step_loss(self.signals(student_logits, teacher_logits, labels, progress, mask))
        self._judge(found, mask)
        return loss

    def kd(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor | SparseTeacher,
        labels: Tensor | None = None,
        progress: float | Tensor = math.nan,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The distillation term of every sample, `[...]`, in nats: for a loop with a cross-entropy of its own.

        It is `kd_weight * weight * D(student / T_s, teacher / T_t)` at constant temperatures; 0 off the mask. Warm-up
        and a second divergence (DTKD has both) are in `loss` alone.
        """
        signals = self.signals(student_logits, teacher_logits, labels, progress, mask)
        return self.method.kd_weight * kd_loss(signals, self._temperatures(signals), self.method.divergence)

    def temperatures(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor | SparseTeacher,
        labels: Tensor | None = None,
        progress: float | Tensor = math.nan,
        mask: Tensor | None = None,
    ) -> Temperatures:
        """Temperatures and weights `[...]`, float32, constants of the graph; T = 1 and weight 0 off the mask."""
        return self._temperatures(self.signals(student_logits, teacher_logits, labels, progress, mask))

    __call__ = temperatures

    @property
    def guarded(self) -> float:
        """The share of samples so far, 0..1, that were outside what a policy has seen (`rltemp.policy.fading`).

        Of a formula: where its guard stood in. A large share is logged, after the 100th call, the 1,000th and so on.
        To read it waits for the device. What torch.compile or torch.func has transformed is not counted.
        """
        return self._guards.share

    def runs(self, count: int, per_seed: int = 2, first_seed: int = 0) -> Iterator[int]:
        """Begin runs one after another, and give the seed of each, which comes `per_seed` times in a row.

        Runs of one seed are judged against each other: let the seed determine the student's start and its batches.

        Args:
            count: Of all runs; those that the learner's folder has reports of are passed over.
            per_seed: Two or more; of every two one has the draw of the other mirrored.
            first_seed: 0 or more. Loops that report to one service side by side need other seeds.
        """
        for seed, number in self._learning().order(count, per_seed, first_seed):
            self.begin(seed, number)
            yield seed

    def begin(self, seed: int, number: int = 0) -> None:
        """Begin a run under a draw of its own around the newest policy; one that was not reported is forgotten.

        Args:
            seed: Runs of one seed are judged against each other.
            number: Among the runs of this seed, from 0.
        """
        self.method = self._learning().begin((seed, number))

    def report(self, metric: float) -> None:
        """End the run with its metric on samples that it was not trained on; higher is better.

        Raises:
            BadInputError: Where no run is open, or the metric is not finite or out of its range; the run stays open.
        """
        self._learning().report(float(metric))
        self.method = self._learning().between

    def save(self, path: str | Path) -> None:
        """Write the policy that was learned so far: a file for `Controller`, `rltemp distill --rule` and the others."""
        atomic_write(path, self._learning().learner.policy())

    @property
    def counts(self) -> dict[str, int]:
        """Runs of this process by what became of them: `reported`, `forgotten`, `fallback` (a service was away)."""
        return dict(self._learning().counts)

    def _learning(self) -> OwnRuns:
        if self._runs is None:
            raise BadInputError("this controller does not learn: make it with learn=FOLDER, or the URL of a service")
        return self._runs

    def objective(self, *arguments: Any, **named: Any) -> Tensor:
        """Deprecated: `loss` under the name that it had in version 0.1."""
        if not torch.compiler.is_compiling():  # which cannot follow a warning
            warnings.warn("Controller.objective is called Controller.loss now", DeprecationWarning, stacklevel=2)
        return self.loss(*arguments, **named)

    def rescaled(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor | SparseTeacher,
        base_temperature: float,
        labels: Tensor | None = None,
        progress: float | Tensor = math.nan,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits z T0 / T_i for a kit that divides by one temperature T0, `base_temperature`: it then divides by T_i.

        The weights are not in them: the kit's own factor (T0^2 or none) is every sample's. Off the mask none changes.
        The student's come first, then the teacher's, each in its type.
        """
        base = positive(base_temperature, "rescaled", "base_temperature")
        found = self.temperatures(student_logits, teacher_logits, labels, progress, mask)

        def rescaled(logits: Tensor | SparseTeacher, temperatures: Tensor) -> Tensor:
            if isinstance(logits, SparseTeacher):
                raise BadInputError("rescaled needs all logits of the teacher; with a sparse teacher call kd or loss")
            factor = base / temperatures
            factor = factor if mask is None else factor.masked_fill(~mask, 1.0)
            return (logits * factor.unsqueeze(-1)).to(logits.dtype)

        return rescaled(student_logits, found.student), rescaled(teacher_logits, found.teacher)

    def signals(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor | SparseTeacher,
        labels: Tensor | None = None,
        progress: float | Tensor = math.nan,
        mask: Tensor | None = None,
    ) -> Signals:
        """The arguments of a call as `rltemp.Signals`, with the teacher's graph cut."""
        if isinstance(teacher_logits, SparseTeacher):
            return teacher_logits.signals(student_logits, labels, progress, mask)
        teacher = teacher_logits.detach() if isinstance(teacher_logits, Tensor) else teacher_logits  # which is refused
        student_logits, teacher = aligned(student_logits, teacher, self.align_classes)
        return Signals(student_logits, teacher, labels, progress, mask)

    def _temperatures(self, signals: Signals) -> Temperatures:
        found = self.method.rule(replace(signals, student_logits=signals.student_logits.detach())).detach()
        check_shape(found, signals.shape, self.method.name)
        self._judge(found, signals.mask)
        return found.each(lambda values, _: values if values.dtype == torch.bool else values.float())

    def _judge(self, found: Temperatures | None, mask: Tensor | None) -> None:
        if not is_transformed():
            refuse_unlawful(self.method, found)
            self._guards(found, mask, self.method.name)


MethodLike = str | Path | Objective | TemperatureRule | RuleFunction | Controller
"""What a controller is made from."""


def controller_of(method: MethodLike) -> Controller:
    """Return a controller, for a host whose optimizer would not get the parameters of a rule.

    Raises:
        BadInputError: Where its rule learns in every run anew: nothing there would train it.
    """
    controller = method if isinstance(method, Controller) else Controller(method)
    if learns(controller.method):
        raise BadInputError(
            f"{controller.method.name!r} has parameters to learn, which this host would not train: take another "
            "method, or a loop of your own whose optimizer gets them (rltemp.rules.curriculum says how)"
        )
    return controller


def mean_of(losses: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean loss of the samples that the mask leaves; 0 where it leaves none."""
    return losses.mean() if mask is None else losses.sum() / mask.sum().clamp(min=1)


class RecordingController(Controller):
    """A `Controller` whose `last` holds the temperatures of its last call; `kept` leaves out what the mask does.

    Raises:
        BadInputError: For a rule with parameters to learn: the host's optimizer would not train them.
    """

    def __init__(self, method: MethodLike = "universal") -> None:
        self.last: Temperatures | None = None
        controller = controller_of(method)
        super().__init__(watch(controller.method, self._keep), align_classes=controller.align_classes)

    def _keep(self, temperatures: Temperatures) -> None:
        self.last = temperatures

    def kept(self, mask: Tensor | None) -> Temperatures | None:
        """The last temperatures of the samples that the call's mask kept; waits for the device."""
        if (last := self.last) is None or mask is None or last.student.shape != mask.shape:
            return last  # a rule that compares samples has seen those of the mask alone
        return last.of_samples(mask)
