"""A thread that asks now and then: what it does after failures, what it says, and when it ends."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time

import pytest
from support.processes import until

from rltemp.errors import BadInputError, ExchangeFailedError, RequestRefusedError, TrainingStoppedError
from rltemp.remote import poller
from rltemp.remote.poller import Poller


class Owner:
    """Counts the calls of its poller; each raises what is next, until there is nothing more to raise."""

    def __init__(self, *errors: Exception, seconds: float | None = None) -> None:
        self.errors, self.calls = list(errors), 0
        self.poller = Poller("the service", self.work, seconds, "Runs go on")

    def work(self) -> None:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)


def test_it_asks_at_once_then_when_woken_or_every_so_often() -> None:
    woken, often = Owner(), Owner(seconds=0.01)
    woken.poller.start(20)
    assert woken.calls == 1
    woken.poller.settle(20)
    assert woken.calls == 2
    often.poller.start(20)
    until(lambda: often.calls > 3)
    for owner in (woken, often):
        owner.poller.close()


def test_an_outage_is_two_lines_and_its_pauses_grow(monkeypatch, caplog) -> None:
    bounds: list[float] = []

    class Draw:
        def uniform(self, low: float, high: float) -> float:
            bounds.append(high)
            return 0.0

    monkeypatch.setattr(poller.random, "Random", Draw)
    owner = Owner()
    owner.poller.start(20)
    owner.errors = [*(ExchangeFailedError("away") for _ in range(9)), KeyError("odd")]
    owner.poller.wake()
    until(lambda: owner.calls >= 12 and not owner.poller.reason)
    assert bounds == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert owner.poller.failures == 10
    assert [record.getMessage() for record in caplog.records] == [
        "the service: away. Runs go on",
        "the service: it is back",
    ]
    owner.poller.close()


def test_nobody_waits_for_a_service_that_is_away() -> None:
    owner = Owner(ExchangeFailedError("away"), ExchangeFailedError("away"))
    owner.poller.start(20)
    began = time.monotonic()
    owner.poller.settle(20)
    assert time.monotonic() - began < 10
    owner.poller.close()


def test_a_mistake_is_raised_at_the_start_and_an_outage_if_strict(caplog: pytest.LogCaptureFixture) -> None:
    refused, away = Owner(RequestRefusedError("it answers 404")), Owner(ExchangeFailedError("away"))
    with pytest.raises(BadInputError, match="it answers 404"):
        refused.poller.start(20)
    with pytest.raises(TrainingStoppedError, match="away"):
        away.poller.start(20, strict=True)
    assert not caplog.records


def test_a_start_that_nothing_answers_ends_all_the_same() -> None:
    free = threading.Event()

    class Hangs(Owner):
        def work(self) -> None:
            free.wait(60)

    owner = Hangs()
    owner.poller.start(0.05)
    assert owner.poller.reason == "no answer in 0.05 s"
    free.set()
    until(lambda: not owner.poller.reason)
    owner.poller.close()


def test_the_thread_ends_with_its_owner() -> None:
    before = set(threading.enumerate())
    owner = Owner()
    owner.poller.start(20)
    (thread,) = set(threading.enumerate()) - before
    del owner
    gc.collect()
    until(lambda: not thread.is_alive())


def test_an_interpreter_ends_while_a_call_hangs() -> None:
    program = """
import time
from rltemp.remote.poller import Poller
class Owner:
    def work(self): time.sleep(1000)
owner = Owner()
Poller("the service", owner.work, None, "Runs go on").start(0.05)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (0, "")
    assert "no answer in 0.05 s" in ended.stderr
