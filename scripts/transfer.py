r"""Does a policy serve tasks of families that it never saw, and at other learning rates than the best?

    python scripts/transfer.py train --rules universal --cells docs/results/transfer.jsonl
    python scripts/transfer.py write docs/results/transfer.md docs/results/transfer.jsonl

For each task the learning rate is found at which plain distillation (T = 4) validates best. Students then train by
every rule at a third of it, at it, and at three times it. A result is one task, factor and rule: a line of the file
that `--cells` names, which is not trained again. Students of one seed share all but the rule. Small data are split in
several ways, each with a teacher of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from rltemp.compiling.mode import CompileMode, step_for
from rltemp.data.problem import Problem
from rltemp.data.task import Task
from rltemp.data.tasks import load_task
from rltemp.envs.small_sources import load_source
from rltemp.experiments.statistics import Paired, paired_difference, points
from rltemp.experiments.students import chunks, train_method
from rltemp.io.files import add_json_line, atomic_write, json_lines
from rltemp.io.versions import processor
from rltemp.report.tables import markdown
from rltemp.rules.published_methods import METHODS
from rltemp.training.preparation import prepare


def of_sklearn(name: str, split: int, **changes: Any) -> Task:
    """A built-in task in one of its splits."""
    return load_task(name, split_seed=split, **changes)


def of_keel(name: str, split: int, student: str = "mlp:16", **changes: Any) -> Task:
    """A table of KEEL that no policy was trained or selected on."""
    data = load_source(f"keel:{name}", np.random.default_rng(0))
    options = {"epochs": 20, "teacher_epochs": 40, **changes}
    return Task.of(student=student, teacher="mlp:128", train=data, name=name, split_seed=split, **options)


TASKS: dict[str, tuple[Callable[[int], Task], int]] = {
    "wine": (partial(of_sklearn, "wine"), 16),
    "iris": (partial(of_sklearn, "iris"), 16),
    "breast_cancer": (partial(of_sklearn, "breast_cancer"), 8),
    "tae": (partial(of_keel, "tae", epochs=60), 16),
    "sonar": (partial(of_keel, "sonar", epochs=40), 8),
    "hayes-roth": (partial(of_keel, "hayes-roth", epochs=40), 16),
    "mammographic": (partial(of_keel, "mammographic"), 8),
    "texture, mlp:8": (partial(of_keel, "texture", student="mlp:8", epochs=5), 2),
    "marketing": (partial(of_keel, "marketing", epochs=5), 2),
    "saheart": (partial(of_keel, "saheart", epochs=40), 8),
    "monk-2": (partial(of_keel, "monk-2", epochs=60), 8),
    "magic": (partial(of_keel, "magic", epochs=5), 2),
    "ring, mlp:8": (partial(of_keel, "ring", student="mlp:8", epochs=5), 2),
    "chess, mlp:8x8": (partial(of_keel, "chess", student="mlp:8x8", epochs=10), 2),
    "australian": (partial(of_keel, "australian", epochs=40), 8),
    "banana, mlp:8": (partial(of_keel, "banana", student="mlp:8", epochs=10), 4),
    "bands": (partial(of_keel, "bands", epochs=60), 8),
    "bupa": (partial(of_keel, "bupa", epochs=60), 16),
    "twonorm": (partial(of_keel, "twonorm", epochs=5), 2),
    "synthetic:classes=20": (partial(of_sklearn, "synthetic:classes=20"), 4),
    "digits, cnn:8x16": (partial(of_sklearn, "digits", student="cnn:8x16"), 1),
    "characters": (partial(of_sklearn, "characters"), 1),
}
"""By name: how the task of a split is made, and in how many splits it is tried."""
WIDTHS, LONGER = (32, 128), (1, 4)
"""Of the students and of the runs that show how a policy scales: the first as in training, the second four times it."""
SIZES = {
    (name, width, longer): (partial(of_keel, name, student=f"mlp:{width}", epochs=epochs * longer), 2)
    for name, epochs in {"texture": 10, "ring": 8, "marketing": 6}.items()
    for width in WIDTHS
    for longer in LONGER
}
"""Tasks of some 600 steps, the longest in training, with the widest students there, and four times as large."""
TASKS |= {f"{name}, mlp:{width}, length x {longer}": made for (name, width, longer), made in SIZES.items()}
LOOKED_AT = [
    *["wine", "iris", "breast_cancer", "tae", "sonar", "hayes-roth", "mammographic", "marketing", "saheart", "monk-2"],
    *["magic", "texture, mlp:8", "ring, mlp:8", "chess, mlp:8x8", "synthetic:classes=20"],
]
"""Tasks on which earlier policies were reported. Nobody saw results of the others before the policy was final."""
RATES = 0.0017, 0.005, 0.015, 0.05, 0.15, 0.5
FACTORS = 1 / 3, 1.0, 3.0
PLAIN, NOBODY = "fixed:4", "none"
TUNED, TEMPERATURES = "fixed, tuned", ("fixed:1", "fixed:2", PLAIN, "fixed:8")
"""In every cell the one of these temperatures whose students validate best."""
HARM = {"points": 0.5, "nats": 0.01}
"""By how much a rule may be below no teacher or plain distillation."""
Score = NDArray[np.float64]
"""One value a student: accuracy in points, or minus the loss in nats."""
HEAD = """# Tasks of families that the shipped policy never saw

