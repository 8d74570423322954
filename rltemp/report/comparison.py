"""The `compare` command's work: from options to `results.csv`, `report.md`, `report.html`, pictures and tables."""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rltemp.data.problem import Problem
from rltemp.experiments.alternatives import alternatives
from rltemp.experiments.cluster import Cluster
from rltemp.experiments.compare import Comparison, OnProgress, check_rules, compare
from rltemp.experiments.crews import Crew
from rltemp.experiments.grid import Overall, check_grid, grid_data, grid_tasks, overall, point_name, stored
from rltemp.experiments.method_results import MethodResult, Row, table_rows
from rltemp.experiments.result_cache import ResultCache
from rltemp.experiments.showcase import Showcase
from rltemp.experiments.statistics import Paired
from rltemp.experiments.step_time import step_times
from rltemp.experiments.workers import Workers
from rltemp.io.console import Bar, say, show, show_next
from rltemp.io.progress import Progress
from rltemp.io.run_folders import TIMING, read_json
from rltemp.kd.names import lookup
from rltemp.loading import is_policy
from rltemp.report.hparams import write_sessions
from rltemp.report.html_page import SHOWN, write_page
from rltemp.report.markdown import Section, write_report
from rltemp.report.picture import save_picture
from rltemp.report.tables import console_overall, console_table, write_csv
from rltemp.training.options import command_line, configuration

if TYPE_CHECKING:
    from rltemp.cli.compare import Compare

Point = tuple[Problem, Comparison]
"""A point of a grid, and what was compared there."""


def run_comparison(options: Compare) -> dict[str, Any]:
    """Check everything, train every student, write the files, return the result."""
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    check_rules(options.rules, seeds)
    check_baselines(options.baselines(), options.rules)
    tasks = grid_tasks(options)
    data = grid_data(options, tasks)
    check_grid(tasks, data, options.rules, options.stack)
    problems = [options.problem(task, data[task.name]) for task in tasks]
    options.open()
    started = time.monotonic()
    cells = open_cells(options)
    with crew(options) as others:
        points = [(problem, _compare(options, problem, seeds, cells, others)) for problem in problems]
    say_found(cells)
    result = write_comparison(options, points, seeds)
    return options.finish(result, started, step_times=measured_steps(options, points))


def _compare(
    options: Compare, problem: Problem, seeds: Sequence[int], cells: ResultCache, others: Crew | None
) -> Comparison:
    with progress(problem.task.name, problem, cells) as bar:
        return compare(
            problem,
            options.rules,
            seeds,
            selection_seeds=options.selection_seeds,
            stack=options.stack,
            on_progress=reporter(bar),
            cells=cells,
            crew=others,
            shown=shown(options, options.rules, filter(is_policy, options.rules)),
        )


def measured_steps(options: Compare, points: Sequence[Point], made: Container[str] = ()) -> list[dict[str, Any]]:
    """What a step takes in every point, for `timing.json`; of the rules that are not `made`."""
    return [
        {
            "point": point_name(problem.task),
            **step_times(problem, [arm.rule for arm in found.arms if arm.rule not in made], options.stack),
        }
        for problem, found in points
    ]


@contextlib.contextmanager
def crew(options: Compare) -> Iterator[Crew | None]:
    """The processes that `--workers` or `--ray` asks for; None where this one does the work."""
    if options.ray is not None:
        with Cluster(options.ray, gpus=float(options.torch_device() == "cuda")) as cluster:
            yield cluster
    elif options.workers > 1:
        with Workers(options.workers) as workers:
            yield workers
    else:
        yield None


def progress(label: str, problem: Problem, cells: ResultCache) -> Progress:
    """Progress over all cells of a problem; those that are there already take no time."""
    bar, before = Progress(label, problem.task.recipe.steps(len(problem.dataset.train))), cells.found
    bar.found = lambda: cells.found - before
    cells.warn = bar.phase
    return bar


def shown(options: Compare, rules: Iterable[str], first: Iterable[str]) -> list[str]:
    """The rules whose students the page shows: baselines, then these `first`, then the others."""
    return list(dict.fromkeys([*options.baselines(), *first, *rules]))[: SHOWN if options.html else 0]


