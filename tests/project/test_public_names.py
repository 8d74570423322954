"""What users write: the names of `rltemp`, loaded where they are used, and the old names of modules that moved."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import rltemp
from rltemp import moved
from rltemp.errors import RltempError


def python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True)


def test_importing_rltemp_imports_no_library() -> None:
    code = "import sys; before = set(sys.modules); import rltemp; print(*set(sys.modules) - before)"
    new = {name.partition(".")[0] for name in python("-c", code).stdout.split()}
    assert new - sys.stdlib_module_names == {"rltemp"}


@pytest.mark.parametrize("name", rltemp.__all__)
def test_every_public_name_is_there_and_listed(name: str) -> None:
    assert getattr(rltemp, name).__name__ == name or name == "TemperatureRule"
    assert name in dir(rltemp)


def test_a_name_that_is_none_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'rltemp' has no attribute 'load_rules'"):
        rltemp.load_rules  # type: ignore[attr-defined]  # noqa: B018


def test_every_error_has_the_one_base_class_and_one_of_pythons() -> None:
    errors = [each for name, each in vars(rltemp.errors).items() if name.endswith("Error") and each is not RltempError]
    assert len(errors) > 5
    for error in errors:
        assert issubclass(error, RltempError)
        own = {RltempError, Exception, BaseException, object}
        assert [base for base in error.__mro__ if base.__module__ == "builtins" and base not in own], error
    assert not issubclass(rltemp.InterruptedRunError, Exception)


def test_every_error_of_every_package_derives_from_the_base_class() -> None:
    bases = {
        node.name: {ast.unparse(base) for base in node.bases}
        for file in Path(rltemp.__path__[0]).glob("*/*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.ClassDef) and node.name.endswith("Error")
    }
    known = {name for name in vars(rltemp.errors) if name.endswith("Error")}
    assert [name for name, found in bases.items() if not found & known] == []
    assert bases


@pytest.mark.parametrize("old", moved.MOVED)
def test_an_old_name_is_the_module_at_its_new_place_and_warns_once(old: str) -> None:
    new = importlib.import_module(moved.MOVED[old])
    sys.modules.pop(old, None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert importlib.import_module(old) is new
        assert importlib.import_module(old) is new
    assert [str(one.message) for one in caught] == [
        f"{old} is now {moved.MOVED[old]}; the old name goes with the next version"
    ]
    assert new.__spec__ is not None
    assert new.__spec__.name == moved.MOVED[old]


def test_modules_of_plugs_are_those_of_integrations() -> None:
    code = """
import rltemp.plugs.contract
from rltemp.plugs import Controller
from rltemp.plugs.trainers import __name__ as name
assert rltemp.plugs.contract is rltemp.integrations.contract
assert Controller is rltemp.Controller
print(name)
"""
    done = python("-W", "always::DeprecationWarning:__main__", "-c", code)
    assert done.stdout == "rltemp.integrations.trainers\n", done.stderr
    assert done.stderr.count("DeprecationWarning") == 1


def test_a_module_under_an_old_name_runs_as_a_program() -> None:
    assert python("-m", "rltemp.plugs.trainers").returncode == 0
