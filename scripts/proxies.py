"""Which small tasks stand for which large ones? Ranks every method on families of tasks and compares the rankings.

    python scripts/proxies.py train --cells docs/results/proxies.jsonl
    python scripts/proxies.py write docs/results/proxies.md docs/results/proxies.jsonl docs/rules/cifar100.jsonl

On each family some tasks are drawn, and students train on each by every method, at published and at matched weights.
The mean of a method's standardised scores over the tasks ranks it. A result is one family, task and method: a line of
the file that `--cells` names, which is not trained again.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from scipy.stats import spearmanr

from rltemp.agents.selection import potentials
from rltemp.envs.variety import Assignment, Variety
from rltemp.io.files import add_json_line, atomic_write, json_lines
from rltemp.io.versions import processor
from rltemp.loading import load_method
from rltemp.report.tables import markdown
from rltemp.rules.published_methods import METHODS
from rltemp.training.steps import train

FAMILIES = (
    "formula:2",
    "formula:5",
    "formula:20",
    "digits",
    "mnist",
    "glyphs:20",
    "glyphs:60",
    "text:60",
    "keel:segment",
)
RULES = [name for name in METHODS if name != "mkd"]
COLUMNS = [*RULES, *(f"matched:{name}" for name in RULES if name not in ("none", "fixed"))]
"""Methods at published weights, then those that have a soft term at matched weights.

`mkd` is left out: it needs probe data, which drawn tasks do not have.
"""
Ranking = dict[str, float]
"""By method; more is better."""
HEAD = """# Which small tasks stand for which?

Every method, at published and at matched weights, is ranked on each family by the mean of its standardised scores over
{tasks} drawn tasks with {students} students each. The numbers are Spearman's rank correlations of these rankings over
{methods} methods: with that on CIFAR-100 (`docs/rules/cifar100.jsonl`), and among the families. 1 is the same order,
0 none in common. Machine: {machine}, torch {torch}.

    python scripts/proxies.py train --cells docs/results/proxies.jsonl
    python scripts/proxies.py write docs/results/proxies.md docs/results/proxies.jsonl docs/rules/cifar100.jsonl

"""


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, by default the process's own, and do it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    trainer = commands.add_parser("train", help="train the students that are missing")
    trainer.add_argument("--families", nargs="+", default=list(FAMILIES))
    trainer.add_argument("--methods", nargs="+", default=COLUMNS)
    trainer.add_argument("--tasks", type=int, default=4, help="drawn on each family")
    trainer.add_argument("--students", type=int, default=16, help="on each task, of a data set and a teacher each")
    trainer.add_argument("--cells", type=Path, required=True)
    writer = commands.add_parser("write", help="write the table")
    writer.add_argument("out", type=Path)
    writer.add_argument("cells", type=Path)
    writer.add_argument("large", type=Path, help="results of scripts/rules_table.py on CIFAR-100")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if options.command == "train":
        train_missing(options)
    else:
        atomic_write(options.out, page(json_lines(options.cells), json_lines(options.large)).encode())


def train_missing(options: argparse.Namespace) -> None:
    """Train what is missing in the file of results, and add it line by line."""
    done = json_lines(options.cells)
    known = {(one["family"], one["task"], one["method"]) for one in done}
    for family in options.families:
        missing = [
            (task, method)
            for task in range(options.tasks)
            for method in options.methods
            if (family, task, method) not in known
        ]
        if not missing:
            continue
        variety = Variety((family,), seed=7)
        tasks = [variety.draw(np.random.default_rng((7, task)), options.students) for task in range(options.tasks)]
        for task, method in track(missing, family):
            line = {"family": family, "task": task, "method": method, "score": score(tasks[task], method)}
            line |= {"students": options.students, "torch": torch.__version__, "machine": processor()}
            add_json_line(options.cells, line)


def score(given: Assignment, method: str) -> float:
    """The mean potential of the students of a task after their run by a method."""
    stack = train(given.run(list(range(len(given.train)))), load_method(method)).eval()
    with torch.no_grad():
        logits = stack(given.problem.dataset.batch(given.pool, given.probe).inputs)
    return float(potentials(given.problem, logits, given.pool.known_labels[given.probe]).mean())


def page(small: list[dict[str, Any]], large: list[dict[str, Any]]) -> str:
    """The table as Markdown: the families' correlations, the closest to CIFAR-100 first."""
    rankings = {family: ranking(small, family) for family in dict.fromkeys(one["family"] for one in small)}
    target = defaultdict(list)
    for one in large:
        if "method" in one:
            target[one["method"]].append(one["test"])
    cifar100 = {method: float(np.mean(values)) for method, values in target.items()}
    methods = sorted(set.intersection(set(cifar100), *(set(found) for found in rankings.values())))
    near = {family: correlation(found, cifar100, methods) for family, found in rankings.items()}
    order = sorted(near, key=lambda family: -near[family])
    lines = [
        [family, f"{near[family]:.2f}", *(f"{correlation(rankings[family], rankings[o], methods):.2f}" for o in order)]
        for family in order
    ]
    start = HEAD.format(
        tasks=1 + max(one["task"] for one in small),
        students=small[0]["students"],
        methods=len(methods),
        machine=" and ".join(sorted({one["machine"] for one in small})),
        torch=small[0]["torch"],
    )
    return start + markdown(["family", "CIFAR-100", *order], lines)


def ranking(results: list[dict[str, Any]], family: str) -> Ranking:
    """The mean over a family's tasks of each method's score, standardised within the task."""
    found = defaultdict[str, list[float]](list)
    for task in {one["task"] for one in results if one["family"] == family}:
        scores = {one["method"]: one["score"] for one in results if (one["family"], one["task"]) == (family, task)}
        values = np.array([*scores.values()])
        for method, value in scores.items():
            found[method].append(float((value - values.mean()) / max(values.std(), 1e-9)))
    return {method: float(np.mean(values)) for method, values in found.items()}


def correlation(one: Ranking, other: Ranking, methods: Sequence[str]) -> float:
    """Spearman's rank correlation of two rankings."""
    return float(spearmanr([one[method] for method in methods], [other[method] for method in methods]).statistic)


if __name__ == "__main__":
    main()
