"""The wire format of Open Inference Protocol v2 with the binary tensor extension, as pure functions of bytes.

A request is a JSON object, and behind it the tensors that the object says follow as bytes, little-endian and row by
row (https://github.com/kserve/open-inference-protocol, `extension_binary_data.md` of Triton's protocol). Nothing is
coerced: a text is no number, true is no 1, and every array has exactly the shape that is stated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from rltemp.service.refusals import Refusal
from rltemp.strict_json import parse

Array = np.ndarray[Any, Any]

DATATYPES = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "INT32": "<i4", "INT64": "<i8"}
MAX_JSON_BYTES = 2 * 2**20
"""Of JSON in one request: reading it takes a hundred times as long as the same numbers in bytes."""
MAX_ELEMENTS = 2**31
"""A tensor without elements may have sizes beside its 0, but none that NumPy could not count."""
MAX_RANK = 8
MAX_ID = 256

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
        raise _content(f"Inference-Header-Content-Length is {length}, the body has {len(body)} bytes")
    if length > MAX_JSON_BYTES:
        raise Refusal(413, f"{length} bytes of JSON, {MAX_JSON_BYTES} at most; send tensors as bytes", "too_large")
    raw = _object(_json(body[:length]), "request", _REQUEST, ("inputs",))
    parameters = _parameters(raw, "request", {"binary_data_output": bool})
    binary = bool(parameters.get("binary_data_output", False))
    identity = _text(raw["id"], "id") if "id" in raw else None
    return InferRequest(identity, _inputs(raw["inputs"], body, length), _outputs(raw, binary), binary)


def encode(model: str, version: str, outputs: Mapping[str, Array], request: InferRequest) -> tuple[bytes, int | None]:
    """Write an answer: its body, and the bytes of its JSON object where tensors follow as bytes.

    Args:
        model: The model's name.
        version: That answered.
        outputs: Arrays by name, float32.
        request: What is answered: it says which arrays go as bytes.
    """
    entries: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for name, array in outputs.items():
        entry: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": list(array.shape)}
        if (request.outputs or {}).get(name, request.binary):
            tail.append(array.astype("<f4", copy=False).tobytes())
            entry["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            entry["data"] = array.ravel().tolist()
        entries.append(entry)
    answer: dict[str, Any] = {"model_name": model, "model_version": version}
    if request.id is not None:
        answer["id"] = request.id
    header = json.dumps({**answer, "outputs": entries}, separators=(",", ":"), allow_nan=False).encode()
    return b"".join([header, *tail]), len(header) if tail else None


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
    if array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
        index = int(np.argmin(finite))
        word = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(float(array.flat[index]))]
        count = int(array.size - np.count_nonzero(finite))
        message = f"{place(name, index, array.shape)} is {word}; send finite numbers"
        raise Refusal(400, message, "non_finite", values=count)


def _json(text: bytes) -> Any:
    try:
        # NaN is read, so that what refuses it can say where it stands.
        return parse(text.decode(), constant=float)
    except UnicodeDecodeError as error:
        raise Refusal(400, f"the request is not UTF-8 at byte {error.start}", "syntax") from None
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the request is not JSON ({error}); send one object", "syntax") from None


def _inputs(raw: Any, body: bytes, offset: int) -> dict[str, Array]:
    if not isinstance(raw, list):
        raise _schema(f"inputs is {_said(raw)}; send a list of tensors")
    arrays: dict[str, Array] = {}
    for index, item in enumerate(raw):
        where = f"inputs[{index}]"
        entry = _object(item, where, _TENSOR, ("name", "shape", "datatype"))
        name = _text(entry["name"], f"{where}.name")
        if name in arrays:
            raise _schema(f"input {name!r} is given twice")
        shape = _shape(entry["shape"], name)
        datatype = entry["datatype"]
        if not isinstance(datatype, str) or datatype not in DATATYPES:
            raise _schema(f"{name} has datatype {_said(datatype)}; send one of {', '.join(DATATYPES)}")
        size = _parameters(entry, name, {"binary_data_size": int}).get("binary_data_size")
        if (size is None) == ("data" not in entry):
            raise _schema(f"{name} needs either data or parameters.binary_data_size")
        if size is None:
            arrays[name] = _listed(name, entry["data"], datatype, shape)
        else:
            arrays[name] = _binary(name, body, offset, size, datatype, shape)
            offset += size
        check_finite(name, arrays[name])
    if offset != len(body):
        raise _content(f"{len(body) - offset} bytes are left behind the last tensor")
    return arrays


def _binary(name: str, body: bytes, offset: int, size: int, datatype: str, shape: tuple[int, ...]) -> Array:
    kind = np.dtype(DATATYPES[datatype])
    needed = math.prod(shape) * kind.itemsize
    if size != needed:
        raise _content(f"{name} has binary_data_size {size}; {datatype} of shape {list(shape)} has {needed} bytes")
    if offset + size > len(body):
        raise _content(f"{name} has {size} bytes, of which {max(len(body) - offset, 0)} came")
    return np.frombuffer(body, kind, math.prod(shape), offset).reshape(shape)


def _listed(name: str, data: Any, datatype: str, shape: tuple[int, ...]) -> Array:
    """An array of JSON's numbers: one flat list, or lists in lists as the shape says."""
    values = _flat(name, data, shape)
    kind = np.dtype(DATATYPES[datatype])
    allowed = {int, float} if kind.kind == "f" else {int}
    if not set(map(type, values)) <= allowed:
        index = next(index for index, value in enumerate(values) if type(value) not in allowed)
        needed = "numbers" if kind.kind == "f" else "integers"
        raise _schema(f"{place(name, index, shape)} is {_said(values[index])}; send {needed}")
    try:
        exact = np.array(values, np.float64 if kind.kind == "f" else np.int64)
    except OverflowError:
        raise _content(f"{name} holds a number that {datatype} does not") from None
    with np.errstate(over="ignore"):
        array = exact.astype(kind)
    check_finite(name, exact.reshape(shape))
    lost = np.isfinite(exact) & ~np.isfinite(array) if kind.kind == "f" else array != exact
    if lost.any():
        index = int(np.argmax(lost))
        raise _content(f"{place(name, index, shape)} is {values[index]!r}, which {datatype} does not hold")
    return array.reshape(shape)


