"""Requests that a service must refuse: as JSON and as bytes, by name."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

from support.data import table

DTKD = "/v2/models/dtkd/infer"
TWO = "[1, 2, 3, 4, 5, 6]"
DATA = struct.pack("<12f", *range(12)).hex()
SHAPES = ([2, 3], [2, 3])


def inputs(*tensors: str) -> str:
    return f'{{"inputs": [{", ".join(tensors)}]}}'


def tensor(name: str, data: str = TWO, shape: str = "[2, 3]") -> str:
    return f'{{"name": "{name}", "shape": {shape}, "datatype": "FP32", "data": {data}}}'


def student(data: str = TWO) -> str:
    """A request in which the student's logits are as given, and the teacher's sound."""
    return inputs(tensor("student_logits", data), tensor("teacher_logits"))


def written(text: str) -> str:
    """A text of the table, with sound tensors where it names them."""
    return text.replace("<student>", tensor("student_logits")).replace("<teacher>", tensor("teacher_logits"))


def binary(
    sizes: Sequence[Any] = (24, 24),
    shapes: Sequence[Any] = SHAPES,
    data: str = DATA,
    length: str | None = None,
    kind: str = "FP32",
) -> tuple[bytes, str]:
    """A body with tensors as bytes, `data` in hexadecimal, and the length of its JSON, where none is given."""
    entries = [
        {"name": name, "shape": shape, "datatype": kind, "parameters": {"binary_data_size": size}}
        for name, shape, size in zip(("student_logits", "teacher_logits"), shapes, sizes, strict=True)
    ]
    head = json.dumps({"inputs": entries}).encode()
    return head + bytes.fromhex(data), str(len(head)) if length is None else length


TEXTS: dict[str, tuple[bytes, int, str]] = {
    **{name: (written(text).encode(), *said) for name, (text, *said) in table("service/requests", "texts").items()},
    "bad UTF-8": (student().encode().replace(b"student", b"stud\xff\xfent"), 400, "the request is not UTF-8 at byte"),
    "UTF-16": (student().encode("utf-16"), 400, ""),
    "byte order mark": (b"\xef\xbb\xbf" + student().encode(), 400, ""),
    "zeros": (bytes(1000), 400, ""),
    "100 k lists": (b"[" * 100_000, 400, "it nests deeper than 8 levels"),
    "100 k lists, closed": (b"[" * 100_000 + b"]" * 100_000, 400, "it nests deeper than 8 levels"),
    "100 k objects": (b'{"inputs":' * 100_000 + b"1" + b"}" * 100_000, 413, ""),
    "100 k lists as data": (student("[" * 100_000 + "]" * 100_000).encode(), 400, ""),
    "3 MiB of JSON": (student("[" + "1," * (3 * 2**19) + "1]").encode(), 413, "bytes of JSON"),
    "100 k inputs": (inputs(*["{}"] * 100_000).encode(), 422, ""),
    "100 k keys": (("{" + ",".join(f'"{key}": 1' for key in range(100_000)) + "}").encode(), 413, ""),
}
BINARIES: dict[str, tuple[bytes, str]] = {
    name: binary(**changes) for name, changes in table("service/requests", "binaries").items()
}
