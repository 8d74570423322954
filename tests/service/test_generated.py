"""Generated requests, of the served schema and of broken bytes: no 5xx, no hang, no leak.

`make faults` sends more than 2,000; the default tests some 200.
"""

from __future__ import annotations

import random
import select
import socket
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.hostile_requests import DTKD, student
from support.processes import until
from support.services import Served, serving
from support.wire import answers, infer_body, request

UVICORN = b"Invalid HTTP request received."
"""What it answers to what is no HTTP."""
PATIENCE = 2.0
"""Seconds after which a connection without an answer is taken for an idle one: a late request is cut at 0.7."""


@pytest.fixture(scope="module")
def controller() -> Iterator[Served]:
    with serving("--timeout", 0.7) as served:
        for _ in range(20):
            served.send("POST", DTKD, student().encode(), [("Content-Type", "application/json")])
        yield served


def wires() -> list[bytes]:
    """Requests that are answered, as bytes."""
    logits = np.arange(6, dtype="<f4").reshape(2, 3)
    binary, length = infer_body({"student_logits": logits, "teacher_logits": logits})
    kinds = [("Content-Type", "application/octet-stream"), ("Inference-Header-Content-Length", str(length))]
    text = student().encode()
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (text[:50], text[50:], b""))
    return [
        request("POST", DTKD, text, [("Content-Type", "application/json")], close=True),
        request("POST", DTKD, binary, kinds, close=True),
        request("POST", DTKD, headers=[("Transfer-Encoding", "chunked")], close=True) + chunked,
        request("GET", "/v2/models/universal", close=True),
        request("GET", "/v2/models/universal/policy", headers=[("If-None-Match", '"a"')], close=True),
        request("POST", "/v2/repository/index", b'{"ready": true}', close=True),
        request("GET", "/v2/health/ready", headers=[("Expect", "100-continue")], close=True),
    ]


PIECES = [
    b"\r\n", b"\r\n\r\n", b"\n", b"\0", b"\xff\xfe", b":", b" ", b"-1", b"NaN", b"1e999", b"true", b"null", b"[", b"]",
    b"{}", b'"', b"\\ud800", b"9" * 40, b"%00", b"../", b"chunked", b"Content-Length: 5\r\n", b"0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"Upgrade: h2c\r\nConnection: Upgrade\r\n",
    b"HTTP/1.0", b"HTTP/0.9", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"A" * 20_000,
]  # fmt: skip


def broken(chance: random.Random) -> bytes:
    """A sound request with one to four changes."""
    data = bytearray(chance.choice(wires()))
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(data) + 1)
        end = min(len(data), start + chance.choice([0, 1, 2, 4, 16, 100]))
        change = chance.randrange(6)
        if change == 0:
            data[start:start] = chance.choice(PIECES)
        elif change == 1:
            data[start:end] = chance.choice(PIECES)
        elif change == 2:
            del data[start:end]
        elif change == 3:
            data[start:start] = data[start:end]
        elif change == 4 and start < len(data):
            data[start] ^= 1 << chance.randrange(8)
        else:
            data[start:end] = chance.randbytes(end - start)
        data = data or bytearray(b"\0")
    return bytes(data)


def send_broken(service: Served, count: int, chance: random.Random) -> dict[int, int]:
    """Send broken requests, fifty at a time; how often each status was answered, 0 standing for none."""
    found: dict[int, int] = {}
    for begin in range(0, count, 50):
        sent = [broken(chance) for _ in range(min(50, count - begin))]
        clients = {service.connect(): data for data in sent}
        for client, data in clients.items():
            try:
                client.sendall(data)
            except ConnectionError:
                continue
        end = time.monotonic() + PATIENCE
        for client, data in clients.items():
            heard = hear(client, end)
            for answer in answers(heard) or [None]:
                status = answer.status if answer else 0
                found[status] = found.get(status, 0) + 1
                assert status < 500 or status == 503, (data, answer)
                if answer and status >= 400 and answer.body not in (b"", UVICORN):
                    answer.error()
    return found


def hear(client: socket.socket, end: float) -> bytes:
    """What a server says until it closes, or has nothing to say at this time."""
    data = b""
    with client:
        while select.select([client], [], [], max(0.0, end - time.monotonic()))[0]:
            try:
                part = client.recv(2**16)
            except ConnectionError:
                break
            if not part:
                break
            data += part
    return data


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


@pytest.mark.parametrize("count", [100, pytest.param(2000, marks=pytest.mark.faults)])
def test_broken_bytes_do_no_harm(controller: Served, count: int) -> None:
    before, chance = state(controller), random.Random(0 if count == 100 else None)
    found = send_broken(controller, count, chance)
    print("answers by status", dict(sorted(found.items())))
    assert {200, 400, 404} <= set(found), f"the changes do not reach the parts of a request: {found}"
    assert count == 100 or 408 in found
    assert_unharmed(controller, before, 16 * 2**20)


@pytest.mark.parametrize("examples", [6, pytest.param(200, marks=pytest.mark.faults)])
def test_requests_of_the_schema_are_answered_by_it(controller: Served, examples: int) -> None:
    before = state(controller)
    statuses = send_of_schema(controller, examples, derandomize=examples == 6)
    assert len(statuses) > 10 * examples
    assert {200, 400, 404, 422} <= set(statuses), "what is generated reaches the models"
    assert_unharmed(controller, before, 16 * 2**20)
