"""`rltemp compare`, `study`, `explain` and `check`: the commands that train many students, and what they print."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rltemp.cli.console import next_command, say, show, show_next
from rltemp.data.problem import Problem
from rltemp.experiments.check import NONE, rows_of, run_check
from rltemp.experiments.compare import OnProgress
from rltemp.experiments.grid import Overall
from rltemp.experiments.measures import LOSS
from rltemp.experiments.method_results import stored_rows
from rltemp.experiments.options import (
    CheckOptions,
    CompareOptions,
    ComparisonOptions,
    ExplainOptions,
    StudyOptions,
)
from rltemp.experiments.result_cache import ResultCache
from rltemp.io.progress import Bar, Progress
from rltemp.io.run_folders import TIMING, read_json, showing
from rltemp.report.comparison import PAGE, run_comparison, run_study
from rltemp.report.explain_page import importance_words, relation_words, run_explanation
from rltemp.report.terminal_tables import console_differences, console_overall, console_table
from rltemp.runs.functions import found


def compare(options: CompareOptions) -> None:
    """`rltemp compare`."""
    _show(options, found(options, run_comparison, _progress))


def study(options: StudyOptions) -> None:
    """`rltemp study`."""
    _show(options, found(options, run_study, _progress))


def explain(options: ExplainOptions) -> None:
    """`rltemp explain`."""
    result, out = found(options, run_explanation, _explain_progress), options.folder()
    with showing(out):
        for line in [*relation_words(result["relations"]), *importance_words(result["importance"])]:
            say(line)
    say(f"Read {out / 'why.md'}, look at {out / 'why.png'}.")
    show_next(out)


def check(options: CheckOptions) -> None:
    """`rltemp check`."""
    result, out = found(options, run_check, _students), options.folder()
    with showing(out):
        rows, task = rows_of(result), result["task"]
        show(console_differences(rows, f"{task['name']}: {result['seeds']} students {task['student']} a rule"))
        say(f"On {result['samples']} validation samples, never on test data; intervals are over students alone.")
        say(f"Verdict: {result['verdict']}")
        following = _after_a_check(options, result["use"], result["seeds_needed"])
    show_next(out, *following)


def _after_a_check(options: CheckOptions, use: str | None, seeds: int | None) -> list[str]:
    """What to type next: the same with more students, or a training under the rule to use."""
    task, out = options.task_words(), options.folder()
    if seeds is not None:
        return [f"rltemp check {task} {shlex.join(['--rule', options.rule, '--seeds', str(seeds), '--out', str(out)])}"]
    return [] if use in (None, NONE) else [next_command("distill", task, out, "--rule", use)]


def _show(options: ComparisonOptions, result: dict[str, Any]) -> None:
    with showing(options.folder()):
        show_comparison(result, options.folder())


def show_comparison(result: Mapping[str, Any], out: Path) -> None:
    """Print the tables of a result, where its files are and what to type next."""
    points, seeds = result.get("points", [result]), len(result["seeds"])
    for point in points:
        task = point["task"]
        title = f"{task['name']}: {seeds} students {task['student']} a rule"
        if "points" in result:
            title = f"{title}, teacher {task['teacher']}"
        for rows in (stored_rows(point, seeds, LOSS), stored_rows(point, seeds)):
            if rows:
                show(console_table(rows, title))
        say(f"The teacher has {100 * point['teacher_accuracy']:.2f} % test accuracy.")
        for line in point.get("verdict", ()):
            say(line)
    if "points" in result:
        title = f"Over all {len(points)}: interquartile means"
        show(console_overall([Overall.from_json(one) for one in result["overall"]], title))
        for line in result.get("verdict", ()):
            say(line)
    for line in result.get("warnings", ()):
        say(line)
    _show_times(out)
    first, page = points[0]["picture"], out / PAGE
    say(f"Read {out / 'report.md'}, look at {out / first}." + f" Open {page} in a browser." * page.exists())
    show_next(out)


def _show_times(out: Path) -> None:
    """Say what a step of each rule takes, where it was measured: rough, and no result."""
    if not (out / TIMING).is_file():
        return
    for point in read_json(out / TIMING).get("step_times", ()):
        ratios = ", ".join(f"{rule} {found['ratio']:.2f}" for rule, found in point["rules"].items())
        say(f"Time of a step by that of plain distillation ({point['point']}; rough, measured in turn): {ratios}.")


@contextlib.contextmanager
def _progress(problem: Problem, cache: ResultCache) -> Iterator[OnProgress]:
    """A bar for all students of a problem, and a line for each rule."""
    with _bar(problem, cache) as bar:
        yield _reporter(bar)


@contextlib.contextmanager
def _students(problem: Problem, cache: ResultCache) -> Iterator[OnProgress]:
    """A bar for all students of a problem alone."""
    with _bar(problem, cache) as bar:
        yield lambda rule, step, steps: bar(step, steps)


def _bar(problem: Problem, cache: ResultCache) -> Progress:
    """A bar for all students of a problem; results that are cached already take no time."""
    bar = Progress(problem.task.name, problem.task.recipe.steps(len(problem.dataset.train)))
    before = cache.found
    bar.found = lambda: cache.found - before
    return bar


@contextlib.contextmanager
def _explain_progress() -> Iterator[OnProgress]:
    with Bar("explain") as bar:
        yield _reporter(bar)


def _reporter(bar: Progress | Bar) -> OnProgress:
    """Moves the bar, and says a line when another rule's turn begins."""
    current = ""

    def on_progress(rule: str, step: int, steps: int) -> None:
        nonlocal current
        if rule and rule != current:
            current = rule
            bar.phase(f"Training under {rule}.")
        bar(step, steps)

    return on_progress
