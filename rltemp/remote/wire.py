"""Inference in the Open Inference Protocol v2, tensors as bytes both ways: a request's bytes, an answer's arrays.

https://github.com/kserve/open-inference-protocol, with the extension for binary tensors: a JSON object, whose length a
header gives, and the tensors behind it in the order that it names them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rltemp.errors import ExchangeFailedError
from rltemp.io.strict_json import parse

Array = NDArray[Any]
Shape = tuple[int, ...]

LENGTH = "Inference-Header-Content-Length"
DATATYPES = {"f4": "FP32", "f8": "FP64", "i8": "INT64"}
MAX_JSON = 64 * 2**10
"""Bytes of JSON before the tensors of an answer."""

_VERSION = re.compile(r"[A-Za-z0-9._-]{1,64}")


def request(inputs: Mapping[str, Array], outputs: Mapping[str, Shape]) -> tuple[bytes, dict[str, str]]:
    """The body and the headers that ask a model for outputs.

    Args:
        inputs: Arrays by name, of float32, float64 or int64.
        outputs: What is wanted, by name.
    """
    parts = {name: np.ascontiguousarray(a, a.dtype.newbyteorder("<")).tobytes() for name, a in inputs.items()}
    header = {
        "inputs": [
            {
                "name": name,
                "shape": list(array.shape),
                "datatype": DATATYPES[f"{array.dtype.kind}{array.dtype.itemsize}"],
                "parameters": {"binary_data_size": len(parts[name])},
            }
            for name, array in inputs.items()
        ],
        "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in outputs],
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    headers = {"Content-Type": "application/octet-stream", LENGTH: str(len(text))}
    return b"".join([text, *parts.values()]), headers


def answer(body: bytes, length: str | None, outputs: Mapping[str, Shape]) -> tuple[str, dict[str, Array]]:
    """The version that answered, and its arrays, checked: there, of these shapes, finite.

    Args:
        body: Of the HTTP answer.
        length: What its header `Inference-Header-Content-Length` says.
        outputs: The shape of every output that was asked for, by name.

    Raises:
        ExchangeFailedError: Where it is anything else.
    """
    size = int(length) if length is not None and re.fullmatch("[0-9]{1,9}", length) else -1
    if not 0 <= size <= min(len(body), MAX_JSON):
        raise ExchangeFailedError("its answer does not say where its tensors begin")
    try:
        header = parse(body[:size].decode())
        version, entries = header["model_version"], {entry["name"]: entry for entry in header["outputs"]}
        places = _places(header["outputs"], size)
    except (UnicodeDecodeError, ValueError, LookupError, TypeError) as error:
        raise ExchangeFailedError(f"its answer is no inference ({type(error).__name__})") from None
    found = {name: _array(name, entries, places, body, shape) for name, shape in outputs.items()}
    return named_version(version), found


def named_version(version: object) -> str:
    """A version's name.

    Raises:
        ExchangeFailedError: Where it is none.
    """
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise ExchangeFailedError("its answer names no version")
    return version


def _places(entries: list[dict[str, Any]], start: int) -> dict[str, tuple[int, int]]:
    """Where each tensor's bytes begin and end."""
    places = {}
    for entry in entries:
        size = entry["parameters"]["binary_data_size"]
        if type(size) is not int or size < 0:
            raise ValueError
        places[entry["name"]] = start, start + size
        start += size
    return places


def _array(
    name: str, entries: Mapping[str, Any], places: Mapping[str, tuple[int, int]], body: bytes, shape: Shape
) -> Array:
    if name not in entries:
        raise ExchangeFailedError(f"its answer lacks {name}")
    entry, (begin, end) = entries[name], places[name]
    if entry.get("datatype") != "FP32" or entry.get("shape") != list(shape):
        raise ExchangeFailedError(f"its answer has another {name} than {list(shape)} of FP32")
    if end > len(body) or end - begin != 4 * math.prod(shape):
        raise ExchangeFailedError(f"its answer has another length than {name} of {list(shape)} has")
    array = np.frombuffer(body, "<f4", math.prod(shape), begin).astype(np.float32).reshape(shape)
    if not np.isfinite(array).all():
        raise ExchangeFailedError(f"its answer holds numbers in {name} that are not finite")
    return array
