"""What a stack of students brings, beside the same students one by one and the same step in JAX: ratios of times.

    python scripts/bench_stacks.py [--rounds 15] [--jax .venv-jax/bin/python]

Nothing is downloaded. A ratio is the median over rounds in which both sides run one after the other; in brackets stand
its quartiles. Times are the process's, of one thread: other jobs on the machine do not count. The step in JAX
(`scripts/jax_twin.py`) runs in a process of its own that waits while the others run.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from timeit import timeit
from typing import Any

import numpy as np
import torch
from bench_workers import run_of_training
from stacking import Case

from rltemp.agents.config import PolicyConfig
from rltemp.compiling.step import CompiledStep
from rltemp.data.problem import Problem
from rltemp.data.tasks import load_task
from rltemp.io.versions import processor
from rltemp.kd.method import Objective
from rltemp.loading import load_method
from rltemp.models.stack import StackedStudents
from rltemp.training.distill import Distillation
from rltemp.training.preparation import prepare
from rltemp.training.steps import Step, plain_step, train

STEPS = 20
"""Of every student, in a round."""
PICTURES, CHARACTERS = Case("cnn:8x16", (1, 8, 8), 10, 50), Case("gpt:32x2", (32,), 64, 16)
SAME = 1e-4
"""How far the losses of both may lie apart, relative to them, over the first steps."""
ONE_THREAD = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1", "OMP_NUM_THREADS": "1"}
STEPPERS: dict[str, Callable[[], Step]] = {"eager": lambda: plain_step, "compiled": CompiledStep}
"""How a stack takes its steps, by name; makes what takes those of one run."""

TARGETS = {"eager": "", "compiled": ">= 0.7"}
"""Of the collection."""

Seconds = Callable[[], float]


@dataclass(frozen=True)
class Kind:
    """Students that are stacked in a row of the table.

    Args:
        name: In words.
        problem: Makes the task, loaded.
        students: In a stack.
        targets: What one by one over one stack must reach, by the name of the steps.
    """

    name: str
    problem: Callable[[], Problem]
    students: int
    targets: dict[str, str]


KINDS = {
    "digits": Kind("digits, mlp:6", lambda: prepare(load_task("digits")), 64, {"eager": ">= 18", "compiled": ">= 40"}),
    "pictures": Kind("8 x 8 pictures, cnn:8x16", PICTURES.problem, 32, {"eager": ">= 2", "compiled": ">= 4"}),
    "characters": Kind("32 characters, gpt:32x2", CHARACTERS.problem, 32, {"eager": ">= 1.5", "compiled": ">= 1.5"}),
}


def main() -> None:
    """Measure, and print one line a result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="of every ratio; 3 show that it runs")
    parser.add_argument("--jax", type=Path, help="a Python that has JAX; without one the rows of the twin are left out")
    parser.add_argument("--only", choices=[*KINDS, "collection"], help="one part of the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{processor()}, 1 thread; Python {platform.python_version()}, torch {torch.__version__}\n")
    print(f"{'':72}   ratio   quartiles        target")
    for name, kind in KINDS.items():
        if options.only in (None, name):
            one_by_one(kind, options.rounds, options.jax if name == "digits" else None)
    if options.only in (None, "collection"):
        collection(options.rounds)


def line(name: str, ratios: list[float], target: str) -> None:
    """Print a result."""
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"{name:72} {middle:7.2f}   {f'[{low:.2f}, {high:.2f}]':16} {target}", flush=True)


