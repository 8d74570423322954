"""Whether steps are compiled: what `--compile` says, what is there to compile with, and whether a run pays for it."""

from __future__ import annotations

import functools
import logging
import os
import shutil
import sys
from importlib.util import find_spec
from typing import Literal, get_args

import torch

from rltemp.compiling.graph import Graph, folder, folder_fault
from rltemp.compiling.step import CompiledStep
from rltemp.errors import CompilingFailedError
from rltemp.kd.names import lookup
from rltemp.training.steps import Step, plain_step

log = logging.getLogger(__name__)

CompileMode = Literal["auto", "always", "never"]

ENOUGH = 8_000_000
"""Samples of all students side by side, over all steps by one method: with fewer, compiling takes longer than it saves.
64 students of the digits' task see as many in 2,500 steps, in which a graph saves about 5 seconds; to make one for the
first time takes about 4, and the first one on a machine 10 more (docs/experiments.md)."""


def step_for(mode: CompileMode, device: torch.device, samples: int = 0) -> Step:
    """How steps are taken; where they are compiled, or cannot be, the log says so.

    Args:
        mode: `always` compiles whatever can be, `never` nothing, `auto` where there are samples enough.
        device: Where they are taken.
        samples: Of all students side by side, over all steps of one shape by one method.

    Raises:
        BadInputError: For a mode nobody knows.
    """
    lookup(dict.fromkeys(get_args(CompileMode)), mode, "compile mode")
    if mode == "never" or (mode == "auto" and samples < ENOUGH):
        return plain_step
    if lacking := lacks(device):
        log.warning(f"Steps are not compiled, which takes longer and gives the same numbers to rounding: {lacking}.")
        return plain_step
    log.info("Steps are compiled (--compile never leaves it out).")
    return CompiledStep()


def lacks(device: torch.device) -> str:
    """What is missing to compile with, in words; empty where nothing is."""
    if not hasattr(torch.compiler, "_compile_session_context"):
        return f"torch {torch.__version__} cannot follow a whole step"
    if device.type == "cuda":
        return "" if find_spec("triton") else "there is no Triton"
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if not shutil.which(compiler):
        return f"there is no C++ compiler {compiler}; install one, or set CXX"
    return folder_fault() or _trial()


@functools.cache
def _trial() -> str:
    """Why not even a sum can be compiled; empty where it can. What it costs, the first graph is spared."""
    try:
        Graph(lambda value: [value + 1], [torch.ones(2)])
    except CompilingFailedError as error:
        return f"{error}. Where the compiler works, delete {folder()}"
    return ""


def is_compiled(step: Step) -> bool:
    """Whether a step compiles, and has compiled all that it was given: what provenance says."""
    return isinstance(step, CompiledStep) and not step.refused
