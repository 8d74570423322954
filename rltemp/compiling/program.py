"""What a graph computes: one step of a run by a method, as a function of tensors."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rltemp.compiling import optimizer as optimizers
from rltemp.data.dataset import Batch, Split
from rltemp.kd.checks import unlawful
from rltemp.kd.divergences import VECTOR_LANES
from rltemp.kd.losses import batch_mean
from rltemp.kd.method import Method, Objective
from rltemp.kd.signals import Signals
from rltemp.kd.temperatures import Temperatures
from rltemp.models.nested import Inputs, mapped, tensors
from rltemp.models.stack import StackedStudents, logits_of
from rltemp.rules.curriculum import Learned
from rltemp.training.distill import Distillation
from rltemp.training.loss_scaling import autocast
from rltemp.training.optimization import clip_each
from rltemp.training.steps import shielded

Groups = dict[str, list[Tensor]]
"""Tensors by what they are for."""


class Program:
    """One step of a run by a method.

    Args:
        run: Of one student or a stack.
        method: Attached to the run.

    Attributes:
        gathers: Whether the graph draws the samples from the training split; else it is given each batch.
        updates: Whether the graph changes the weights; else it gives gradients, and the run's optimizer does the rest.
        outputs: What the graph gives, by name, once it has been traced.
    """

    def __init__(self, run: Distillation, method: Objective) -> None:
        self.run, self.method = run, method
        self.student: nn.Module = run.student
        self.gathers = run.batches.table is not None and run.teacher_logits is not None
        recipe, self._optimizers = run.recipe, run.optimization.optimizers
        plain = (
            recipe.accumulate == 1 and not recipe.ema and (isinstance(run.student, StackedStudents) or not recipe.clip)
        )
        self.updates = plain and len(self._optimizers) == 1 and optimizers.fits(self._optimizers[0])
        if self.updates:
            optimizers.begin(self._optimizers[0])
        self.outputs: list[str] = []
        self._sizes: dict[str, int] = {}
        table = run.batches.table or run.split
        self._form = Batch(table.inputs, self._labels(), table.mask)

    def inputs(self) -> list[Tensor]:
        """What the next step takes, in one row; how many tensors of each kind there are is kept for the graph.

        All are looked up anew: a run that is restored has another state of its optimizer.
        """
        groups = self._moving() | self._fixed()
        self._sizes = {name: len(values) for name, values in groups.items()}
        return [value for values in groups.values() for value in values]

    def _fixed(self) -> Groups:
        """What every step of the run takes."""
        run = self.run
        return {
            "parameters": list(run.student.parameters()),
            "buffers": list(run.student.buffers()),
            "rule": self._rule_tensors(),
            "optimizer": optimizers.states(self._optimizers[0]) if self.updates else [],
            "table": _listed(self._form, run.teacher_logits) if self.gathers else [],
        }

    def _moving(self) -> Groups:
        """What is the next step's own; the progress comes first."""
        run, step = self.run, self.run.step
        rates = run.optimization.set_rates(step) if self.updates else []
        # Python's floats have 64 bits, and so has what stands for them.
        numbers = [torch.tensor(value, dtype=torch.float64) for value in (run.progress, *rates)]
        if self.gathers:
            return {"numbers": numbers, "batch": [run.batches.positions(step)]}
        self._form, teacher_logits = run.drawn(step)
        return {"numbers": numbers, "batch": _listed(self._form, teacher_logits)}

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Take the step; weights, buffers and the optimizer's state change in place."""
        given, rest = Groups(), iter(inputs)
        for name, size in self._sizes.items():
            given[name] = [next(rest) for _ in range(size)]
        parameters = [value.detach().requires_grad_() for value in given["parameters"]]
        learned = [value.detach().requires_grad_() for value in given["rule"]] if self._learns else []
        with torch.enable_grad():
            signals = self._signals(parameters, given)
            loss, temperatures = self._method(learned or given["rule"]).step_loss(signals)
            total = batch_mean(loss, signals.mask).sum()
        trained = [*parameters, *learned]
        gradients = torch.autograd.grad(total, trained, allow_unused=True)
        found = {"loss": loss, **_of(signals), **_of(temperatures), **self._lawless(temperatures)}
        if self.updates:
            self._update(trained, gradients, given)
        else:
            found |= {gradient_name(place): value for place, value in enumerate(gradients) if value is not None}
        self.outputs = list(found)
        return [value.detach() for value in found.values()]

    def key(self) -> Hashable:
        """What a graph depends on beside the shapes of its inputs: equal for runs that can share one."""
        run, method = self.run, self.method
        named = {field.name: getattr(method, field.name) for field in fields(method)}
        rule = named.pop("rule", None)
        optimizer = [
            tuple((name, value) for name, value in group.items() if name not in ("params", "lr", "initial_lr"))
            for group in run.optimization.param_groups
        ]
        own = run.problem.task.own.student
        return (
            tuple(named.items()),
            None if rule is None else rule.structure,
            run.problem.task.student if own is None else run.student,
            type(run.student),
            run.problem.labelled,
            run.recipe.precision,
            run.recipe.clip,
            self.gathers,
            self.updates,
            str(optimizer),
            torch.get_num_threads(),
        )

    @property
    def ours(self) -> bool:
        """Whether all that takes part is this project's, and known to be pure."""
        divergence = getattr(self.method, "divergence", None)
        known = divergence is None or str(getattr(divergence, "__module__", "")).startswith("rltemp.")
        pure = not isinstance(self.method, Method) or self.method.rule.pure
        return known and pure and self.run.problem.task.own.student is None

    @property
    def _learns(self) -> bool:
        """Whether the rule's tensors are parameters that the run trains."""
        rule = self.method.rule if isinstance(self.method, Method) else None
        return isinstance(rule, Learned) and rule is self.run.learned

    def _rule_tensors(self) -> list[Tensor]:
        return self.method.rule.tensors if isinstance(self.method, Method) else []

    def _method(self, rule: Sequence[Tensor]) -> Objective:
        if not isinstance(self.method, Method) or not rule:
            return self.method
        return replace(self.method, rule=self.method.rule.holding(rule))

    def _labels(self) -> Tensor | None:
        return self.run.split.labels if self.run.problem.labelled else None

    def _signals(self, parameters: Sequence[Tensor], given: Groups) -> Signals:
        run = self.run
        if self.gathers:
            positions, (*table, teacher_table) = given["batch"][0], given["table"]
            batch = Split(*_filled(self._form, iter(table))).batch(positions)
            teacher_logits = teacher_table[positions]
        else:
            *drawn, teacher_logits = given["batch"]
            batch = _filled(self._form, iter(drawn))
        with autocast(run.problem.device, run.recipe.precision):
            logits = self._called([*parameters, *given["buffers"]], batch.inputs)
        seen = run.signals(batch, logits, teacher_logits, progress=given["numbers"][0])
        return shielded(seen if seen.num_classes >= VECTOR_LANES else _classes_apart(seen))

    def _called(self, state: Sequence[Tensor], inputs: Inputs) -> Tensor:
        self.student.train()
        if isinstance(self.student, StackedStudents):
            return self.student.called(state, inputs)
        names = [name for name, _ in (*self.student.named_parameters(), *self.student.named_buffers())]
        return logits_of(functional_call(self.student, dict(zip(names, state, strict=True)), (inputs,)))

    def _lawless(self, temperatures: Temperatures | None) -> dict[str, Tensor]:
        """Whether a rule that is not known to be lawful answered what it must not."""
        if temperatures is None or not isinstance(self.method, Method) or self.method.rule.checked:
            return {}
        return {"lawless": unlawful(temperatures, self.method.rule.bounds).any()}

    def _update(self, trained: Sequence[Tensor], gradients: Sequence[Tensor | None], given: Groups) -> None:
        own = [value for value in gradients[: len(given["parameters"])] if value is not None]
        if self.run.recipe.clip is not None:
            clip_each(own, self.run.recipe.clip)
        optimizers.stepped(self._optimizers[0], trained, gradients, given["optimizer"], given["numbers"][1:])