def open_cells(options: Compare) -> ResultCache:
    """Where the run's cells are kept; see `ResultCache`."""
    folder = options.folder() / "cells"
    if options.fresh or not options.only_missing:
        shutil.rmtree(folder, ignore_errors=True)
    return ResultCache(folder, allow_mixed=options.allow_mixed)


def say_found(cells: ResultCache) -> None:
    """Say how much an earlier process had done."""
    if cells.found:
        say(f"{cells.found} of {cells.found + cells.trained} cells were there; {cells.trained} were trained now.")


def write_comparison(
    options: Compare, points: Sequence[Point], seeds: Sequence[int], verdict: Sequence[str] = ()
) -> dict[str, Any]:
    """Write `results.csv`, `report.md`, TensorBoard's sessions, a picture and a page a point, and return the result.

    Args:
        options: Of the command; its baselines, as they were written.
        points: What was compared: one problem, or those of a grid.
        seeds: Of the students.
        verdict: What follows from the numbers, a line each.
    """
    out = options.folder()
    sections = [_section(options, *point, number) for number, point in enumerate(points, start=len(points) > 1)]
    summary = overall([found for _, found in points], options.rules, options.baselines(), options.allow_mixed)
    warnings = tuning_warnings(found.arms for _, found in points)
    write_csv(out / "results.csv", [(problem.task, found.arms) for problem, found in points], seeds)
    for section, (_, found) in zip(sections, points, strict=True):
        save_picture(out / section.picture, section.rows, section.baseline, found.trace, section.title)
    write_report(
        out,
        sections,
        overall=summary if len(points) > 1 else (),
        command=command_line(options),
        warnings=warnings,
        verdict=verdict,
    )
    for section, point in zip(sections, points, strict=True):
        _write_page(options, section, *point, verdict)
    results = [
        _result(problem, found, section, options) for (problem, found), section in zip(points, sections, strict=True)
    ]
    result: dict[str, Any] = {"seeds": list(seeds), "files": points[0][1].files, "warnings": warnings}
    result |= results[0] if len(points) == 1 else {"points": results, "overall": [stored(one) for one in summary]}
    return result | ({"verdict": list(verdict)} if verdict else {})


def _write_page(
    options: Compare, section: Section, problem: Problem, found: Comparison, verdict: Sequence[str]
) -> None:
    """A point's page, and its sessions for TensorBoard's HParams."""
    out, task = options.folder(), problem.task
    if options.html:
        showcases = {rule: one for rule, path in found.showcases.items() if (one := Showcase.read(path))}
        write_page(
            out / _page_name(section.picture),
            section.rows,
            showcases,
            title=section.title,
            task=task,
            teacher_accuracy=problem.teacher_accuracy,
            configuration=configuration(options),
            command=command_line(options),
            verdict=verdict,
        )
    number = section.picture.removeprefix("picture").removesuffix(".png")
    write_sessions(out / f"tensorboard{number}", section.rows, section.baseline, task, len(found.arms[0].seeds))


def _page_name(picture: str) -> str:
    """`report.html` beside `picture.png`, `report-2.html` beside `picture-2.png`."""
    return picture.replace("picture", "report").replace(".png", ".html")


def _section(options: Compare, problem: Problem, found: Comparison, number: int) -> Section:
    against = list(dict.fromkeys(found.names.get(name, name) for name in options.baselines()))
    rows, task = table_rows(found.arms, against, options.allow_mixed), problem.task
    drawn = f"picture-{number}.png" if number else "picture.png"
    return Section(task.name, task.teacher, problem.teacher_accuracy, task.student, rows, drawn)


def tuning_warnings(points: Iterable[Sequence[MethodResult]]) -> list[str]:
    """A line where arms were tuned from unlike numbers of alternatives."""
    arms = {arm.rule: arm.alternatives for point in points for arm in point}
    counts = Counter(arms.values())
    if len(counts) < 2:
        return []
    tuned = ", ".join(f"{number} for {count}" for number, count in sorted(counts.items()))
    return [f"Arms were tuned with unlike budgets, which favours those with more alternatives tried ({tuned} arms)."]


