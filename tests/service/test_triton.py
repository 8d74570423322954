"""An unmodified Triton client against the service: the protocol as somebody else reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.services import Served, serving

import rltemp
from rltemp import Signals, load_rule
from rltemp.kd.temperatures import OUTPUTS
from rltemp.loading import SHIPPED
from rltemp.policy.features import featurize
from rltemp.policy.policy_file import read_policy

pytest.importorskip("fastapi", reason="needs rltemp[serve]")
triton = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")

KINDS = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64, "INT32": np.int32, "INT64": np.int64}


@pytest.fixture(scope="module")
def service() -> Iterator[Served]:
    with serving() as served:
        yield served


@pytest.fixture(scope="module")
def client(service: Served) -> Iterator[Any]:
    found = triton.InferenceServerClient(service.address)
    yield found
    found.close()


def tensors(binary: bool, **arrays: tuple[str, Any]) -> list[Any]:
    found = []
    for name, (datatype, array) in arrays.items():
        tensor = triton.InferInput(name, array.shape, datatype)
        tensor.set_data_from_numpy(array.astype(KINDS[datatype]), binary_data=binary)
        found.append(tensor)
    return found


def wanted(binary: bool, *names: str) -> list[Any]:
    return [triton.InferRequestedOutput(name, binary_data=binary) for name in names]


def logits(*shape: int) -> tuple[Any, Any, Any]:
    random = np.random.default_rng(0)
    student, teacher = random.standard_normal((2, *shape))
    return student, 3 * teacher, random.integers(0, shape[-1], shape[:-1])


def test_it_is_alive_and_ready(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("fixed:4")
    assert client.is_model_ready("universal", "1")
    assert not client.is_model_ready("nobody")
    assert not client.is_model_ready("universal", "2")


def test_it_describes_itself_and_its_models(client: Any) -> None:
    server = client.get_server_metadata()
    assert (server["name"], server["version"]) == ("rltemp", rltemp.__version__)
    assert "binary_tensor_data" in server["extensions"]
    model = client.get_model_metadata("universal")
    assert (model["name"], model["versions"], model["platform"]) == ("universal", ["1"], "rltemp")
    assert [port["name"] for port in model["outputs"]] == [*OUTPUTS, "action"]
    listed = {(entry["name"], entry["state"]) for entry in client.get_model_repository_index()}
    assert {("universal", "READY"), ("dtkd", "READY"), ("ttm", "READY")} <= listed


@pytest.mark.parametrize("model", ["dtkd", "fixed:4", "dtkd:reference=2", "universal"])
@pytest.mark.parametrize("sent", [True, False])
@pytest.mark.parametrize("answered", [True, False])
def test_logits_are_answered_as_in_process_in_bytes_and_in_json(client, model, sent, answered) -> None:
    student, teacher, labels = logits(5, 7)
    inputs = tensors(
        sent,
        student_logits=("FP32", student),
        teacher_logits=("FP32", teacher),
        labels=("INT64", labels),
        progress=("FP32", np.array([0.4])),
    )
    found = client.infer(model, inputs, outputs=wanted(answered, *OUTPUTS), request_id="a")
    arrays = (torch.from_numpy(array.astype(np.float32)) for array in (student, teacher))
    expected = load_rule(model)(Signals(*arrays, torch.from_numpy(labels), float(np.float32(0.4))))
    for name, values in expected.outputs().items():
        np.testing.assert_allclose(found.as_numpy(name), values.numpy(), rtol=1e-6)
    answer = found.get_response()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == (model, "1", "a")


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
def test_every_floating_point_type_is_read(client: Any, datatype: str) -> None:
    student, teacher, labels = logits(2, 3, 7)
    sent = {"student_logits": (datatype, student), "teacher_logits": (datatype, teacher), "labels": ("INT32", labels)}
    inputs = tensors(True, **sent, progress=(datatype, np.array([0.25])))
    found = client.infer("universal", inputs)  # with no outputs asked for, all of them as bytes
    arrays = (torch.from_numpy(array.astype(KINDS[datatype])) for array in (student, teacher))
    expected = load_rule("universal")(Signals(*arrays, torch.from_numpy(labels), 0.25))
    assert found.as_numpy("weight").shape == (2, 3)
    np.testing.assert_allclose(found.as_numpy("weight"), expected.weight.float().numpy(), rtol=1e-6)


@pytest.mark.parametrize("binary", [True, False])
def test_features_are_answered_with_what_moves_the_reference(client: Any, binary: bool) -> None:
    student, teacher, labels = logits(64, 10)
    arrays = (torch.from_numpy(array.astype(np.float32)) for array in (student, teacher))
    signals = Signals(*arrays, torch.from_numpy(labels), 0.5)
    manifest = read_policy(SHIPPED["universal"]).manifest
    features = featurize(signals, [feature.name for feature in manifest.features]).numpy()
    asked = wanted(binary, "student_temperature", "teacher_temperature", "action")
    found = client.infer("universal", tensors(binary, features=("FP32", features)), outputs=asked, model_version="1")
    expected = load_rule("universal")(signals)
    np.testing.assert_allclose(found.as_numpy("student_temperature"), expected.student.numpy(), rtol=1e-5)
    np.testing.assert_allclose(found.as_numpy("teacher_temperature"), expected.teacher.numpy(), rtol=1e-5)
    assert found.as_numpy("action").shape == (64, 3)
    assert found.as_numpy("weight") is None


def test_no_samples_are_answered_with_none(client: Any) -> None:
    found = client.infer("universal", tensors(True, features=("FP32", np.zeros((0, 19)))))
    assert found.as_numpy("weight").shape == (0,)


@pytest.mark.parametrize("binary", [True, False])
def test_a_refusal_reaches_the_caller_in_words(client: Any, binary: bool) -> None:
    features = np.zeros((4, 8))
    features[3, 7] = np.nan
    with pytest.raises(
        triton.InferenceServerException, match=r"features\[3\]\[7\] is NaN; send finite numbers"
    ) as found:
        client.infer("universal", tensors(binary, features=("FP32", features)))
    assert found.value.status() == "400"
    student, teacher, _ = logits(2, 5)
    inputs = tensors(binary, student_logits=("FP32", student), teacher_logits=("FP32", teacher))
    with pytest.raises(triton.InferenceServerException, match="universal uses the progress of the run: send progress"):
        client.infer("universal", inputs)
    with pytest.raises(triton.InferenceServerException, match="no model 'nobody'"):
        client.infer("nobody", tensors(binary, features=("FP32", np.zeros((1, 8)))))


def test_a_connection_survives_a_refusal_and_many_requests_go_at_once(service: Served) -> None:
    client = triton.InferenceServerClient(service.address, concurrency=8)
    student, teacher, _ = logits(16, 5)
    inputs = tensors(True, student_logits=("FP32", student), teacher_logits=("FP32", teacher))
    pending = [client.async_infer("dtkd" if index % 2 else "nobody", inputs) for index in range(40)]
    answered = 0
    for index, request in enumerate(pending):
        if index % 2:
            assert request.get_result().as_numpy("weight").shape == (16,)
            answered += 1
        else:
            with pytest.raises(triton.InferenceServerException):
                request.get_result()
    assert answered == 20
    client.close()


def test_the_request_of_the_manual_gets_the_answer_of_the_manual(service: Served) -> None:
    manual = (Path(__file__).parents[2] / "docs" / "service.md").read_text("utf-8")
    path, body = re.findall(r"```bash\ncurl -s http://127.0.0.1:8000(\S+) .*? -d '(.*?)'\n```", manual, re.DOTALL)[0]
    (answer,) = re.findall(r"```json\n(.*?)```", manual, re.DOTALL)
    assert json.loads(service.request("POST", path, body.encode())[2]) == json.loads(answer)