{n} students for each task, factor and rule. The learning rate is the one at which plain distillation (T = 4) validates
best, times a third, one and three. Accuracy is in points; of `characters` minus the loss in nats. Differences are
paired by student, with 95 % intervals (BCa bootstrap). A cell is *harm* where the policy is below no teacher or plain
distillation by more than 0.5 points (0.01 nats). *Faded* are the samples, in percent, that the policy left to its
reference because they were outside what it had seen. Machine: {machine}, torch {torch}.

    python scripts/transfer.py train --rules {policies} --cells docs/results/transfer.jsonl
    python scripts/transfer.py write docs/results/transfer.md docs/results/transfer.jsonl

"""
FRESH = """## On tasks whose results nobody had seen

Every rule that these tasks have: {tasks}.

"""
SCALE = """## At four times the width and length

{policy} on {tasks}, at the rate at which plain distillation validates best. In training the widest hidden layer had 32
units and the longest run 600 steps, as in the first line.

"""


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, by default the process's own, and do it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    trainer = commands.add_parser("train", help="train the students that are missing")
    trainer.add_argument("--rules", nargs="+", default=["universal"], help="policies, first the one that is judged")
    trainer.add_argument("--against", nargs="*", default=list(METHODS), help="by default every method")
    trainer.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    trainer.add_argument("--factors", nargs="+", type=float, default=list(FACTORS), help="of the learning rate")
    trainer.add_argument("--seeds", type=int, default=64)
    trainer.add_argument("--first-seed", type=int, default=2000)
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
    known = {(one["task"], one["factor"], one["rule"]) for one in done}
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    rules = dict.fromkeys([*options.rules, NOBODY, PLAIN, *options.against])
    for name in options.tasks:
        missing = [(factor, rule) for factor in options.factors for rule in rules if (name, factor, rule) not in known]
        if not missing:
            continue
        make, splits = TASKS[name]
        problems = [prepare(make(split)) for split in range(min(splits, options.seeds))]
        found = next((one["rate"] / one["factor"] for one in done if one["task"] == name), None)
        rate = found or best_rate(problems, seeds, options.compile)
        for factor, rule in track(missing, name):
            scores = train_students(at_rate(problems, factor * rate), rule, seeds, options.compile)
            line = {"task": name, "factor": factor, "rate": factor * rate, "rule": rule, **scores}
            line |= {"torch": torch.__version__, "machine": processor()}
            add_json_line(options.cells, line)


def best_rate(problems: Sequence[Problem], seeds: range, mode: CompileMode) -> float:
    """The learning rate at which plain distillation validates best, from a third of the students."""
    some = seeds[: max(len(problems), len(seeds) // 3)]
    found = [train_students(at_rate(problems, rate), PLAIN, some, mode)["validation"] for rate in RATES]
    return RATES[int(np.argmax([np.mean(values) for values in found]))]


def at_rate(problems: Sequence[Problem], rate: float) -> list[Problem]:
    """The same with students that train at this learning rate."""
    recipes = [problem.task.recipe.changed(learning_rate=rate) for problem in problems]
    tasks = [replace(problem.task, recipe=recipe) for problem, recipe in zip(problems, recipes, strict=True)]
    return [replace(problem, task=task) for problem, task in zip(problems, tasks, strict=True)]


def train_students(problems: Sequence[Problem], rule: str, seeds: range, mode: CompileMode) -> dict[str, Any]:
    """Train a student for every seed by a rule, on one split after another; scores as `Score` has them."""
    parts, scores = chunks(seeds, -(-len(seeds) // len(problems))), dict[str, list[float]]()
    faded = list[float]()
    for problem, own in zip(problems, parts, strict=False):
        each = [own] if isinstance(own, int) else own
        stack = min(len(each), problem.stack_size)
        result = train_method(problem, rule, each, stack, step=step_for(mode, problem.device))
        faded.append(result.guarded)
        for split in ("test", "validation"):
            accuracy = 100 * getattr(result, f"{split}_accuracy")
            values = -result.measures[f"{split}_loss"] if problem.tokens else accuracy
            scores.setdefault(split, []).extend(round(float(value), 5) for value in values)
    told = {"unit": "nats" if problems[0].tokens else "points", "splits": len(problems)}
    return {**scores, **told, "guarded": round(float(np.mean(faded)), 4)}


def page(results: list[dict[str, Any]]) -> str:
    """The tables as Markdown: harm cell by cell, and the rules that every cell has, the best first."""
    found = {((one["task"], one["factor"]), one["rule"]): np.nan_to_num(np.array(one["test"])) for one in results}
    found |= tuned(results, found)
    units = {(one["task"], one["factor"]): one["unit"] for one in results}
    rules = list(dict.fromkeys(rule for _, rule in found))
    policy = "universal" if "universal" in rules else rules[0]
    start = HEAD.format(
        n=" or ".join(str(count) for count in sorted({len(one["test"]) for one in results}, reverse=True)),
        machine=" and ".join(sorted({one["machine"] for one in results})),
        torch=results[0]["torch"],
        policies=" ".join(rule for rule in rules if "universal" in rule or rule.endswith(".safetensors")),
    )
    faded = {(one["task"], one["factor"]): one.get("guarded", 0.0) for one in results if one["rule"] == policy}
    as_trained = {cell: unit for cell, unit in units.items() if "length x" not in cell[0]}
    parts = [harm(found, as_trained, faded, policy), ranking(found, [*as_trained], rules, policy)]
    fresh = [cell for cell in as_trained if cell[0] not in LOOKED_AT]
    if fresh:
        tasks = ", ".join(dict.fromkeys(task for task, _ in fresh))
        parts.append(FRESH.format(tasks=tasks) + ranking(found, fresh, rules, policy))
    return start + "\n".join(part for part in (*parts, scale(found, rules, policy)) if part)


Cell = tuple[str, float]
Found = dict[tuple[Cell, str], Score]


def tuned(results: list[dict[str, Any]], found: Found) -> Found:
    """The students of the fixed temperature that validates best in a cell, where every one was tried."""
    valid = {((one["task"], one["factor"]), one["rule"]): np.nanmean(one["validation"]) for one in results}
    whole = [
        cell for cell in dict.fromkeys(cell for cell, _ in valid) if all((cell, one) in valid for one in TEMPERATURES)
    ]
    best = {cell: max(TEMPERATURES, key=lambda rule: valid[cell, rule]) for cell in whole}
    return {(cell, TUNED): found[cell, rule] for cell, rule in best.items()}


def scale(found: Found, rules: list[str], policy: str) -> str:
    """The policy's lead, by how wide the students are and how long they train."""
    cells = [cell for cell in dict.fromkeys(cell for cell, _ in found) if "length x" in cell[0]]
    whole = [rule for rule in rules if cells and all((cell, rule) in found for cell in cells)]
    if policy not in whole:
        return ""
    others, lines = [rule for rule in whole if rule != policy], []
    for width, longer in product(WIDTHS, LONGER):
        some = [cell for cell in cells if cell[0].endswith(f"mlp:{width}, length x {longer}")]
        leads = (points(difference(found, some, policy, rule)) for rule in others)
        lines.append([f"mlp:{width}", f"x {longer}", *leads])
    tasks = ", ".join(dict.fromkeys(task.partition(",")[0] for task, _ in cells))
    return SCALE.format(policy=policy, tasks=tasks) + markdown(
        ["student", "length", *(f"minus {rule}" for rule in others)], lines
    )


