"""Options as the words of a command line, and numbers that no option may be."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from rltemp.errors import BadInputError

_HOME = re.compile(r"(?:^|(?<=[=:]))~[\w.-]*(?=/|$)")


def arguments(values: dict[str, Any]) -> list[str]:
    """Options as a command line has them.

    >>> arguments({"first_seed": 3, "rules": ["none", "fixed:4"], "fast": False})
    ['--first-seed', '3', '--rules', 'none', 'fixed:4', '--no-fast']
    """
    words: list[str] = []
    for name, value in values.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif isinstance(value, (list, tuple)):
            words += [f"--{option}", *map(str, value)]
        else:
            words += [f"--{option}", str(value)]
    return words


def with_home(value: Any) -> Any:
    """An option's value with every `~` that stands for a home folder written out; a shell does that for some alone.

    >>> home = os.path.expanduser("~")
    >>> with_home("--out=~/p") == f"--out={home}/p", with_home(("matched:~/p", "a~b")) == (f"matched:{home}/p", "a~b")
    (True, True)
    """
    if isinstance(value, (list, tuple)):
        return type(value)(map(with_home, value))
    if isinstance(value, Path):
        return value.expanduser()
    return _HOME.sub(lambda found: os.path.expanduser(found[0]), value) if isinstance(value, str) else value


def at_least(lowest: int, **options: int | None) -> None:
    """Refuse options below `lowest`; None is left to its default."""
    for name, value in options.items():
        if value is not None and value >= 2**63:
            raise BadInputError(f"--{name.replace('_', '-')} must be below 2^63; got one of {value.bit_length()} bits")
        if value is not None and value < lowest:
            raise BadInputError(f"--{name.replace('_', '-')} must be at least {lowest}; got {value}")
