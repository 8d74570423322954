"""Answers of inference in Open Inference Protocol v2: a JSON object, and the tensors behind it as bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from rltemp.service.arrays import Array
from rltemp.service.tensors import InferRequest


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
