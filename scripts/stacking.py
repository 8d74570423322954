"""Who gains by a stack: time of students one by one over that of stacks, beside what a trial counts of a student.

    python scripts/stacking.py [--rounds 11] [--only resnet8] [--sizes 16 64] [--compiled]

The limits of `rltemp.models.stack_sizes` were read off its table. Data and teacher are random numbers. A ratio is the
median over rounds in which a student's steps, a stack's and the student's again follow each other; in brackets stand
its quartiles. Times are the process's, of one thread: other jobs on the machine do not count.
"""

from __future__ import annotations

import argparse
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import process_time
from timeit import timeit

import torch
from torch import nn

from rltemp.compiling.step import CompiledStep
from rltemp.data.dataset import Dataset, Split
from rltemp.data.problem import Problem
from rltemp.data.recipe import Recipe
from rltemp.data.task import Task
from rltemp.io.versions import processor
from rltemp.loading import load_method
from rltemp.models.stack import students_of
from rltemp.training.distill import Distillation
from rltemp.training.steps import Step, plain_step

SIZES = 4, 8, 16, 32, 64
MOST_BYTES = 2**30
"""Of what a stack keeps of its batch: larger ones are not tried."""
SHORTEST = 0.02
"""Seconds that one side of a round takes, at least."""


class Forced(Problem):
    """A problem whose students are stacked, whatever that brings."""

    def students(self, seeds: int | Sequence[int]) -> nn.Module:
        """The student of a seed, or the stack of several."""
        return super().students(seeds) if isinstance(seeds, int) else students_of(self._student, seeds, stacked=True)


@dataclass(frozen=True)
class Case:
    """Students of one kind on one kind of data.

    Args:
        student: A network's name, or `normalised`, a small one with batch norm.
        shape: Of a picture, `(C, H, W)`, or of a sequence of tokens, `(T,)`.
        classes: Of labels, or tokens of the vocabulary.
        batch: Pictures or sequences.
    """

    student: str
    shape: tuple[int, ...]
    classes: int
    batch: int

    def problem(self) -> Problem:
        """Random samples, and random logits of a teacher."""
        generator, tokens = torch.Generator().manual_seed(0), len(self.shape) == 1
        samples = (512, *self.shape)
        inputs = torch.randint(0, self.classes if tokens else 256, samples, generator=generator)
        labels = torch.randint(0, self.classes, samples if tokens else samples[:1], generator=generator)
        split = Split(inputs if tokens else inputs.to(torch.uint8), labels)
        mean, std = (None if tokens else torch.full(self.shape[:1], value) for value in (127.5, 74.0))
        data = Dataset("random", split, split, split, split, self.classes, mean, std, augment=False)
        logits = torch.randn(*labels.shape, self.classes, generator=generator)
        recipe = Recipe(epochs=10_000, batch_size=self.batch, learning_rate=0.01)
        student = normalised if self.student == "normalised" else self.student
        return Forced(Task.of(student=student, teacher=logits, train="random", recipe=recipe), data, None, logits, 0.0)


def normalised(seed: int) -> nn.Module:
    """Two convolutions with batch norm, for pictures of three channels and ten classes."""
    torch.manual_seed(seed)
    first = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(16, 10))


CASES = [
    *(Case(f"mlp:{width}", (1, 8, 8), 10, 50) for width in ("6", "32", "128", "512", "1024")),
    *(Case(f"mlp:{width}", (1, 8, 8), 10, 256) for width in ("32", "128", "512")),
    *(Case(f"mlp:{width}", (3, 16, 16), 100, 50) for width in ("32", "128")),
    Case("mlp:128x128", (3, 32, 32), 10, 64),
    Case("cnn:8x16", (1, 8, 8), 10, 16),
    *(Case(f"cnn:{width}", (1, 8, 8), 10, 50) for width in ("8", "8x16", "16x32")),
    *(Case(f"cnn:{width}", (3, size, size), 10, 64) for size in (16, 32) for width in ("8", "8x16", "16x32")),
    *(Case("normalised", (3, size, size), 10, 64) for size in (8, 16)),
    Case("resnet8", (3, 8, 8), 10, 64),
    Case("resnet8", (3, 16, 16), 10, 16),
    Case("resnet8", (3, 32, 32), 10, 64),
    *(Case(f"gpt:{size}", (length,), 64, 16) for size in ("16x1", "32x1", "32x2") for length in (32, 64)),
    Case("gpt:64x2", (64,), 64, 16),
]


def main() -> None:
    """Measure, and print a line a case."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=11, help="of every ratio; 3 show that it runs")
    parser.add_argument("--only", default="", help="students whose name begins so")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="students in a stack")
    parser.add_argument(
        "--compiled", action="store_true", help="the stacks' steps are compiled; one by one they are not"
    )
    options = parser.parse_args()
    step = CompiledStep() if options.compiled else plain_step
    torch.set_num_threads(1)
    print(f"{processor()}, 1 thread; Python {platform.python_version()}, torch {torch.__version__}\n")
    heads = (
        "student",
        "inputs",
        "classes",
        "batch",
        "weights, KB",
        "kept, MB",
        "largest, KB",
        "million operations a kernel",
        "alone, ms",
    )
    show(*heads, *(f"stack of {size}" for size in options.sizes), "chosen")
    show(*["---"] * (len(heads) + len(options.sizes) + 1))
    for case in CASES:
        if case.student.startswith(options.only):
            show(*row(case, options.rounds, options.sizes, step))


def show(*cells: str) -> None:
    """Print a row of the table."""
    print(f"| {' | '.join(cells)} |", flush=True)


def row(case: Case, rounds: int, sizes: Sequence[int], step: Step) -> list[str]:
    """What a trial counts of a student's batch, its step alone in milliseconds, the ratios, and the size chosen."""
    problem = case.problem()
    work = problem.traits.work
    alone, ratios, seconds = stepper(problem, 0, plain_step), [], []
    for size in sizes:
        if size * case.batch * work.kept > MOST_BYTES:
            ratios.append("")
            continue
        stack = stepper(problem, list(range(size)), step)
        found = [(alone(), stack(), alone()) for _ in range(rounds)]
        seconds += [one for one, _, _ in found]
        low, middle, high = statistics.quantiles([size * (a + b) / 2 / together for a, together, b in found], n=4)
        ratios.append(f"{middle:.2f} [{low:.2f}, {high:.2f}]")
    kept, largest = work.kept * case.batch / 2**20, work.largest * case.batch / 2**10
    counted = work.weights / 2**10, kept, largest, work.operations * case.batch / work.kernels / 1e6
    what = case.student, "x".join(map(str, case.shape)), f"{case.classes}", f"{case.batch}"
    numbers = [f"{number:.3g}" for number in (*counted, 1000 * statistics.median(seconds))]
    return [*what, *numbers, *ratios, f"{problem.stack_size}"]


def stepper(problem: Problem, seeds: int | list[int], step: Step) -> Callable[[], float]:
    """Takes steps of a run whenever it is called, and returns the seconds of one."""
    run, method = Distillation(problem, seeds), load_method("fixed:4")

    def take() -> None:
        step(run, method)

    take()
    number = max(1, round(SHORTEST / timeit(take, number=2, timer=process_time) * 2))
    return lambda: timeit(take, number=number, timer=process_time) / number


if __name__ == "__main__":
    main()
