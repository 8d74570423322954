"""Options as the words of a command line, and numbers that no option may be."""

from __future__ import annotations

from typing import Any

from rltemp.errors import BadInputError


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


def at_least(lowest: int, **options: int | None) -> None:
    """Refuse options below `lowest`; None is left to its default."""
    for name, value in options.items():
        if value is not None and value >= 2**63:
            raise BadInputError(f"--{name.replace('_', '-')} must be below 2^63; got one of {value.bit_length()} bits")
        if value is not None and value < lowest:
            raise BadInputError(f"--{name.replace('_', '-')} must be at least {lowest}; got {value}")