def harm(found: Found, units: dict[Cell, str], faded: dict[Cell, float], policy: str) -> str:
    """The policy against no teacher and plain distillation, cell by cell."""
    lines, harmed = [], 0
    for (task, factor), unit in units.items():
        against = [difference(found, [(task, factor)], policy, other) for other in (NOBODY, PLAIN)]
        bad = min(pair.mean for pair in against) < -HARM[unit]
        harmed += bad
        means = [f"{found[(task, factor), rule].mean():.2f}" for rule in (NOBODY, PLAIN, policy)]
        share = f"{100 * faded.get((task, factor), 0.0):.1f}"
        lines.append([task, f"x {factor:.2g}", *means, *map(points, against), share, "harm" if bad else ""])
    head = ["task", "rate", "no teacher", PLAIN, policy, "minus no teacher", f"minus {PLAIN}", "faded", "verdict"]
    fresh = [line for line in lines if line[0] not in LOOKED_AT]
    said = f"Harm in {harmed} of {len(lines)} cells, in {sum(line[-1] == 'harm' for line in fresh)} of {len(fresh)} of"
    return markdown(head, lines) + f"\n{said} tasks whose results nobody had seen before the policy was final.\n"


def ranking(found: Found, cells: list[Cell], rules: list[str], policy: str) -> str:
    """The mean of every rule over the cells of one unit, points, and the policy's lead on it."""
    cells = [cell for cell in cells if found[cell, PLAIN].mean() > 0]
    whole = [rule for rule in rules if all((cell, rule) in found for cell in cells)]
    means = {rule: float(np.mean([found[cell, rule].mean() for cell in cells])) for rule in whole}
    worst = {rule: min(float((found[cell, rule] - found[cell, NOBODY]).mean()) for cell in cells) for rule in whole}

    def line(rule: str) -> list[str]:
        lead = "-" if rule == policy else points(difference(found, cells, policy, rule))
        return [rule, f"{means[rule]:.2f}", f"{worst[rule]:+.2f}", lead]

    ranked = sorted(whole, key=lambda rule: -means[rule])
    return markdown(["rule", "mean", "worst against no teacher", f"{policy} minus it"], list(map(line, ranked)))


def difference(found: Found, cells: Sequence[Cell], one: str, other: str) -> Paired:
    """The paired difference of two rules, averaged over the cells, student by student."""
    return paired_difference(*(np.mean([found[cell, rule] for cell in cells], 0) for rule in (one, other)))


if __name__ == "__main__":
    main()
