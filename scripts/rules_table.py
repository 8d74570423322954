"""Every method on a task, at published weights and at matched ones: trains what is missing, then writes the table.

    python scripts/rules_table.py train --task digits --label digits --seeds 64 --cells docs/rules/digits.jsonl
    python scripts/rules_table.py write docs/rules.md docs/rules/digits.jsonl docs/rules/cifar100.jsonl \
        docs/results/tokens.jsonl

A result is one method and one seed: a line of the file that `--cells` names, whose first line is the setting. It is not
trained again, so the same command goes on where it stopped. Processes that share the work have `--methods` and files of
their own: `write` takes all files of one label together. Students of one seed share initial weights, batches and
augmentation.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from rltemp.data.characters import STRETCHES, WINDOWS_IN_A_STRETCH
from rltemp.data.problem import Problem, evaluate
from rltemp.data.tasks import load_task
from rltemp.errors import BadInputError
from rltemp.experiments.statistics import mean_and_error, paired_difference, points
from rltemp.experiments.students import step_of
from rltemp.io.files import atomic_write, json_lines
from rltemp.io.versions import processor
from rltemp.loading import load_method
from rltemp.report.tables import markdown, with_error
from rltemp.rules.catalogue import mark
from rltemp.rules.published_methods import METHODS
from rltemp.training.distill import Distillation
from rltemp.training.preparation import prepare
from rltemp.training.steps import Step, train

FIELDS: dict[str, type] = {
    **dict.fromkeys(("teacher", "student", "teacher_weights"), str),
    **dict.fromkeys(("epochs", "batch_size", "teacher_epochs"), int),
    **dict.fromkeys(("learning_rate", "weight_decay"), float),
}
"""Of a task, which options change."""
PLAIN, DTKD = "fixed", "dtkd"
TOKENS, PLAIN_THERE = "tokens.jsonl", "fixed:temperature=4,divergence=kl"
"""The study on tokens, and what plain KD is called in it."""
MATCHED = "matched:"
VARIANTS = (
    "idts:divergence=kl",
    "entropy:sure=6,unsure=2",
    "entropy_gate:lowest=0,highest=0.2",
    *(f"{name}:start=1,end=8" for name in ("linear_schedule", "cosine_schedule", "step_schedule")),
    *(f"{PLAIN}:divergence={name}" for name in ("reverse_kl", "todi", "veto", "multi")),
)
"""Methods with options of another sign or divergence."""
NAMES = [*METHODS, *VARIANTS]
COLUMNS = [*NAMES, *(f"{MATCHED}{name}" for name in NAMES if name not in ("none", PLAIN))]
"""All at published weights, then every one that has a soft term at matched weights."""
Results = list[dict[str, Any]]
Accuracies = dict[str, dict[int, float]]
"""In percent, by method and seed."""
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
constants (`rltemp methods`); none was tuned on these tasks. *Inferred* is a formula of whose paper only an abstract was
read.

The accuracy of every student is in `docs/rules/`. These commands trained the students and wrote this page (do not edit
it). A command that is repeated goes on where it stopped:

    python scripts/rules_table.py train --task digits --label digits --seeds 64 --cells docs/rules/digits.jsonl
    rltemp train-teacher --task imagefolder:PATH --teacher resnet20 --teacher-epochs 14 --threads 2 --out runs/teacher
    python scripts/rules_table.py train --task imagefolder:PATH --label cifar100 --teacher resnet20 --teacher-weights \\
        docs/rules/cifar100-teacher.safetensors --student resnet8 --epochs 2 --batch-size 64 --learning-rate 0.05 \\
        --seeds 3 --cells docs/rules/cifar100.jsonl
    python scripts/rules_table.py write docs/rules.md docs/rules/digits.jsonl docs/rules/cifar100.jsonl \\
        docs/results/tokens.jsonl

PATH is CIFAR-100 as a folder of images. 5 % of its training images are probe data and 5 % are validation data. Its
students train for two epochs only, so methods that learn fast lead that table. The newest methods were not trained on
it: a student took 139 seconds (median of the 120; 99 to 1030, beside other work), so a method at both weights takes
about a quarter of an hour. Characters are those of the [study on tokens](results/tokens.md), which trains them and has
their losses, too: a sample is a token there, T = 1 is the better reference, and `fixed` is T = 4.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, by default the process's own, and do it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    trainer = commands.add_parser("train", help="train the students that are missing")
    trainer.add_argument("--task", default="digits")
    trainer.add_argument("--label", default="digits", help="what the table calls the task")
    for name, kind in FIELDS.items():
        trainer.add_argument(f"--{name.replace('_', '-')}", type=kind)
    trainer.add_argument("--seeds", type=int, default=64)
    trainer.add_argument("--methods", nargs="+", default=COLUMNS, help="by default all")
    trainer.add_argument("--compile", default="auto", choices=["auto", "always", "never"], help="training steps")
    trainer.add_argument("--cells", type=Path, required=True)
    writer = commands.add_parser("write", help="write the table")
    writer.add_argument("out", type=Path)
    writer.add_argument("files", type=Path, nargs="+")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if options.command == "train":
        train_missing(options)
    else:
        atomic_write(options.out, page(options.files).encode())


def train_missing(options: argparse.Namespace) -> None:
    """Train what is missing in the file of results, and add it line by line."""
    problem = prepare(load_task(options.task, **{name: getattr(options, name) for name in FIELDS}))
    setting, file = describe(problem, options.label), options.cells
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(setting) + "\n", "utf-8")
    known, results = read(file)
    if {**known, "processor": setting["processor"]} != setting:
        raise BadInputError(f"{file} holds results of another setting, {known}; this one is {setting}")
    elsewhere = {} if known == setting else {"processor": setting["processor"]}
    done = {(one["method"], one["seed"]) for one in results}
    stack = problem.stack_size
    step = step_of(problem, options.compile, stack, options.seeds)
    memory: dict[int, dict[int, torch.Tensor]] = {}  # the teacher's logits, by seed
    for first in track(range(0, options.seeds, stack)):  # what is stopped half-way is a table of half the seeds
        for method in options.methods:
            seeds = range(first, min(first + stack, options.seeds))
            if missing := [seed for seed in seeds if (method, seed) not in done]:
                shared = memory.setdefault(missing[0], {}) if stack == 1 else None
                found = train_stack(problem, method, missing, shared, step)
                with file.open("a", encoding="utf-8") as lines:
                    lines.writelines(json.dumps(one | elsewhere) + "\n" for one in found)


def train_stack(
    problem: Problem, method: str, seeds: list[int], memory: dict[int, torch.Tensor] | None, step: Step
) -> Results:
    """Train a student for every seed, one alone where there is a memory for its teacher, and return their results."""
    started = time.perf_counter()
    run = Distillation(problem, seeds if memory is None else seeds[0], teacher_memory=memory)
    student = train(run, load_method(method), step=step)
    seconds = round((time.perf_counter() - started) / len(seeds), 3)
    test, validation = (
        [round(value, 6) for value in evaluate(student, problem, split).reshape(-1).tolist()]
        for split in (problem.dataset.test, problem.dataset.validation)
    )
    return [
        {"method": method, "seed": seed, "test": test[i], "validation": validation[i], "seconds": seconds}
        for i, seed in enumerate(seeds)
    ]


def describe(problem: Problem, label: str) -> dict[str, Any]:
    """What a result depends on beside its method and seed; no path is in it."""
    task = problem.task
    return {
        "label": label,
        "teacher": task.teacher,
        "teacher_accuracy": round(problem.teacher_accuracy, 6),
        "student": task.student,
        "recipe": task.described()["recipe"],
        "split_seed": task.split_seed,
        "samples": {name: len(getattr(problem.dataset, name)) for name in ("train", "validation", "test")},
        "torch": torch.__version__,
        "processor": processor(),
    }


def read(file: Path) -> tuple[dict[str, Any], Results]:
    """The setting and the results of a file."""
    if not file.is_file():
        raise BadInputError(f"no such file of results: {file}")
    setting, *results = json_lines(file)
    return setting, results


def of_characters(file: Path) -> tuple[dict[str, Any], Results]:
    """What scripts/token_study.py has of characters under the task's own teacher, as a file of this script has it."""
    found = json_lines(file)
    task = load_task("characters", epochs=found[0]["epochs"])
    cell = ("characters", task.teacher_recipe.epochs, task.recipe.epochs)
    own = [one for one in found if (one["text"], one["teacher_epochs"], one["epochs"]) == cell]
    setting = {
        **{"label": "characters", "teacher": task.teacher, "student": task.student},
        **{"recipe": task.described()["recipe"], "teacher_accuracy": own[0]["teacher_accuracy"] / 100},
        **{"samples": {"train": own[0]["samples"], "test": STRETCHES[-1] * WINDOWS_IN_A_STRETCH}},
        **{"torch": own[0]["torch"], "processor": own[0]["machine"]},
    }
    return setting, [
        {"method": PLAIN if one["rule"] == PLAIN_THERE else one["rule"], "seed": seed, "test": accuracy / 100}
        for one in own
        for seed, accuracy in enumerate(one["accuracy"])
    ]


