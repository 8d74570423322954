"""Workers keep what they are given, answer call after call, and end in one line, whatever happens to one of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from support.pool_work import Desk, lines
from support.processes import Process, gone, until

from rltemp.errors import BadInputError, TrainingStoppedError
from rltemp.io.workers import Workers, open_workers


@pytest.fixture(scope="module")
def two() -> Iterator[Workers]:
    with closing(Workers(2)) as workers:
        workers.give("desk", Desk())
        yield workers


def test_each_worker_keeps_a_copy_of_its_own_from_call_to_call(two: Workers) -> None:
    two.give("desk", Desk())
    two.call("desk", "add", [(1,), (10,)])
    (first, one), (second, other) = two.call("desk", "add", [(2,), (20,)])
    assert (first, second) == (3, 30)
    assert len({one, other, os.getpid()}) == 3


def test_functions_and_tensors_travel_and_threads_are_those_of_the_parent(two: Workers) -> None:
    shift = 5
    assert two.call("desk", "apply", [(lambda number: number + shift, 1), (lambda number: number * 2, 4)]) == [6, 8]
    for values, threads in two.call("desk", "tensors", [(), ()]):
        assert torch.equal(values, torch.tensor([0.0, 1.0, 2.0]))
        assert threads == torch.get_num_threads()


def test_shares_are_in_order_and_differ_by_one_at_most(two: Workers) -> None:
    assert two.shares(7) == [slice(0, 3), slice(3, 7)]
    assert two.shares(32) == [slice(0, 16), slice(16, 32)]


@pytest.mark.parametrize(
    ("how", "kind", "said"),
    [
        ("bad input", BadInputError, r"^a number that nobody can use$"),
        ("exception", TrainingStoppedError, r"^a worker's training raised ZeroDivisionError: seven is none of my numb"),
        ("exit", TrainingStoppedError, r"^a worker's training raised SystemExit: 0$"),
    ],
)
def test_an_error_comes_back_with_its_own_traceback(two: Workers, how: str, kind: type, said: str) -> None:
    with pytest.raises(kind, match=said) as error:
        two.call("desk", "fail", [(how,), (how,)])
    assert "in fail" in str(error.value.__cause__)
    assert len(two.call("desk", "add", [(0,), (0,)])) == 2, "they go on"


def test_a_worker_that_is_killed_is_named_and_the_others_end() -> None:
    with closing(Workers(2)) as workers:
        workers.give("desk", Desk())
        processes = [process for _, process in workers.call("desk", "add", [(0,), (0,)])]
        with pytest.raises(TrainingStoppedError, match=r"^worker 1 of 2 is gone, with exit code -9\. The same command"):
            workers.call("desk", "fail", [("kill",)])
    assert all(gone(process) for process in processes)


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def work() -> None:
        workers = Workers(1)
        workers.give("desk", Desk())
        workers.call("desk", "hang", [(str(log), 0)])

    parent = Process(work)
    until(lambda: len(lines(log)) == 1)
    ((_, worker),) = lines(log)
    assert not gone(worker)
    parent.send(signal.SIGKILL)
    parent.finish()
    until(lambda: gone(worker), 20)


def test_one_worker_is_this_process_itself() -> None:
    with open_workers(1) as workers:
        assert workers is None
