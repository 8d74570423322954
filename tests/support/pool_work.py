"""What workers do in tests: found by its name in processes that import nothing of the tests' own."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from rltemp.errors import BadInputError
from rltemp.experiments.compare import Job
from rltemp.experiments.result_cache import CachedResult, TrainedStack


def result(number: int) -> CachedResult:
    return CachedResult(test_accuracy=[number / 100_000], validation_accuracy=[0.5])


def write(log: str, number: int) -> TrainedStack:
    """Leave a line, with the process, and give the result."""
    with Path(log).open("a") as file:
        file.write(f"{number} {os.getpid()}\n")
    return TrainedStack(result(number))


def write_slowly(log: str, number: int) -> TrainedStack:
    time.sleep(0.05)
    return write(log, number)


def die_once(log: str, number: int) -> TrainedStack:
    """The process of number 3 is killed; the next one that has it does it."""
    if number == 3 and not Path(f"{log}.died").exists():
        Path(f"{log}.died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return write(log, number)


def die_always(log: str, number: int) -> TrainedStack:
    """Number 3 kills every process that tries it."""
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(log, number)


def raise_always(log: str, number: int) -> TrainedStack:
    write(log, number)
    raise ZeroDivisionError("seven is none of my numbers")


def leave(log: str, number: int) -> TrainedStack:
    write(log, number)
    raise SystemExit(0)


def refuse(log: str, number: int) -> TrainedStack:
    write(log, number)
    raise BadInputError("a number that nobody can use")


def hang(log: str, number: int) -> TrainedStack:
    write(log, number)
    time.sleep(600)
    return TrainedStack(result(number))


def orders(log: Path, count: int) -> list[tuple[str, int]]:
    return [(str(log), number) for number in range(count)]


def jobs(log: Path, count: int) -> list[Job]:
    return [Job({"seeds": order[1]}, order) for order in orders(log, count)]


def lines(log: Path) -> list[tuple[int, int]]:
    """Every number that was worked on, with its process."""
    found = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return [(int(number), int(process)) for number, process in found]
