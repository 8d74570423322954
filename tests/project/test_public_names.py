"""What users write: the names of `rltemp`, loaded where they are used, and the old names of modules that moved."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import runpy
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

import rltemp
from rltemp.errors import RltempError
from rltemp.moved import MOVED


def test_importing_rltemp_imports_no_library() -> None:
    code = "import sys; before = set(sys.modules); import rltemp; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    new = {name.partition(".")[0] for name in done.stdout.split()}
    assert new - sys.stdlib_module_names == {"rltemp"}


@pytest.mark.parametrize("name", rltemp.__all__)
def test_every_public_name_is_there_and_listed(name: str) -> None:
    assert getattr(rltemp, name).__name__ == name or name == "TemperatureRule"
    assert name in dir(rltemp)


@pytest.mark.parametrize("name", rltemp.__all__)
def test_every_public_name_says_what_it_does_with_an_example(name: str) -> None:
    text = inspect.getdoc(getattr(rltemp, name)) or ""
    assert ">>> " in text or re.search(r"\n\n    \S", text.split("\nArgs:")[0]), name
    assert not text.startswith(f"{name}("), "a dataclass without a docstring has its signature"


@pytest.mark.parametrize("name", rltemp.__all__)
def test_the_examples_that_are_no_doctests_can_be_read_by_python(name: str) -> None:
    text = inspect.getdoc(getattr(rltemp, name)) or ""
    blocks = re.findall(r"\n\n((?:    .*\n|\n)+)", text.split("\nArgs:")[0] + "\n")
    for block in blocks:
        if ">>>" not in block:
            ast.parse(textwrap.dedent(block))


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


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Nothing has been imported under its old name yet."""
    for name in [name for name in sys.modules for old in MOVED if f"{name}.".startswith(f"{old}.")]:
        del sys.modules[name]
    with warnings.catch_warnings():
        yield


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize(("old", "new"), [*MOVED.items(), ("rltemp.plugs.contract", "rltemp.integrations.contract")])
def test_an_old_name_is_the_module_at_its_new_place_and_warns_once(old: str, new: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            assert importlib.import_module(old) is importlib.import_module(new)
    moved = next(name for name in MOVED if old.startswith(name))
    assert [str(one.message) for one in caught] == [
        f"{moved} is now {MOVED[moved]}; the old name goes with the next version"
    ]
    assert importlib.import_module(new).__spec__.name == new  # type: ignore[union-attr]


@pytest.mark.usefixtures("forgotten")
def test_a_module_under_an_old_name_runs_as_a_program() -> None:
    with pytest.warns(DeprecationWarning, match=r"rltemp\.plugs is now"):
        found = runpy.run_module("rltemp.plugs.contract", run_name="__main__")
    assert found["__name__"] == "__main__"
    assert found["Controller"].__doc__ == rltemp.Controller.__doc__
