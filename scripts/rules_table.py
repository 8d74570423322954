"""Every method on a task, at published weights and at matched ones: trains what is missing, then writes the table.

    python scripts/rules_table.py train --task digits --label digits --seeds 64 --cells docs/rules/digits.jsonl
    python scripts/rules_table.py write docs/rules.md docs/rules/digits.jsonl docs/rules/cifar100.jsonl

A cell is one method and one seed: a line of the cells' file, whose first line is the setting. A cell that is there is
not trained again, so the same command goes on where it stopped. `--share 0/2` and `--share 1/2` are two halves of the
work for two processes, each with a file of its own; `write` takes all files of one label together. Students of one
seed share initial weights, batches and augmentation.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from rltemp.data.problem import Problem, evaluate
from rltemp.data.tasks import load_task
from rltemp.errors import BadInputError
from rltemp.experiments.compare import default_stack
from rltemp.experiments.statistics import mean_and_error, paired_difference
from rltemp.io.files import atomic_write
from rltemp.io.versions import processor
from rltemp.loading import load_method
from rltemp.rules.published_methods import METHODS
from rltemp.training.distill import Distillation
from rltemp.training.steps import train
from rltemp.training.teachers import prepare

NAMES = ("teacher", "student", "teacher_weights")
NUMBERS = {"epochs": int, "batch_size": int, "learning_rate": float, "weight_decay": float, "teacher_epochs": int}
PLAIN, DTKD = "fixed", "dtkd"
MATCHED = "matched:"
HEAD = """# Every method, side by side

Test accuracy in percent after the last epoch, mean over students; `- KD` and `- DTKD` are paired differences in points
with 95 % intervals (BCa bootstrap from 8 seeds up, Student's t below). Two columns of each: **published** is the
method as its paper has it, weights and warm-up included; **matched** gives every method cross-entropy at 0.1 and
scales its soft term, step by step, until its gradient on the student's logits is on average as long as plain
KD's (T = 4, weight 0.9) on the same logits. Loss weight alone moves accuracy more than any rule does, and it acts as a
learning rate: so the right-hand columns compare rules, the left-hand ones compare recipes. Constants are each method's
own defaults (`rltemp methods`), none tuned on these tasks.

The cells behind the tables lie in `docs/rules/`; what trained them, and goes on where it stopped, and what wrote this
page (do not edit it):

    python scripts/rules_table.py train --task digits --label digits --seeds 64 --cells docs/rules/digits.jsonl
    rltemp train-teacher --task imagefolder:PATH --teacher resnet20 --teacher-epochs 14 --threads 2 --out runs/teacher
    python scripts/rules_table.py train --task imagefolder:PATH --label cifar100 --teacher resnet20 --teacher-weights \\
        docs/rules/cifar100-teacher.safetensors --student resnet8 --epochs 2 --batch-size 64 --learning-rate 0.05 \\
        --seeds 3 --cells docs/rules/cifar100.jsonl
    python scripts/rules_table.py write docs/rules.md docs/rules/digits.jsonl docs/rules/cifar100.jsonl

PATH is CIFAR-100 as a folder of images; 5 % of its training part is probe and 5 % validation data. Its students train
for two epochs only, so what learns fast leads that table.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, by default the process's own, and do it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    trainer = commands.add_parser("train", help="train the students that are missing")
    trainer.add_argument("--task", default="digits")
    trainer.add_argument("--label", default="digits", help="what the table calls the task")
    for name in NAMES:
        trainer.add_argument(f"--{name.replace('_', '-')}")
    for name, kind in NUMBERS.items():
        trainer.add_argument(f"--{name.replace('_', '-')}", type=kind)
    trainer.add_argument("--seeds", type=int, default=64)
    trainer.add_argument("--methods", nargs="+", default=columns(), help="by default all")
    trainer.add_argument("--cells", type=Path, required=True)
    trainer.add_argument("--share", default="0/1", help="which part of the work: 0/2 is the first of two")
    writer = commands.add_parser("write", help="write the table")
    writer.add_argument("out", type=Path)
    writer.add_argument("files", type=Path, nargs="+")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if options.command == "train":
        train_cells(options)
    else:
        atomic_write(options.out, page(options.files).encode())


def columns() -> list[str]:
    """Every method at published weights, then every one that has a soft term at matched weights."""
    return [*METHODS, *(f"{MATCHED}{name}" for name in METHODS if name not in ("none", PLAIN))]


def train_cells(options: argparse.Namespace) -> None:
    """Train what is missing in the file of cells, and add it line by line."""
    problem = prepare(load_task(options.task, **{name: getattr(options, name) for name in (*NAMES, *NUMBERS)}))
    setting = describe(problem, options.label)
    known, cells = read_cells(options.cells)
    if known is None:
        options.cells.parent.mkdir(parents=True, exist_ok=True)
        options.cells.write_text(json.dumps(setting) + "\n", "utf-8")
    elif {**known, "processor": setting["processor"]} != setting:
        raise BadInputError(f"{options.cells} holds cells of another setting, {known}; this one is {setting}")
    done = {(cell["method"], cell["seed"]) for cell in cells}
    stack = default_stack(problem)
    part, parts = map(int, options.share.split("/"))
    memory: dict[int, dict[int, torch.Tensor]] = {}  # the teacher's logits, by seed
    for method, seeds in tqdm(list(batches(options.methods, options.seeds, stack))[part::parts], disable=None):
        if missing := [seed for seed in seeds if (method, seed) not in done]:
            found = train_batch(problem, method, missing, memory.setdefault(missing[0], {}) if stack == 1 else None)
            elsewhere = {} if known in (None, setting) else {"processor": setting["processor"]}
            found = [cell | elsewhere for cell in found]
            with options.cells.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(cell) + "\n" for cell in found)


