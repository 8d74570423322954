"""The Open Inference Protocol v2 with binary tensors, as pure functions of bytes.

A request is a JSON object, and behind it the tensors that the object says follow as bytes, little-endian and row by
row (https://github.com/kserve/open-inference-protocol, `extension_binary_data.md` of Triton's protocol). The pydantic
models here check requests and document them at /docs.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from rltemp.service.refusals import wrong_content, wrong_schema
from rltemp.service.strict_values import DATATYPES, Array, array_of, check_finite, read_object

MAX_ELEMENTS = 2**31
"""Of one tensor, a size of 0 counted as 1: NumPy cannot make an empty array of any sizes."""

Text = Annotated[str, Field(max_length=256)]
Size = Annotated[int, Field(ge=0)]


class StrictModel(BaseModel):
    """An object that has these keys and no other; a key that may be left out may not be null."""

    model_config = ConfigDict(strict=True, extra="forbid")


class InputParameters(StrictModel):
    """Parameters of an input that follows the JSON as bytes."""

    binary_data_size: Size = 0


class InputTensor(StrictModel):
    """An input: `data`, flat or in rows, or `binary_data_size`, the number of its bytes behind the JSON."""

    name: Text
    shape: list[Size] = Field(max_length=8)
    datatype: Literal["FP16", "FP32", "FP64", "INT32", "INT64"]
    parameters: InputParameters = InputParameters()
    data: list[Any] = []


class OutputParameters(StrictModel):
    """Parameters of an output that is asked for."""

    binary_data: bool = False


class RequestedOutput(StrictModel):
    """An output that is asked for."""

    name: Text
    parameters: OutputParameters = OutputParameters()


class RequestParameters(StrictModel):
    """Parameters of a request."""

    binary_data_output: bool = False


class InferBody(StrictModel):
    """The JSON object of a request for inference."""

    id: Text = ""
    parameters: RequestParameters = RequestParameters()
    inputs: list[InputTensor] = Field(max_length=16)
    outputs: list[RequestedOutput] = Field([], max_length=16)


@dataclass(frozen=True)
class InferRequest:
    """A request for inference, read and checked.

    Args:
        id: Repeated in the answer, unless it is empty.
        inputs: Arrays by name, as they were sent: float16, float32, float64, int32 or int64, finite.
        outputs: Names asked for and whether as bytes; None asks for what the model answers by default.
        binary: Whether outputs that say nothing are answered as bytes.
    """

    id: str
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
    header = read_object(InferBody, body[:length])
    _check_names("input", header.inputs)
    _check_names("output", header.outputs)
    binary = header.parameters.binary_data_output
    outputs = {
        one.name: one.parameters.binary_data if one.parameters.model_fields_set else binary for one in header.outputs
    }
    return InferRequest(header.id, _arrays(header.inputs, body, length), outputs or None, binary)


def encode(model: str, version: str, outputs: Mapping[str, Array], request: InferRequest) -> tuple[bytes, int | None]:
    """Write an answer: its body, and the bytes of its JSON object where tensors follow as bytes.

    Args:
        model: The model's name.
        version: The version that answered.
        outputs: Arrays by name, float32.
        request: What is answered; it says which arrays go as bytes.
    """
    entries: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for name, array in outputs.items():
        entry: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": array.shape}
        if (request.outputs or {}).get(name, request.binary):
            tail.append(array.astype("<f4", copy=False).tobytes())
            entry["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            entry["data"] = array.ravel().tolist()
        entries.append(entry)
    answer: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": entries}
    if request.id:
        answer["id"] = request.id
    header = json.dumps(answer, separators=(",", ":"), allow_nan=False).encode()
    return b"".join([header, *tail]), len(header) if tail else None


def _check_names(kind: str, named: Sequence[InputTensor | RequestedOutput]) -> None:
    (name, count), *_ = Counter(one.name for one in named).most_common(1) or [("", 0)]
    if count > 1:
        raise wrong_schema(f"{kind} {name!r} is there twice")


def _arrays(tensors: Sequence[InputTensor], body: bytes, offset: int) -> dict[str, Array]:
    """The arrays of the tensors: from their `data`, or from the bytes of the body from `offset` on."""
    arrays: dict[str, Array] = {}
    for tensor in tensors:
        shape = tuple(tensor.shape)
        if math.prod(max(size, 1) for size in shape) > MAX_ELEMENTS:
            raise wrong_content(f"{tensor.name}.shape has more than {MAX_ELEMENTS} elements")
        if ("data" in tensor.model_fields_set) == bool(tensor.parameters.model_fields_set):
            raise wrong_schema(f"{tensor.name} needs either data or parameters.binary_data_size")
        if "data" in tensor.model_fields_set:
            arrays[tensor.name] = array_of(tensor.name, tensor.data, tensor.datatype, shape)
        else:
            arrays[tensor.name] = _from_bytes(tensor, shape, body, offset)
            offset += arrays[tensor.name].nbytes
    if offset != len(body):
        raise wrong_content(f"{len(body) - offset} bytes are left behind the last tensor")
    return arrays


def _from_bytes(tensor: InputTensor, shape: tuple[int, ...], body: bytes, offset: int) -> Array:
    kind, count, stated = np.dtype(DATATYPES[tensor.datatype]), math.prod(shape), tensor.parameters.binary_data_size
    size = count * kind.itemsize
    if stated != size:
        needed = f"{tensor.datatype} of shape {list(shape)} has {size} bytes"
        raise wrong_content(f"{tensor.name} has binary_data_size {stated}; {needed}")
    if offset + size > len(body):
        raise wrong_content(f"{tensor.name} has {size} bytes, of which {max(len(body) - offset, 0)} came")
    array: Array = np.frombuffer(body, kind, count, offset).reshape(shape)
    check_finite(tensor.name, array)
    return array
