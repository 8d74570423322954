"""A breaker opens when a service fails or is slow too often, and closes by itself, on a thread of its own."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from rltemp.errors import ExchangeFailedError, RequestRefusedError
from rltemp.remote.breaker import Breaker, Patience, State

FAST = Patience(deadline=0.05, shortest=0.01, longest=0.05)


class Service:
    """What a probe asks, in hundredths of a second; `well` says how long it takes, or what it raises."""

    def __init__(self) -> None:
        self.well: float | Exception = ExchangeFailedError("away")
        self.asked: list[tuple[float, str]] = []

    def __call__(self) -> float:
        self.asked.append((time.monotonic(), threading.current_thread().name))
        if isinstance(self.well, Exception):
            raise self.well
        return self.well


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def make(service: Service) -> Iterator[Callable[..., tuple[Breaker, list[tuple[State, str]]]]]:
    made = []

    def build(patience: Patience = FAST, **options: object) -> tuple[Breaker, list[tuple[State, str]]]:
        said: list[tuple[State, str]] = []
        breaker = Breaker(service, patience, lambda state, why: said.append((state, why)), **options)  # type: ignore[arg-type]
        made.append(breaker)
        return breaker, said

    yield build
    for breaker in made:
        breaker.close()


def until(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.001)


def test_three_failures_in_a_row_open_it_and_two_do_not(make: Callable[..., tuple[Breaker, list[object]]]) -> None:
    breaker, said = make()
    for _ in range(2):
        breaker.failed("away")
    assert breaker.closed
    assert said == []
    breaker.failed("no answer in 50 ms")
    assert not breaker.closed
    assert said == [("open", "no answer in 50 ms")]
    breaker.failed("late")
    assert len(said) == 1
    assert breaker.openings == 1


def test_three_failures_among_a_hundred_calls_open_it_and_among_more_do_not(
    make: Callable[..., tuple[Breaker, list[object]]],
) -> None:
    for between, opens in ((40, True), (60, False)):
        breaker, _ = make()
        for _ in range(3):
            breaker.failed("away")
            for _ in range(between):
                breaker.answered(0.001)
        assert breaker.closed is not opens


@pytest.mark.parametrize(("seconds", "calls"), [(0.045, 4), (0.05, 3), (0.0101, 15), (0.0099, None), (0.001, None)])
def test_a_service_that_answers_but_slowly_is_no_longer_asked_once_it_has_cost_three_deadlines(
    make: Callable[..., tuple[Breaker, list[tuple[State, str]]]], seconds: float, calls: int | None
) -> None:
    breaker, said = make()
    made = slow = 0
    while breaker.closed and made < 1000:
        slow += breaker.answered(seconds)
        made += 1
    assert (None if breaker.closed else made) == calls
    assert slow == (calls or 0)
    if calls:
        assert calls * seconds < 3 * FAST.deadline + seconds  # what it has cost the run by then
        assert said[0][1] == f"it took {1000 * seconds:.0f} ms to answer"


def test_slow_answers_and_failures_add_up(make: Callable[..., tuple[Breaker, list[object]]]) -> None:
    breaker, _ = make()
    breaker.failed("away")
    breaker.answered(0.05)
    assert breaker.closed
    breaker.failed("away")
    assert not breaker.closed


def test_a_probe_on_another_thread_closes_it_with_one_line_a_change(
    make: Callable[..., tuple[Breaker, list[tuple[State, str]]]], service: Service
) -> None:
    breaker, said = make()
    breaker.open("away")
    until(lambda: len(service.asked) >= 3)
    assert not breaker.closed
    service.well = 0.0101  # an answer, but a slow one
    before = len(service.asked)
    until(lambda: len(service.asked) >= before + 3)
    assert not breaker.closed
    service.well = 0.001
    until(lambda: breaker.closed)
    assert [state for state, _ in said] == ["open", "closed"]
    assert {name for _, name in service.asked} == {"rltemp-breaker"}
    asked = len(service.asked)
    time.sleep(0.1)
    assert len(service.asked) == asked, "a closed breaker does not probe"


def test_pauses_double_up_to_the_longest_with_full_jitter() -> None:
    bounds: list[float] = []

    def draw(low: float, high: float) -> float:
        assert low == 0
        bounds.append(high)
        return 0.0

    def away() -> float:
        raise ExchangeFailedError("away")

    breaker = Breaker(away, Patience(deadline=0.05), draw=draw)
    breaker.open("away")
    until(lambda: len(bounds) > 9)
    breaker.close()
    assert bounds[:9] == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_service_that_flaps_is_left_alone_for_longer_and_longer_and_one_that_stays_is_forgiven() -> None:
    now, bounds, well = [0.0], [], threading.Event()

    def draw(low: float, high: float) -> float:
        bounds.append(high)
        return 0.0

    def probe() -> float:
        assert well.wait(10)
        return 0.001

    breaker = Breaker(probe, Patience(deadline=0.05), clock=lambda: now[0], draw=draw)
    for _ in range(3):
        breaker.failed("away")
    for count in range(1, 9):
        well.set()
        until(lambda: breaker.closed)
        well.clear()
        breaker.failed("away")  # on trial: the first one is enough
        assert not breaker.closed
        assert breaker.openings == count + 1
    until(lambda: len(bounds) == 9)
    assert bounds == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    well.set()
    until(lambda: breaker.closed)
    now[0] += 60.0
    breaker.failed("away")
    breaker.failed("away")
    assert breaker.closed
    well.clear()
    breaker.failed("away")
    until(lambda: len(bounds) == 10)
    assert bounds[-1] == 1
    breaker.close()
    well.set()


def test_what_the_service_calls_a_mistake_opens_it_for_good(
    make: Callable[..., tuple[Breaker, list[tuple[State, str]]]], service: Service
) -> None:
    breaker, said = make()
    breaker.refused("it answers 404")
    breaker.failed("away")
    time.sleep(0.1)
    assert (breaker.state, said, service.asked) == ("refused", [("refused", "it answers 404")], [])
    probed, said = make()
    service.well = RequestRefusedError("it answers 401")
    probed.open("away")
    until(lambda: probed.state == "refused")
    asked = len(service.asked)
    time.sleep(0.1)
    assert len(service.asked) == asked
    assert [state for state, _ in said] == ["open", "refused"]


def test_while_it_is_open_a_look_costs_microseconds(make: Callable[..., tuple[Breaker, list[object]]]) -> None:
    breaker, _ = make()
    breaker.open("away")
    times = []
    for _ in range(2000):
        began = time.perf_counter()
        assert not breaker.closed
        times.append(time.perf_counter() - began)
    assert sorted(times)[1900] < 1e-4  # 0.5 microseconds on an idle machine


def test_nobody_who_listens_or_is_asked_can_end_the_probing(service: Service) -> None:
    def listen(state: State, why: str) -> None:
        raise BrokenPipeError

    breaker = Breaker(service, FAST, listen)
    service.well = ZeroDivisionError("a probe of its own kind")
    breaker.open("away")
    until(lambda: len(service.asked) > 2)
    service.well = 0.0
    until(lambda: breaker.closed)
    breaker.close()


def test_the_random_numbers_of_a_run_are_not_touched(
    make: Callable[..., tuple[Breaker, list[object]]], service: Service
) -> None:
    before = random.getstate()
    breaker, _ = make()
    breaker.open("away")
    until(lambda: len(service.asked) > 2)
    assert random.getstate() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_fork_probes_for_itself(make: Callable[..., tuple[Breaker, list[object]]], service: Service) -> None:
    breaker, _ = make()
    breaker.open("away")
    if (child := os.fork()) == 0:
        service.well = 0.001
        deadline = time.monotonic() + 5
        while not breaker.closed and time.monotonic() < deadline:
            time.sleep(0.001)
        os._exit(0 if breaker.closed else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not breaker.closed


def test_close_ends_its_thread() -> None:
    def away() -> float:
        raise ExchangeFailedError("away")

    before = threading.active_count()
    breaker = Breaker(away, Patience(deadline=0.05))
    breaker.open("away")
    breaker.close()
    until(lambda: threading.active_count() == before)
