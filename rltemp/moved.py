"""Documented modules of version 0.1 under their old names, for one version more.

`import rltemp.plugs.trl`, the same name in a YAML file, and `python -m rltemp.plugs.timm` find the module at its new
place, the very same object, and warn once.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import Any

MOVED = {
    "rltemp.plugs": "rltemp.integrations",
    "rltemp.actions": "rltemp.policy.actions",
    "rltemp.features": "rltemp.policy.features",
    "rltemp.tracking": "rltemp.training.tensorboard",
}
"""New names by old ones; those of submodules follow."""


class Moved(MetaPathFinder, Loader):
    """Finds a module that has moved, and answers with the module at its new place."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A spec for an old name; None for all others, which Python then looks for as ever."""
        if name in MOVED:  # a submodule's package has warned already
            text = f"{name} is now {MOVED[name]}; the old name goes with the next version"
            warnings.warn(text, DeprecationWarning, stacklevel=2)
        return ModuleSpec(name, self) if name != new_name(name) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module at its new place; its own spec is kept, because the import system overwrites it."""
        module = importlib.import_module(new_name(spec.name))
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Run nothing: the module has run. Give its own spec back."""
        assert module.__spec__ is not None  # the import system has just set it
        module.__spec__ = module.__spec__.loader_state

    def get_code(self, name: str) -> CodeType | None:
        """What `python -m` runs."""
        spec = importlib.util.find_spec(new_name(name))
        loader: Any = None if spec is None else spec.loader
        code: CodeType | None = loader.get_code(new_name(name)) if loader else None
        return code


def new_name(name: str) -> str:
    """Where a module is now.

    >>> new_name("rltemp.plugs.trl"), new_name("rltemp.kd")
    ('rltemp.integrations.trl', 'rltemp.kd')
    """
    old = next((old for old in MOVED if name == old or name.startswith(f"{old}.")), "")
    return MOVED[old] + name.removeprefix(old) if old else name


def install() -> None:
    """Before Python's own finders: they would load a submodule a second time, under the old name."""
    if not any(isinstance(finder, Moved) for finder in sys.meta_path):
        sys.meta_path.insert(0, Moved())
