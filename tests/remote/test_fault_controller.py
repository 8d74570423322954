"""Case 22: a controller that is killed, stopped or slow costs a run nothing, since no step asks it."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.processes import finish, start, until
from support.raw_server import Behaviour, RawServer, answers, closes_after, drips, hangs, http, late
from torch import Tensor

pytest.importorskip("fastapi", reason="needs rltemp[serve]")
pytest.importorskip("uvicorn", reason="needs rltemp[serve]")

from support.services import Served, serving

from rltemp import Signals, load_rule
from rltemp.io.run_folders import read_json
from rltemp.remote import RemoteRule, poller, rule
from rltemp.remote.http_client import HttpClient

DEADLINE = 20.0
REST = 5
FAULTS: dict[str, Behaviour] = {
    "hung": hangs,
    "slow": late(0.5, hangs),
    "drips its head": drips(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 1000, 0.01),
    "drips its body": drips(http(b"x" * 1000), 0.01),
    "500": answers(http(b'{"error": "internal error"}', "500 Internal Server Error")),
    "503": answers(http(b'{"error": "busy"}', "503 Service Unavailable", "Retry-After: 1")),
    "404": answers(http(b'{"error": "no model"}', "404 Not Found")),
    "another protocol": answers(b"\x16\x03\x01 not HTTP\r\n\r\n"),
    "an answer for another": answers(http(b"hello")),
    "wrong length": closes_after(http(b"x" * 10, length=300)),
    "dies in the middle of an answer": closes_after(b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n{"),
}


@pytest.fixture(scope="module")
def service() -> Iterator[Served]:
    with serving() as served:
        yield served


@pytest.fixture
def askers(monkeypatch: pytest.MonkeyPatch) -> set[threading.Thread]:
    """The threads that have sent a request."""
    found: set[threading.Thread] = set()
    request = HttpClient.request

    def spy(client: HttpClient, *args: Any, **options: Any) -> Any:
        found.add(threading.current_thread())
        return request(client, *args, **options)

    monkeypatch.setattr(HttpClient, "request", spy)
    return found


def relays(url: str) -> Behaviour:
    """What the real service answers."""
    client = HttpClient(url)

    def behave(connection: Any, request: bytes) -> None:
        head, _, body = request.partition(b"\r\n\r\n")
        method, path, _ = head.decode().split("\r\n")[0].split(" ")
        headers = {"Content-Type": "application/json"} if method == "POST" else {}
        found = client.request(method, path, body or None, headers, seconds=DEADLINE)
        passed = [f"{name}: {value}" for name, value in found.headers.items() if name.startswith("rltemp")]
        connection.sendall(http(found.body, "200 OK", *passed))

    return behave


def signals() -> Signals:
    generator = torch.Generator().manual_seed(0)
    logits = [4 * torch.randn(32, 10, generator=generator) for _ in range(2)]
    return Signals(logits[0], logits[1], None, 0.5)


def answer(found: Callable[[Signals], Any]) -> Tensor:
    temperatures = found(signals())
    return torch.stack([temperatures.student, temperatures.teacher, temperatures.weight])


# In weights mode, the default.


@pytest.mark.parametrize("name", FAULTS)
def test_no_step_asks_so_no_fault_reaches_one(service, name, askers, monkeypatch, caplog) -> None:
    monkeypatch.setattr(poller, "LONGEST", 0.05)
    with (
        RawServer(well := relays(service.url)) as relay,
        contextlib.closing(RemoteRule(relay.url, "universal", deadline=DEADLINE, follow=0.01)) as remote,
    ):
        wanted = answer(load_rule("universal"))
        assert torch.equal(answer(remote), wanted)
        monkeypatch.setattr(rule, "PULL_SECONDS", 0.1)
        relay.behaviour = FAULTS[name]
        asked = len(relay.requests)
        until(lambda: len(relay.requests) > asked)
        if "head" not in name:  # such an answer the thread reads for ever
            until(lambda: caplog.records)
        for _ in range(200):
            assert torch.equal(answer(remote), wanted)
        monkeypatch.setattr(rule, "PULL_SECONDS", DEADLINE)
        relay.behaviour = well
        assert remote.counts()["versions"] == {"1": 201}
        assert remote.counts()["fallback_steps"] == 0
        if "head" not in name:
            until(lambda: caplog.records[-1].getMessage().endswith("it is back"))
    assert threading.main_thread() not in askers


def test_a_service_process_that_is_killed_stopped_or_started_late(askers: set[threading.Thread], monkeypatch) -> None:
    """The real one, by SIGSTOP and SIGKILL: stopped, its kernel still takes connections and requests."""
    monkeypatch.setattr(poller, "LONGEST", 0.05)
    with serving() as served:
        port = int(served.url.rpartition(":")[2])
        with contextlib.closing(RemoteRule(served.url, "universal", deadline=DEADLINE, follow=0.01)) as remote:
            for number in (signal.SIGSTOP, signal.SIGKILL):
                served.process.send(number)
                monkeypatch.setattr(rule, "PULL_SECONDS", 0.1)
                until(lambda: remote.counts()["away"])
                for _ in range(200):
                    remote(signals())
            assert remote.counts()["versions"] == {"1": 400}
    monkeypatch.setattr(rule, "PULL_SECONDS", DEADLINE)
    with contextlib.closing(RemoteRule(f"http://127.0.0.1:{port}", "universal", deadline=DEADLINE)) as remote:
        for _ in range(10):
            remote(signals())
        with serving("--port", port):
            until(lambda: not remote.counts()["away"])
            for _ in range(10):
                remote(signals())
        assert (remote.counts()["versions"], remote.counts()["fallback_steps"]) == ({"1": 10}, 10)
    assert threading.main_thread() not in askers


# In features mode, where every step asks.


@pytest.mark.parametrize("name", FAULTS)
def test_a_step_that_is_not_answered_rests_the_service_for_a_hundred(service, name, monkeypatch, caplog) -> None:
    monkeypatch.setattr(rule, "START_SECONDS", DEADLINE)
    monkeypatch.setattr(rule, "STEP_SECONDS", 2.0)
    monkeypatch.setattr(rule, "REST", REST)
    options = {"mode": "features", "follow": 1000.0}  # the deadline is that of a step and not of the start
    with (
        RawServer(well := relays(service.url)) as relay,
        contextlib.closing(RemoteRule(relay.url, "universal", **options)) as remote,  # type: ignore[arg-type]
    ):
        policy, plain = answer(load_rule("universal")), answer(load_rule("fixed:temperature=2,teacher=4"))
        torch.testing.assert_close(answer(remote), policy)
        relay.behaviour = FAULTS[name]
        for _ in range(2 * REST):
            assert torch.equal(answer(remote), plain)
        relay.behaviour = well
        relay.hang_up()  # what still drips ends
        until(lambda: not remote._actions._thread.is_alive())
        torch.testing.assert_close(answer(remote), policy)
        assert remote.seen == {"steps": 2 * REST + 2, "calls": 4, "failures": 2, "fallback_steps": 2 * REST}
        assert remote.timing()["controller_seconds"] > 0
    # urllib3 warns of its own where the cut is in the middle of a header.
    said = [record.getMessage() for record in caplog.records if record.name.startswith("rltemp")]
    assert (len(said), said[-1].rpartition(": ")[2]) == (2, "it answers again")


# The command line, with the real service.

DISTILL = ("distill", "--task", "digits", "--teacher-epochs", "2", "--rule", "universal", "--log-every", "50")


def test_distill_trains_the_same_student_through_a_stop_and_a_kill(tmp_path: Path) -> None:
    words = (*DISTILL, "--epochs", "30", "--out")
    with serving() as served:
        asks = ("--controller", served.url, "--controller-deadline", DEADLINE)
        calm = start(*words, tmp_path / "calm", *asks, cache=tmp_path / "cache")
        assert finish(calm)[0] == 0
        rough = start(*words, tmp_path / "rough", *asks, cache=tmp_path / "cache")
        until(lambda: rough.poll() is not None or list((tmp_path / "rough" / "checkpoints").glob("*.ckpt")))
        served.process.send(signal.SIGSTOP)
        time.sleep(0.2)
        served.process.send(signal.SIGKILL)
        code, _, err = finish(rough)
    assert code == 0, err
    found, wanted = (read_json(tmp_path / name / "result.json") for name in ("rough", "calm"))
    assert found["controller"].pop("away") in (True, False)  # whether it was asked again before the end
    assert wanted["controller"].pop("away") is False
    assert found == wanted
    assert found["controller"]["versions"] == {"1": 600}
    assert (found["fallback_steps"], found["degraded"]) == (0, False)
