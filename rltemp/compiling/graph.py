"""One compiled graph of a function of tensors: traced by `make_fx`, compiled by Inductor, kept on disk.

The function is run once on tensors without content. What torch would do is written down, gradients and optimizers
included, and compiled as a whole: nothing of Python is left between the operations. A tensor that the function found
elsewhere than among its inputs becomes an input too, so that a graph holds no data, and data of the same shapes share
it. Compiled code lies in `folder()`: other processes and later runs load it in a tenth of a second.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from rltemp.errors import CompilingFailedError, one_line
from rltemp.io.files import cache_folder

Traceable = Callable[..., Sequence[Tensor]]
"""From tensors to tensors. It may change its inputs in place, and must not depend on anything else that changes."""


class Graph:
    """A compiled function; it takes and gives what the function does.

    Args:
        function: What is compiled.
        inputs: Of the shapes, types and devices that the graph is for; their content is not looked at.

    Raises:
        CompilingFailedError: Where the function cannot be followed, or the compiler fails.
    """

    def __init__(self, function: Traceable, inputs: Sequence[Tensor]) -> None:
        if fault := folder_fault():
            raise CompilingFailedError(fault)
        try:
            module = traced(function, inputs)
            self._found = _lifted(module)
            self._call = _compiled(module, [*inputs, *self._found])
        except Exception as error:  # torch, its compiler and the function may raise anything
            raise CompilingFailedError(first_line(error)) from error

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """Run it."""
        found: Sequence[Tensor] = self._call(*inputs, *self._found)
        return found


def first_line(error: Exception) -> str:
    """What an error says first; those of torch go on for pages."""
    return one_line(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")[:200].rstrip(". ")


def folder() -> Path:
    """Where compiled code is kept: `compiled` in the cache."""
    return cache_folder() / "compiled"


def folder_fault() -> str:
    """Why nothing can be kept in the folder, which is made where it is missing; empty where it can."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"{folder()} cannot be made ({error.strerror})"
    return "" if os.access(folder(), os.W_OK) else f"{folder()} cannot be written"


def traced(function: Traceable, inputs: Sequence[Tensor]) -> GraphModule:
    """What torch would do, operation by operation.

    Raises:
        ValueError: Where the function draws random numbers: a graph would draw others than torch does.
    """
    from torch.fx.experimental.proxy_tensor import make_fx  # with the compiler, two seconds to import

    with torch.no_grad():
        module = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)
    for node in module.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags:
            raise ValueError(f"it draws random numbers ({node.target})")
    return module


def as_compiling() -> AbstractContextManager[None]:
    """Within, torch's optimizers leave learning rates and counters as tensors, as they do where torch compiles them."""
    session: Callable[[], AbstractContextManager[None]] = torch.compiler._compile_session_context
    return session()


def _compiled(module: GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
    """What Inductor makes of a graph, or finds in the folder."""
    # As many threads as this process has belong to the code, or another process would take over its number. No pool of
    # compiling processes, which would outlive what a worker is killed in.
    patches = {"cpp.threads": torch.get_num_threads(), "emulate_precision_casts": True, "compile_threads": 1}
    # On a machine without a GPU it says that it has found none.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    kept = _environment("TORCHINDUCTOR_CACHE_DIR", str(folder()))
    with kept, torch._inductor.config.patch(patches), torch.no_grad():
        call: Callable[..., Any] = torch._inductor.standalone_compile(
            module, list(inputs), dynamic_shapes="from_example_inputs", options={"config_patches": patches}
        )
    return call


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Within, a variable has this value; what a program compiles by itself goes where it went before."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _lifted(module: GraphModule) -> list[Tensor]:
    """Make inputs of the tensors that a graph holds, in the order in which they are returned."""
    found: dict[int, tuple[Tensor, Node]] = {}
    last = [node for node in module.graph.nodes if node.op == "placeholder"][-1]
    for node in [node for node in module.graph.nodes if node.op == "get_attr"]:
        value = getattr(module, node.target)
        if id(value) not in found:
            with module.graph.inserting_after(last):
                last = module.graph.placeholder(f"found_{len(found)}")
            found[id(value)] = value, last
        node.replace_all_uses_with(found[id(value)][1])
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()
    return [value for value, _ in found.values()]
