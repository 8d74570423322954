r"""Does a policy serve tasks that it was not trained on? Trains students by every rule on each, then writes the table.

    python scripts/transfer.py train --rules universal matched:universal averaged:universal matched:ttm \
        --cells docs/results/transfer.jsonl
    python scripts/transfer.py write docs/results/transfer.md docs/results/transfer.jsonl

A cell is one task and one rule: a line of the file of cells. A cell that is there is not trained again. Small data sets
are split 64 ways, every student on a split and with a teacher of its own: in a test part of 36 samples it matters more
which these are than which student is taught. Students of one seed share all but the rule. `write` shows every rule on
every task and, over all of them, the paired mean difference to plain distillation and to each policy.
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
from torch import Tensor
from tqdm import tqdm

from rltemp.data.dataset import Split
from rltemp.data.problem import Problem, predict
from rltemp.data.tasks import load_task
from rltemp.experiments.compare import default_stack, train_arm
from rltemp.experiments.statistics import Paired, paired_difference
from rltemp.io.files import atomic_write
from rltemp.io.versions import processor
from rltemp.loading import load_method
from rltemp.rules.published_methods import METHODS
from rltemp.training.distill import Distillation
from rltemp.training.steps import plain_step
from rltemp.training.teachers import prepare

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
Accuracies = dict[tuple[str, str], Accuracy]
"""By task and rule."""
HEAD = """# Tasks that the shipped policy never saw

Test accuracy in percent, {n} students for each rule and task, each on a split of the data and with a teacher of its own
where the second table says {n} splits, every rule at its own defaults. The last columns: mean over the tasks of the
paired difference to plain distillation at T = 4, and of the policy's to the rule, in points, with 95 % intervals over
students (BCa bootstrap).
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
        problems = [prepare(load_task(spec, **changes, split_seed=k)) for k in range(min(splits, options.seeds))]
        for rule in tqdm(missing, name, disable=None):
            cell = train_cell(problems, rule, range(options.first_seed, options.first_seed + options.seeds))
            line = {"task": name, "rule": rule, **cell, "torch": torch.__version__, "machine": processor()}
            with options.cells.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def train_cell(problems: Sequence[Problem], rule: str, seeds: range) -> dict[str, Any]:
    """Train a student for every seed by a rule, on one split after another, and return accuracies in percent."""
    if len(problems) > 1:
        measured = train_on_splits(problems, rule, seeds)
    else:
        stack = 16 if problems[0].task.student.startswith("cnn") else default_stack(problems[0])
        arm = train_arm(problems[0], rule, seeds, stack)
        measured = {"test": arm.test_accuracy, "validation": arm.validation_accuracy}
    found = {part: [round(100 * float(value), 3) for value in values] for part, values in measured.items()}
    teachers = [round(100 * problem.teacher_accuracy, 2) for problem in problems]
    return {**found, "teachers": teachers, "first_seed": seeds.start}


def train_on_splits(problems: Sequence[Problem], rule: str, seeds: Sequence[int]) -> dict[str, Accuracy]:
    """Train a student for every seed in one stack, each on the next split; its accuracies on the split's own parts."""
    own = torch.arange(len(seeds)) % len(problems)
    (images, labels), dataset = _stacked(problems, "train"), problems[0].dataset
    pool = Split(images.flatten(0, 1), labels.flatten())
    logits = torch.cat([predict(problem.teacher, problem.dataset, problem.dataset.train) for problem in problems])
    # Every split is standardised by its own training part already.
    dataset = replace(dataset, mean=torch.zeros_like(dataset.mean), std=torch.ones_like(dataset.std))
    rows = torch.arange(len(pool)).view(len(problems), -1)[own]
    run = Distillation(
        replace(problems[0], dataset=dataset), list(seeds), train=pool, subset=rows, teacher_logits=logits
    )
    method = run.attach(load_method(rule))
    while not run.done:
        plain_step(run, method)
    student, measured = run.student.eval(), dict[str, Accuracy]()
    for part in ("test", "validation"):
        images, labels = _stacked(problems, part)
        with torch.no_grad():
            right = student(images[own]).argmax(-1) == labels[own]
        measured[part] = right.double().mean(-1).numpy()
    return measured


def _stacked(problems: Sequence[Problem], name: str) -> tuple[Tensor, Tensor]:
    """A part of every split: inputs `[splits, N, ...]`, each standardised by its split, and labels `[splits, N]`."""
    parts = [getattr(problem.dataset, name) for problem in problems]
    images = [problem.dataset.normalise(part.images) for problem, part in zip(problems, parts, strict=True)]
    return torch.stack(images), torch.stack([part.labels for part in parts])


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
    splits = {cell["task"]: len(cell["teachers"]) for cell in cells}
    return start + "\n".join([*lines, "", *_by_task(accuracy, splits, policy)]) + "\n"


def _by_task(accuracy: Accuracies, splits: dict[str, int], policy: str) -> list[str]:
    """The policy against plain distillation on each task."""
    rows = [
        f"| {task} | {count} | {accuracy[task, PLAIN].mean():.2f} | {_points(over(accuracy, [task], policy, PLAIN))} |"
        for task, count in splits.items()
    ]
    return [f"| task | splits | {PLAIN} | {policy} minus it |", "|---" * 4 + "|", *rows]


def _line(accuracy: Accuracies, tasks: list[str], rule: str, policy: str) -> str:
    means = [accuracy[task, rule].mean() for task in tasks]
    columns = [f"{mean:.2f}" for mean in (*means, np.mean(means))]
    columns += [_points(over(accuracy, tasks, *pair)) for pair in ((rule, PLAIN), (policy, rule))]
    return f"| {rule} | {' | '.join(columns)} |"


def over(accuracy: Accuracies, tasks: list[str], one: str, other: str) -> Paired:
    """The paired difference of two rules, averaged over the tasks, student by student."""
    both = (np.mean([accuracy[task, rule] for task in tasks], 0) for rule in (one, other))
    return paired_difference(*both)


def _points(pair: Paired) -> str:
    return "-" if pair.low == pair.high == 0 else f"{pair.mean:+.2f} [{pair.low:+.2f}, {pair.high:+.2f}]"


if __name__ == "__main__":
    main()
