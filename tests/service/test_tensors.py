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
from rltemp.service.tensors import MAX_JSON_BYTES, InferRequest, decode, encode


def tensor(data: Any, *shape: int, name: str = "features", datatype: str = "FP32") -> dict[str, Any]:
    return {"name": name, "shape": list(shape), "datatype": datatype, "data": data}


def listed(**changes: Any) -> bytes:
    return json.dumps({"inputs": [{**tensor([1, 2.5], 1, 2), **changes}]}).encode()


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


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"data": [1, "1.5"]}, 422, 'features[0][1] is "1.5"; send numbers'),
        ({"data": [True, 2]}, 422, "features[0][0] is true; send numbers"),
        ({"data": [None, 2]}, 422, "features[0][0] is null; send numbers"),
        ({"data": [1, 2, 3]}, 400, "features has 3 numbers; shape [1, 2] has 2"),
        ({"data": [[1, 2], [3, 4]]}, 400, "features has 2 entries; shape [1, 2] has 1 there"),
        ({"data": [[1, 2, 3]]}, 400, "features[0] has 3 entries; shape [1, 2] has 2 there"),
        ({"data": [[[1], [2]]]}, 422, "features[0][0] is a list of 1; send numbers"),
        ({"data": [1, float("nan")]}, 400, "features[0][1] is NaN; send finite numbers"),
        ({"data": [float("-inf"), 2]}, 400, "features[0][0] is -Infinity; send finite numbers"),
        ({"data": [1, 1e39]}, 400, "features[0][1] is 1e+39, which FP32 does not hold"),
        ({"data": [1, 70000], "datatype": "FP16"}, 400, "features[0][1] is 70000, which FP16 does not hold"),
        ({"data": [1, 2**31], "datatype": "INT32"}, 400, "features[0][1] is 2147483648, which INT32 does not hold"),
        ({"data": [1, 2**64], "datatype": "INT64"}, 400, "features holds a number that INT64 does not"),
        ({"data": [1, 10**400]}, 400, "features holds a number that FP32 does not"),
        ({"data": [1, 2.0], "datatype": "INT64"}, 422, "features[0][1] is 2.0; send integers"),
        ({"data": {}}, 422, "inputs[0].data is an object; needed: a list"),
        ({"datatype": "BYTES"}, 422, "inputs[0].datatype is \"BYTES\"; needed: 'FP16'"),
        ({"datatype": ["FP32"]}, 422, "inputs[0].datatype is a list of 1"),
        ({"shape": [1, -2]}, 422, "inputs[0].shape[1] is -2; needed: greater than or equal to 0"),
        ({"shape": [True, 2]}, 422, "inputs[0].shape[0] is true; needed: an integer"),
        ({"shape": [1.0, 2]}, 422, "inputs[0].shape[0] is 1.0; needed: an integer"),
        ({"shape": [0, 2**40]}, 400, "features.shape has more than"),
        ({"shape": [10**900]}, 400, "features.shape has more than"),
        ({"name": 3}, 422, "inputs[0].name is 3"),
        ({"parameters": None}, 422, "inputs[0].parameters is null; send an object"),
        ({"parameters": {"binary_data_size": 8}}, 422, "features needs either data or parameters.binary_data_size"),
        ({"parameters": {"binary_data_size": True}}, 422, "inputs[0].parameters.binary_data_size is true"),
        ({"parameters": {"shared_memory_region": "x"}}, 422, "inputs[0].parameters has a key 'shared_memory_region'"),
        ({"extra": 1}, 422, "inputs[0] has a key 'extra', which the protocol does not have"),
    ],
)
def test_what_is_wrong_with_a_tensor_is_named(changes: dict[str, Any], status: int, message: str) -> None:
    refusal = refused(listed(**changes))
    assert (refusal.status, message in refusal.message) == (status, True), refusal.message


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "the request is not JSON"),
        (b"{", 400, "the request is not JSON"),
        (b"\xff\xfe{}", 400, "the request is not UTF-8 at byte 0"),
        (b"[]", 422, "request is a list of 0; send an object"),
        (b"{}", 422, "request has no inputs"),
        (b'{"inputs": {}}', 422, "inputs is an object; needed: a list"),
        (b'{"inputs": [1]}', 422, "inputs[0] is 1; send an object"),
        (b'{"inputs": [{}]}', 422, "inputs[0] has no name"),
        (b'{"inputs": [], "inputs": []}', 400, "key 'inputs' is given twice"),
        (b'{"inputs": [], "model": "x"}', 422, "request has a key 'model'"),
        (b'{"inputs": [], "id": 7}', 422, "id is 7; needed: a string"),
        (b'{"inputs": [], "id": null}', 422, "id is null; needed: a string"),
        (b'{"inputs": [], "outputs": "weight"}', 422, 'outputs is "weight"; needed: a list'),
        (b'{"inputs": [], "outputs": [{"name": "weight"}, {"name": "weight"}]}', 422, "output 'weight' is there twice"),
        (b'{"inputs": [], "parameters": {"binary_data_output": 1}}', 422, "binary_data_output is 1; needed: a boolean"),
        (b'{"inputs": [], "parameters": {"timeout": 1}}', 422, "parameters has a key 'timeout'"),
        (b"[" * 100_000, 400, "it nests deeper than 8 levels"),
        (b'{"inputs": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", 400, "it nests deeper than 8 levels"),
        (b'{"inputs": [{"name": "a", "shape": [' + b"9" * 5000 + b"]}]}", 400, "a number of 5000 digits"),
        (b" " * (MAX_JSON_BYTES + 1), 413, "bytes of JSON"),
    ],
)
def test_what_is_wrong_with_a_request_is_named(body: bytes, status: int, message: str) -> None:
    refusal = refused(body)
    assert (refusal.status, message in refusal.message) == (status, True), refusal.message


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


def test_an_input_that_is_given_twice_is_refused() -> None:
    refusal = refused(json.dumps({"inputs": [tensor([1], 1), tensor([2], 1)]}).encode())
    assert (refusal.status, refusal.message) == (422, "input 'features' is there twice")


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
    assert length is not None
    header = json.loads(body[:length])
    assert (header["model_name"], header["model_version"], header["id"]) == ("universal", "3", "a\n\ud800")
    weight, action, none = header["outputs"]
    assert weight == {"name": "weight", "datatype": "FP32", "shape": [2], "data": [1.5, 16.0]}
    assert action["parameters"] == {"binary_data_size": 8}
    assert (none["shape"], none["parameters"]) == ([0], {"binary_data_size": 0})
    np.testing.assert_array_equal(np.frombuffer(body[length:], "<f4"), outputs["action"][0])
    assert encode("dtkd", "1", outputs, InferRequest("", {}, None, binary=False))[1] is None
