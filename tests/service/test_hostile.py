"""What a stranger may send to the controller (case 23): each is refused by name, none is coerced, none is a 500."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator

import numpy as np
import pytest
from support.data import table
from support.hostile_requests import BINARIES, DTKD, TEXTS, TWO, binary, inputs, student, tensor
from support.services import Served, serving
from support.wire import BYTES, JSON, Answer, request

from rltemp.kd.temperatures import OUTPUTS

UNIVERSAL = "/v2/models/universal/infer"


@pytest.fixture(scope="module")
def controller() -> Iterator[Served]:
    with serving() as served:
        yield served


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_no_sound_text_is_refused_by_name(controller: Served, name: str) -> None:
    body, status, said = TEXTS[name]
    answer = controller.send("POST", DTKD, body, [("Content-Type", JSON)])
    assert answer.status == status, answer
    assert_error(answer, said)


def ask(controller: Served, text: str, path: str = DTKD) -> Answer:
    return controller.send("POST", path, text.encode(), [("Content-Type", JSON)])


def assert_error(answer: Answer, said: str = "") -> None:
    """An error is one sentence for its sender: short, without the server's own affairs, and about what was wrong."""
    error = answer.error()
    assert pytest.approx(200, abs=200) == len(error), error
    assert "\n" not in error
    assert not any(word in error for word in ("Traceback", "site-packages", ".py", "Error(", "object at 0x")), error
    assert re.search(said, error), error


def test_numbers_at_the_limits_are_answered_as_they_are(controller: Served) -> None:
    for data in (TWO, "[0, 0, 0, 1e-45, -0.0, 6]", "[3e38, -3e38, 3, 4, 5, 6]"):
        answer = ask(controller, student(data))
        assert answer.status == 200, answer
        found = json.loads(answer.body)["outputs"]
        assert [output["name"] for output in found] == list(OUTPUTS)
        assert np.isfinite([output["data"] for output in found]).all()


def test_features_are_named_by_row_and_column(controller: Served) -> None:
    rows = [[0.0] * 8 for _ in range(4)]
    text = json.dumps(rows).replace("0.0]]", "NaN]]")
    answer = ask(controller, inputs(tensor("features", text, "[4, 8]")), UNIVERSAL)
    assert (answer.status, answer.error()) == (400, "features[3][7] is NaN; send finite numbers")
    for shape, data in (("[4, 7]", [0.0] * 28), ("[8]", [0.0] * 8), ("[0, 9]", []), ("[1, 1, 8]", [0.0] * 8)):
        answer = ask(controller, inputs(tensor("features", json.dumps(data), shape)), UNIVERSAL)
        assert answer.status == 400
        assert_error(answer, "features have shape")


@pytest.mark.parametrize("name", BINARIES)
def test_what_are_no_sound_bytes_is_refused(controller: Served, name: str) -> None:
    body, length = BINARIES[name]
    headers = [("Content-Type", BYTES), ("Inference-Header-Content-Length", length)]
    answer = controller.send("POST", DTKD, body, headers)
    assert answer.status in (400, 413, 422), answer
    assert_error(answer)


def test_no_samples_are_no_mistake(controller: Served) -> None:
    body, length = binary([0, 0], [[0, 3], [0, 3]], "")
    answer = controller.send("POST", DTKD, body, [("Content-Type", BYTES), ("Inference-Header-Content-Length", length)])
    assert answer.status == 200
    assert [output["shape"] for output in json.loads(answer.body)["outputs"]] == [[0]] * 3


def test_a_length_given_twice_is_refused(controller: Served) -> None:
    body, length = binary()
    headers = [("Inference-Header-Content-Length", length), ("Inference-Header-Content-Length", "5")]
    assert_error(answer := controller.send("POST", DTKD, body, headers))
    assert answer.status == 400


@pytest.mark.parametrize(
    "header",
    [
        ("Content-Type", "text/plain"),
        ("Content-Type", "application/xml"),
        ("Content-Type", "multipart/form-data; boundary=x"),
        ("Content-Type", "application/x-www-form-urlencoded"),
        ("Content-Type", "\xff"),
        ("Content-Encoding", "gzip"),
        ("Content-Encoding", "br"),
    ],
    ids=str,
)
def test_another_type_or_encoding_is_refused(controller: Served, header: tuple[str, str]) -> None:
    answer = controller.send("POST", DTKD, student().encode(), [header])
    assert answer.status == 415
    assert_error(answer)


LONG_PATHS = "/v2/models/" + "a" * 8000 + "/infer", "/v2/models/dtkd/versions/" + "9" * 5000 + "/infer"


@pytest.mark.parametrize("path", [*table("service/paths"), *LONG_PATHS])
def test_what_is_not_there_is_not_found(controller: Served, path: str) -> None:
    answer = ask(controller, student(), path)
    assert answer.status in (400, 404, 405), answer
    assert_error(answer)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"])
def test_other_methods_are_not_allowed(controller: Served, method: str) -> None:
    answer = controller.send(method, DTKD, student().encode(), [("Content-Type", JSON)])
    assert answer.status == 405
    assert_error(answer)


def test_a_body_of_200_mib_is_refused_declared_and_streamed(controller: Served) -> None:
    (declared,) = controller.ask(request("POST", DTKD, headers=[("Content-Length", str(200 * 2**20))]))  # not sent
    chunk = b"100000\r\n" + b"1" * 2**20 + b"\r\n"
    (streamed,) = controller.ask(request("POST", DTKD, headers=[("Transfer-Encoding", "chunked")]), *[chunk] * 200)
    for answer in (declared, streamed):
        assert answer.status == 413
        assert_error(answer, "larger than 8,388,608 bytes")


def barrage(service: Served) -> None:
    """Everything above, once."""
    for body, *_ in TEXTS.values():
        assert service.send("POST", DTKD, body, [("Content-Type", JSON)]).status < 500
    for body, length in BINARIES.values():
        headers = [("Content-Type", BYTES), ("Inference-Header-Content-Length", length)]
        assert service.send("POST", DTKD, body, headers).status < 500
    test_a_body_of_200_mib_is_refused_declared_and_streamed(service)


def test_the_barrage_leaves_no_memory_behind(controller: Served) -> None:
    for _ in range(20):
        assert ask(controller, student()).status == 200
    before, threads, descriptors = controller.memory(), controller.threads(), controller.descriptors()
    barrage(controller)
    time.sleep(0.3)
    assert controller.memory() - before <= 16 * 2**20
    assert controller.descriptors() <= descriptors
    assert controller.threads() <= threads + 3, "two for large requests, one of torch"
    metrics = controller.send("GET", "/metrics").body.decode()
    assert 'code="500"' not in metrics
    assert "rltemp_rejections_total" in metrics
