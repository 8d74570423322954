"""Rules and networks of a user's own in a graph: only those that keep nothing from call to call; the others plainly."""

from __future__ import annotations

import itertools
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rltemp import Signals, Temperatures
from rltemp.compiling.graph import Graph
from rltemp.compiling.mode import ENOUGH, is_compiled, lacks, step_for
from rltemp.compiling.step import CompiledStep
from rltemp.data.problem import Problem
from rltemp.errors import BadInputError, CompilingFailedError
from rltemp.kd.method import Method
from rltemp.training.distill import Distillation
from rltemp.training.steps import plain_step

SEEDS = [0, 1]
CPU = torch.device("cpu")
Answer = Callable[[Signals], Temperatures]


def same(values: Tensor) -> Temperatures:
    return Temperatures(values, values, values.square())


def by_spread(signals: Signals) -> Temperatures:
    """Keeps nothing."""
    return same(1 + signals.teacher_logits.std(-1))


class Counting:
    """Hotter with every call."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, signals: Signals) -> Temperatures:
        self.calls += 1
        return same(signals.full(1.0 + 0.1 * self.calls))


class Patient:
    """The same for a hundred calls: only what it keeps betrays it."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, signals: Signals) -> Temperatures:
        self.calls += 1
        return same(signals.full(2.0 if self.calls < 100 else 4.0))


class Shared:
    """Counts for all of its kind."""

    calls = 0

    def __call__(self, signals: Signals) -> Temperatures:
        Shared.calls += 1
        return same(signals.full(2.0 if Shared.calls < 100 else 4.0))


class Following:
    """A running mean of what it has seen."""

    def __init__(self) -> None:
        self.mean = torch.ones(())

    def __call__(self, signals: Signals) -> Temperatures:
        self.mean = 0.5 * self.mean + 0.5 * signals.teacher_logits.std(-1).mean()
        return same(signals.full(1 + self.mean))


def by_closure() -> Answer:
    numbers = itertools.count(1)
    return lambda signals: same(signals.full(float(next(numbers))))


def drawn(signals: Signals) -> Temperatures:
    return same(1 + torch.rand_like(signals.teacher_logits[..., 0]))


def by_type(signals: Signals) -> Temperatures:
    return same(signals.full(1 + signals.progress if isinstance(signals.progress, float) else 7.0))


def read(signals: Signals) -> Temperatures:
    return same(signals.full(1 + abs(signals.teacher_logits.mean().item())))


def by_numpy(signals: Signals) -> Temperatures:
    return same(torch.from_numpy(1 + np.abs(signals.teacher_logits.numpy()).mean(-1)))


def by_branch(signals: Signals) -> Temperatures:
    return same(signals.full(2.0 if signals.teacher_logits.max() > 3 else 4.0))


def taken(problem: Problem, rule: Answer, step: CompiledStep, steps: int = 4) -> Distillation:
    run, method = Distillation(problem, SEEDS), Method("mine", rule)
    for _ in range(steps):
        step(run, method)
    return run


def plainly(problem: Problem, rule: Answer, steps: int = 4) -> Distillation:
    run, method = Distillation(problem, SEEDS), Method("mine", rule)
    for _ in range(steps):
        plain_step(run, method)
    return run


def weights(run: Distillation) -> Tensor:
    return torch.cat([value.detach().flatten() for value in run.student.parameters()])


