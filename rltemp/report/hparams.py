"""A comparison in TensorBoard's HParams tab: one session a method, its options beside its mean results."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

from rltemp.experiments.measures import ACCURACY
from rltemp.experiments.method_results import Row
from rltemp.report.markdown import Section

METRICS = {
    "compare/accuracy": "test accuracy, mean over seeds (percent)",
    "compare/standard_error": "its standard error (percentage points)",
    "compare/difference": "minus the baseline's, paired by seed (percentage points)",
    "compare/difference_low": "lower bound of its 95 % interval (percentage points)",
    "compare/difference_high": "upper bound of its 95 % interval (percentage points)",
    "compare/loss": "test loss, mean over seeds (nats a token)",
    "compare/loss_standard_error": "its standard error (nats)",
    "compare/loss_difference": "minus the baseline's, paired by seed (nats)",
    "compare/loss_difference_low": "lower bound of its 95 % interval (nats)",
    "compare/loss_difference_high": "upper bound of its 95 % interval (nats)",
}


def write_sessions(folder: Path, section: Section, seeds: int) -> None:
    """Write one folder of events for each method, which HParams shows as a line of its table.

    Args:
        folder: Made where it is missing; sessions that an earlier try left are replaced.
        section: What was compared; differences are to its baseline, its recipe's fields are hyperparameters.
        seeds: How many students each method was asked for.
    """
    # Here, because it takes a second that a comparison without a page need not wait for.
    from torch.utils.tensorboard.summary import hparams, scalar

    from rltemp.io.events_file import EventFile  # imports TensorBoard too

    task = section.task
    shared = {"task": task.name, "teacher": task.teacher, "student": task.student, "seeds": seeds}
    shared |= task.recipe.described()
    for place, row in enumerate(section.rows):
        metrics = measured(row, section.baseline)
        for loss in section.losses[place : place + 1]:
            metrics |= measured(loss, section.baseline)
        events = EventFile(folder / session_name(place, row.rule))
        for summary in hparams({"rule": row.rule, **shared}, metrics):  # type: ignore[no-untyped-call]
            events.add(summary, 0)
        for tag, value in metrics.items():
            events.add(scalar(tag, value), 0)  # type: ignore[no-untyped-call]
        events.close()


def measured(row: Row, baseline: str) -> dict[str, float]:
    """A method's numbers by the names in `METRICS`, those that are finite."""
    pair = row.differences[baseline]
    values = (row.mean, row.error, *((pair.mean, pair.low, pair.high) if row.rule != baseline else ()))
    names = [name for name in METRICS if name.startswith("compare/loss") == (row.quantity is not ACCURACY)]
    found: Mapping[str, float] = dict(zip(names, values, strict=False))
    return {name: value for name, value in found.items() if math.isfinite(value)}


def session_name(place: int, rule: str) -> str:
    """A folder's name for a method, which any file system takes."""
    return f"{place:03d}-{re.sub(r'[^A-Za-z0-9._=-]+', '-', rule)[:60].strip('-.')}"
