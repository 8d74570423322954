"""A study from options to files; see `rltemp.experiments.study`."""

from __future__ import annotations

import time
from typing import Any

from rltemp.experiments.options import StudyOptions
from rltemp.experiments.study import check_study, controls, plan, verdict
from rltemp.report.comparison import ShowProgress, measured_steps, silent, train_points, write_comparison


def run_study(options: StudyOptions, progress: ShowProgress = silent) -> dict[str, Any]:
    """Check everything, record the policies, train every student, write the files, return the result."""
    names = plan(options.rules, options.only)
    check_study(options, names)
    problem = options.problem()
    options.open()
    started = time.monotonic()
    made = controls(problem, options) if "controls" in options.only else {}
    points = train_points(options, [problem], names, options.rules, progress, made)
    ((_, found),) = points
    lines = verdict(found, options.rules, options.only, options.selection_seeds, options.allow_mixed)
    result = write_comparison(options, points, lines)
    return options.finish(result, started, **measured_steps(options, points, made))
