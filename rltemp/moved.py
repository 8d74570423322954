"""Documented modules of version 0.1 are found under their old names for one version more, as the same objects."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {
    "rltemp.plugs": "rltemp.integrations",
    "rltemp.actions": "rltemp.policy.actions",
    "rltemp.features": "rltemp.policy.features",
    "rltemp.tracking": "rltemp.training.tensorboard",
}
"""New names by old ones; those of submodules follow."""


class Moved(MetaPathFinder, Loader):
    """Imports `rltemp.plugs.trl` as `rltemp.integrations.trl`, and warns once."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """A spec for an old name; None for all others, which Python then looks for as ever."""
        if name in MOVED:  # a submodule's package has warned already
            text = f"{name} is now {MOVED[name]}; the old name goes with the next version"
            warnings.warn(text, DeprecationWarning, stacklevel=2)
        return ModuleSpec(name, self) if any(f"{name}.".startswith(f"{old}.") for old in MOVED) else None

    def exec_module(self, module: ModuleType) -> None:
        """Put the module at its new place where Python looks for the old one."""
        sys.modules[module.__name__] = importlib.import_module(_new_name(module.__name__))

    def get_code(self, name: str) -> Any:
        """What `python -m rltemp.plugs.timm` runs."""
        return importlib.util.find_spec(_new_name(name)).loader.get_code(_new_name(name))  # type: ignore[union-attr]


def _new_name(name: str) -> str:
    old = next(old for old in MOVED if f"{name}.".startswith(f"{old}."))
    return MOVED[old] + name.removeprefix(old)
