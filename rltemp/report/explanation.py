"""An explanation of a policy from options to files: `why.md` and `why.png`; see `rltemp.experiments.explain`."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from rltemp.experiments.compare import OnProgress
from rltemp.experiments.explain import explain, policy_to_explain
from rltemp.experiments.options import ExplainOptions
from rltemp.report.explain_page import save_explanation_picture, write_explanation
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
    title = f"{problem.task.name}: {options.rules[0]} ({options.seeds} students)"
    save_explanation_picture(out / "why.png", trace, title)
    write_explanation(out, result, command_line(options))
    return options.finish(result, started)
