"""JSON as strangers may write it, read strictly: few levels, no NaN, no key twice, no number of a thousand digits."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

MAX_DEPTH = 8
MAX_DIGITS = 1000
_BRACKETS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|([\[{\]}])', re.DOTALL)
_STEPS = {"[": 1, "{": 1, "]": -1, "}": -1}


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON; write null")


def parse(text: str, constant: Callable[[str], Any] = _refuse_constant) -> Any:
    """Return the value of a JSON text of at most 8 levels, in time linear in its length.

    Args:
        text: The JSON.
        constant: What stands for NaN, Infinity and -Infinity, which are refused by default.

    >>> parse('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ValueError: key 'a' is given twice

    Raises:
        ValueError: Where it is not that.
    """
    depth = 0
    # Counted before the parse, which recurses: strings are stepped over whole, an unfinished one to the end.
    for bracket in _BRACKETS.finditer(text):
        depth += _STEPS.get(bracket[1], 0)
        if depth > MAX_DEPTH:
            raise ValueError(f"it nests deeper than {MAX_DEPTH} levels")
    return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=constant, parse_int=_integer)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"key {key[:80]!r} is given twice")
        result[key] = value
    return result


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:  # reading one takes time with the square of its length
        raise ValueError(f"a number of {len(digits)} digits; needed: {MAX_DIGITS} at most")
    return int(digits)
