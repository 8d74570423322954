"""Arrays of a request: their datatypes, the lists of numbers that they are read from, and what is refused in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from rltemp.service.members import said
from rltemp.service.refusals import Refusal, wrong_content, wrong_schema

Array = np.ndarray[Any, Any]

DATATYPES = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "INT32": "<i4", "INT64": "<i8"}


def place(name: str, index: int, shape: Sequence[int]) -> str:
    """Where a number stands, by its place in the flat array.

    >>> place("features", 13, (4, 4))
    'features[3][1]'
    """
    return name + "".join(f"[{axis}]" for axis in np.unravel_index(index, shape)) if shape else name


def check_finite(name: str, array: Array) -> None:
    """Refuse numbers that are not finite.

    Raises:
        Refusal: Naming the first.
    """
    if array.dtype.kind != "f" or math.isfinite(np.vdot(array, array)):
        return  # in half the time; large numbers are looked at one by one
    if not (finite := np.isfinite(array)).all():
        index = int(np.argmin(finite))
        word = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(float(array.flat[index]))]
        count = int(array.size - np.count_nonzero(finite))
        message = f"{place(name, index, array.shape)} is {word}; send finite numbers"
        raise Refusal(400, message, "non_finite", values=count)


def listed(name: str, data: Any, datatype: str, shape: tuple[int, ...]) -> Array:
    """An array of JSON's numbers: one flat list, or lists in lists as the shape says.

    Raises:
        Refusal: Where it has another number of them, or one that the datatype does not hold; naming it.
    """
    values = _flat(name, data, shape)
    kind = np.dtype(DATATYPES[datatype])
    allowed = {int, float} if kind.kind == "f" else {int}
    if not set(map(type, values)) <= allowed:
        index = next(index for index, value in enumerate(values) if type(value) not in allowed)
        needed = "numbers" if kind.kind == "f" else "integers"
        raise wrong_schema(f"{place(name, index, shape)} is {said(values[index])}; send {needed}")
    try:
        exact = np.array(values, np.float64 if kind.kind == "f" else np.int64)
    except OverflowError:
        raise wrong_content(f"{name} holds a number that {datatype} does not") from None
    with np.errstate(over="ignore"):
        array = exact.astype(kind)
    check_finite(name, exact.reshape(shape))
    lost = np.isfinite(exact) & ~np.isfinite(array) if kind.kind == "f" else array != exact
    if lost.any():
        index = int(np.argmax(lost))
        raise wrong_content(f"{place(name, index, shape)} is {values[index]!r}, which {datatype} does not hold")
    array.flags.writeable = False  # it may be remembered
    return array.reshape(shape)


def _flat(name: str, data: Any, shape: tuple[int, ...]) -> list[Any]:
    if not isinstance(data, list):
        raise wrong_schema(f"{name}.data is {said(data)}; send a list of numbers")
    total = math.prod(shape)
    if not data or not isinstance(data[0], list):
        if len(data) != total:
            raise wrong_content(f"{name} has {len(data)} numbers; shape {list(shape)} has {total}")
        return data
    rows = [data]
    for axis, size in enumerate(shape):
        for index, row in enumerate(rows):
            if not isinstance(row, list) or len(row) != size:
                found = f"{len(row)} entries" if isinstance(row, list) else said(row)
                raise wrong_content(
                    f"{place(name, index, shape[:axis])} has {found}; shape {list(shape)} has {size} there"
                )
        rows = list(chain.from_iterable(rows))
    return rows
