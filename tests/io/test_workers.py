"""What worker processes need: things that reach them whole, and errors that come back as people are told of them."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import time
from multiprocessing.connection import Client
from pathlib import Path
from runpy import run_path

import pytest
import torch
from support.processes import Process

from rltemp.errors import BadInputError, TrainingDivergedError
from rltemp.io.workers import Handout, WorkerFailure, fetched, sent

LARGE = 1_000_000
"""Numbers: more than any pipe or socket holds while nobody reads."""


def test_what_is_sent_arrives_itself_with_functions_and_tensors() -> None:
    shift = 5
    function, values = pickle.loads(pickle.dumps(sent((lambda number: number + shift, torch.arange(3.0)))))
    assert function(1) == 6
    assert torch.equal(values, torch.tensor([0.0, 1.0, 2.0]))


def test_a_handout_is_fetched_as_often_as_it_says_and_forgotten_then() -> None:
    handout = Handout(torch.arange(3.0), 2)
    for _ in range(2):
        assert torch.equal(fetched(handout.address), torch.tensor([0.0, 1.0, 2.0]))
    time.sleep(0.1)
    with pytest.raises(OSError):  # noqa: PT011 - refused or reset, as the system has it
        fetched(handout.address)
    handout.close()


def test_a_closed_handout_hands_out_nothing() -> None:
    handout = Handout("thing", 2)
    handout.close()
    with pytest.raises((OSError, EOFError)):
        fetched(handout.address)


def test_a_worker_that_is_killed_while_it_fetches_holds_up_nobody() -> None:
    handout, key = Handout(torch.zeros(LARGE), 2), multiprocessing.current_process().authkey

    def begin() -> None:
        Client(handout.address, authkey=key)
        time.sleep(600)

    worker = Process(begin)
    time.sleep(0.5)  # its part of the socket is full
    worker.send(signal.SIGKILL)
    worker.finish()
    assert len(fetched(handout.address)) == LARGE


def failure_of(function) -> WorkerFailure | None:
    try:
        function()
    except BaseException as error:
        return WorkerFailure.of(error)
    raise AssertionError("it raised nothing")


def test_errors_meant_for_people_come_back_as_they_are() -> None:
    def diverge() -> None:
        raise TrainingDivergedError("nothing is finite")

    failure = failure_of(diverge)
    assert isinstance(failure.error, TrainingDivergedError)
    assert "in diverge" in failure.trace


def test_an_error_of_code_that_was_sent_along_is_the_users(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text("def fail():\n    raise ZeroDivisionError('seven')\n")
    failure = failure_of(run_path(str(own))["fail"])
    assert isinstance(failure.error, BadInputError)
    assert str(failure.error) == "your code raised ZeroDivisionError: seven. --debug shows where"


def test_any_other_error_is_none_that_people_are_told() -> None:
    assert failure_of(lambda: {}["missing"]) is None
