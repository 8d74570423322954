"""Numbers and JSON of a request, read strictly: nothing is coerced, and every refusal names the place."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import chain
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from rltemp.io.strict_json import parse
from rltemp.service.refusals import Refusal, wrong_content, wrong_schema

Array = np.ndarray[Any, Any]

DATATYPES = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "INT32": "<i4", "INT64": "<i8"}


MAX_JSON_BYTES = 2**20
"""Of JSON in one request: reading it takes a hundred times as long as the same numbers in bytes."""

Object = TypeVar("Object", bound=BaseModel)


def read_object(kind: type[Object], text: bytes) -> Object:
    """Read a JSON object as a pydantic model. NaN is read too, so that what refuses it can say where it stands.

    Raises:
        Refusal: 400 where it is not JSON, 413 where it is too long, 422 where it has not the model's members.
    """
    if len(text) > MAX_JSON_BYTES:
        raise Refusal(413, f"{len(text)} bytes of JSON, {MAX_JSON_BYTES} at most; send tensors as bytes", "too_large")
    try:
        return kind.model_validate(parse(text.decode(), constant=float))
    except UnicodeDecodeError as error:
        raise Refusal(400, f"the request is not UTF-8 at byte {error.start}", "syntax") from None
    except ValidationError as error:
        raise wrong_schema(_described(error)) from None
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the request is not JSON ({error}); send one object", "syntax") from None


def _described(error: ValidationError) -> str:
    """Say the first of pydantic's complaints as one sentence."""
    first = error.errors(include_url=False, include_context=False)[0]
    *parents, last = first["loc"] or ("",)
    parent, where = _path(parents), _path(first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{parent} has a key {str(last)[:80]!r}, which the protocol does not have"
    if first["type"] == "missing":
        return f"{parent} has no {last}"
    if first["type"] in ("model_type", "model_attributes_type"):
        return f"{where} is {shown(first['input'])}; send an object"
    needed = first["msg"].replace("a valid integer", "an integer").replace("a valid ", "a ")
    return f"{where} is {shown(first['input'])}; {needed.replace('Input should be', 'needed:')}"


def _path(parts: Sequence[int | str]) -> str:
    found = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return found.removeprefix(".") or "request"


def shown(value: Any) -> str:
    """Show a value of a request in a message: in JSON's own words, cut short."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"
    return json.dumps(value[:80] if isinstance(value, str) else value)


def place(name: str, index: int, shape: Sequence[int]) -> str:
    """Name the place of a number, given its index in the flat array.

    >>> place("features", 13, (4, 4))
    'features[3][1]'
    """
    return name + "".join(f"[{axis}]" for axis in np.unravel_index(index, shape)) if shape else name


def check_finite(name: str, array: Array) -> None:
    """Refuse an array that holds NaN or infinite numbers; the message names the first."""
    if array.dtype.kind != "f" or (finite := np.isfinite(array)).all():
        return
    index = int(np.argmin(finite))
    word = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(float(array.flat[index]))]
    message = f"{place(name, index, array.shape)} is {word}; send finite numbers"
    raise Refusal(400, message, "non_finite", values=int(array.size - np.count_nonzero(finite)))


def array_of(name: str, data: list[Any], datatype: str, shape: tuple[int, ...]) -> Array:
    """Make an array of JSON's numbers: one flat list, or lists in lists as the shape says.

    Raises:
        Refusal: Where their count differs from the shape's, or the datatype cannot hold one; naming it.
    """
    values = _flat(name, data, shape)
    kind = np.dtype(DATATYPES[datatype])
    allowed = {int, float} if kind.kind == "f" else {int}
    for index, value in enumerate(values):
        if type(value) not in allowed:
            needed = "numbers" if kind.kind == "f" else "integers"
            raise wrong_schema(f"{place(name, index, shape)} is {shown(value)}; send {needed}")
    try:
        exact = np.array(values, np.float64 if kind.kind == "f" else np.int64)
    except OverflowError:
        raise wrong_content(f"{name} holds a number that {datatype} does not") from None
    with np.errstate(over="ignore"):
        array = exact.astype(kind)
    check_finite(name, exact.reshape(shape))
    lost = ~np.isfinite(array) if kind.kind == "f" else array != exact
    if lost.any():
        index = int(np.argmax(lost))
        raise wrong_content(f"{place(name, index, shape)} is {values[index]!r}, which {datatype} does not hold")
    return array.reshape(shape)


def _flat(name: str, data: list[Any], shape: tuple[int, ...]) -> list[Any]:
    total = math.prod(shape)
    if not data or not isinstance(data[0], list):
        if len(data) != total:
            raise wrong_content(f"{name} has {len(data)} numbers; shape {list(shape)} has {total}")
        return data
    rows = [data]
    for axis, size in enumerate(shape):
        for index, row in enumerate(rows):
            if not isinstance(row, list) or len(row) != size:
                found = f"{len(row)} entries" if isinstance(row, list) else shown(row)
                where = place(name, index, shape[:axis])
                raise wrong_content(f"{where} has {found}; shape {list(shape)} has {size} there")
        rows = list(chain.from_iterable(rows))
    return rows
