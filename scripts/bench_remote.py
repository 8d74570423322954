"""What a run that follows a served policy loses to a service that is stopped, slow or killed: ratios of step times.

    python scripts/bench_remote.py [--quick]

Blocks of steps under the policy's file and under the service take turns in one process and thread, so that another job
on the machine slows both. A ratio is the median over the turns. The target is at most 1.01 in every state.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import torch

from rltemp.data.problem import Problem
from rltemp.data.tasks import load_task
from rltemp.kd.method import Objective
from rltemp.loading import load_method
from rltemp.remote import RemoteRule
from rltemp.training.distill import Distillation
from rltemp.training.preparation import prepare

FOLLOW_SECONDS = 0.5
"""From one question for a new version to the next: twenty times as often as by default."""
AWAKE, ASLEEP = 0.004, 0.04
"""Seconds of a slow service between two stops, and of a stop."""


def main() -> None:
    """Measure, and print one line a state."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few turns only: shows that it runs")
    turns = 3 if parser.parse_args().quick else 60
    torch.set_num_threads(1)
    problem = prepare(load_task("digits"))
    signals = {"well": signal.SIGCONT, "stopped": signal.SIGSTOP, "slow": None, "killed": signal.SIGKILL}
    for name, number in signals.items():
        with served() as (url, process), closing(RemoteRule(url, "universal", follow=FOLLOW_SECONDS)) as rule:
            if number is not None:
                process.send_signal(number)
            with slow(process) if number is None else contextlib.nullcontext():
                ratio = ratio_of_steps(problem, rule.method("universal"), turns)
            assert rule.counts()["fallback_steps"] == 0, rule.counts()
        print(f"steps under a service that is {name:8} / under the policy's file {ratio:7.3f}   target <= 1.01")


def ratio_of_steps(problem: Problem, remote: Objective, turns: int) -> float:
    """The median ratio of the time of blocks of steps, under a method and under the policy's file."""
    local = load_method("universal")
    ratios = []
    for turn in range(turns + 1):
        order = (local, remote) if turn % 2 else (remote, local)
        seconds = {method is remote: seconds_of_steps(problem, method, turn) for method in order}
        ratios.append(seconds[True] / seconds[False])
    return statistics.median(ratios[1:])  # the first warms up


def seconds_of_steps(problem: Problem, method: Objective, seed: int, steps: int = 100) -> float:
    """Seconds of the first steps of a student."""
    run = Distillation(problem, seed)
    began = time.perf_counter()
    for _ in range(steps):
        run.update(method.loss(run.observe()))
    return time.perf_counter() - began


@contextlib.contextmanager
def served() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A service on a free port: its URL and its process, which ends with the block."""
    words = [sys.executable, "-m", "rltemp", "serve", "--port", "0"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None  # it is a pipe
        yield process.stdout.readline().rsplit(" at ", 1)[1].strip(), process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


@contextlib.contextmanager
def slow(process: subprocess.Popen[str]) -> Iterator[None]:
    """Stop it and let it go on, many times a second."""
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(AWAKE):
            process.send_signal(signal.SIGSTOP)
            time.sleep(ASLEEP)
            process.send_signal(signal.SIGCONT)

    thread = threading.Thread(target=work)
    thread.start()
    yield
    ended.set()
    thread.join()


if __name__ == "__main__":
    main()
