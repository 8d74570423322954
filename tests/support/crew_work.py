"""What workers do in tests: found by its name in processes that import nothing of the tests' own."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

from rltemp.errors import BadInputError
from rltemp.experiments.cached_result import CachedResult
from rltemp.experiments.result_cache import Job


def cell(number: int) -> CachedResult:
    return CachedResult(test_accuracy=[number / 100_000], validation_accuracy=[0.5])


def write(log: str, number: int) -> CachedResult:
    """Leave a line, with the process, and give the cell."""
    with Path(log).open("a") as file:
        file.write(f"{number} {os.getpid()}\n")
    return cell(number)


def write_slowly(log: str, number: int) -> CachedResult:
    time.sleep(0.05)
    return write(log, number)


def die_once(log: str, number: int) -> CachedResult:
    """The process of number 3 is killed; the next one that has it does it."""
    if number == 3 and not Path(f"{log}.died").exists():
        Path(f"{log}.died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return write(log, number)


def raise_always(log: str, number: int) -> CachedResult:
    write(log, number)
    raise ZeroDivisionError("seven is none of my numbers")


def leave(log: str, number: int) -> CachedResult:
    write(log, number)
    raise SystemExit(0)


def refuse(log: str, number: int) -> CachedResult:
    write(log, number)
    raise BadInputError("a number that nobody can use")


def fill_the_disk(log: str, number: int) -> CachedResult:
    """From number 6 on, nothing larger than 100 bytes can be written."""
    found = write(log, number)
    if number == 6:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    return found


def hang(log: str, number: int) -> CachedResult:
    write(log, number)
    time.sleep(600)
    return cell(number)


def jobs(log: Path, count: int, told: Callable[[], None] = lambda: None) -> list[Job]:
    def nobody_here() -> CachedResult:
        raise AssertionError("this process trains nothing")

    return [Job({"seeds": number}, nobody_here, told, (str(log), number)) for number in range(count)]


def lines(log: Path) -> list[tuple[int, int]]:
    """Every cell that was worked on, with its process."""
    found = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return [(int(number), int(process)) for number, process in found]
