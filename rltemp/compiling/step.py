"""A training step as one compiled graph, from the positions of its batch to the changed weights.

`CompiledStep` is a `rltemp.training.steps.Step`: it takes the steps that `plain_step` takes, to rounding, and takes
those that cannot be compiled as `plain_step` does, with one line that says why. A graph serves every run of the same
shapes by the same method: what differs, weights, data, learning rate and progress, are its inputs.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rltemp.compiling.graph import Graph
from rltemp.compiling.own_parts import check_numbers, isolated
from rltemp.compiling.program import ANSWERED, Program, gradient_name
from rltemp.errors import CompilingFailedError
from rltemp.kd.method import Method, Objective, refuse_unlawful
from rltemp.kd.signals import Signals
from rltemp.kd.temperatures import Temperatures
from rltemp.models.stack import LoopedStudents
from rltemp.rules.curriculum import Learned
from rltemp.rules.meta import Mkd
from rltemp.training.distill import Distillation
from rltemp.training.steps import Taken, plain_step

log = logging.getLogger(__name__)


class CompiledStep:
    """Takes steps of runs, each as one call of a compiled graph."""

    def __init__(self) -> None:
        self._graphs: dict[Hashable, _Compiled | None] = {}
        self._said: set[str] = set()
        self._bound: _Bound | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Another process compiles for itself, and finds the code on the disk."""
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        CompiledStep.__init__(self)

    def __call__(self, run: Distillation, method: Objective) -> Taken:
        """Take the next step of a run."""
        bound = self._bound
        if bound is None or bound.run is not run or bound.method is not method:
            bound = self._bound = self._bind(run, method)
        return bound.take()

    def _bind(self, run: Distillation, method: Objective) -> _Bound:
        """Find or make the graph of a run by a method."""
        if reason := why_not(run, method):
            self._say(method, reason)
            return _Bound(run, method)
        program = Program(run, method)
        inputs = program.inputs()
        key = program.key(), tuple((value.shape, value.stride(), value.dtype, value.device) for value in inputs)
        if key not in self._graphs:
            self._graphs[key] = self._made(program, inputs)
        return _Bound(run, method, program, self._graphs[key])

    def _made(self, program: Program, inputs: list[Tensor]) -> _Compiled | None:
        try:
            traced = program if program.ours else isolated(program, inputs)
            graph = Graph(traced, inputs)
            if not program.ours:
                check_numbers(graph, traced, inputs)
            return _Compiled(graph, traced.outputs)
        except CompilingFailedError as error:
            self._say(program.method, str(error))
            return None

    @property
    def refused(self) -> bool:
        """Whether any steps were taken plainly."""
        return bool(self._said)

    def _say(self, method: Objective, reason: str) -> None:
        line = f"Steps by {method.name} are not compiled, which takes longer and gives the same numbers: {reason}."
        if line not in self._said:
            self._said.add(line)
            log.warning(line)


@dataclass(frozen=True)
class _Compiled:
    """A graph, and the names of what it gives."""

    graph: Graph
    outputs: list[str]


@dataclass(frozen=True)
class _Bound:
    """A run with the graph that takes its steps; without one they are taken plainly."""

    run: Distillation
    method: Objective
    program: Program | None = None
    compiled: _Compiled | None = None

    def take(self) -> Taken:
        """Take the next step."""
        run, program, compiled = self.run, self.program, self.compiled
        if program is None or compiled is None or not _has_samples(run):
            return plain_step(run, self.method)
        found = dict(zip(compiled.outputs, compiled.graph(*program.inputs()), strict=True))
        taken = self._taken(found)
        if "lawless" in found and bool(found["lawless"]):
            refuse_unlawful(self.method, taken.temperatures)
        gradients = [found.get(gradient_name(place)) for place in range(len(run.optimization.parameters))]
        run.advance(None if program.updates else gradients)
        return taken

    def _taken(self, found: dict[str, Tensor]) -> Taken:
        run, logits = self.run, (found["student_logits"], found["teacher_logits"])
        stacked = not isinstance(run.seeds, int)
        signals = Signals(*logits, found.get("labels"), run.progress, found.get("mask"), stacked)
        if not isinstance(self.method, Method) or not self.method.asks(run.progress):
            return Taken(signals, found["loss"], None)
        temperatures = Temperatures(**{name: found[name] for name in ANSWERED if name in found})
        return Taken(signals, found["loss"], temperatures)


def why_not(run: Distillation, method: Objective) -> str:
    """Why a run's steps cannot be one graph, in words; empty where they may."""
    if type(run) is not Distillation:
        return "its batches hold mixed samples"
    rule = method.rule if isinstance(method, Method) else None
    if run.learned is not None and not (isinstance(rule, Learned) and rule is run.learned):
        return "what learns in it is not its rule"
    if isinstance(rule, Mkd):
        return "its temperatures move outside of a step"
    if isinstance(run.student, LoopedStudents) or run.problem.traits.draws:
        return "students are called one after another"
    return "precision float16 scales its loss" if run.scaler is not None else ""


def _has_samples(run: Distillation) -> bool:
    """Whether the next batch holds a sample: one that does not is passed over, which a graph cannot."""
    mask = run.split.mask
    return mask is None or bool(mask[run.batches.positions(run.step)].any())
