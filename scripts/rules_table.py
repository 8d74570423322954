"""Every method on a task, at published weights and at matched ones: trains what is missing, then writes the table.

    python scripts/rules_table.py train --task digits --label digits --seeds 64 --cells docs/rules/digits.jsonl
    python scripts/rules_table.py write docs/rules.md docs/rules/digits.jsonl docs/rules/cifar100.jsonl

A cached result is one method and one seed: a line of the file that `--cells` names, whose first line is the setting. It
is not trained again, so the same command goes on where it stopped. `--share 0/2` and `--share 1/2` are two halves of
the work for two processes, each with a file of its own; `write` takes all files of one label together. Students of one
seed share initial weights, batches and augmentation.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from rltemp.data.problem import Problem, evaluate
from rltemp.data.tasks import load_task
from rltemp.errors import BadInputError
from rltemp.experiments.statistics import mean_and_error, paired_difference, points
from rltemp.experiments.students import default_stack
from rltemp.io.files import atomic_write
from rltemp.io.versions import processor
from rltemp.loading import load_method
from rltemp.report.tables import markdown, with_error
from rltemp.rules.published_methods import METHODS
from rltemp.training.distill import Distillation
from rltemp.training.steps import train
from rltemp.training.teachers import prepare

NAMES = ("teacher", "student", "teacher_weights")
NUMBERS = {"epochs": int, "batch_size": int, "learning_rate": float, "weight_decay": float, "teacher_epochs": int}
PLAIN, DTKD = "fixed", "dtkd"
MATCHED = "matched:"
HEAD = """# Every method, side by side

The tables show the test accuracy in percent after the last epoch, mean ± standard error over students. `- KD` and
`- DTKD` are the differences to plain distillation and to DTKD, in points and paired by seed. Their 95 % intervals are
BCa bootstraps from 8 seeds up and Student's t below.

Every method is there twice:

- **published**: as its paper has it, with its loss coefficients and its warm-up.
- **matched**: with a cross-entropy coefficient of 0.1 and a soft term that is scaled in every step. After scaling, the
  gradient of the soft term on the student's logits has the same mean norm as that of plain KD (T = 4, coefficient 0.9)
  on the same logits.

A larger loss coefficient acts as a larger learning rate, and it moves accuracy more than any temperature rule does. So
the matched columns compare rules, and the published columns compare whole recipes. Every method has its own default
constants (`rltemp methods`); none was tuned on these tasks.

The accuracy of every student is in `docs/rules/`. These commands trained the students and wrote this page (do not edit
it). A command that is repeated goes on where it stopped:

    python scripts/rules_table.py train --task digits --label digits --seeds 64 --cells docs/rules/digits.jsonl
    rltemp train-teacher --task imagefolder:PATH --teacher resnet20 --teacher-epochs 14 --threads 2 --out runs/teacher
    python scripts/rules_table.py train --task imagefolder:PATH --label cifar100 --teacher resnet20 --teacher-weights \\
        docs/rules/cifar100-teacher.safetensors --student resnet8 --epochs 2 --batch-size 64 --learning-rate 0.05 \\
        --seeds 3 --cells docs/rules/cifar100.jsonl
    python scripts/rules_table.py write docs/rules.md docs/rules/digits.jsonl docs/rules/cifar100.jsonl

PATH is CIFAR-100 as a folder of images. 5 % of its training images are probe data and 5 % are validation data. Its
students train for two epochs only, so methods that learn fast lead that table.
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
    for method, seeds in track(list(batches(options.methods, options.seeds, stack))[part::parts]):
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
        "",
    ]
    head = ["method", "n", "published", "- KD", "- DTKD", "n", "matched", "- KD", "- DTKD"]
    return "\n".join(lines) + markdown(head, [table_row(name, accuracies) for name in METHODS if name in accuracies])


def table_row(name: str, accuracies: dict[str, dict[int, float]]) -> list[str]:
    """One method's line; plain KD is its own match."""
    matched = PLAIN if name == PLAIN else MATCHED + name
    line = [name]
    for found, dtkd in ((name, DTKD), (matched, MATCHED + DTKD)):
        students = [*accuracies.get(found, {}).values()]
        line += [str(len(students)), with_error(*mean_and_error(students))] if students else ["", ""]
        line += [difference(accuracies, found, base) for base in (PLAIN, dtkd)]
    return line


def difference(accuracies: dict[str, dict[int, float]], method: str, base: str) -> str:
    """Paired difference over the seeds that both have."""
    ours, theirs = accuracies.get(method, {}), accuracies.get(base, {})
    seeds = sorted(ours.keys() & theirs.keys())
    if method == base or not seeds:
        return ""
    return points(paired_difference([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds]))


if __name__ == "__main__":
    main()