def one_by_one(kind: Kind, rounds: int, jax: Path | None) -> None:
    """Students one by one over their stack, under every kind of step, and the stack over its twin."""
    problem, seeds = kind.problem(), list(range(kind.students))
    sides = {name: stepper(problem, seeds, make()) for name, make in STEPPERS.items()}
    alone = [stepper(problem, seed, plain_step) for seed in seeds]
    sides["one by one"] = lambda: sum(one() for one in alone)
    with twin(problem, seeds, jax) if jax else nullcontext() as seconds:
        if seconds:
            sides["JAX"] = seconds
        found = [{name: side() for name, side in sides.items()} for _ in range(rounds + 1)]
    del found[0]  # it compiled, and warmed up
    for name in STEPPERS:
        ratios = [one["one by one"] / one[name] for one in found]
        line(f"{kind.students} students one by one / one stack, {kind.name}, {name}", ratios, kind.targets[name])
        if seconds:
            target = "<= 2.5" if name == "compiled" else ""
            line(f"one stack / its twin in JAX, {name}", [one[name] / one["JAX"] for one in found], target)


def collection(rounds: int) -> None:
    """A stack's run over the same run with observations, a policy's actions and rewards, of one step and another."""
    problem, config, method = prepare(load_task("digits")), PolicyConfig(), load_method("fixed:4")
    for name, make in STEPPERS.items():
        step = make()
        rollout = run_of_training(problem, config, None, step)
        bare = functools.partial(trained, problem, list(range(config.students_per_update)), method, step)
        found = [[timeit(side, number=1, timer=process_time) for side in (bare, rollout)] for _ in range(rounds + 1)]
        line(f"collection / bare stack, 64 students, {name}", [a / b for a, b in found[1:]], TARGETS[name])


def trained(problem: Problem, seeds: list[int], method: Objective, step: Step) -> None:
    """A whole run of a stack."""
    train(Distillation(problem, seeds), method, step=step)


def stepper(problem: Problem, seeds: int | list[int], step: Step) -> Seconds:
    """Takes some steps of a run whenever it is called, and returns their seconds."""
    run = Distillation(problem, seeds)
    method = run.attach(load_method("fixed:4"))

    def take() -> None:
        if run.done:
            run.step = 0
        step(run, method)

    return lambda: timeit(take, number=STEPS, timer=process_time)


@contextmanager
def twin(problem: Problem, seeds: list[int], python: Path) -> Iterator[Seconds]:
    """The seconds of the same steps in JAX, in a process that lives within; its losses are ours.

    Raises:
        SystemExit: Where they are not.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "run.npz")
        losses = written(problem, seeds, file)
        command = [str(python), str(Path(__file__).with_name("jax_twin.py")), str(file)]
        options: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, **options, env=os.environ | ONE_THREAD) as process:
            asked, answers = process.stdin, process.stdout
            assert asked is not None
            assert answers is not None
            theirs = json.loads(answers.readline() or "[]")
            if len(theirs) != STEPS or not np.allclose(losses, theirs, rtol=SAME, atol=0.0):
                raise SystemExit(f"the twin in JAX computes other losses: {theirs[:3]}, here {losses[:3]}")

            def seconds() -> float:
                print(file=asked, flush=True)
                return float(answers.readline())

            yield seconds
            asked.close()


def written(problem: Problem, seeds: list[int], file: Path) -> list[float]:
    """Write what a run begins with, and return the losses of its first steps, summed over the students."""
    run, train = Distillation(problem, seeds), problem.dataset.train
    assert isinstance(run.student, StackedStudents)
    assert problem.teacher_logits is not None
    weights = [run.student.unstack(place) for place in range(len(seeds))]
    names = dict(zip(("weight1", "bias1", "weight2", "bias2"), weights[0], strict=True))
    arrays = dict(
        images=problem.dataset.normalise(train.inputs).flatten(1).numpy(),
        labels=train.known_labels.numpy(),
        teacher=problem.teacher_logits.numpy(),
        batches=torch.stack([run.batches.positions(step) for step in range(STEPS)]).numpy(),
        rates=np.array([run.recipe.rate(step, run.steps) for step in range(STEPS)], dtype=np.float32),
        **{ours: torch.stack([one[theirs] for one in weights]).numpy() for ours, theirs in names.items()},
    )
    np.savez(file, allow_pickle=False, **arrays)
    method = run.attach(load_method("fixed:4"))
    return [plain_step(run, method).loss.mean(-1).sum().item() for _ in range(STEPS)]


if __name__ == "__main__":
    main()