def test_a_rule_of_ones_own_that_keeps_nothing_is_compiled(digits: Problem) -> None:
    step = CompiledStep()
    run = taken(digits, by_spread, step)
    assert step._bound is not None
    assert step._bound.compiled is not None
    assert torch.allclose(weights(run), weights(plainly(digits, by_spread)), atol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        Counting,
        Patient,
        Shared,
        Following,
        by_closure,
        *(lambda one=one: one for one in (drawn, read, by_numpy, by_branch, by_type)),
    ],
    ids=["count", "patient", "class", "mean", "closure", "draw", "item", "numpy", "branch", "type"],
)
def test_a_rule_that_no_graph_can_hold_is_asked_plainly(
    make: Callable[[], Answer], digits: Problem, caplog: pytest.LogCaptureFixture
) -> None:
    step, Shared.calls = CompiledStep(), 0
    with caplog.at_level(logging.WARNING, "rltemp"):
        torch.manual_seed(5)
        run = taken(digits, make(), step)
    assert step.refused
    assert Shared.calls in (0, 4)  # a graph that was tried has left no trace
    torch.manual_seed(5)
    assert torch.equal(weights(run), weights(plainly(digits, make())))
    lines = [record.message for record in caplog.records if "not compiled" in record.message]
    assert len(lines) == 1
    assert "\n" not in lines[0]
    assert "mine" in lines[0]


def test_a_mistake_of_a_rule_is_told_as_it_is_without_a_graph(digits: Problem) -> None:
    def negative(signals: Signals) -> Temperatures:
        return same(signals.full(-1.0))

    with pytest.raises(BadInputError, match="got -1"):
        taken(digits, negative, CompiledStep())
    with pytest.raises(BadInputError, match="got -1"):
        plainly(digits, negative)


def test_a_graph_is_refused_in_one_line() -> None:
    def broken(value: Tensor) -> list[Tensor]:
        raise RuntimeError("first line\nsecond line")

    with pytest.raises(CompilingFailedError, match="first line") as caught:
        Graph(broken, [torch.ones(2)])
    assert "\n" not in str(caught.value)


def test_a_graph_holds_no_data() -> None:
    table = torch.arange(3.0)
    graph = Graph(lambda value: [value + table], [torch.ones(3)])
    table += 1  # what it found elsewhere is read anew
    assert graph(torch.ones(3))[0].tolist() == [2.0, 3.0, 4.0]


def test_a_run_that_is_long_enough_is_compiled(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "rltemp"):
        assert is_compiled(step_for("auto", CPU, ENOUGH))
        assert [record.message for record in caplog.records] == ["Steps are compiled (--compile never leaves it out)."]
        assert not is_compiled(step_for("auto", CPU, ENOUGH - 1))
        assert is_compiled(step_for("always", CPU))
        assert not is_compiled(step_for("never", CPU, 10 * ENOUGH))
    with pytest.raises(BadInputError, match="auto"):
        step_for("autos", CPU)  # type: ignore[arg-type]


def test_without_a_compiler_one_line_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler" in lacks(CPU)
    with caplog.at_level(logging.INFO, "rltemp"):
        assert not is_compiled(step_for("auto", CPU, ENOUGH))
    (record,) = caplog.records
    assert "no C++ compiler" in record.message


SCRIPT = """
import logging, sys, torch
logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
from rltemp.compiling.mode import step_for
from rltemp.data.tasks import load_task
from rltemp.loading import load_method
from rltemp.training.distill import Distillation
from rltemp.training.preparation import prepare
torch.set_num_threads(1)
run, method = Distillation(prepare(load_task("toy")), [0, 1]), load_method("fixed:3")
step = step_for("always", torch.device("cpu"))
for _ in range(3):
    step(run, method)
print(run.step, bool(all(value.isfinite().all() for value in run.student.parameters())))
"""


@pytest.mark.parametrize("fault", ["compiler", "folder"])
def test_what_the_machine_lacks_costs_one_line(fault: str, tmp_path: Path, teacher_cache: Path) -> None:
    """A compiler that fails, and a cache that cannot be written, in a process of their own."""
    failing, blocked = tmp_path / "cc", tmp_path / "file"
    failing.write_text("#!/bin/sh\nexit 1\n")
    failing.chmod(0o755)
    blocked.touch()
    changed = {"CXX": str(failing)} if fault == "compiler" else {"RLTEMP_CACHE": str(blocked / "cache")}
    environment = {**os.environ, "RLTEMP_CACHE": str(tmp_path / "cache"), **changed}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line]
    assert done.returncode == 0, done.stderr
    assert lines[-1] == "3 True"
    assert len(lines) == 2
    assert "not compiled" in lines[0]
