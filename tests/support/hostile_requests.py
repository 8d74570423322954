"""Requests that a service must refuse: as JSON and as bytes, by name."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

DTKD = "/v2/models/dtkd/infer"
TWO = "[1, 2, 3, 4, 5, 6]"


def tensor(name: str, data: str = TWO, shape: str = "[2, 3]", datatype: str = '"FP32"', more: str = "") -> str:
    return f'{{"name": "{name}", "shape": {shape}, "datatype": {datatype}, "data": {data}{more}}}'


def inputs(*tensors: str, more: str = "") -> str:
    return f'{{"inputs": [{", ".join(tensors)}]{more}}}'


def student(data: str = TWO, **of: str) -> str:
    """A request in which the student's logits are as given, and the teacher's sound."""
    return inputs(tensor("student_logits", data, **of), tensor("teacher_logits"))


def also(*tensors: str) -> str:
    return inputs(tensor("student_logits"), tensor("teacher_logits"), *tensors)


def plus(member: str) -> str:
    """A sound request with a further member."""
    return inputs(tensor("student_logits"), tensor("teacher_logits"), more=f", {member}")


def features(data: str, shape: str) -> str:
    return inputs(tensor("features", data, shape))


TEXTS: dict[str, tuple[str | bytes, int, str]] = {
    # numbers
    "NaN": (student("[1, NaN, 3, 4, 5, 6]"), 400, r"student_logits\[0\]\[1\] is NaN; send finite numbers"),
    "nan in rows": (student("[[1, 2, 3], [4, 5, NaN]]"), 400, r"student_logits\[1\]\[2\] is NaN; send finite numbers"),
    "Infinity": (student("[1, 2, 3, 4, 5, -Infinity]"), 400, r"student_logits\[1\]\[2\] is -Infinity"),
    "1e999": (student("[1, 1e999, 3, 4, 5, 6]"), 400, r"student_logits\[0\]\[1\] is Infinity"),
    "beyond float32": (student("[1, 2, 1e39, 4, 5, 6]"), 400, r"student_logits\[0\]\[2\] is 1e\+39, which FP32"),
    "beyond float16": (student("[1, 2, 7e4, 4, 5, 6]", datatype='"FP16"'), 400, "is 70000.0, which FP16 does not hold"),
    "integer of 400 digits": (student(f"[1{'0' * 400}, 2, 3, 4, 5, 6]"), 400, "holds a number that FP32 does not"),
    "integer of 5000 digits": (student(f"[1{'0' * 5000}, 2, 3, 4, 5, 6]"), 400, "a number of 5001 digits"),
    "text": (student('[1, "1.5", 3, 4, 5, 6]'), 422, r'student_logits\[0\]\[1\] is "1.5"; send numbers'),
    "true": (student("[1, 2, 3, true, 5, 6]"), 422, r"student_logits\[1\]\[0\] is true; send numbers"),
    "null": (student("[1, 2, 3, 4, null, 6]"), 422, r"student_logits\[1\]\[1\] is null"),
    "object": (student("[1, 2, 3, 4, {}, 6]"), 422, r"student_logits\[1\]\[1\] is an object"),
    "label 1.0": (also(tensor("labels", "[0, 1.0]", "[2]", '"INT64"')), 422, r"labels\[1\] is 1.0; send integers"),
    "label true": (also(tensor("labels", "[0, true]", "[2]", '"INT64"')), 422, r"labels\[1\] is true"),
    "label as float": (also(tensor("labels", "[0, 1]", "[2]")), 400, "labels"),
    "label -1": (also(tensor("labels", "[0, -1]", "[2]", '"INT64"')), 400, r"labels\[1\] is -1"),
    "label beyond": (also(tensor("labels", "[0, 3]", "[2]", '"INT64"')), 400, r"labels\[1\] is 3"),
    "label 2^63": (also(tensor("labels", f"[0, {2**63}]", "[2]", '"INT64"')), 400, "a number that INT64 does not"),
    "label 2^31 in INT32": (
        also(tensor("labels", f"[0, {2**31}]", "[2]", '"INT32"')),
        400,
        "which INT32 does not hold",
    ),
    "progress 2": (also(tensor("progress", "[2]", "[1]")), 400, "progress"),
    "progress of two": (also(tensor("progress", "[0, 1]", "[2]")), 400, "progress"),
    "data is an object": (student("{}"), 422, r"inputs\[0\]\.data is an object; needed: a list"),
    # shapes
    "ragged": (student("[[1, 2, 3], [4, 5]]"), 400, r"student_logits\[1\] has 2 entries"),
    "rows and numbers": (student("[[1, 2, 3], 4, 5, 6]"), 400, "student_logits"),
    "too many numbers": (student("[1, 2, 3, 4, 5, 6, 7]"), 400, r"student_logits has 7 numbers; shape \[2, 3\] has 6"),
    "too deep": (student("[[[1], [2], [3]], [[4], [5], [6]]]"), 422, r"\[0\]\[0\] is a list of 1; send numbers"),
    "negative size": (student(shape="[-2, -3]"), 422, r"shape\[0\] is -2; needed: greater than or equal to 0"),
    "size 2.0": (student(shape="[2.0, 3]"), 422, r"inputs\[0\]\.shape\[0\] is 2\.0; needed: an integer"),
    "size true": (student(shape="[true, 6]"), 422, r"inputs\[0\]\.shape\[0\] is true; needed: an integer"),
    "size as text": (student(shape='["2", 3]'), 422, r"inputs\[0\]\.shape"),
    "shape of none": (student(shape="null"), 422, r"inputs\[0\]\.shape"),
    "2^62 x 2^62": (student(shape=f"[{2**62}, {2**62}]"), 400, "shape"),
    "product 2^64": (student(shape=f"[{2**32}, {2**32}]"), 400, "shape"),
    "zero of 2^62": (student("[]", shape=f"[0, {2**62}]"), 400, "student_logits.shape has more than"),
    "size 10^400": (student(shape=f"[1{'0' * 400}, 1]"), 400, "student_logits.shape has more than"),
    "100 axes": (student(shape=str([1] * 100)), 422, "shape"),
    "no axes": (inputs(*(tensor(f"{who}_logits", "[1]", "[]") for who in ("student", "teacher"))), 400, ""),
    "no classes": (inputs(*(tensor(f"{who}_logits", "[]", "[2, 0]") for who in ("student", "teacher"))), 400, ""),
    "two shapes": (student("[1, 2, 3, 4]", shape="[2, 2]"), 400, ""),
    "broadcast": (student("[1, 2, 3]", shape="[1, 3]"), 400, ""),
    # members
    "extra key": (plus('"x": 1'), 422, "request has a key 'x', which the protocol does not have"),
    "extra key of a tensor": (student(more=', "x": 1'), 422, r"inputs\[0\] has a key 'x', which"),
    "extra parameter": (student(more=', "parameters": {"x": 1}'), 422, r"inputs\[0\]\.parameters has a key 'x'"),
    "duplicate key": (plus('"inputs": []'), 400, "key 'inputs' is given twice"),
    "duplicate key of a tensor": (student(more=', "data": []'), 400, "data"),
    "duplicate tensor": (also(tensor("student_logits")), 422, "input 'student_logits' is there twice"),
    "unknown input": (also(tensor("logits")), 400, "logits"),
    "a name that is no text": (also(tensor("logits").replace('"logits"', '"\\ud800"', 1)), 422, ""),
    "a key that is no text": (plus('"\\ud800": 1'), 422, ""),
    "missing input": (inputs(tensor("student_logits")), 400, "teacher_logits"),
    "no inputs": (inputs(), 400, ""),
    "both ways": (also(tensor("features", "[1, 2, 3, 4, 5, 6]")), 400, "features"),
    "unknown datatype": (student(datatype='"FP8"'), 422, "FP8"),
    "BYTES": (student(datatype='"BYTES"'), 422, r"inputs\[0\]\.datatype is \"BYTES\"; needed: 'FP16'"),
    "datatype in lower case": (student(datatype='"fp32"'), 422, "fp32"),
    "datatype that is a list": (student(datatype="[]"), 422, r"inputs\[0\]\.datatype is a list of 0"),
    "unknown output": (plus('"outputs": [{"name": "x"}]'), 400, "x"),
    "output twice": (plus('"outputs": [{"name": "weight"}, {"name": "weight"}]'), 422, "'weight' is there twice"),
    "outputs is text": (plus('"outputs": "weight"'), 422, 'outputs is "weight"; needed: a list'),
    "id is a number": (plus('"id": 1'), 422, "id is 1; needed: a string"),
    "id of 1000 letters": (plus(f'"id": "{"a" * 1000}"'), 422, "id"),
    "inputs is an object": ('{"inputs": {}}', 422, "inputs is an object; needed: a list"),
    "inputs holds numbers": ('{"inputs": [1]}', 422, r"inputs\[0\] is 1; send an object"),
    "data and bytes": (
        student(more=', "parameters": {"binary_data_size": 24}'),
        422,
        "needs either data or parameters",
    ),
    "bytes that are not there": (
        '{"inputs": [{"name": "student_logits", "shape": [2, 3], "datatype": "FP32", '
        '"parameters": {"binary_data_size": 24}}]}',
        400,
        "",
    ),
    "no members": ("{}", 422, "request has no inputs"),
    "a tensor without members": ('{"inputs": [{}]}', 422, r"inputs\[0\] has no name"),
    "a name that is a number": (also(tensor("x").replace('"x"', "3")), 422, r"inputs\[2\]\.name is 3"),
    "parameters that are null": (student(more=', "parameters": null'), 422, "parameters is null; send an object"),
    "id is null": (plus('"id": null'), 422, "id is null; needed: a string"),
    "binary output is a number": (plus('"parameters": {"binary_data_output": 1}'), 422, "needed: a boolean"),
    "unknown parameter": (plus('"parameters": {"timeout": 1}'), 422, "parameters has a key 'timeout'"),
    # texts
    "empty": ("", 400, "the request is not JSON"),
    "blank": ("  ", 400, ""),
    "null as a whole": ("null", 422, "request is null"),
    "a list": ("[]", 422, "request is a list of 0; send an object"),
    "a number": ("1", 422, "request is 1"),
    "no JSON": ("{'inputs': []}", 400, "JSON"),
    "two objects": ("{}{}", 400, "JSON"),
    "cut": (student()[:-4], 400, "JSON"),
    "a comment": ("/* */" + student(), 400, "JSON"),
    "bad UTF-8": (student().encode().replace(b"student", b"stud\xff\xfent"), 400, "the request is not UTF-8 at byte"),
    "UTF-16": (student().encode("utf-16"), 400, ""),
    "byte order mark": (b"\xef\xbb\xbf" + student().encode(), 400, ""),
    "zeros": (bytes(1000), 400, ""),
    "100 k lists": ("[" * 100_000, 400, "it nests deeper than 8 levels"),
    "100 k lists, closed": ("[" * 100_000 + "]" * 100_000, 400, "it nests deeper than 8 levels"),
    "100 k objects": ('{"inputs":' * 100_000 + "1" + "}" * 100_000, 413, ""),
    "100 k lists as data": (student("[" * 100_000 + "]" * 100_000), 400, ""),
    "3 MiB of JSON": (student("[" + "1," * (3 * 2**19) + "1]"), 413, "bytes of JSON"),
    "100 k inputs": (inputs(*["{}"] * 100_000), 422, ""),
    "100 k keys": ("{" + ",".join(f'"{key}": 1' for key in range(100_000)) + "}", 413, ""),
}


def binary(
    sizes: list[Any], shapes: list[Any], data: bytes, length: str | None = None, kind: str = "FP32"
) -> tuple[bytes, str]:
    entries = [
        {"name": name, "shape": shape, "datatype": kind, "parameters": {"binary_data_size": size}}
        for name, shape, size in zip(("student_logits", "teacher_logits"), shapes, sizes, strict=True)
    ]
    head = json.dumps({"inputs": entries}).encode()
    return head + data, str(len(head)) if length is None else length


GOOD = [2, 3]
DATA = struct.pack("<12f", *range(12))

BINARIES: dict[str, tuple[bytes, str]] = {
    "a size too small": binary([20, 24], [GOOD, GOOD], DATA),
    "a size too large": binary([28, 24], [GOOD, GOOD], DATA),
    "negative size": binary([-24, 24], [GOOD, GOOD], DATA),
    "size 24.0": binary([24.0, 24], [GOOD, GOOD], DATA),
    "size true": binary([True, 24], [GOOD, GOOD], DATA),
    "size as text": binary(["24", 24], [GOOD, GOOD], DATA),
    "size 2^64": binary([2**64, 24], [GOOD, GOOD], DATA),
    "size 2^64 + 24": binary([2**64 + 24, 24], [GOOD, GOOD], DATA),
    "2^62 x 2^62": binary([0, 24], [[2**62, 2**62], GOOD], DATA),
    "product 2^64": binary([0, 24], [[2**32, 2**32], GOOD], DATA),
    "bytes 2^64": binary([0, 24], [[2**62], GOOD], DATA),
    "negative shape": binary([24, 24], [[-2, -3], GOOD], DATA),
    "zero of 2^62": binary([0, 0], [[0, 2**62], [0, 2**62]], b""),
    "no classes": binary([0, 0], [[2, 0], [2, 0]], b""),
    "too few bytes": binary([24, 24], [GOOD, GOOD], DATA[:-1]),
    "no bytes": binary([24, 24], [GOOD, GOOD], b""),
    "bytes left": binary([24, 24], [GOOD, GOOD], DATA + b"\0"),
    "NaN in bytes": binary([24, 24], [GOOD, GOOD], struct.pack("<12f", *range(11), float("nan"))),
    "infinity in float16": binary([12, 12], [GOOD, GOOD], np.full(12, np.inf, "<f2").tobytes(), kind="FP16"),
    "bytes of another type": binary([24, 24], [GOOD, GOOD], DATA, kind="FP64"),
    "length -1": binary([24, 24], [GOOD, GOOD], DATA, "-1"),
    "length 0": binary([24, 24], [GOOD, GOOD], DATA, "0"),
    "length +5": binary([24, 24], [GOOD, GOOD], DATA, "+5"),
    "length 1_0": binary([24, 24], [GOOD, GOOD], DATA, "1_0"),
    "length in words": binary([24, 24], [GOOD, GOOD], DATA, "ten"),
    "length in Arabic": binary([24, 24], [GOOD, GOOD], DATA, "\xb2"),
    "length empty": binary([24, 24], [GOOD, GOOD], DATA, ""),
    "length beyond": binary([24, 24], [GOOD, GOOD], DATA, "100000"),
    "length 10^30": binary([24, 24], [GOOD, GOOD], DATA, "1" + "0" * 30),
    "length one short": binary([24, 24], [GOOD, GOOD], DATA, str(len(binary([24, 24], [GOOD, GOOD], b"")[0]) - 1)),
    "length one long": binary([24, 24], [GOOD, GOOD], DATA, str(len(binary([24, 24], [GOOD, GOOD], b"")[0]) + 1)),
}
