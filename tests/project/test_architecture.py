"""Imports point one way, packages are declared, and no path of a machine is in the source."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {file.parent.name: file.parent for file in sorted(ROOT.glob("rltemp/*/__init__.py"))}
SOURCE = sorted(
    {file.resolve() for each in ("rltemp/*.py", "rltemp/*/*.py", "scripts/*.py") for file in ROOT.glob(each)}
)

SEES: dict[str, str] = {
    "errors": "",
    "optional_imports": "errors",
    "io": "errors optional_imports",
    "kd": "io",
    "rules": "kd",
    "models": "rules",
    "data": "models",
    "policy": "data",
    "loading": "policy",
    "training": "loading",
    "remote": "training",
    "experiments": "remote",
    "report": "experiments",
    "integrations": "loading",
    "envs": "training",
    "agents": "envs remote",
    "service": "loading agents",
    "cli": "agents integrations report service",
}
"""Whom each room may import: those named here, and whatever these may import."""

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


def visible(room: str) -> set[str]:
    """The rooms that a room may import."""
    seen = set(SEES[room].split())
    return seen.union(*map(visible, seen)) if seen else seen


def room_of(file: Path) -> str:
    """`kd` of a file in rltemp/kd, `errors` of rltemp/errors.py, `envs` of one in the folder envs."""
    return file.stem if file.parent == ROOT / "rltemp" else file.parent.name


def rooms_imported(file: Path) -> set[str]:
    """The rooms that a file imports from, anywhere in it, lazily too."""
    names = [name.split(".") for name in imported(file) if name.partition(".")[0] == "rltemp"]
    return {name[1] for name in names if len(name) > 1 and name[1] in SEES}


def test_every_package_has_its_place_in_the_order() -> None:
    assert set(PACKAGES) == set(SEES) - {"errors", "optional_imports", "loading"}


@pytest.mark.parametrize("room", SEES)
def test_imports_point_one_way(room: str) -> None:
    files = [file for file in SOURCE if room_of(file) == room]
    assert files
    found = {
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files
        for name in rooms_imported(file) - {room} - visible(room)
    }
    assert found == set()


def test_each_large_library_stays_in_its_rooms() -> None:
    below = [file for file in SOURCE if room_of(file) not in ("envs", "agents", "cli", "scripts")]
    assert offences(below, "gymnasium", "stable_baselines3") == []
    others = [file for file in SOURCE if room_of(file) not in ("service", "scripts")]
    assert offences(others, "fastapi", "starlette", "uvicorn", "prometheus_client") == []


def test_packages_and_modules_are_small() -> None:
    for name, folder in PACKAGES.items():
        modules = [file for file in folder.glob("*.py") if file.name != "__init__.py"]
        assert len(modules) <= (16 if name == "agents" else 14), f"{name} has {len(modules)} modules"
    assert len([*ROOT.glob("rltemp/*.py")]) <= 6
    long = {
        f"{file.relative_to(ROOT)}": lines
        for file in SOURCE
        if (lines := len(file.read_text("utf-8").splitlines())) > 300
    }
    assert long == {}


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
