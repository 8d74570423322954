"""Parts of a step that its user wrote: a graph may hold them only where they keep nothing from call to call."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule

from rltemp.compiling.graph import traced
from rltemp.compiling.program import Program
from rltemp.errors import CompilingFailedError, one_line
from rltemp.io.workers import packed, unpacked


def isolated(program: Program, inputs: Sequence[Tensor]) -> Program:
    """The same program on copies of the method and the student, which were found to be the same after two calls.

    Raises:
        CompilingFailedError: Where they cannot be copied or followed, or where they change.
    """
    twin = copy.copy(program)
    try:
        twin.method, twin.student = unpacked(packed((program.method, program.student)))
        before = packed((twin.method, twin.student))
        first, second = traced(twin, inputs), traced(twin, inputs)
        same = packed((twin.method, twin.student)) == before and _alike(first, second)
    except Exception as error:  # a user's code may raise anything
        raise CompilingFailedError(one_line(f"{type(error).__name__}: {error}")[:300]) from error
    if not same:
        raise CompilingFailedError("code of yours keeps something from call to call, or draws random numbers")
    return twin


def _alike(first: GraphModule, second: GraphModule) -> bool:
    """Whether two graphs are the same, with the same numbers in them."""
    return first.code == second.code and all(
        torch.equal(one, other) for one, other in zip(_constants(first), _constants(second), strict=True)
    )


def _constants(module: GraphModule) -> list[Tensor]:
    return [getattr(module, node.target) for node in module.graph.nodes if node.op == "get_attr"]