def batches(methods: list[str], seeds: int, stack: int) -> Iterator[tuple[str, list[int]]]:
    """Methods and seeds that are trained together, seed by seed: half of the work is then a table of half the seeds."""
    for start in range(0, seeds, stack):
        for method in methods:
            yield method, list(range(start, min(start + stack, seeds)))


def train_batch(
    problem: Problem, method: str, seeds: list[int], memory: dict[int, torch.Tensor] | None
) -> list[dict[str, Any]]:
    """Train a student for every seed, one alone where there is a memory for its teacher, and return their cells."""
    started = time.perf_counter()
    run = Distillation(problem, seeds if memory is None else seeds[0], teacher_memory=memory)
    student = train(run, load_method(method))
    seconds = round((time.perf_counter() - started) / len(seeds), 3)
    test, validation = (
        [round(value, 6) for value in evaluate(student, problem.dataset, part).reshape(-1).tolist()]
        for part in (problem.dataset.test, problem.dataset.validation)
    )
    return [
        {"method": method, "seed": seed, "test": test[i], "validation": validation[i], "seconds": seconds}
        for i, seed in enumerate(seeds)
    ]


def describe(problem: Problem, label: str) -> dict[str, Any]:
    """What a cell depends on beside its method and seed; no path is in it."""
    task = problem.task
    return {
        "label": label,
        "teacher": task.teacher,
        "teacher_accuracy": round(problem.teacher_accuracy, 6),
        "student": task.student,
        "recipe": asdict(task.recipe),
        "split_seed": task.split_seed,
        "samples": {part: len(getattr(problem.dataset, part)) for part in ("train", "validation", "test")},
        "torch": torch.__version__,
        "processor": processor(),
    }


def read_cells(file: Path) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """The setting and the cells of a file; None and nothing where there is no file."""
    if not file.is_file():
        return None, []
    setting, *cells = map(json.loads, file.read_text("utf-8").splitlines())
    return setting, cells


def page(files: list[Path]) -> str:
    """The page: a table for each label among the files."""
    by_label: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
    for file in files:
        setting, cells = read_cells(file)
        if setting is None:
            raise BadInputError(f"no such file of cells: {file}")
        by_label.setdefault(setting["label"], (setting, []))[1].extend(cells)
    return "\n".join([HEAD, *(section(setting, cells) for setting, cells in by_label.values())])


def section(setting: dict[str, Any], cells: list[dict[str, Any]]) -> str:
    """One task's setting and table."""
    accuracies: dict[str, dict[int, float]] = {}
    for cell in cells:
        accuracies.setdefault(cell["method"], {})[cell["seed"]] = 100 * cell["test"]
    recipe = setting["recipe"]
    processors = dict.fromkeys(cell.get("processor", setting["processor"]) for cell in cells)
    lines = [
        f"## {setting['label']}",
        "",
        f"Teacher {setting['teacher']} ({100 * setting['teacher_accuracy']:.2f} %), student {setting['student']}, "
        f"n seeds a method; {recipe['epochs']} epochs, batch "
        f"{recipe['batch_size']}, learning rate {recipe['learning_rate']:g} ({recipe['schedule']}), weight decay "
        f"{recipe['weight_decay']:g}; {setting['samples']['train']} training and {setting['samples']['test']} test "
        f"samples. {' and '.join(processors)}, one thread, torch {setting['torch']}.",
        "",
        "| method | n | published | - KD | - DTKD | n | matched | - KD | - DTKD |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(table_row(name, accuracies) for name in METHODS if name in accuracies), ""])


def table_row(name: str, accuracies: dict[str, dict[int, float]]) -> str:
    """One method's line; plain KD is its own match."""
    matched = PLAIN if name == PLAIN else MATCHED + name
    cells = [name]
    for found, dtkd in ((name, DTKD), (matched, MATCHED + DTKD)):
        cells += [str(len(accuracies[found])) if found in accuracies else "", accuracy(accuracies, found)]
        cells += [difference(accuracies, found, base) for base in (PLAIN, dtkd)]
    return f"| {' | '.join(cells)} |"


def accuracy(accuracies: dict[str, dict[int, float]], method: str) -> str:
    """Mean and standard error."""
    if method not in accuracies:
        return ""
    mean, error = mean_and_error(list(accuracies[method].values()))
    return f"{mean:.2f} ± {error:.2f}" if math.isfinite(error) else f"{mean:.2f}"


def difference(accuracies: dict[str, dict[int, float]], method: str, base: str) -> str:
    """Paired difference, over the seeds that both have, with its interval where these are two or more."""
    if method == base or method not in accuracies or base not in accuracies:
        return ""
    seeds = sorted(accuracies[method].keys() & accuracies[base].keys())
    if not seeds:
        return ""
    first, second = ([accuracies[name][seed] for seed in seeds] for name in (method, base))
    pair = paired_difference(first, second)
    interval = f" [{pair.low:+.2f}, {pair.high:+.2f}]" if math.isfinite(pair.low) else ""
    return f"{pair.mean:+.2f}{interval}"


if __name__ == "__main__":
    main()