def _classes_apart(signals: Signals) -> Signals:
    """The same signals, in memory class by class: a few classes do not fill a vector register, samples do."""
    student, teacher = (
        logits.movedim(-1, 0).contiguous().movedim(0, -1) for logits in (signals.student_logits, signals.teacher_logits)
    )
    return replace(signals, student_logits=student, teacher_logits=teacher)


def gradient_name(place: int) -> str:
    """What the gradient of a parameter is called among the outputs."""
    return f"gradient {place}"


def _listed(batch: Batch, teacher_logits: Tensor | None) -> list[Tensor]:
    """The tensors of a batch, or of a whole split, with the teacher's logits last."""
    marks = [one for one in (batch.labels, batch.mask, teacher_logits) if one is not None]
    return [*tensors(batch.inputs), *marks]


def _filled(batch: Batch, values: Iterator[Tensor]) -> Batch:
    """A batch of the same form with other tensors."""
    inputs = mapped(lambda _: next(values), batch.inputs)
    labels, mask = (None if one is None else next(values) for one in (batch.labels, batch.mask))
    return Batch(inputs, labels, mask)


def _of(thing: Signals | Temperatures | None) -> dict[str, Tensor]:
    """The tensors of signals or temperatures by the names of their fields."""
    names = ("student_logits", "teacher_logits", "labels", "mask") if isinstance(thing, Signals) else ANSWERED
    found = {name: getattr(thing, name, None) for name in names}
    return {name: value for name, value in found.items() if value is not None}


ANSWERED = tuple(field.name for field in fields(Temperatures))
