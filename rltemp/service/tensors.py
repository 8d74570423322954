"""The wire format of Open Inference Protocol v2 with the binary tensor extension, as pure functions of bytes.

A request is a JSON object, and behind it the tensors that the object says follow as bytes, little-endian and row by
row (https://github.com/kserve/open-inference-protocol, `extension_binary_data.md` of Triton's protocol). Nothing is
coerced: a text is no number, true is no 1, and every array has exactly the shape that is stated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from rltemp.service.arrays import DATATYPES, Array, check_finite, listed
from rltemp.service.members import read_json, read_object, read_parameters, read_shape, read_text, said
from rltemp.service.refusals import Refusal, wrong_content, wrong_schema

MAX_JSON_BYTES = 2**20
"""Of JSON in one request: reading it takes a hundred times as long as the same numbers in bytes."""
REMEMBERED_BYTES = 2048
"""Of JSON objects that are remembered, with what they mean."""

_REQUEST = {"id", "parameters", "inputs", "outputs"}
_TENSOR = {"name", "shape", "datatype", "parameters", "data"}
_OUTPUT = {"name", "parameters"}


@dataclass(frozen=True)
class InferRequest:
    """A request for inference, read and checked.

    Args:
        id: Repeated in the answer; None where there is none.
        inputs: Arrays by name, as they were sent: float16, float32, float64, int32 or int64, finite.
        outputs: Names asked for and whether as bytes; None asks for what the model answers by default.
        binary: Whether outputs that say nothing are answered as bytes.
    """

    id: str | None
    inputs: dict[str, Array]
    outputs: dict[str, bool] | None
    binary: bool


def decode(body: bytes, header_length: int | None = None) -> InferRequest:
    """Read a request.

    Args:
        body: The JSON object, and the bytes of tensors.
        header_length: Bytes of the object, from `Inference-Header-Content-Length`; None: all of the body.

    Raises:
        Refusal: 400 where it is not JSON or numbers are wrong, 413 where its JSON is too long, 422 where its members
            are not those of the protocol; the message names the place.
    """
    length = len(body) if header_length is None else header_length
    if length > len(body):
        raise wrong_content(f"Inference-Header-Content-Length is {length}, the body has {len(body)} bytes")
    if length > MAX_JSON_BYTES:
        raise Refusal(413, f"{length} bytes of JSON, {MAX_JSON_BYTES} at most; send tensors as bytes", "too_large")
    # A training step sends the same object again and again, before other bytes.
    header = (_remembered if length <= REMEMBERED_BYTES else _header)(body[:length])
    return InferRequest(header.id, _arrays(header.tensors, body, length), header.outputs, header.binary)


@dataclass(frozen=True)
class _Tensor:
    """An input as the JSON object states it; `array` is None where its bytes follow."""

    name: str
    shape: tuple[int, ...]
    kind: np.dtype[Any]
    count: int
    array: Array | None


@dataclass(frozen=True)
class _Header:
    id: str | None
    tensors: tuple[_Tensor, ...]
    outputs: dict[str, bool] | None
    binary: bool


def _header(text: bytes) -> _Header:
    raw = read_object(read_json(text), "request", _REQUEST, ("inputs",))
    binary = bool(read_parameters(raw, "request", {"binary_data_output": bool}).get("binary_data_output", False))
    identity = read_text(raw["id"], "id") if "id" in raw else None
    if not isinstance(raw["inputs"], list):
        raise wrong_schema(f"inputs is {said(raw['inputs'])}; send a list of tensors")
    tensors = tuple(_tensor(item, f"inputs[{index}]") for index, item in enumerate(raw["inputs"]))
    names = [tensor.name for tensor in tensors]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise wrong_schema(f"input {name!r} is given twice")
    return _Header(identity, tensors, _outputs(raw, binary), binary)


_remembered = lru_cache(256)(_header)


def _tensor(item: Any, where: str) -> _Tensor:
    entry = read_object(item, where, _TENSOR, ("name", "shape", "datatype"))
    name = read_text(entry["name"], f"{where}.name")
    shape = read_shape(entry["shape"], name)
    datatype = entry["datatype"]
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise wrong_schema(f"{name} has datatype {said(datatype)}; send one of {', '.join(DATATYPES)}")
    kind, count = np.dtype(DATATYPES[datatype]), math.prod(shape)
    size = read_parameters(entry, name, {"binary_data_size": int}).get("binary_data_size")
    if (size is None) == ("data" not in entry):
        raise wrong_schema(f"{name} needs either data or parameters.binary_data_size")
    if size is None:
        return _Tensor(name, shape, kind, count, listed(name, entry["data"], datatype, shape))
    if size != count * kind.itemsize:
        needed = f"{datatype} of shape {list(shape)} has {count * kind.itemsize} bytes"
        raise wrong_content(f"{name} has binary_data_size {size}; {needed}")
    return _Tensor(name, shape, kind, count, None)


def _arrays(tensors: Sequence[_Tensor], body: bytes, offset: int) -> dict[str, Array]:
    """The arrays of the tensors: those that are stated, and those whose bytes stand in the body from `offset` on."""
    arrays: dict[str, Array] = {}
    for tensor in tensors:
        array = tensor.array
        if array is None:
            size = tensor.count * tensor.kind.itemsize
            if offset + size > len(body):
                raise wrong_content(f"{tensor.name} has {size} bytes, of which {max(len(body) - offset, 0)} came")
            array = np.frombuffer(body, tensor.kind, tensor.count, offset).reshape(tensor.shape)
            check_finite(tensor.name, array)
            offset += size
        arrays[tensor.name] = array
    if offset != len(body):
        raise wrong_content(f"{len(body) - offset} bytes are left behind the last tensor")
    return arrays


def _outputs(raw: Mapping[str, Any], binary: bool) -> dict[str, bool] | None:
    if "outputs" not in raw:
        return None
    if not isinstance(raw["outputs"], list):
        raise wrong_schema(f"outputs is {said(raw['outputs'])}; send a list of outputs, or none")
    found: dict[str, bool] = {}
    for index, item in enumerate(raw["outputs"]):
        where = f"outputs[{index}]"
        entry = read_object(item, where, _OUTPUT, ("name",))
        name = read_text(entry["name"], f"{where}.name")
        if name in found:
            raise wrong_schema(f"output {name!r} is asked for twice")
        found[name] = bool(read_parameters(entry, where, {"binary_data": bool}).get("binary_data", binary))
    return found or None
