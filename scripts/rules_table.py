"""Every method on a task, at published weights and at matched ones: trains what is missing, then writes the table.

    python scripts/rules_table.py train --task digits --seeds 64 --cells runs/rules/digits.jsonl
    python scripts/rules_table.py write docs/rules.md docs/rules/digits.jsonl docs/rules/cifar100.jsonl

A cell is one method and one seed, a line of the cells' file; a line that is there is not trained again, so the same
command goes on where it stopped, and processes may share the work: `--share 0/2` and `--share 1/2`, each with cells of
its own. Students of one seed share initial weights, batches and augmentation.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from rltemp.compare import default_stack
from rltemp.distill import Distillation, Problem, evaluate, train
from rltemp.methods import load_method
from rltemp.recipes import METHODS
from rltemp.tasks import load_task
from rltemp.teachers import prepare

OVERRIDES = ("teacher", "student", "teacher_weights")
NUMBERS = {"epochs": int, "batch_size": int, "learning_rate": float, "weight_decay": float}


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    trainer = commands.add_parser("train", help="train the students that are missing")
    trainer.add_argument("--task", default="digits")
    for name in OVERRIDES:
        trainer.add_argument(f"--{name.replace('_', '-')}")
    for name, kind in NUMBERS.items():
        trainer.add_argument(f"--{name.replace('_', '-')}", type=kind)
    trainer.add_argument("--seeds", type=int, default=64)
    trainer.add_argument("--cells", type=Path, required=True)
    trainer.add_argument("--share", default="0/1", help="which part of the work: 0/2 is the first of two")
    options = parser.parse_args()
    torch.set_num_threads(1)
    train_cells(options)


def columns() -> list[str]:
    """Every method at published weights, then every one that has a soft term at matched weights."""
    return [*METHODS, *(f"matched:{name}" for name in METHODS if name not in ("none", "fixed"))]


def train_cells(options: argparse.Namespace) -> None:
    """Train what is missing in the file of cells, and add it line by line."""
    overrides = {name: getattr(options, name) for name in (*OVERRIDES, *NUMBERS)}
    problem = prepare(load_task(options.task, **overrides))
    options.cells.parent.mkdir(parents=True, exist_ok=True)
    done = {(cell["method"], cell["seed"]) for cell in read_cells(options.cells)}
    stack = default_stack(problem)
    part, parts = map(int, options.share.split("/"))
    work = list(batches(options.seeds, stack))[part::parts]
    memory: dict[int, dict[int, torch.Tensor]] = {}
    for method, seeds in tqdm(work, disable=None):
        missing = [seed for seed in seeds if (method, seed) not in done]
        if not missing:
            continue
        cells = train_batch(problem, method, missing, memory.setdefault(missing[0], {}) if stack == 1 else None)
        with options.cells.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(cell) + "\n" for cell in cells)


def batches(seeds: int, stack: int) -> Iterator[tuple[str, list[int]]]:
    """Methods and seeds that are trained together, seed by seed: a part of the work is then a table of fewer seeds."""
    published = [name for name in columns() if not name.startswith("matched:")]
    matched = [name for name in columns() if name.startswith("matched:")]
    for methods in (published, matched):
        for start in range(0, seeds, stack):
            for method in methods:
                yield method, list(range(start, min(start + stack, seeds)))


def train_batch(
    problem: Problem, method: str, seeds: list[int], memory: dict[int, torch.Tensor] | None
) -> list[dict[str, Any]]:
    """Train a student for every seed and return their cells."""
    started = time.perf_counter()
    alone = memory is not None
    run = Distillation(problem, seeds[0] if alone else seeds, teacher_memory=memory)
    student = train(run, load_method(method))
    seconds = (time.perf_counter() - started) / len(seeds)
    found = {
        part: evaluate(student, problem.dataset, getattr(problem.dataset, part)).reshape(-1).tolist()
        for part in ("test", "validation")
    }
    setting = {
        "task": asdict(problem.task),
        "teacher_accuracy": problem.teacher_accuracy,
        "torch": torch.__version__,
        "machine": processor(),
    }
    return [
        {
            "method": method,
            "seed": seed,
            "test_accuracy": found["test"][i],
            "validation_accuracy": found["validation"][i],
            "seconds": round(seconds, 3),
            **setting,
        }
        for i, seed in enumerate(seeds)
    ]


def read_cells(file: Path) -> list[dict[str, Any]]:
    """The cells of a file; none where there is no file."""
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.is_file() else []


def processor() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
