"""The wire format of Open Inference Protocol v2 with the binary tensor extension, as pure functions of bytes.

A request is a JSON object, and behind it the tensors that the object says follow as bytes, little-endian and row by
row (https://github.com/kserve/open-inference-protocol, `extension_binary_data.md` of Triton's protocol). Nothing is
coerced: a text is no number, true is no 1, and every array has exactly the shape that is stated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np

from rltemp.service.refusals import Refusal
from rltemp.strict_json import parse

Array = np.ndarray[Any, Any]

DATATYPES = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "INT32": "<i4", "INT64": "<i8"}
MAX_JSON_BYTES = 2**20
"""Of JSON in one request: reading it takes a hundred times as long as the same numbers in bytes."""
MAX_ELEMENTS = 2**31
"""A tensor without elements may have sizes beside its 0, but none that NumPy could not count."""
MAX_RANK = 8
MAX_ID = 256
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
        raise _content(f"Inference-Header-Content-Length is {length}, the body has {len(body)} bytes")
    if length > MAX_JSON_BYTES:
        raise Refusal(413, f"{length} bytes of JSON, {MAX_JSON_BYTES} at most; send tensors as bytes", "too_large")
    # A training step sends the same object again and again, before other bytes.
    header = (_remembered if length <= REMEMBERED_BYTES else _header)(body[:length])
    return InferRequest(header.id, _arrays(header.tensors, body, length), header.outputs, header.binary)


def encode(model: str, version: str, outputs: Mapping[str, Array], request: InferRequest) -> tuple[bytes, int | None]:
    """Write an answer: its body, and the bytes of its JSON object where tensors follow as bytes.

    Args:
        model: The model's name.
        version: That answered.
        outputs: Arrays by name, float32.
        request: What is answered: it says which arrays go as bytes.
    """
    wanted = request.outputs or {}
    entries: list[tuple[str, tuple[int, ...], int | list[Any]]] = []
    tail: list[bytes] = []
    for name, array in outputs.items():
        data: int | list[Any]
        if wanted.get(name, request.binary):
            tail.append(array.astype("<f4", copy=False).tobytes())
            data = len(tail[-1])
        else:
            data = array.ravel().tolist()
        entries.append((name, array.shape, data))
    if len(tail) < len(entries):
        header = _answer(model, version, request.id, entries)
    else:
        header = _remembered_answer(model, version, request.id, tuple(entries))
    return b"".join([header, *tail]), len(header) if tail else None


def _answer(
    model: str, version: str, identity: str | None, entries: Iterable[tuple[str, tuple[int, ...], int | list[Any]]]
) -> bytes:
    """The JSON object of an answer, whose outputs are given by name, shape, and number of bytes or numbers."""
    outputs: list[dict[str, Any]] = []
    for name, shape, data in entries:
        content = {"data": data} if isinstance(data, list) else {"parameters": {"binary_data_size": data}}
        outputs.append({"name": name, "datatype": "FP32", "shape": shape, **content})
    answer: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": outputs}
    if identity is not None:
        answer["id"] = identity
    return json.dumps(answer, separators=(",", ":"), allow_nan=False).encode()


_remembered_answer = lru_cache(256)(_answer)


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
    raw = _object(_json(text), "request", _REQUEST, ("inputs",))
    binary = bool(_parameters(raw, "request", {"binary_data_output": bool}).get("binary_data_output", False))
    identity = _text(raw["id"], "id") if "id" in raw else None
    if not isinstance(raw["inputs"], list):
        raise _schema(f"inputs is {_said(raw['inputs'])}; send a list of tensors")
    tensors = tuple(_tensor(item, f"inputs[{index}]") for index, item in enumerate(raw["inputs"]))
    names = [tensor.name for tensor in tensors]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise _schema(f"input {name!r} is given twice")
    return _Header(identity, tensors, _outputs(raw, binary), binary)


_remembered = lru_cache(256)(_header)


def _tensor(item: Any, where: str) -> _Tensor:
    entry = _object(item, where, _TENSOR, ("name", "shape", "datatype"))
    name = _text(entry["name"], f"{where}.name")
    shape = _shape(entry["shape"], name)
    datatype = entry["datatype"]
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise _schema(f"{name} has datatype {_said(datatype)}; send one of {', '.join(DATATYPES)}")
    kind, count = np.dtype(DATATYPES[datatype]), math.prod(shape)
    size = _parameters(entry, name, {"binary_data_size": int}).get("binary_data_size")
    if (size is None) == ("data" not in entry):
        raise _schema(f"{name} needs either data or parameters.binary_data_size")
    if size is None:
        return _Tensor(name, shape, kind, count, _listed(name, entry["data"], datatype, shape))
    if size != count * kind.itemsize:
        needed = f"{datatype} of shape {list(shape)} has {count * kind.itemsize} bytes"
        raise _content(f"{name} has binary_data_size {size}; {needed}")
    return _Tensor(name, shape, kind, count, None)


def _arrays(tensors: Sequence[_Tensor], body: bytes, offset: int) -> dict[str, Array]:
    """The arrays of the tensors: those that are stated, and those whose bytes stand in the body from `offset` on."""
    arrays: dict[str, Array] = {}
    for tensor in tensors:
        array = tensor.array
        if array is None:
            size = tensor.count * tensor.kind.itemsize
            if offset + size > len(body):
                raise _content(f"{tensor.name} has {size} bytes, of which {max(len(body) - offset, 0)} came")
            array = np.frombuffer(body, tensor.kind, tensor.count, offset).reshape(tensor.shape)
            check_finite(tensor.name, array)
            offset += size
        arrays[tensor.name] = array
    if offset != len(body):
        raise _content(f"{len(body) - offset} bytes are left behind the last tensor")
    return arrays


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
    array.flags.writeable = False  # it may be remembered
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
