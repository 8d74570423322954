"""Generated requests of the served schema, and bodies with broken bytes: no 5xx, no hang, no leak, only refusals.

`make faults` sends more than 2,000; the default tests some 200. What is no HTTP is refused by uvicorn's h11.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.hostile_requests import DTKD, student
from support.processes import until
from support.services import Served, serving
from support.wire import infer_body

pytest.importorskip("fastapi", reason="needs rltemp[serve]")

from rltemp.service.refusals import Refusal
from rltemp.service.repository import Repository
from rltemp.service.routes import answer

ARRAYS = {name: np.arange(6, dtype="<f4").reshape(2, 3) for name in ("student_logits", "teacher_logits")}
BODIES: list[tuple[bytes, int | None]] = [(student().encode(), None), infer_body(ARRAYS)]
PIECES = [
    b"", b"\0", b"\xff\xfe", b":", b" ", b"-1", b"NaN", b"1e999", b"true", b"null", b"[", b"]", b"{}", b'"', b"\\ud800",
    b"9" * 40, b"A" * 20_000,
]  # fmt: skip


@pytest.fixture(scope="module")
def controller() -> Iterator[Served]:
    with serving() as served:
        for _ in range(20):
            served.send("POST", DTKD, student().encode(), [("Content-Type", "application/json")])
        yield served


def send_broken(examples: int, derandomize: bool) -> dict[int, int]:
    """Answer sound requests with one to four changes; how often each status was the answer."""
    found: dict[int, int] = {}
    model = Repository().find("dtkd")

    @settings(max_examples=examples, derandomize=derandomize, database=None, deadline=None)
    @given(st.sampled_from(BODIES), st.data())
    def one(sound: tuple[bytes, int | None], data: st.DataObject) -> None:
        body, length = sound
        for _ in range(data.draw(st.integers(1, 4))):
            start = data.draw(st.integers(0, len(body)))
            end = start + data.draw(st.sampled_from([0, 1, 2, 4, 16, 100]))
            body = body[:start] + data.draw(st.sampled_from(PIECES) | st.binary(max_size=16)) + body[end:]
        status = 200
        try:
            answer(model, body, length)
        except Refusal as refusal:
            status = refusal.status
        found[status] = found.get(status, 0) + 1

    one()
    return found


def send_of_schema(service: Served, examples: int, derandomize: bool) -> list[int]:
    """Send requests of the served schema, sound and unsound in its terms; the statuses of answers that keep to it."""
    schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis")
    from schemathesis.specs.openapi import checks

    schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
    wanted = [
        schemathesis.checks.not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_headers_conformance,
        checks.response_schema_conformance,
        checks.unsupported_method,
    ]
    statuses: list[int] = []
    for found in schema.get_all_operations():
        operation = found.ok()
        # Nothing can be wrong with a request that has no body.
        for mode in modes if operation.body else modes[:1]:

            @settings(
                max_examples=examples,
                derandomize=derandomize,
                database=None,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode), there=st.sampled_from(["dtkd", "universal", ""]))
            def one(case: Any, there: str) -> None:
                if there and case.path_parameters:
                    case.path_parameters.update({"model": there, "version": "1"})
                statuses.append(case.call_and_validate(checks=wanted, timeout=20).status_code)

            one()
    return statuses


def assert_unharmed(service: Served, before: tuple[int, int, int], growth: int) -> None:
    """The service answers, and holds no more than it did."""
    assert service.send("GET", "/v2/health/ready").status == 200
    memory, threads, descriptors = before
    until(lambda: service.descriptors() <= descriptors, 10)
    assert service.threads() <= threads + 3, "two for large requests, one of torch"
    assert service.memory() - memory <= growth
    assert service.process.poll() is None
    counted = service.send("GET", "/metrics").body.decode()
    assert 'code="500"' not in counted


def state(service: Served) -> tuple[int, int, int]:
    return service.memory(), service.threads(), service.descriptors()


@pytest.mark.parametrize("examples", [200, pytest.param(2000, marks=pytest.mark.faults)])
def test_broken_bytes_are_refused_and_nothing_else(examples: int) -> None:
    found = send_broken(examples, derandomize=examples == 200)
    assert {200, 400} <= set(found) <= {200, 400, 413, 422}, found
    assert examples == 200 or 422 in found


@pytest.mark.parametrize("examples", [6, pytest.param(200, marks=pytest.mark.faults)])
def test_requests_of_the_schema_are_answered_by_it(controller: Served, examples: int) -> None:
    before = state(controller)
    statuses = send_of_schema(controller, examples, derandomize=examples == 6)
    assert len(statuses) > 10 * examples
    assert {200, 400, 404, 422} <= set(statuses), "what is generated reaches the models"
    assert_unharmed(controller, before, 16 * 2**20)
