"""Runs of the command line in processes of their own: started, killed, started again, and compared.

They are forked from the tests' process, where every library is loaded already: a start costs milliseconds, not seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest
import sklearn.datasets  # noqa: F401
import torchvision  # noqa: F401
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import rltemp.cli.demo  # noqa: F401
from rltemp.cli.main import main

UNTIMED = {"result.json", "config.json", "student.safetensors", "teacher.safetensors", "policy.safetensors"}
"""Files of a run that hold nothing the clock says."""


class Process:
    """A forked process.

    Args:
        work: What it does; its output is kept.
        environment: Set before it begins.
    """

    def __init__(self, work: Callable[[], object], **environment: str) -> None:
        self._output = Path(tempfile.mkdtemp(prefix="rltemp-test-"))
        self.returncode: int | None = None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._work(work, environment)

    def _work(self, work: Callable[[], object], environment: dict[str, str]) -> NoReturn:
        code = 70
        try:
            os.environ.update(environment)
            with (self._output / "out").open("w") as out, (self._output / "err").open("w") as err:
                sys.stdout, sys.stderr = out, err
                try:
                    work()
                    code = 0
                except SystemExit as end:
                    code = end.code if isinstance(end.code, int) else 1
                except BaseException:  # a traceback is what a user would see
                    traceback.print_exc()
        finally:
            os._exit(code)  # nothing of the tests' own process is run at its end

    def poll(self) -> int | None:
        """The exit code, minus the signal's number where one ended it, or None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send(self, number: signal.Signals) -> None:
        """Send a signal, where it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def finish(self, timeout: float = 300) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                self.send(signal.SIGKILL)
                raise TimeoutError(f"process still ran after {timeout} s: {self.read('out')}{self.read('err')}")
            time.sleep(0.002)
        return code, self.read("out"), self.read("err")

    def read(self, name: str) -> str:
        """What it has written so far, to `out` or `err`."""
        with contextlib.suppress(FileNotFoundError):
            return (self._output / name).read_text()
        return ""


def code(*words: object) -> int:
    """The exit code of `rltemp` with these words, run in this process."""
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert isinstance(end.value.code, int)
    return end.value.code


def start(*words: object, cache: Path | str | None = None, **environment: str) -> Process:
    """Start `rltemp` with these words."""
    if cache is not None:
        environment["RLTEMP_CACHE"] = str(cache)
    return Process(lambda: main([str(word) for word in words]), **environment)


def finish(process: Process, timeout: float = 300) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    return process.finish(timeout)


def kill_after_a_checkpoint(
    process: Process,
    folder: Path,
    after: float = 0.0,
    names: str = "*.ckpt",
    by: signal.Signals = signal.SIGKILL,
    times: int = 1,
) -> tuple[int, str, str]:
    """Wait until there is a checkpoint that was not there, then `after` seconds more, and send the signal."""
    before = set(folder.glob(names))
    while process.poll() is None:
        if set(folder.glob(names)) - before:
            time.sleep(after)
            for _ in range(times):
                process.send(by)
                time.sleep(0.01)
            break
        time.sleep(0.002)
    return process.finish()


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that must be the same whenever the same run is done."""
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir() if file.name in UNTIMED
    }


def events(folder: Path) -> EventAccumulator:
    """A TensorBoard log, read."""
    sizes = {"scalars": 0, "histograms": 0}
    return EventAccumulator(str(folder), size_guidance=sizes, purge_orphaned_data=False).Reload()


def curves(folder: Path) -> dict[str, list[tuple[int, object]]]:
    """Every number and histogram of a TensorBoard log by tag, but for what the clock says."""
    found = events(folder)
    tags = found.Tags()
    scalars = {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in tags["scalars"]}
    histograms = {
        tag: [(event.step, repr(event.histogram_value)) for event in found.Histograms(tag)]
        for tag in tags["histograms"]
    }
    return {tag: points for tag, points in {**scalars, **histograms}.items() if not tag.startswith("time/")}


def resumed_at(out: str) -> int:
    """Where a run says that it went on."""
    found = re.search(r"Resumed at \w+ (\d+)", out)
    return int(found[1]) if found else 0


def gone(process: int) -> bool:
    """Whether a process has ended, whoever waits for it."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def until(true: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.002)


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Files may not grow beyond `size` bytes: what a full disk is to a program, without root."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
