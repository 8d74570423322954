"""Imports point one way, packages are declared, and no path of a machine is in the source."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from runpy import run_path

import pytest
from support.source import PYPROJECT, ROOT, definitions, files

PACKAGES = {file.parent.name: file.parent for file in sorted(ROOT.glob("rltemp/*/__init__.py"))}
SOURCE = [*files(), *sorted(ROOT.glob("scripts/*.py"))]

SEES: dict[str, str] = {
    "errors": "",
    "optional_imports": "errors",
    "io": "errors optional_imports",
    "kd": "io",
    "rules": "kd",
    "models": "rules",
    "pictures": "models",
    "data": "pictures",
    "policy": "data",
    "loading": "policy",
    "training": "loading",
    "remote": "training",
    "compiling": "training",
    "experiments": "remote compiling",
    "report": "experiments",
    "integrations": "loading agents",
    "envs": "compiling",
    "agents": "envs remote",
    "service": "loading agents",
    "runs": "agents report",
    "cli": "integrations runs service",
}
"""Whom each room may import: those named here, and whatever these may import."""

SCRIPT = run_path(str(ROOT / "scripts/architecture.py"))
imported = SCRIPT["named"]

TWICE = {
    "compare.py": "the command `compare` and what it runs",
    "distill.py": "the command `distill`, its options, and the run of a student",
    "options.py": "options of the commands that train one student, and of those that train many",
    "train_policy.py": "the command `train-policy`, and its options",
    "rule.py": "a policy as a temperature rule, from its file and from a service",
}
"""Names of files that stand in two packages, and why: the reason must be good, for both come up in every search."""


def offences(among: list[Path], *forbidden: str) -> list[str]:
    return [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in among
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


def signpost(package: str) -> str:
    """The docstring of a package's `__init__`."""
    return ast.get_docstring(ast.parse((PACKAGES[package] / "__init__.py").read_text("utf-8"))) or ""


def quoted(words: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", words))


def test_relative_imports_are_not_used() -> None:
    for file in SOURCE:
        nodes = ast.walk(ast.parse(file.read_text("utf-8")))
        assert not [node for node in nodes if isinstance(node, ast.ImportFrom) and node.level], file


def test_every_package_has_its_place_in_the_order() -> None:
    assert set(PACKAGES) == set(SEES) - {"errors", "optional_imports", "loading"}


@pytest.mark.parametrize("room", SEES)
def test_imports_point_one_way(room: str) -> None:
    here = [file for file in SOURCE if room_of(file) == room]
    assert here
    found = {
        f"{file.relative_to(ROOT)} imports {name}"
        for file in here
        for name in rooms_imported(file) - {room} - visible(room)
    }
    assert found == set()


def test_no_modules_import_each_other_in_a_circle() -> None:
    imports = {module: others for module, others in SCRIPT["module_graph"]().items() if module != "rltemp"}
    try:  # the names of `rltemp` itself are loaded where they are used
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_an_import_inside_a_function_says_why() -> None:
    silent = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in SOURCE
        for node in imports_inside_functions(ast.parse(file.read_text("utf-8")))
        if not said_beside(file.read_text("utf-8").splitlines(), node.lineno - 1)
    ]
    assert silent == []


