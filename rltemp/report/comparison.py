"""A comparison from options to files: `results.csv`, `report.md`, `report.html`, pictures, TensorBoard's sessions.

`run_comparison` is the whole of it, and `run_study` the same with the methods of `rltemp.experiments.study`.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from typing import Any

from rltemp.compiling.mode import step_for
from rltemp.data.problem import Problem
from rltemp.experiments.compare import Made, OnProgress, compare
from rltemp.experiments.grid import (
    check_baselines,
    check_grid,
    check_rules,
    grid_data,
    grid_tasks,
    overall,
    point_name,
    to_choose,
)
from rltemp.experiments.measures import ACCURACY
from rltemp.experiments.method_results import Comparison, MethodResult, table_rows
from rltemp.experiments.options import CompareOptions, ComparisonOptions, StudyOptions
from rltemp.experiments.result_cache import CELLS, ResultCache
from rltemp.experiments.showcase import Showcase
from rltemp.experiments.students import step_times
from rltemp.experiments.study import check_study, controls, plan
from rltemp.experiments.study import verdict as study_verdict
from rltemp.io.pool import open_pool
from rltemp.kd.names import split_spec
from rltemp.loading import is_policy
from rltemp.report.drawing import save_png
from rltemp.report.hparams import write_sessions
from rltemp.report.html_page import SHOWN, write_index, write_page
from rltemp.report.markdown import Section, write_report
from rltemp.report.plots import picture
from rltemp.report.tables import write_csv
from rltemp.report.verdict import overall_verdict, standing, verdict
from rltemp.training.options import command_line, configuration

log = logging.getLogger(__name__)

PAGE = "report.html"
"""What to open in a browser: the page of a comparison, or the index of a grid's pages."""

Point = tuple[Problem, Comparison]
"""A point of a grid, and what was found there."""

ShowProgress = Callable[[Problem, ResultCache], contextlib.AbstractContextManager[OnProgress]]
"""Shows, within the context, how far the comparison of a problem is."""


def run_comparison(options: CompareOptions, progress: ShowProgress) -> dict[str, Any]:
    """Check everything, train every student, write the files, return the result."""
    check_rules(options.rules, options.reported_seeds())
    check_baselines(options.baselines(), options.rules)
    for name in filter(to_choose, options.baselines()):
        log.info(f"Differences are taken to what is chosen from {name}.")
    tasks = grid_tasks(options)
    data = grid_data(options, tasks)
    tasks = [options.fitted(task, data[task.name]) for task in tasks]
    check_grid(tasks, data, options.rules, options.stack)
    problems = [options.problem(task, data[task.name]) for task in tasks]
    options.open()
    started = time.monotonic()
    points = train_points(options, problems, options.rules, progress)
    return finish(options, points, started)


def run_study(options: StudyOptions, progress: ShowProgress) -> dict[str, Any]:
    """Check everything, record the policies, train every student, write the files, return the result."""
    names = plan(options.rules, options.only)
    check_study(options, names)
    problem = options.problem()
    options.open()
    started = time.monotonic()
    made = controls(problem, options) if "controls" in options.only else {}
    points = train_points(options, [problem], names, progress, made)
    ((_, found),) = points
    lines = study_verdict(found, options.rules, options.only, options.selection_seeds, options.allow_mixed)
    return finish(options, points, started, lines, made)


def finish(
    options: ComparisonOptions,
    points: Sequence[Point],
    started: float,
    further: Sequence[str] = (),
    made: Container[str] = (),
) -> dict[str, Any]:
    """Write all files and the result; with `--time` measure the step of every rule that is not `made`."""
    result = write_comparison(options, points, further)
    timing: dict[str, Any] = {}
    if options.time:
        timing["step_times"] = [
            {
                "point": point_name(problem.task),
                **step_times(
                    problem,
                    [one.rule for one in found.results if one.rule not in made],
                    options.stack,
                    step=step_for(options.compile, problem.device),
                ),
            }
            for problem, found in points
        ]
    return options.finish(result, started, **timing)


def train_points(
    options: ComparisonOptions,
    problems: Sequence[Problem],
    rules: Sequence[str],
    progress: ShowProgress,
    made: Mapping[str, Made] | None = None,
) -> list[Point]:
    """Compare the rules on every problem.

    Args:
        options: Of the command.
        problems: The points.
        rules: What is compared.
        progress: Shows how far it is.
        made: The rules that no name stands for.
    """
    cache, points = open_cache(options), []
    with open_pool(options.workers, options.ray, gpus=float(options.torch_device() == "cuda")) as pool:
        for problem in problems:
            with progress(problem, cache) as told:
                found = compare(
                    problem,
                    rules,
                    options.reported_seeds(),
                    selection_seeds=options.selection_seeds,
                    stack=options.stack,
                    compile_mode=options.compile,
                    on_progress=told,
                    made=made,
                    cache=cache,
                    pool=pool,
                    shown=rules if options.html else (),
                )
            points.append((problem, found))
    if cache.found:
        log.info(
            f"{cache.found} of {cache.found + cache.trained} results were cached; {cache.trained} were trained now."
        )
    return points


def shown(section: Section, policies: Iterable[str]) -> list[str]:
    """The methods whose students the page shows: baselines, the best constant, policies, the best of the others."""
    best_first = [row.rule for row in section.tables[0]]
    constants = [rule for rule in best_first if split_spec(rule)[0] == "fixed"]
    named = [*section.rows[0].differences, *constants[:1], *policies, *best_first]
    return list(dict.fromkeys(named))[:SHOWN]


