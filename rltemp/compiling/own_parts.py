"""Parts of a step that its user wrote: a graph may hold them only where they keep nothing from call to call."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from rltemp.compiling.graph import Graph, first_line, traced
from rltemp.compiling.program import Program
from rltemp.errors import CompilingFailedError
from rltemp.io.workers import packed, unpacked
from rltemp.training.steps import shielded

MIDDLE, CLOSE = 0.375, 1e-3
"""A progress at which numbers are compared, and how close they must be."""


def isolated(program: Program, inputs: Sequence[Tensor]) -> Program:
    """The same program on copies of the method and the student, which were found to be the same after two calls.

    Raises:
        CompilingFailedError: Where they cannot be copied or followed, or where they change.
    """
    twin, kept, same = copy.copy(program), _kept(_modules(program)), False
    try:
        twin.method, twin.student = unpacked(packed((program.method, program.student)))
        before = packed((twin.method, twin.student))
        first, second = traced(twin, inputs), traced(twin, inputs)
        same = packed((twin.method, twin.student)) == before and _alike(first, second)
    except Exception as error:  # a user's code may raise anything
        raise CompilingFailedError(f"no graph can follow code of yours ({first_line(error)})") from error
    finally:
        same = _put_back(kept) and same
    if not same:
        raise CompilingFailedError("code of yours keeps something from call to call, or draws random numbers")
    return twin


def check_numbers(graph: Graph, program: Program, inputs: Sequence[Tensor]) -> None:
    """Refuse a graph whose losses are others than those of a plain step in the middle of a run.

    A rule may ask whether the progress is a float: in a graph it is a tensor.

    Args:
        graph: Of the program.
        program: As `isolated` gives it; its rule is asked once more.
        inputs: Of its next step; they stay as they are.

    Raises:
        CompilingFailedError: Where they are.
    """
    run, middle = program.run, [value.clone() for value in inputs]
    middle[0].fill_(MIDDLE)  # the progress comes first
    found = dict(zip(program.outputs, graph(*middle), strict=True))["loss"]
    seen = shielded(run.signals_at(run.step, dict(run.student.named_parameters())))
    expected = program.method.step_loss(replace(seen, progress=MIDDLE)).loss.detach()
    if not torch.allclose(found, expected, rtol=CLOSE, atol=CLOSE, equal_nan=True):
        raise CompilingFailedError(
            "in a graph code of yours gives other numbers; see that it takes a progress that is a tensor"
        )


def _modules(program: Program) -> list[ModuleType]:
    """The modules that a user's rule and divergence come from."""
    rule = getattr(program.method, "rule", None)
    parts = [getattr(rule, "function", rule), getattr(program.method, "divergence", None)]
    names = {str(getattr(part, "__module__", "")) for part in (*parts, *map(type, parts))}
    return [sys.modules[name] for name in names if name in sys.modules and not name.startswith("rltemp.")]


def _kept(modules: Sequence[ModuleType]) -> list[tuple[type | ModuleType, dict[str, Any]]]:
    """What modules and their classes hold: no copy of a class keeps a count of its own."""
    classes = [
        thing
        for module in modules
        for thing in vars(module).values()
        if isinstance(thing, type) and thing.__module__ == module.__name__
    ]
    owners: list[type | ModuleType] = [*modules, *classes]
    return [(owner, dict(vars(owner))) for owner in owners]


def _put_back(kept: Sequence[tuple[type | ModuleType, dict[str, Any]]]) -> bool:
    """Give modules and classes what they held; whether nothing was changed."""
    changed = [
        (owner, name, value)
        for owner, held in kept
        for name, value in held.items()
        if vars(owner).get(name) is not value
    ]
    for owner, name, value in changed:
        setattr(owner, name, value)
    return not changed


def _alike(first: GraphModule, second: GraphModule) -> bool:
    """Whether two graphs are the same, with the same numbers in them."""
    return first.code == second.code and all(
        torch.equal(one, other) for one, other in zip(_constants(first), _constants(second), strict=True)
    )


def _constants(module: GraphModule) -> list[Tensor]:
    return [getattr(module, node.target) for node in module.graph.nodes if node.op == "get_attr"]