def _flat(name: str, data: Any, shape: tuple[int, ...]) -> list[Any]:
    if not isinstance(data, list):
        raise _schema(f"{name}.data is {_said(data)}; send a list of numbers")
    total = math.prod(shape)
    if not data or not isinstance(data[0], list):
        if len(data) != total:
            raise _content(f"{name} has {len(data)} numbers; shape {list(shape)} has {total}")
        return data
    rows = [data]
    for axis, size in enumerate(shape):
        for index, row in enumerate(rows):
            if not isinstance(row, list) or len(row) != size:
                found = f"{len(row)} entries" if isinstance(row, list) else _said(row)
                raise _content(f"{place(name, index, shape[:axis])} has {found}; shape {list(shape)} has {size} there")
        rows = list(chain.from_iterable(rows))
    return rows


def _outputs(raw: Mapping[str, Any], binary: bool) -> dict[str, bool] | None:
    if "outputs" not in raw:
        return None
    if not isinstance(raw["outputs"], list):
        raise _schema(f"outputs is {_said(raw['outputs'])}; send a list of outputs, or none")
    found: dict[str, bool] = {}
    for index, item in enumerate(raw["outputs"]):
        where = f"outputs[{index}]"
        entry = _object(item, where, _OUTPUT, ("name",))
        name = _text(entry["name"], f"{where}.name")
        if name in found:
            raise _schema(f"output {name!r} is asked for twice")
        found[name] = bool(_parameters(entry, where, {"binary_data": bool}).get("binary_data", binary))
    return found or None


def _object(raw: Any, where: str, known: set[str], needed: Sequence[str]) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise _schema(f"{where} is {_said(raw)}; send an object")
    for key in raw:
        if key not in known:
            raise _schema(f"{where} has a key {key[:80]!r}; known: {', '.join(sorted(known))}")
    for key in needed:
        if key not in raw:
            raise _schema(f"{where} has no {key}")
    return raw


def _parameters(raw: Mapping[str, Any], where: str, known: Mapping[str, type[int]]) -> dict[str, Any]:
    given = _object(raw.get("parameters", {}), f"{where}.parameters", set(known), ())
    for key, value in given.items():
        if type(value) is not known[key] or value < 0:
            needed = "true or false" if known[key] is bool else "a number of bytes"
            raise _schema(f"{where}.parameters.{key} is {_said(value)}; send {needed}")
    return given


def _shape(raw: Any, name: str) -> tuple[int, ...]:
    if not isinstance(raw, list) or len(raw) > MAX_RANK or any(type(size) is not int or size < 0 for size in raw):
        raise _schema(f"{name}.shape is {_said(raw)}; send at most {MAX_RANK} sizes, each 0 or more")
    if math.prod(max(size, 1) for size in raw) > MAX_ELEMENTS:
        raise _content(f"{name}.shape has more than {MAX_ELEMENTS} elements")
    return tuple(raw)


def _text(raw: Any, where: str) -> str:
    if not isinstance(raw, str) or len(raw) > MAX_ID:
        raise _schema(f"{where} is {_said(raw)}; send a text of at most {MAX_ID} characters")
    return raw


def _said(value: Any) -> str:
    """A value of a request, for its message: in JSON's own words, cut short."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"
    return json.dumps(value if not isinstance(value, str) else value[:80])


def _schema(message: str) -> Refusal:
    return Refusal(422, message, "schema")


def _content(message: str) -> Refusal:
    return Refusal(400, message, "content")
