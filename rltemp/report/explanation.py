"""An explanation of a policy from options to files: `why.md` and `why.png`; see `rltemp.experiments.explain`."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from rltemp.experiments.compare import OnProgress
from rltemp.experiments.explain import explain, policy_to_explain
from rltemp.experiments.options import ExplainOptions
from rltemp.io.files import atomic_write
from rltemp.report.explain_page import draw, report
from rltemp.training.options import command_line


def run_explanation(
    options: ExplainOptions, progress: Callable[[], AbstractContextManager[OnProgress]]
) -> dict[str, Any]:
    """Check everything, train every student, write the files, return the result."""
    probe = policy_to_explain(options)
    problem, out = options.problem(), options.folder()
    options.open()
    started = time.monotonic()
    with progress() as told:
        result, trace = explain(options, problem, probe, told)
    draw(out / "why.png", trace, f"{problem.task.name}: {options.rules[0]} ({options.seeds} students)")
    atomic_write(out / "why.md", report(result, command_line(options)).encode())
    return options.finish(result, started)
