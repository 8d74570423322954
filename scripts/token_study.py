r"""Which temperatures, divergences and rules suit tokens? Every method against tuned T x {forward, reverse KL}.

    python scripts/token_study.py train --cells docs/results/tokens.jsonl
    python scripts/token_study.py write docs/results/tokens.md docs/results/tokens.jsonl

Texts are the help pages of Python, as characters and as byte pairs (needs the library tokenizers). A cell is a text and
a teacher, trained for few epochs or many. A result is one cell and rule: a line of the file that `--cells` names, which
is not trained again, so the same command goes on where it stopped. Students of one seed share all but the rule.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from rltemp.compiling.mode import step_for
from rltemp.data.characters import LENGTH, help_pages
from rltemp.data.problem import Problem
from rltemp.data.task import Task
from rltemp.data.tasks import load_task
from rltemp.experiments.statistics import mean_and_error, paired_difference, points
from rltemp.experiments.students import train_method
from rltemp.io.files import add_json_line, atomic_write, json_lines
from rltemp.io.versions import processor
from rltemp.optional_imports import import_library
from rltemp.report.tables import markdown
from rltemp.rules.catalogue import mark
from rltemp.rules.published_methods import METHODS
from rltemp.training.preparation import prepare

VOCABULARY = 512
"""Byte pairs: the 256 bytes, and as many merges."""


def byte_pairs(**options: Any) -> Task:
    """The help pages as byte pairs that were learned on them: windows of `LENGTH`, each labelled with what follows."""
    library = import_library("tokenizers", "--texts byte_pairs")
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([help_pages()], trainer)
    tokens = torch.tensor(tokenizer.encode(help_pages()).ids)
    windows = tokens[: len(tokens) // (LENGTH + 1) * (LENGTH + 1)].view(-1, LENGTH + 1)
    model = load_task("characters", **options)
    data = (windows[:, :-1].contiguous(), windows[:, 1:].contiguous())
    parts: dict[str, Any] = {"student": model.student, "teacher": model.teacher, "metric": model.metric}
    parts |= {"recipe": model.recipe, "teacher_recipe": model.teacher_recipe}
    return Task.of(**parts, train=data, name="byte_pairs")


def characters(**options: Any) -> Task:
    """The built-in task."""
    return load_task("characters", **options)


TEXTS: dict[str, Callable[..., Task]] = {"characters": characters, "byte_pairs": byte_pairs}
TEACHERS = (10, 3, 1)
"""How many epochs they are trained."""
MATCHED = "matched:"
TUNED = [f"fixed:temperature={t},divergence={name}" for name in ("kl", "reverse_kl") for t in ("0.5", "1", "2", "4")]
"""What is tuned on validation data, and what all else is held against."""
VARIANTS = [
    *(f"fixed:temperature=1,divergence={name}" for name in ("todi", "veto", "multi", "top_k", "jensen_shannon")),
    "entropy:sure=2,unsure=0.5",
    "entropy:sure=0.5,unsure=2",
    "linear_schedule:start=0.5,end=2",
    "linear_schedule:start=2,end=0.5",
    "dtkd:reference=1",
    "lskd:temperature=1",
    "entropy_gate:lowest=0,highest=0.2",
    "mkd:initial=1,minimum=0.25,maximum=4",
    "pesf_kd:temperature=1",
]
"""Divergences at T = 1, and rules around it."""
PUBLISHED = ["none", *TUNED, "universal", *VARIANTS, *(name for name in METHODS if name not in ("none", "fixed"))]
RULES = [*PUBLISHED, *(f"{MATCHED}{name}" for name in PUBLISHED if name not in ("none", "universal"))]
CELL = ("text", "teacher_epochs", "epochs")
"""What one table is about, by the names in the file of results; the last is the students'."""
Cell = tuple[str, int, int]
Result = dict[str, Any]
HEAD = """# Rules and divergences on tokens

Loss on test data in nats a token, mean ± standard error over students, lower is better; accuracy in percent. The
*tuned* row of a table is the one of tuned T x {{forward, reverse KL}} that has the lowest loss on validation data. The
differences to it are paired by student, with 95 % intervals (BCa bootstrap from 8 students up, Student's t below).
Where the whole interval is below 0, a rule is better than tuned plain distillation. Rules that are *matched* have plain
distillation's gradient length and are held against the best of the matched ones. Students are gpt:32x1, AdamW, batches
of 16 windows of 64 tokens; an epoch of characters is 200 steps, one of byte pairs about 90: they are far from done.
Tables have the rules that were trained, best first: the first has all of them. Machine: {machine}, torch {torch}.

    python scripts/token_study.py train --cells docs/results/tokens.jsonl
    python scripts/token_study.py write docs/results/tokens.md docs/results/tokens.jsonl
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, by default the process's own, and do it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    trainer = commands.add_parser("train", help="train the students that are missing")
    trainer.add_argument("--texts", nargs="+", default=list(TEXTS), choices=list(TEXTS))
    trainer.add_argument("--teachers", nargs="+", type=int, default=list(TEACHERS), help="their epochs")
    trainer.add_argument("--rules", nargs="+", default=RULES, help="by default all of the study")
    trainer.add_argument("--epochs", type=int, default=1, help="of the students")
    trainer.add_argument("--seeds", type=int, default=8)
    trainer.add_argument("--compile", default="never", choices=["auto", "always", "never"], help="training steps")
    trainer.add_argument("--cells", type=Path, required=True)
    writer = commands.add_parser("write", help="write the tables")
    writer.add_argument("out", type=Path)
    writer.add_argument("cells", type=Path)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if options.command == "train":
        train_missing(options)
    else:
        atomic_write(options.out, page(json_lines(options.cells)).encode())


def train_missing(options: argparse.Namespace) -> None:
    """Train what is missing in the file of results, and add it line by line."""
    done = json_lines(options.cells)
    known = {(*cell_of(one), one["rule"], len(one["test"])) for one in done}
    for text in options.texts:
        for teacher_epochs in options.teachers:
            cell = (text, teacher_epochs, options.epochs)
            missing = [rule for rule in options.rules if (*cell, rule, options.seeds) not in known]
            if not missing:
                continue
            problem = prepare(TEXTS[text](teacher_epochs=teacher_epochs, epochs=options.epochs))
            for rule in track(missing, in_words(*cell)):
                line = dict(zip(CELL, cell, strict=True)) | {"rule": rule} | measured(problem, rule, options)
                add_json_line(options.cells, line)


def measured(problem: Problem, rule: str, options: argparse.Namespace) -> Result:
    """Losses of every student on test and validation data in nats, accuracies in percent."""
    stack, step = min(options.seeds, problem.stack_size), step_for(options.compile, problem.device)
    found = train_method(problem, rule, range(options.seeds), stack, step=step)
    values = {
        "test": found.measures["negative_log_likelihood"],
        "validation": found.measures["validation_loss"],
        "accuracy": 100 * found.test_accuracy,
    }
    told: Result = {"teacher_accuracy": round(100 * problem.teacher_accuracy, 2), "samples": len(problem.dataset.train)}
    told |= {"torch": torch.__version__, "machine": processor()}
    return {name: [round(float(value), 5) for value in each] for name, each in values.items()} | told


def page(results: list[Result]) -> str:
    """The tables as Markdown, one a cell."""
    parts = {name: " and ".join(sorted({one[name] for one in results})) for name in ("machine", "torch")}
    cells = dict.fromkeys(map(cell_of, results))
    return "\n".join([HEAD.format(**parts), *(section(results, cell) for cell in cells)])


def cell_of(result: Result) -> Cell:
    """The text, the teacher's epochs and the students'."""
    return result["text"], result["teacher_epochs"], result["epochs"]


def in_words(text: str, teacher_epochs: int, epochs: int) -> str:
    """A cell as the heading of its table."""
    of = [f"{count} epoch{'s' if count > 1 else ''}" for count in (teacher_epochs, epochs)]
    return f"{text}, teacher of {of[0]}, students of {of[1]}"


def section(results: list[Result], cell: Cell) -> str:
    """One cell: its setting, and its rules by their loss, the best first."""
    own = {one["rule"]: one for one in results if cell_of(one) == cell}
    first = next(iter(own.values()))
    ranked = sorted(own, key=lambda rule: float(np.mean(own[rule]["test"])))
    bases = {prefix: tuned(own, prefix) for prefix in ("", MATCHED)}
    lines = [row(own, rule, bases[MATCHED if rule.startswith(MATCHED) else ""]) for rule in ranked]
    return (
        f"## {in_words(*cell)}\n\nTeacher's accuracy {first['teacher_accuracy']:.2f} %, {first['samples']} training "
        f"windows. Tuned: "
        f"{' and '.join(f'`{base}`' for base in bases.values() if base)}.\n\n"
        + markdown(["rule", "n", "loss", "minus tuned", "accuracy"], lines)
    )


def tuned(own: dict[str, Result], prefix: str) -> str | None:
    """The one of `TUNED` with the lowest mean validation loss; None where none was trained."""
    there = [prefix + rule for rule in TUNED if prefix + rule in own]
    return min(there, key=lambda rule: float(np.mean(own[rule]["validation"])), default=None)


def row(own: dict[str, Result], rule: str, base: str | None) -> list[str]:
    """One rule's line; the difference is over the students that both have."""
    one, (loss, error) = own[rule], mean_and_error(own[rule]["test"])
    difference = ""
    if base is not None and base != rule:
        ours, theirs = own[rule]["test"], own[base]["test"]
        count = min(len(ours), len(theirs))
        difference = points(paired_difference(ours[:count], theirs[:count]), 3)
    return [
        f"`{rule}`{mark(rule)}",
        str(len(one["test"])),
        f"{loss:.3f} ± {error:.3f}",
        difference,
        f"{np.mean(one['accuracy']):.2f}",
    ]


if __name__ == "__main__":
    main()