def open_cache(options: ComparisonOptions) -> ResultCache:
    """Where the results of the run are kept."""
    folder = options.folder() / CELLS
    if options.fresh or not options.only_missing:
        shutil.rmtree(folder, ignore_errors=True)
    return ResultCache(folder, allow_mixed=options.allow_mixed)


def write_comparison(
    options: ComparisonOptions, points: Sequence[Point], further: Sequence[str] = ()
) -> dict[str, Any]:
    """Write `results.csv`, `report.md`, TensorBoard's sessions, a picture and a page a point, and return the result.

    Args:
        options: Of the command; its baselines, as they were written.
        points: What was compared: one problem, or those of a grid.
        further: What follows from the numbers beside the verdict, a line each.
    """
    out, several, command = options.folder(), len(points) > 1, command_line(options)
    sections = [_section(options, *point, number, further) for number, point in enumerate(points, start=several)]
    names = list(dict.fromkeys(name for _, found in points for name in found.names))
    summary = (
        overall([found for _, found in points], names, options.baselines(), options.allow_mixed) if several else []
    )
    together = overall_verdict([_standing(found, options) for _, found in points]) if several else ""
    warnings = tuning_warnings(found.results for _, found in points)
    seeds = options.reported_seeds()
    write_csv(out / "results.csv", [(problem.task, found.results) for problem, found in points], seeds)
    write_report(out, sections, overall=summary, command=command, warnings=warnings, summary=together)
    for section, (_, found) in zip(sections, points, strict=True):
        _write_point(options, section, found, command)
    if several and options.html:
        write_index(out / PAGE, {page_name(one.picture): one for one in sections}, summary, together, command)
    results = [_result(found, section, options) for (_, found), section in zip(points, sections, strict=True)]
    result: dict[str, Any] = {"seeds": list(seeds), "files": points[0][1].files, "warnings": warnings}
    whole = {"points": results, "overall": [one.as_json() for one in summary], "verdict": [together]}
    return result | (whole if several else results[0])


def _write_point(options: ComparisonOptions, section: Section, found: Comparison, command: str) -> None:
    """The picture, the page and TensorBoard's sessions of one point."""
    out, number = options.folder(), section.picture.removeprefix("picture").removesuffix(".png")
    save_png(out / section.picture, picture(section.tables[0], section.baseline, found.trace, section.title))
    write_sessions(out / f"tensorboard{number}", section, len(found.results[0].seeds))
    if options.html:
        names = shown(section, (found.names[rule] for rule in filter(is_policy, options.rules)))
        paths = {rule: found.showcases[rule] for rule in names if rule in found.showcases}
        showcases = {rule: one for rule, path in paths.items() if (one := Showcase.read(path))}
        settings = configuration(options)
        write_page(out / page_name(section.picture), section, showcases, configuration=settings, command=command)


def page_name(drawn: str) -> str:
    """`report.html` beside `picture.png`, `report-2.html` beside `picture-2.png`."""
    return drawn.replace("picture", "report").replace(".png", ".html")


def _standing(found: Comparison, options: ComparisonOptions) -> dict[str, str]:
    """How every rule, as it was written, stands to the best."""
    reported = standing(found.results, found.quantity, options.allow_mixed)
    return {rule: reported[name] for rule, name in found.names.items()}


def _section(
    options: ComparisonOptions, problem: Problem, found: Comparison, number: int, further: Sequence[str]
) -> Section:
    against = list(dict.fromkeys(found.names.get(name, name) for name in options.baselines()))
    rows = table_rows(found.results, against, options.allow_mixed)
    losses = (
        [] if found.quantity is ACCURACY else table_rows(found.results, against, options.allow_mixed, found.quantity)
    )
    drawn = f"picture-{number}.png" if number else "picture.png"
    lines = [*verdict(found.results, found.quantity, options.allow_mixed), *further]
    return Section(problem.task, problem.teacher_accuracy, rows, drawn, losses, lines)


def tuning_warnings(points: Iterable[Collection[MethodResult]]) -> list[str]:
    """A line where methods were tuned from unlike numbers of alternatives."""
    counts = Counter({result.rule: result.alternatives for point in points for result in point}.values())
    if len(counts) < 2:
        return []
    tuned = ", ".join(f"{number} for {count}" for number, count in sorted(counts.items()))
    return [
        f"Methods were tuned with unlike budgets, which favours those with more alternatives tried ({tuned} methods)."
    ]


def _result(found: Comparison, section: Section, options: ComparisonOptions) -> dict[str, Any]:
    """One point, as `result.json` has it."""
    methods = [
        {
            "rule": row.rule,
            **row.as_json(),
            "n": row.n,
            "measures": {name: {"mean": mean, "standard_error": error} for name, (mean, error) in row.measures.items()},
            "diverged": one.diverged,
            "guarded_fraction": one.guarded,
            "degraded": one.degraded,
            "alternatives": one.alternatives,
            "tuning_students": one.alternatives * options.selection_seeds if one.alternatives > 1 else 0,
            "note": row.note,
        }
        for row, one in zip(section.rows, found.results, strict=True)
    ]
    for method, loss in zip(methods, section.losses, strict=False):
        method |= loss.as_json()
    return {
        "task": section.task.described(),
        "teacher_accuracy": section.teacher_accuracy,
        "compiled": found.compiled,
        "arms": methods,
        "picture": section.picture,
        "verdict": list(section.verdict),
    }
