"""How long a step of each rule takes beside plain distillation, measured in turn: rough, and never part of a result."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from rltemp.data.problem import Problem
from rltemp.experiments.compare import default_stack
from rltemp.loading import load_method
from rltemp.training.distill import Distillation
from rltemp.training.steps import plain_step

PLAIN = "fixed:4"
ROUNDS, LEAST_ROUNDS, SECONDS = 20, 3, 10.0
"""Rounds, of one step of every rule each; fewer, but not below the least, where the seconds are over before."""


def step_times(
    problem: Problem,
    rules: Sequence[str],
    stack: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Measure a training step of every rule, all rules in turn so that a busy machine slows all of them.

    Args:
        problem: The task, loaded.
        rules: As `load_method` reads them.
        stack: How many students take the step side by side; by default what suits the student's size.
        clock: In seconds.

    Returns:
        `students` in a step, `rounds`, and for every rule in `rules` `milliseconds`, the median, and `ratio`, the
        median over rounds of its time by that of plain distillation at T = 4.
    """
    size = stack or default_stack(problem)
    seeds: int | list[int] = list(range(size)) if size > 1 else 0
    steps = {rule: _stepper(problem, rule, seeds, clock) for rule in dict.fromkeys([PLAIN, *rules])}
    for step in steps.values():
        step()  # the first takes longer than all others
    taken: dict[str, list[float]] = {rule: [] for rule in steps}
    since = clock()
    for done in range(ROUNDS):
        if done >= LEAST_ROUNDS and clock() - since > SECONDS:
            break
        for rule, step in steps.items():
            taken[rule].append(step())
    by_rule = {
        rule: {
            "milliseconds": round(1000 * statistics.median(taken[rule]), 4),
            "ratio": round(statistics.median(map(_ratio, taken[rule], taken[PLAIN])), 4),
        }
        for rule in rules
    }
    return {"students": size, "rounds": len(taken[PLAIN]), "rules": by_rule}


def _stepper(problem: Problem, rule: str, seeds: int | list[int], clock: Callable[[], float]) -> Callable[[], float]:
    """Takes a step whenever it is called, from the first batch again after the last, and returns its seconds."""
    run = Distillation(problem, seeds)
    method = run.attach(load_method(rule))

    def step() -> float:
        if run.done:
            run.step = 0
        since = clock()
        plain_step(run, method)
        if problem.device.type == "cuda":
            torch.cuda.synchronize(problem.device)
        return clock() - since

    return step


def _ratio(one: float, plain: float) -> float:
    return one / max(plain, 1e-9)