def page(files: list[Path]) -> str:
    """The page: a table for each label among the files."""
    by_label: dict[str, tuple[dict[str, Any], Results]] = {}
    for file in files:
        setting, results = (of_characters if file.name == TOKENS else read)(file)
        by_label.setdefault(setting["label"], (setting, []))[1].extend(results)
    return "\n".join([HEAD, *(section(*one) for one in by_label.values())])


def section(setting: dict[str, Any], results: Results) -> str:
    """One task's setting and table."""
    accuracies: Accuracies = {}
    for one in results:
        accuracies.setdefault(one["method"], {})[one["seed"]] = 100 * one["test"]
    recipe, samples = setting["recipe"], setting["samples"]
    processors = dict.fromkeys(one.get("processor", setting["processor"]) for one in results)
    about = (
        f"## {setting['label']}\n\nTeacher {setting['teacher']} ({100 * setting['teacher_accuracy']:.2f} %), student "
        f"{setting['student']}, n seeds a method; {recipe['epochs']} epochs, batch {recipe['batch_size']}, learning "
        f"rate {recipe['learning_rate']:g} ({recipe['schedule']}), weight decay {recipe['weight_decay']:g}; "
        f"{samples['train']} training and {samples['test']} test samples. {' and '.join(processors)}, one thread, "
        f"torch {setting['torch']}.\n\n"
    )
    head = ["method", "n", "published", "- KD", "- DTKD", "n", "matched", "- KD", "- DTKD"]
    names = dict.fromkeys([*NAMES, *(name.removeprefix(MATCHED) for name in accuracies)])
    there = [name for name in names if name in accuracies or MATCHED + name in accuracies]
    return about + markdown(head, [table_row(name, accuracies) for name in there])


def table_row(name: str, accuracies: Accuracies) -> list[str]:
    """One method's line; plain KD is its own match."""
    line = [name + mark(name)]
    for method, dtkd in ((name, DTKD), (PLAIN if name == PLAIN else MATCHED + name, MATCHED + DTKD)):
        students = [*accuracies.get(method, {}).values()]
        line += [str(len(students)), with_error(*mean_and_error(students))] if students else ["", ""]
        line += [difference(accuracies, method, base) for base in (PLAIN, dtkd)]
    return line


def difference(accuracies: Accuracies, method: str, base: str) -> str:
    """Paired difference over the seeds that both have."""
    ours, theirs = accuracies.get(method, {}), accuracies.get(base, {})
    seeds = sorted(ours.keys() & theirs.keys())
    if method == base or not seeds:
        return ""
    return points(paired_difference([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds]))


if __name__ == "__main__":
    main()
