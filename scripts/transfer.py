r"""Does a policy serve tasks that it was not trained on? Trains students by every rule on each, then writes the table.

    python scripts/transfer.py train --rules universal matched:universal averaged:universal matched:ttm \
        --cells docs/results/transfer.jsonl
    python scripts/transfer.py write docs/results/transfer.md docs/results/transfer.jsonl

A cell is one task and one rule: a line of the file of cells. A cell that is there is not trained again. Small data sets
are split four ways, a quarter of the students on each; students of one seed share all but the rule. `write` shows every
rule on every task and, over all of them, the paired mean difference to plain distillation and to each policy.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from rltemp.compare import default_stack, train_arm
from rltemp.distill import Problem
from rltemp.files import atomic_write
from rltemp.recipes import METHODS
from rltemp.runs import processor
from rltemp.stats import Paired, paired_difference
from rltemp.tasks import load_task
from rltemp.teachers import prepare

TASKS: dict[str, tuple[str, dict[str, Any], int]] = {
    "wine": ("wine", {}, 4),
    "iris": ("iris", {}, 4),
    "breast_cancer": ("breast_cancer", {}, 4),
    "synthetic": ("synthetic", {}, 2),
    "digits, mlp:20, 20 epochs": ("digits", {"student": "mlp:20", "epochs": 20}, 1),
    "digits, mlp:10x10, steps": ("digits", {"student": "mlp:10x10", "schedule": "step", "learning_rate": 0.05}, 1),
    "digits, cnn:8x16": ("digits", {"student": "cnn:8x16", "learning_rate": 0.1}, 1),
}
"""By the name in the table: the task, what of it is changed, and in how many splits it is tried. Students like
these are not in the shipped policy's training (digits, mlp:6), nor is any test part."""
PLAIN = "fixed:4"
HEAD = """# Tasks that the shipped policy never saw

Test accuracy in percent, {n} students for each rule and task (small data sets: on two or four splits), every rule at
its own defaults. The last columns: mean over the tasks of the paired difference to plain distillation at T = 4, and of
the policy's to the rule, in points, with 95 % intervals over students (BCa bootstrap).
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
    trainer.add_argument("--cells", type=Path, required=True)
    writer = commands.add_parser("write", help="write the table")
    writer.add_argument("out", type=Path)
    writer.add_argument("cells", type=Path)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if options.command == "train":
        train_cells(options)
    else:
        atomic_write(options.out, page(read(options.cells)).encode())


def train_cells(options: argparse.Namespace) -> None:
    """Train what is missing in the file of cells, and add it line by line."""
    options.cells.parent.mkdir(parents=True, exist_ok=True)
    done = {(cell["task"], cell["rule"]) for cell in read(options.cells)} if options.cells.exists() else set()
    rules = list(dict.fromkeys([*options.rules, PLAIN, *options.against]))
    for name in options.tasks:
        if not (missing := [rule for rule in rules if (name, rule) not in done]):
            continue
        spec, changes, splits = TASKS[name]
        first = changes.get("split_seed", 0)
        problems = [prepare(load_task(spec, **{**changes, "split_seed": first + k})) for k in range(splits)]
        for rule in tqdm(missing, name, disable=None):
            cell = train_cell(problems, rule, options.first_seed, options.seeds // splits)
            line = {"task": name, "rule": rule, **cell, "torch": torch.__version__, "machine": processor()}
            with options.cells.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def train_cell(problems: Sequence[Problem], rule: str, first: int, students: int) -> dict[str, Any]:
    """Train `students` of every split by a rule and return their accuracies, in percent."""
    stack = 16 if problems[0].task.student.startswith("cnn") else default_stack(problems[0])
    arms = [
        train_arm(problem, rule, range(first + k * students, first + (k + 1) * students), stack)
        for k, problem in enumerate(problems)
    ]
    test, validation = (
        [round(100 * float(value), 3) for arm in arms for value in getattr(arm, part)]
        for part in ("test_accuracy", "validation_accuracy")
    )
    teachers = [round(100 * problem.teacher_accuracy, 2) for problem in problems]
    return {"test": test, "validation": validation, "teachers": teachers, "first_seed": first}


def read(file: Path) -> list[dict[str, Any]]:
    """The cells of a file."""
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def page(cells: list[dict[str, Any]]) -> str:
    """The table as Markdown."""
    tasks = list(dict.fromkeys(cell["task"] for cell in cells))
    accuracy = {(cell["task"], cell["rule"]): np.array(cell["test"]) for cell in cells}
    rules = [
        rule for rule in dict.fromkeys(cell["rule"] for cell in cells) if all((t, rule) in accuracy for t in tasks)
    ]
    policy = "universal" if "universal" in rules else rules[0]
    rules.sort(key=lambda rule: -float(np.mean([accuracy[task, rule].mean() for task in tasks])))
    head = f"| rule | {' | '.join(tasks)} | mean | minus {PLAIN} | {policy} minus it |"
    lines = [head, "|---" * (len(tasks) + 4) + "|"]
    lines += [_line(accuracy, tasks, rule, policy) for rule in rules]
    machines = " and ".join(sorted({cell["machine"] for cell in cells}))
    named = " ".join(rule for rule in dict.fromkeys(cell["rule"] for cell in cells) if rule not in METHODS)
    first = cells[0]
    start = HEAD.format(
        n=len(first["test"]), machine=machines, torch=first["torch"], policies=named.replace(f"{PLAIN} ", "")
    )
    return start + "\n".join(lines) + "\n"


def _line(accuracy: dict[tuple[str, str], NDArray[np.float64]], tasks: list[str], rule: str, policy: str) -> str:
    means = [accuracy[task, rule].mean() for task in tasks]
    columns = [f"{mean:.2f}" for mean in (*means, np.mean(means))]
    columns += [_points(over(accuracy, tasks, *pair)) for pair in ((rule, PLAIN), (policy, rule))]
    return f"| {rule} | {' | '.join(columns)} |"


def over(accuracy: dict[tuple[str, str], NDArray[np.float64]], tasks: list[str], one: str, other: str) -> Paired:
    """The paired difference of two rules, averaged over the tasks, student by student."""
    both = (np.mean([accuracy[task, rule] for task in tasks], 0) for rule in (one, other))
    return paired_difference(*both)


def _points(pair: Paired) -> str:
    return "-" if pair.low == pair.high == 0 else f"{pair.mean:+.2f} [{pair.low:+.2f}, {pair.high:+.2f}]"


if __name__ == "__main__":
    main()
