"""What the project's files define, for tests that hold the docs to the code."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# Python 3.10 has none of its own; pytest brings this one.
_tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
PYPROJECT: dict[str, Any] = _tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def files() -> list[Path]:
    """Every file of the package, each once."""
    return sorted({file.resolve() for each in ("rltemp/*.py", "rltemp/*/*.py") for file in ROOT.glob(each)})


@cache
def definitions(file: Path) -> frozenset[str]:
    """Names of classes, functions and variables of a module, and of those in its classes as `Class.name`."""
    return frozenset(_names(ast.parse(file.read_text("utf-8")).body))


def _names(body: list[ast.stmt], inside: str = "") -> Iterator[str]:
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield inside + node.name
            if isinstance(node, ast.ClassDef):
                yield from _names(node.body, f"{inside}{node.name}.")
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (
                inside + name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)
            )


def everything() -> frozenset[str]:
    """Every name that any module defines, with its class and without, and the modules' own names."""
    found = {name for file in files() for name in definitions(file)} | {file.stem for file in files()}
    return frozenset(found | {name.rpartition(".")[2] for name in found})
