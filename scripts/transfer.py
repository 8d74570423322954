r"""Does a policy serve tasks that it was not trained on? Trains students by every rule on each, then writes the table.

    python scripts/transfer.py train --rules universal matched:universal averaged:universal matched:ttm \
        --cells docs/results/transfer.jsonl
    python scripts/transfer.py write docs/results/transfer.md docs/results/transfer.jsonl

A result is one task and one rule: a line of the file that `--cells` names. It is not trained again. Small data sets
are split in 64 ways, and every student has a split and a teacher of its own: in a test split of 36 samples it matters
more which samples these are than which student is taught. Students of one seed share all but the rule.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from rltemp.compiling.mode import CompileMode
from rltemp.data.dataset import Split
from rltemp.data.problem import Problem
from rltemp.data.tasks import load_task
from rltemp.experiments.measures import accuracy
from rltemp.experiments.statistics import Paired, paired_difference, points
from rltemp.experiments.students import step_of, train_method
from rltemp.io.files import atomic_write
from rltemp.io.versions import processor
from rltemp.loading import load_method
from rltemp.report.tables import markdown
from rltemp.rules.published_methods import METHODS
from rltemp.training.distill import Distillation
from rltemp.training.preparation import prepare
from rltemp.training.steps import Step, plain_step, train

TASKS: dict[str, tuple[str, dict[str, Any], int]] = {
    "wine": ("wine", {}, 64),
    "iris": ("iris", {}, 64),
    "breast_cancer": ("breast_cancer", {}, 64),
    "synthetic": ("synthetic", {}, 64),
    "digits, mlp:20, 20 epochs": ("digits", {"student": "mlp:20", "epochs": 20}, 1),
    "digits, mlp:10x10, steps": ("digits", {"student": "mlp:10x10", "schedule": "step", "learning_rate": 0.05}, 1),
    "digits, cnn:8x16": ("digits", {"student": "cnn:8x16", "learning_rate": 0.1}, 1),
}
"""By the name in the table: the task, what of it is changed, and in how many splits it is tried. The
digits keep their split, because the shipped policy's training draws from its training and probe parts."""
PLAIN = "fixed:4"
Accuracy = NDArray[np.float64]
"""One value a student."""
HEAD = """# Tasks that the shipped policy never saw

The first table shows the mean test accuracy in percent of {n} students for each rule and task. Every rule has its own
defaults. On a task with {n} splits (second table) every student has a split of the data and a teacher of its own. The
last two columns are means over all tasks, in points: the difference to plain distillation at T = 4, and the policy
minus the rule. They are paired by student, with 95 % intervals over students (BCa bootstrap).
Machine: {machine}, torch {torch}.

    python scripts/transfer.py train --rules {policies} --cells docs/results/transfer.jsonl
    python scripts/transfer.py write docs/results/transfer.md docs/results/transfer.jsonl

"""


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, by default the process's own, and do it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    trainer = commands.add_parser("train", help="train the students that are missing")
    trainer.add_argument("--rules", nargs="+", default=["universal"], help="policies, first the one that is judged")
    trainer.add_argument("--against", nargs="+", default=list(METHODS), help="by default every method")
    trainer.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    trainer.add_argument("--seeds", type=int, default=64)
    trainer.add_argument("--first-seed", type=int, default=2000)
    trainer.add_argument("--compile", default="auto", choices=["auto", "always", "never"], help="training steps")
    trainer.add_argument("--cells", type=Path, required=True)
    writer = commands.add_parser("write", help="write the table")
    writer.add_argument("out", type=Path)
    writer.add_argument("cells", type=Path)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if options.command == "train":
        train_missing(options)
    else:
        atomic_write(options.out, page(read(options.cells)).encode())


