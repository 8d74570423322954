"""The `compare` command's work: from options to `results.csv`, `report.md`, `report.html` and a table."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rltemp.alternatives import alternatives
from rltemp.arms import Row, table_rows
from rltemp.cells import Cells
from rltemp.compare import Comparison, OnProgress, check_rules, compare
from rltemp.console import Bar, say, show, show_next
from rltemp.distill import Problem
from rltemp.hparams import write_sessions
from rltemp.html_report import SHOWN, write_page
from rltemp.loading import is_policy
from rltemp.names import lookup
from rltemp.options import command_line, configuration
from rltemp.picture import picture
from rltemp.report import console_table, write_csv, write_report
from rltemp.showcase import Showcase
from rltemp.stats import Paired

if TYPE_CHECKING:
    from rltemp.commands import Compare


def run_comparison(options: Compare) -> dict[str, Any]:
    """Check everything, train every student, write the files, return the result."""
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    check_rules(options.rules, seeds)
    check_baselines(options.baselines(), options.rules)
    problem = options.problem()
    options.open()
    started = time.monotonic()
    with Bar("compare") as bar:
        found = compare(
            problem,
            options.rules,
            seeds,
            selection_seeds=options.selection_seeds,
            stack=options.stack,
            on_progress=reporter(bar),
            cells=(cells := open_cells(options, bar)),
            shown=shown(options, options.rules, filter(is_policy, options.rules)),
        )
    say_found(cells)
    return options.finish(write_comparison(options, problem, found, seeds), started)


def shown(options: Compare, rules: Iterable[str], first: Iterable[str]) -> list[str]:
    """The rules whose students the page shows: baselines, then these `first`, then the others."""
    return list(dict.fromkeys([*options.baselines(), *first, *rules]))[: SHOWN if options.html else 0]


def open_cells(options: Compare, bar: Bar) -> Cells:
    """Where the run's cells are kept; see `Cells`."""
    folder = options.folder() / "cells"
    if options.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    return Cells(folder, allow_mixed=options.allow_mixed, warn=bar.phase)


def say_found(cells: Cells) -> None:
    """Say how much an earlier process had done."""
    if cells.found:
        say(f"{cells.found} of {cells.found + cells.trained} cells were there; {cells.trained} were trained now.")


def write_comparison(
    options: Compare, problem: Problem, found: Comparison, seeds: Sequence[int], verdict: Sequence[str] = ()
) -> dict[str, Any]:
    """Write `results.csv`, `picture.png`, `report.md`, `report.html` and TensorBoard's sessions, and return the result.

    Args:
        options: Of the command; its baselines, as they were written.
        problem: The task, loaded.
        found: What was compared.
        seeds: Of the students.
        verdict: What follows from the numbers, a line each.
    """
    out, task = options.folder(), problem.task
    against = list(dict.fromkeys(found.names.get(name, name) for name in options.baselines()))
    rows = table_rows(found.arms, against, options.allow_mixed)
    title = f"{task.name}: {task.teacher} teaches {task.student}"
    write_csv(out / "results.csv", task.name, task.teacher, task.student, found.arms, seeds)
    picture(out / "picture.png", found.arms, against[0], found.trace, title, options.allow_mixed)
    write_report(
        out,
        rows,
        title=title,
        task=task.name,
        teacher=task.teacher,
        teacher_accuracy=problem.teacher_accuracy,
        student=task.student,
        command=command_line(options),
        verdict=verdict,
    )
    if options.html:
        showcases = {rule: one for rule, path in found.showcases.items() if (one := Showcase.read(path))}
        write_page(
            out / "report.html",
            rows,
            showcases,
            title=title,
            task=task,
            teacher_accuracy=problem.teacher_accuracy,
            configuration=configuration(options),
            command=command_line(options),
            verdict=verdict,
        )
    write_sessions(out / "tensorboard", rows, against[0], task, len(seeds))
    result = _result(problem, rows, seeds) | {"files": found.files}
    return result | ({"verdict": list(verdict)} if verdict else {})


def show_comparison(result: Mapping[str, Any], out: Path) -> None:
    """Print a result's table, where its files are and what to type next."""
    task = result["task"]
    title = f"{task['name']}: {len(result['seeds'])} students {task['student']} a rule"
    show(console_table(_rows(result), title))
    for line in result.get("verdict", ()):
        say(line)
    say(f"The teacher has {100 * result['teacher_accuracy']:.2f} % test accuracy.")
    page = f" Open {out / 'report.html'} in a browser." if (out / "report.html").exists() else ""
    say(f"Read {out / 'report.md'}, look at {out / 'picture.png'}.{page}")
    show_next(out)


def check_baselines(names: Sequence[str], rules: Sequence[str]) -> None:
    """Refuse a baseline that is no rule of the comparison, as written there."""
    for name in names:
        if name not in rules:
            lookup(dict.fromkeys(rules), name, "baseline")
        if len(alternatives(name)) > 1:
            say(f"Differences are taken to what is chosen from {name}.")


def reporter(bar: Bar) -> OnProgress:
    """Moves the bar, and says a line when another rule's turn begins."""
    current = [""]

    def on_progress(rule: str, step: int, steps: int) -> None:
        if rule != current[0]:
            current[0] = rule
            bar.phase(f"Training under {rule}.")
        bar(step, steps)

    return on_progress


def _result(problem: Problem, rows: Sequence[Row], seeds: Sequence[int]) -> dict[str, Any]:
    arms = [
        {
            "rule": row.rule,
            "accuracy_percent": row.accuracy,
            "standard_error_percent": row.error,
            "n": row.n,
            "differences_points": {name: asdict(pair) for name, pair in row.differences.items()},
            "note": row.note,
        }
        for row in rows
    ]
    return {
        "task": asdict(problem.task),
        "teacher_accuracy": problem.teacher_accuracy,
        "seeds": list(seeds),
        "arms": arms,
    }


def _rows(result: Mapping[str, Any]) -> list[Row]:
    """The rows of a result that was written and read back."""
    return [
        Row(
            arm["rule"],
            arm["accuracy_percent"],
            _number(arm["standard_error_percent"]),
            {name: stored_pair(pair) for name, pair in arm["differences_points"].items()},
            arm.get("n", len(result["seeds"])),
            arm["note"],
        )
        for arm in result["arms"]
    ]


def stored_pair(pair: Mapping[str, Any]) -> Paired:
    """A difference as a result holds it; JSON has null for the bounds of a single pair and for a refused one."""
    return Paired(_number(pair["mean"]), _number(pair["low"]), _number(pair["high"]), pair["n"])


def _number(value: float | None) -> float:
    """JSON has no nan; a run's files hold null for it."""
    return math.nan if value is None else value
