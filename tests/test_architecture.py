"""Imports point one way, packages are declared, and no path of a machine is in the source."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = sorted((ROOT / "rltemp").glob("*.py"))
ENVS = sorted((ROOT / "envs").glob("*.py"))
AGENTS = sorted((ROOT / "agents").glob("*.py"))
SERVICE = sorted((ROOT / "rltemp" / "service").glob("*.py"))
SOURCE = [*CORE, *ENVS, *AGENTS, *SERVICE, *sorted((ROOT / "scripts").glob("*.py"))]
TOP = {"cli.py", "commands.py", "policy_commands.py", "__main__.py"}
"""The command line: files of the core that may look at everything."""

# Python 3.10 has none of its own; pytest brings this one.
tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")


def imported(file: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it, and every name that it takes from one."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports here are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def offences(files: list[Path], *forbidden: str) -> list[str]:
    return [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files
        for name in imported(file)
        if any(name == module or name.startswith(f"{module}.") for module in forbidden)
    ]


def test_the_core_knows_neither_environments_nor_agents() -> None:
    core = [file for file in CORE if file.name not in TOP]
    assert len(core) > 15
    assert offences(core, "rltemp.envs", "rltemp.agents", "gymnasium", "stable_baselines3") == []


def test_environments_know_no_agents() -> None:
    assert len(ENVS) == 9
    assert offences(ENVS, "rltemp.agents") == []


def test_nobody_imports_the_command_line() -> None:
    below = [file for file in SOURCE if file.name not in TOP and file.parent.name != "scripts"]
    assert offences(below, "rltemp.cli", "rltemp.__main__") == []


def test_nobody_but_a_script_imports_the_service() -> None:
    below = [file for file in SOURCE if file.parent.name not in ("service", "scripts")]
    assert len(SERVICE) > 10
    assert offences(below, "rltemp.service", "fastapi", "starlette", "uvicorn", "prometheus_client") == []


def test_the_folders_envs_and_agents_are_imported_by_their_installed_names() -> None:
    assert offences(SOURCE, "envs", "agents") == []


def test_every_package_is_declared_and_mapped() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    found = {file.parent.name for file in ROOT.glob("*/__init__.py")}
    nested = {f"{file.parent.relative_to(ROOT)}".replace("/", ".") for file in ROOT.glob("rltemp/*/__init__.py")}
    assert {"rltemp"} | nested == set(setuptools["packages"]) == set(setuptools["package-dir"])
    inside = {
        f"{file.parent.relative_to(ROOT)}" for file in ROOT.glob("rltemp/*/__init__.py") if not file.parent.is_symlink()
    }
    assert found | inside == set(setuptools["package-dir"].values())
    assert found == {"rltemp", "envs", "agents"}
    assert not [*ROOT.glob("envs/*/*.py"), *ROOT.glob("agents/*/*.py")], "both folders are flat"


def test_the_links_lead_to_the_folders() -> None:
    for name in ("envs", "agents"):
        assert (ROOT / "rltemp" / name).resolve() == ROOT / name


@pytest.mark.parametrize("file", SOURCE, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_no_path_of_somebodys_machine_is_in_the_source(file: Path) -> None:
    assert re.findall(r"""["'\s](?:/(?:home|root|work|tmp|Users|mnt|data)/|[A-Z]:\\)""", file.read_text("utf-8")) == []
