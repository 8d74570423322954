"""The members of a request's JSON object, read strictly: nothing is coerced, and every refusal names its place."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rltemp.io.strict_json import parse
from rltemp.service.refusals import Refusal, wrong_content, wrong_schema

MAX_ELEMENTS = 2**31
"""A tensor without elements may have sizes beside its 0, but none that NumPy could not count."""
MAX_RANK = 8
MAX_TEXT = 256


def read_json(text: bytes) -> Any:
    """The value of a JSON text; NaN is read, so that what refuses it can say where it stands.

    Raises:
        Refusal: 400 where it is no JSON.
    """
    try:
        return parse(text.decode(), constant=float)
    except UnicodeDecodeError as error:
        raise Refusal(400, f"the request is not UTF-8 at byte {error.start}", "syntax") from None
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the request is not JSON ({error}); send one object", "syntax") from None


def read_object(raw: Any, where: str, known: set[str], needed: Sequence[str]) -> dict[str, Any]:
    """An object that has all keys of `needed`, and none beside `known`; `where` is what to call it."""
    if not isinstance(raw, dict):
        raise wrong_schema(f"{where} is {said(raw)}; send an object")
    for key in raw:
        if key not in known:
            raise wrong_schema(f"{where} has a key {key[:80]!r}; known: {', '.join(sorted(known))}")
    for key in needed:
        if key not in raw:
            raise wrong_schema(f"{where} has no {key}")
    return raw


def read_parameters(raw: Mapping[str, Any], where: str, known: Mapping[str, type[int]]) -> dict[str, Any]:
    """The member `parameters`, true, false or a number of bytes each; none where it is missing."""
    given = read_object(raw.get("parameters", {}), f"{where}.parameters", set(known), ())
    for key, value in given.items():
        if type(value) is not known[key] or value < 0:
            needed = "true or false" if known[key] is bool else "a number of bytes"
            raise wrong_schema(f"{where}.parameters.{key} is {said(value)}; send {needed}")
    return given


def read_shape(raw: Any, name: str) -> tuple[int, ...]:
    """A tensor's shape."""
    if not isinstance(raw, list) or len(raw) > MAX_RANK or any(type(size) is not int or size < 0 for size in raw):
        raise wrong_schema(f"{name}.shape is {said(raw)}; send at most {MAX_RANK} sizes, each 0 or more")
    if math.prod(max(size, 1) for size in raw) > MAX_ELEMENTS:
        raise wrong_content(f"{name}.shape has more than {MAX_ELEMENTS} elements")
    return tuple(raw)


def read_text(raw: Any, where: str) -> str:
    """A text of at most `MAX_TEXT` characters."""
    if not isinstance(raw, str) or len(raw) > MAX_TEXT:
        raise wrong_schema(f"{where} is {said(raw)}; send a text of at most {MAX_TEXT} characters")
    return raw


def said(value: Any) -> str:
    """A value of a request, for its message: in JSON's own words, cut short."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"
    return json.dumps(value if not isinstance(value, str) else value[:80])
