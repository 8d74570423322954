"""A comparison in TensorBoard's HParams tab: one session a method, its options beside its mean results."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from rltemp.experiments.measures import ACCURACY, MEASURES
from rltemp.experiments.method_results import Row
from rltemp.report.markdown import Section

COLUMNS = ("rule", "task")
"""The hyperparameters in the table; all others are the same for every method, and are kept beside them."""
LOSSES = {
    "compare/loss": "test loss, mean over seeds (nats a token)",
    "compare/loss_standard_error": "its standard error (nats)",
    "compare/loss_difference": "minus the baseline's, paired by seed (nats)",
    "compare/loss_difference_low": "lower bound of its 95 % interval (nats)",
    "compare/loss_difference_high": "upper bound of its 95 % interval (nats)",
}
METRICS = {
    "compare/accuracy": "test accuracy, mean over seeds (percent)",
    "compare/standard_error": "its standard error (percentage points)",
    "compare/difference": "minus the baseline's, paired by seed (percentage points)",
    "compare/difference_low": "lower bound of its 95 % interval (percentage points)",
    "compare/difference_high": "upper bound of its 95 % interval (percentage points)",
    **{f"compare/{name}": f"{one.heading}, mean over seeds" for name, one in MEASURES.items()},
    **LOSSES,
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
    recipe = task.recipe.described()
    shared |= {name: str(value) if isinstance(value, tuple) else value for name, value in recipe.items()}
    found = [measured(row, section.baseline) for row in section.rows]
    for metrics, loss in zip(found, section.losses, strict=False):
        metrics |= measured(loss, section.baseline)
    ordered = sorted(METRICS, key=lambda name: name not in LOSSES)  # TensorBoard shows the first five
    declared = {name: 0.0 for name in ordered if any(name in metrics for metrics in found)}
    for place, (row, metrics) in enumerate(zip(section.rows, found, strict=True)):
        events = EventFile(folder / session_name(place, row.rule))
        for summary in hparams({"rule": row.rule, **shared}, declared):  # type: ignore[no-untyped-call]
            events.add(with_columns(summary), 0)
        for tag, value in metrics.items():
            events.add(scalar(tag, value), 0)  # type: ignore[no-untyped-call]
        events.close()


def with_columns(summary: Any) -> Any:
    """The summary, which declares no hyperparameters but `COLUMNS`: more would push the metrics out of sight.

    TensorBoard takes the columns of its table from one session, whichever that is; it shows five at first, in the order
    of the alphabet, those first that are said to differ.
    """
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # imports TensorBoard

    for value in summary.value:
        data = HParamsPluginData.FromString(value.metadata.plugin_data.content)
        columns = [one for one in data.experiment.hparam_infos if one.name in COLUMNS]
        if columns:
            del data.experiment.hparam_infos[:]
            data.experiment.hparam_infos.extend(columns)
            for one in data.experiment.hparam_infos:
                one.differs = one.name == "rule"
        value.metadata.plugin_data.content = data.SerializeToString()
    return summary


def measured(row: Row, baseline: str) -> dict[str, float]:
    """A method's numbers by the names in `METRICS`, those that are finite."""
    pair = row.differences[baseline]
    values = (row.mean, row.error, *((pair.mean, pair.low, pair.high) if row.rule != baseline else ()))
    found = dict(zip(METRICS if row.quantity is ACCURACY else LOSSES, values, strict=False))
    if row.quantity is ACCURACY:
        found |= {f"compare/{name}": mean for name, (mean, _) in row.measures.items()}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def session_name(place: int, rule: str) -> str:
    """A folder's name for a method, which any file system takes."""
    return f"{place:03d}-{re.sub(r'[^A-Za-z0-9._=-]+', '-', rule)[:60].strip('-.')}"
