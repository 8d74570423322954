"""The wire format: what is read, what is refused with which words, and that nothing is coerced."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies
from support.wire import infer_body

from rltemp.service.refusals import Refusal
from rltemp.service.strict_values import DATATYPES, Array
from rltemp.service.tensors import InferRequest, decode, encode


def tensor(data: Any, *shape: int, name: str = "features", datatype: str = "FP32") -> dict[str, Any]:
    return {"name": name, "shape": list(shape), "datatype": datatype, "data": data}


def refused(body: bytes, length: int | None = None) -> Refusal:
    with pytest.raises(Refusal) as found:
        decode(body, length)
    return found.value


def test_numbers_come_flat_or_in_rows() -> None:
    for data in ([1, 2, 3, 4, 5, 6], [[1, 2, 3], [4, 5, 6]]):
        found = decode(json.dumps({"inputs": [tensor(data, 2, 3)]}).encode()).inputs["features"]
        np.testing.assert_array_equal(found, np.arange(1, 7, dtype=np.float32).reshape(2, 3))
        assert found.dtype == np.float32


@given(strategies.data())
def test_every_array_comes_back_from_bytes_as_it_was(data: strategies.DataObject) -> None:
    kind = np.dtype(data.draw(strategies.sampled_from(sorted(DATATYPES.values()))))
    shape = data.draw(strategies.lists(strategies.integers(0, 4), max_size=4))
    values = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(kind)
    second = np.full((3,), 7, "<i8")
    found = decode(*infer_body({"student_logits": values, "labels": second})).inputs
    np.testing.assert_array_equal(found["student_logits"], values)
    np.testing.assert_array_equal(found["labels"], second)
    assert found["student_logits"].dtype == kind


def test_a_number_beyond_the_largest_double_is_named_with_its_place() -> None:
    refusal = refused(
        b'{"inputs": [{"name": "features", "shape": [2, 2], "datatype": "FP64", "data": [1, 2, 1e999, 4]}]}'
    )
    assert (refusal.status, refusal.reason) == (400, "non_finite")
    assert refusal.message == "features[1][0] is Infinity; send finite numbers"


def test_bytes_that_are_not_finite_are_named_and_counted() -> None:
    values = np.zeros((4, 8), "<f4")
    values[3, 7] = values[3, 6] = np.nan
    values[3, 5] = -np.inf
    refusal = refused(*infer_body({"features": values}))
    assert refusal.message == "features[3][5] is -Infinity; send finite numbers"
    assert (refusal.status, refusal.reason, refusal.values) == (400, "non_finite", 3)


@pytest.mark.parametrize(
    ("cut", "length", "message"),
    [
        (-1, 0, "of which 31 came"),
        (None, 10_000, "Inference-Header-Content-Length is"),
        (None, -1, "the request is not JSON"),
    ],
)
def test_bytes_that_are_missing_are_noticed(cut: int | None, length: int, message: str) -> None:
    body, header = infer_body({"features": np.zeros((1, 8), "<f4")})
    refusal = refused(body[:cut], header + length)
    assert (refusal.status, message in refusal.message) == (400, True), refusal.message


def test_sizes_are_checked_before_anything_is_allocated() -> None:
    body, header = infer_body({"features": np.zeros((1, 8), "<f4")})
    lie = body[:header].replace(b"[1, 8]", b"[9, 8]")
    assert "FP32 of shape [9, 8] has 288 bytes" in refused(lie + body[header:], len(lie)).message
    assert "1 bytes are left behind the last tensor" in refused(body + b"x", header).message
    huge = {"name": "features", "shape": [2**15, 2**15], "datatype": "FP64", "parameters": {"binary_data_size": 2**33}}
    assert "which 0 came" in refused(json.dumps({"inputs": [huge]}).encode()).message


def test_an_output_or_the_request_says_whether_it_comes_as_bytes() -> None:
    wanted = [{"name": "weight", "parameters": {"binary_data": False}}, {"name": "action"}]
    body = json.dumps({"inputs": [], "outputs": wanted, "parameters": {"binary_data_output": True}}).encode()
    assert decode(body).outputs == {"weight": False, "action": True}
    assert decode(b'{"inputs": [], "outputs": []}').outputs is None
    assert decode(b'{"inputs": [], "parameters": {"binary_data_output": true}}').binary


def test_an_answer_repeats_the_id_and_holds_its_numbers_in_either_form() -> None:
    outputs: dict[str, Array] = {
        "weight": np.array([1.5, 16.0], np.float32),
        "action": np.array([[0.1, -1.0]], np.float32),
        "none": np.zeros((0,), np.float32),
    }
    request = InferRequest("a\n\ud800", {}, {"weight": False, "action": True, "none": True}, binary=False)
    body, length = encode("universal", "3", outputs, request)
    header = json.loads(body[:length])
    assert (header["model_name"], header["model_version"], header["id"]) == ("universal", "3", "a\n\ud800")
    weight, action, none = header["outputs"]
    assert weight == {"name": "weight", "datatype": "FP32", "shape": [2], "data": [1.5, 16.0]}
    assert action["parameters"] == {"binary_data_size": 8}
    assert (none["shape"], none["parameters"]) == ([0], {"binary_data_size": 0})
    np.testing.assert_array_equal(np.frombuffer(body[length:], "<f4"), outputs["action"][0])
    assert encode("dtkd", "1", outputs, InferRequest("", {}, None, binary=False))[1] is None
