"""No source file of the project can run code out of a file: a gate over their syntax trees, and that it shuts.

Whatever loads is refused unless it is one of `SAFE_LOADERS`, so a new way in has to be let in here, by name.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from support.data import table
from support.source import ROOT, files

FOLDERS = ("rltemp", "envs", "agents", "scripts")
SOURCE = [*files(), *sorted(ROOT.glob("scripts/*.py"))]

FORBIDDEN_MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "builtins.eval", "builtins.exec"}
SAFE_LOADERS = {"safetensors.numpy.load", "safetensors.torch.load", "json.loads", "Policy.load", "picture.load"}
"""Functions with a loader's name that run nothing; `torch.load` is another, with weights_only=True."""
LOADERS = {
    "load",
    "loads",
    "load_from_zip_file",
    "load_from_pkl",
    "load_replay_buffer",
    "set_parameters",
    "unsafe_load",
    "full_load",
    "Unpickler",
}
IMPORTERS = {"importlib.import_module"}
OUR_OWN_BYTES = {("io/workers.py", "torch.load"), ("io/workers.py", "cloudpickle"), ("io/own_code.py", "cloudpickle")}
"""A worker reads what its parent packed in memory, functions among it; it runs the parent's functions anyway."""
IMPORT_HERE = {
    "cli/dispatch.py",
    "io/own_code.py",
    "rltemp/__init__.py",
    "rltemp/moved.py",
    "rltemp/optional_imports.py",
}
"""What a user names as module:attribute or file.py:attribute, and modules by names written in the source."""


def offences(source: str, file: str = "some.py") -> list[str]:
    """What in a source file could run code out of another file, a line each."""
    tree = ast.parse(source)
    return [f"{file}:{line}: {what}" for line, what in sorted({*_imports(tree, file), *_calls(tree, file)})]


def _imports(tree: ast.AST, file: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        for name in modules:
            if name.partition(".")[0] in FORBIDDEN_MODULES and (file, name) not in OUR_OWN_BYTES:
                yield node.lineno, name


def _calls(tree: ast.AST, file: str) -> Iterator[tuple[int, str]]:
    full = _full_names(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        head, dot, rest = ast.unparse(node.func).partition(".")
        name = full.get(head, head) + dot + rest
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        written = bool(node.args) and isinstance(node.args[0], ast.Constant)
        if (file, name) in OUR_OWN_BYTES:
            continue
        if name in FORBIDDEN_CALLS or (name in IMPORTERS and file not in IMPORT_HERE and not written):
            yield node.lineno, name
        if name.rpartition(".")[2] in LOADERS and name not in SAFE_LOADERS and not _careful(name, options):
            yield node.lineno, f"{name}, which is none of {sorted(SAFE_LOADERS)}"
        for option, harmless in (("allow_pickle", "False"), ("weights_only", "True"), ("shell", "False")):
            if options.get(option, harmless) != harmless:
                yield node.lineno, f"{option}={options[option]}"


def _careful(name: str, options: dict[str | None, str]) -> bool:
    return (name == "torch.load" and options.get("weights_only") == "True") or (
        name == "numpy.load" and options.get("allow_pickle") == "False"
    )


def _full_names(tree: ast.AST) -> dict[str, str]:
    """What the names of a file's imports stand for: `from torch import load as l` makes `l` torch.load."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            ours = (node.module or "").startswith("rltemp")
            found |= {a.asname or a.name: a.name if ours else f"{node.module}.{a.name}" for a in node.names}
    return found


def test_no_source_file_runs_code_out_of_a_file() -> None:
    named = [(file.read_text("utf-8"), f"{file.parent.name}/{file.name}") for file in SOURCE]
    assert [offence for text, name in named for offence in offences(text, name)] == []


def test_the_gate_looks_at_every_package() -> None:
    assert {file.parent.name for file in SOURCE} >= {*FOLDERS, "service", "integrations"}
    assert len(SOURCE) > 80
    deeper = {file for folder in FOLDERS for file in (ROOT / folder).glob("*/*/*.py")}
    assert {file.resolve() for file in deeper} <= set(SOURCE)


@pytest.mark.parametrize("source", table("project/gate", "shuts"))
def test_the_gate_shuts(source: str) -> None:
    assert offences(source) != []


@pytest.mark.parametrize("source", table("project/gate", "lets_through"))
def test_the_gate_lets_through_what_runs_nothing(source: str) -> None:
    assert offences(source) == []
