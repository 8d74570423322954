"""What is imported is declared, for every installation or in an extra, and a missing extra is named."""

from __future__ import annotations

import ast
import re
import sys

import pytest
from support.source import PYPROJECT, files

PROJECT = PYPROJECT["project"]

NAMES = {
    "sklearn": "scikit-learn",
    "joblib": "scikit-learn",
    "threadpoolctl": "scikit-learn",
    "PIL": "torchvision",
    "starlette": "fastapi",
    "anyio": "fastapi",
    "typing_extensions": "pydantic",
    "pydantic_core": "pydantic",
    "prometheus_client": "prometheus-client",
    "pythonjsonlogger": "python-json-logger",
    "stable_baselines3": "stable-baselines3",
    "modelopt": "nvidia-modelopt",
    "liger_kernel": "liger-kernel",
    "sentence_transformers": "sentence-transformers",
}
"""What declares a module where its name differs: its distribution, or one that always brings it along."""


def declared(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=;~! ]", requirement)[0] for requirement in requirements}


def imported(everywhere: bool) -> set[str]:
    """The libraries that the package imports, at the top of a module or anywhere, and by `import_library`."""
    found = set()
    for file in files():
        tree = ast.parse(file.read_text("utf-8"))
        for node in ast.walk(tree) if everywhere else tree.body:
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module or "")
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "import_library":
                found.add(str(ast.literal_eval(node.args[0])) if isinstance(node.args[0], ast.Constant) else "")
    tops = {name.partition(".")[0] for name in found} - sys.stdlib_module_names - {"", "rltemp"}
    return {NAMES.get(name, name) for name in tops}


def test_every_library_that_is_imported_is_declared() -> None:
    extras = [one for requirements in PROJECT["optional-dependencies"].values() for one in requirements]
    assert imported(everywhere=True) <= declared([*PROJECT["dependencies"], *extras])


def test_every_mandatory_library_is_imported() -> None:
    assert declared(PROJECT["dependencies"]) <= imported(everywhere=True)


def test_the_project_needs_sixteen_libraries_its_six_among_them() -> None:
    needed = declared(PROJECT["dependencies"])
    assert {"torch", "torchvision", "gymnasium", "stable-baselines3", "numpy", "tensorboard"} < needed
    assert len(needed) <= 16


@pytest.mark.parametrize("extra", ["serve", "remote", "ray", "search", "export", "detection", "integrations", "all"])
def test_every_extra_that_a_message_may_name_is_declared(extra: str) -> None:
    assert PROJECT["optional-dependencies"][extra]
