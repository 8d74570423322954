"""Code of a user's own: where it is found by name, and what becomes of its errors."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from rltemp.errors import BadInputError, RltempError, one_line

_LOADED: list[ModuleType] = []  # the files of a user's own


def import_attribute(spec: str) -> Any:
    """Return what `module:attribute` or `folder/file.py:attribute` names.

    A module is looked for on Python's path and then in the working folder.

    >>> import_attribute("math:tau") > 6
    True

    Raises:
        BadInputError: Where there is no such module or attribute, or the module raises.
    """
    place, _, attribute = spec.rpartition(":")
    if not place or not attribute.isidentifier():
        raise BadInputError(f"{spec}: needed is FILE.py:name, with the name of a function in the file")
    module = _from_file(Path(place).expanduser()) if place.endswith(".py") else _by_name(place, spec)
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        raise BadInputError(
            f"cannot import {spec!r}: {place} has no {attribute!r}. Needed: module:attribute"
        ) from error


def is_own(spec: str) -> bool:
    """Whether a name is that of a file, or of a module with an attribute: `my_nets.py:make`, `my_package.nets:make`."""
    place, _, attribute = spec.rpartition(":")
    if spec.endswith(".py") or ".py:" in spec:
        return True
    if not place or not attribute.isidentifier():
        return False
    named = all(part.isidentifier() for part in place.split("."))
    return named and (Path(f"{place.replace('.', '/')}.py").is_file() or _found(place))


@contextmanager
def own_code(what: str) -> Iterator[None]:
    """Within, an error of the user's code becomes one line that names it; its traceback is kept as the cause.

    Raises:
        BadInputError: With what was raised, by `what`.
    """
    try:
        yield
    except RltempError:
        raise
    except (Exception, SystemExit) as error:
        said = one_line(str(error).partition("\n")[0])
        raise BadInputError(f"{what} raised {type(error).__name__}: {said}. --debug shows where") from error


def raised_by_own_code(error: BaseException) -> bool:
    """Whether an error came out of a file that `import_attribute` has loaded."""
    return any(is_own_file(file) for file in files_of(error))


def files_of(error: BaseException) -> list[str]:
    """The source files that an error came through."""
    return [frame.filename for frame in traceback.extract_tb(error.__traceback__)]


def is_own_file(file: str) -> bool:
    """Whether `import_attribute` has loaded it."""
    return any(file == module.__file__ for module in _LOADED)


def _by_name(name: str, spec: str) -> ModuleType:
    file = Path(f"{name.replace('.', '/')}.py")
    if not _found(name) and file.is_file():
        return _from_file(file)
    try:
        with own_code(name):
            return importlib.import_module(name)
    except BadInputError as error:
        if not isinstance(error.__cause__, ImportError):
            raise
        raise BadInputError(
            f"cannot import {spec!r}: {error.__cause__}. Needed: module:attribute on Python's path, or FILE.py:name"
        ) from error.__cause__


def _from_file(file: Path) -> ModuleType:
    """The module in a file, run once; other modules in its folder can be imported from it."""
    if not file.is_file():
        raise BadInputError(f"no file {file}; needed: file.py:attribute")
    loaded = sys.modules.get(file.stem)
    if loaded is not None:
        if getattr(loaded, "__file__", None) and Path(str(loaded.__file__)).resolve() == file.resolve():
            return loaded
        raise BadInputError(f"{file}: another module is named {file.stem} already; give the file another name")
    spec = importlib.util.spec_from_file_location(file.stem, file.resolve())
    assert spec is not None  # its name ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    _LOADED.append(module)
    if (folder := str(file.resolve().parent)) not in sys.path:
        sys.path.append(folder)
    from cloudpickle import register_pickle_by_value  # a loop of one's own does without

    register_pickle_by_value(module)  # another process cannot import it by its name
    try:
        with own_code(str(file)):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[file.stem]
        raise
    return module


def _found(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # a package of its path is missing, or raises
        return False