def train_missing(options: argparse.Namespace) -> None:
    """Train what is missing in the file of results, and add it line by line."""
    options.cells.parent.mkdir(parents=True, exist_ok=True)
    done = {(one["task"], one["rule"]) for one in read(options.cells)} if options.cells.exists() else set()
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    for name in options.tasks:
        rules = dict.fromkeys([*options.rules, PLAIN, *options.against])
        missing = [rule for rule in rules if (name, rule) not in done]
        spec, changes, splits = TASKS[name]
        count = min(splits, options.seeds) if missing else 0
        problems = [prepare(load_task(spec, **changes, split_seed=k)) for k in range(count)]
        for rule in track(missing, name):
            line = {"task": name, "rule": rule, **train_students(problems, rule, seeds, options.compile)}
            line |= {"torch": torch.__version__, "machine": processor()}
            with options.cells.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def train_students(problems: Sequence[Problem], rule: str, seeds: range, mode: CompileMode) -> dict[str, Any]:
    """Train a student for every seed by a rule, on one split after another, and return accuracies in percent."""
    stack = len(seeds) if len(problems) > 1 else problems[0].stack_size
    step = step_of(problems[0], mode, stack, len(seeds))
    if len(problems) > 1:
        measured = train_on_splits(problems, rule, seeds, step)
    else:
        result = train_method(problems[0], rule, seeds, stack, step=step)
        measured = {"test": result.test_accuracy, "validation": result.validation_accuracy}
    found = {split: [round(100 * float(value), 3) for value in values] for split, values in measured.items()}
    teachers = [round(100 * problem.teacher_accuracy, 2) for problem in problems]
    return {**found, "teachers": teachers, "first_seed": seeds.start}


def train_on_splits(
    problems: Sequence[Problem], rule: str, seeds: Sequence[int], step: Step = plain_step
) -> dict[str, Accuracy]:
    """Train a student for every seed in one stack, each on the next split, and measure it on that split."""
    own = torch.arange(len(seeds)) % len(problems)
    (images, labels), dataset = _stacked(problems, "train"), problems[0].dataset
    pool = Split(images.flatten(0, 1), labels.flatten())
    logits = torch.cat([problem.teacher_logits for problem in problems if problem.teacher_logits is not None])
    # Every split is standardised by its own training part already.
    dataset = replace(dataset, mean=None, std=None)
    rows = torch.arange(len(pool)).view(len(problems), -1)[own]
    run = Distillation(
        replace(problems[0], dataset=dataset), list(seeds), train=pool, subset=rows, teacher_logits=logits
    )
    student, measured = train(run, load_method(rule), step=step).eval(), dict[str, Accuracy]()
    for name in ("test", "validation"):
        images, labels = _stacked(problems, name)
        with torch.no_grad():
            measured[name] = accuracy(student(images[own]), labels[own]).numpy()
    return measured


def _stacked(problems: Sequence[Problem], name: str) -> tuple[Tensor, Tensor]:
    """A part of every split: inputs `[splits, N, ...]`, each standardised by its split, and labels `[splits, N]`."""
    parts = [getattr(problem.dataset, name) for problem in problems]
    images = [problem.dataset.normalise(part.inputs) for problem, part in zip(problems, parts, strict=True)]
    return torch.stack(images), torch.stack([part.known_labels for part in parts])


def read(file: Path) -> list[dict[str, Any]]:
    """The results of a file."""
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def page(results: list[dict[str, Any]]) -> str:
    """The table as Markdown: the rules that every task has, the best first, and the tasks."""
    splits = {one["task"]: len(one["teachers"]) for one in results}
    found = {(one["task"], one["rule"]): np.array(one["test"]) for one in results}
    known, tasks = list(dict.fromkeys(rule for _, rule in found)), list(splits)
    rules = [rule for rule in known if all((task, rule) in found for task in tasks)]
    policy = "universal" if "universal" in rules else rules[0]
    rules.sort(key=lambda rule: -np.mean([found[task, rule].mean() for task in tasks]))

    def line(rule: str) -> list[str]:
        means = [found[task, rule].mean() for task in tasks]
        pairs = ((rule, PLAIN), (policy, rule))
        differences = [points(over(found, tasks, *pair)) if pair[0] != pair[1] else "-" for pair in pairs]
        return [rule, *(f"{mean:.2f}" for mean in (*means, np.mean(means))), *differences]

    start = HEAD.format(
        n=len(results[0]["test"]),
        machine=" and ".join(sorted({one["machine"] for one in results})),
        torch=results[0]["torch"],
        policies=" ".join(rule for rule in known if rule not in (*METHODS, PLAIN)),
    )
    by_task = [
        [task, str(count), f"{found[task, PLAIN].mean():.2f}", points(over(found, [task], policy, PLAIN))]
        for task, count in splits.items()
    ]
    ranking = markdown(["rule", *tasks, "mean", f"minus {PLAIN}", f"{policy} minus it"], list(map(line, rules)))
    return start + ranking + "\n" + markdown(["task", "splits", PLAIN, f"{policy} minus it"], by_task)


def over(found: dict[tuple[str, str], Accuracy], tasks: list[str], one: str, other: str) -> Paired:
    """The paired difference of two rules, averaged over the tasks, student by student."""
    return paired_difference(*(np.mean([found[task, rule] for task in tasks], 0) for rule in (one, other)))


if __name__ == "__main__":
    main()