def show_comparison(result: Mapping[str, Any], out: Path) -> None:
    """Print a result's tables, where its files are and what to type next."""
    for point in result.get("points") or [result]:
        task = point["task"]
        title = f"{task['name']}: {len(result['seeds'])} students {task['student']} a rule"
        if "points" in result:
            title = f"{title}, teacher {task['teacher']}"
        show(console_table(_rows(point, len(result["seeds"])), title))
        say(f"The teacher has {100 * point['teacher_accuracy']:.2f} % test accuracy.")
    if "points" in result:
        title = f"Over all {len(result['points'])}: interquartile means"
        show(console_overall([_overall(one) for one in result["overall"]], title))
    for line in (*result.get("warnings", ()), *result.get("verdict", ())):
        say(line)
    show_times(out)
    first = result.get("points", [result])[0]["picture"]
    page = out / _page_name(first)
    say(f"Read {out / 'report.md'}, look at {out / first}." + f" Open {page} in a browser." * page.exists())
    show_next(out)


def show_times(out: Path) -> None:
    """Say what a step of each rule takes beside plain distillation, where it was measured: rough, and no result."""
    if not (out / TIMING).is_file():
        return
    for point in read_json(out / TIMING).get("step_times", ()):
        ratios = ", ".join(f"{rule} {found['ratio']:.2f}" for rule, found in point["rules"].items())
        say(f"Time of a step beside plain distillation's ({point['point']}; rough, measured in turn): {ratios}.")


def check_baselines(names: Sequence[str], rules: Sequence[str]) -> None:
    """Refuse a baseline that is no rule of the comparison, as written there."""
    for name in names:
        if name not in rules:
            lookup(dict.fromkeys(rules), name, "baseline")
        if len(alternatives(name)) > 1:
            say(f"Differences are taken to what is chosen from {name}.")


def reporter(bar: Progress | Bar) -> OnProgress:
    """Moves the bar, and says a line when another rule's turn begins."""
    current = [""]

    def on_progress(rule: str, step: int, steps: int) -> None:
        if rule and rule != current[0]:
            current[0] = rule
            bar.phase(f"Training under {rule}.")
        bar(step, steps)

    return on_progress


def _result(problem: Problem, found: Comparison, section: Section, options: Compare) -> dict[str, Any]:
    """One point, as `result.json` has it."""
    arms = [
        {
            "rule": row.rule,
            "accuracy_percent": row.accuracy,
            "standard_error_percent": row.error,
            "n": row.n,
            "measures": {name: {"mean": mean, "standard_error": error} for name, (mean, error) in row.measures.items()},
            "differences_points": {name: asdict(pair) for name, pair in row.differences.items()},
            "diverged": arm.diverged,
            "guarded_fraction": arm.guarded,
            "degraded": arm.degraded,
            "alternatives": arm.alternatives,
            "tuning_students": arm.alternatives * options.selection_seeds if arm.alternatives > 1 else 0,
            "note": row.note,
        }
        for row, arm in zip(section.rows, found.arms, strict=True)
    ]
    return {
        "task": asdict(problem.task),
        "teacher_accuracy": problem.teacher_accuracy,
        "arms": arms,
        "picture": section.picture,
    }


def _rows(point: Mapping[str, Any], seeds: int) -> list[Row]:
    """The rows of a result that was written and read back."""
    return [
        Row(
            arm["rule"],
            arm["accuracy_percent"],
            _number(arm["standard_error_percent"]),
            {name: stored_pair(pair) for name, pair in arm["differences_points"].items()},
            arm.get("n", seeds),
            arm["note"],
        )
        for arm in point["arms"]
    ]


def _overall(one: Mapping[str, Any]) -> Overall:
    def interval(found: Mapping[str, Any]) -> tuple[float, float, float]:
        return _number(found["mean"]), _number(found["low"]), _number(found["high"])

    differences = {base: interval(found) for base, found in one["differences_points"].items()}
    return Overall(one["rule"], interval(one["accuracy_percent"]), differences, one["note"])


def stored_pair(pair: Mapping[str, Any]) -> Paired:
    """A difference as a result holds it; JSON has null for what a single pair or a refused one does not have."""
    found = {field.name: _number(pair.get(field.name)) for field in fields(Paired)}
    return Paired(**found | {"n": pair["n"], "seeds_for_tenth": pair.get("seeds_for_tenth", 0)})


def _number(value: float | None) -> float:
    """JSON has no nan; a run's files hold null for it."""
    return math.nan if value is None else value