def imports_inside_functions(tree: ast.Module) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports of modules of ours that are made when a function runs."""
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    for node in {inner for function in functions for inner in ast.walk(function)}:
        if isinstance(node, ast.Import) and any(alias.name.startswith("rltemp") for alias in node.names):
            yield node
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("rltemp"):
            yield node


def said_beside(lines: list[str], number: int) -> bool:
    """Whether a comment stands on the line, above it, or beside an import directly above it."""
    if "#" in lines[number]:
        return True
    above = lines[number - 1].strip()
    return above.startswith("#") or (above.startswith(("from ", "import ")) and said_beside(lines, number - 1))


def test_a_public_class_name_has_one_meaning() -> None:
    assert twice((node.name, file) for file in SOURCE for node in public_classes(file)) == {}


def public_classes(file: Path) -> list[ast.ClassDef]:
    body = ast.parse(file.read_text("utf-8")).body
    return [node for node in body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]


def test_a_file_name_stands_in_one_package_unless_there_is_a_reason() -> None:
    found = [file for file in SOURCE if file.name != "__init__.py" and room_of(file) != "scripts"]
    assert twice((file.name, file) for file in found).keys() <= TWICE.keys()


def twice(named: Iterable[tuple[str, Path]]) -> dict[str, list[str]]:
    """The files of every name that stands in more than one."""
    found = defaultdict(list)
    for name, file in named:
        found[name].append(f"{file.relative_to(ROOT)}")
    return {name: files for name, files in found.items() if len(files) > 1}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_signpost_says_what_is_inside_and_who_imports_it(package: str) -> None:
    said = dict(
        re.findall(r"^(Inside|To extend|Imports|Imported by): (.+?)(?=^[A-Z]|\Z)", signpost(package), re.M | re.S)
    )
    assert said.keys() == {"Inside", "To extend", "Imports", "Imported by"}
    assert quoted(said["Imports"]) == set(SEES[package].split()) - {"optional_imports"}
    above = {room for room in SEES if package in visible(room)}
    assert quoted(said["Imported by"]) <= above
    assert bool(above) == ("nobody" not in said["Imported by"])
    inside = [*PACKAGES[package].glob("*.py")]
    assert quoted(said["Inside"]) <= {file.stem for file in inside}.union(*map(definitions, inside))


def test_the_picture_of_the_packages_is_the_one_that_the_imports_draw() -> None:
    assert SCRIPT["drawing"]() in (ROOT / "docs/architecture.md").read_text("utf-8")


def test_arrows_that_follow_from_others_are_left_out_and_no_others() -> None:
    graph = {"a": {"b", "c", "d"}, "b": {"c"}, "c": set(), "d": set()}
    assert SCRIPT["reduced"](graph) == {"a": {"b", "d"}, "b": {"c"}, "c": set(), "d": set()}


def test_each_large_library_stays_in_its_rooms() -> None:
    below = [file for file in SOURCE if room_of(file) not in ("envs", "agents", "cli", "scripts")]
    assert offences(below, "gymnasium", "stable_baselines3") == []
    others = [file for file in SOURCE if room_of(file) not in ("service", "scripts")]
    assert offences(others, "fastapi", "starlette", "uvicorn", "prometheus_client") == []


MOST = {"agents": 16, "cli": 15, "envs": 15, "integrations": 17}
"""Modules of the packages that may have more than 14; of integrations one for each host."""


def test_packages_and_modules_are_small() -> None:
    for name, folder in PACKAGES.items():
        modules = [file for file in folder.glob("*.py") if file.name != "__init__.py"]
        assert len(modules) <= MOST.get(name, 14), f"{name} has {len(modules)} modules"
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
    setuptools = PYPROJECT["tool"]["setuptools"]
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


def test_no_path_of_somebodys_machine_is_in_the_source() -> None:
    path = re.compile(r"""["'\s](?:/(?:home|root|work|tmp|Users|mnt|data)/|[A-Z]:\\)""")
    assert [file for file in SOURCE if path.search(file.read_text("utf-8"))] == []


TESTS = sorted(ROOT.glob("tests/*/test_*.py"))


def test_no_test_imports_a_test_and_folders_are_named_as_packages() -> None:
    assert [f"{file.name} imports {name}" for file in TESTS for name in imported(file) if "test_" in name] == []
    assert {file.parent.name for file in TESTS} - {"project"} <= PACKAGES.keys()


def test_names_of_tests_have_at_most_70_characters() -> None:
    nodes = (node for file in TESTS for node in ast.walk(ast.parse(file.read_text("utf-8"))))
    names = [node.name for node in nodes if isinstance(node, ast.FunctionDef)]
    assert [name for name in names if len(name) > 70] == []
