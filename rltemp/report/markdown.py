"""A comparison's `report.md`: what was compared, its tables and pictures, how to read them and how to do it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rltemp.data.task import Task
from rltemp.experiments.grid import Overall, point_name
from rltemp.experiments.method_results import Row, ranked, seeds
from rltemp.report.rendering import write_template
from rltemp.report.tables import markdown_table, measures_table, overall_table

FEW_SEEDS = 32
"""Below this the intervals cover the truth less often than they say, where students fail now and then."""


@dataclass(frozen=True)
class Section:
    """One point of a comparison.

    Args:
        task: What was trained.
        teacher_accuracy: The teacher's test accuracy, a fraction.
        rows: From `table_rows`, of accuracies.
        picture: The picture's file name in the run's folder, or empty where none was drawn.
        losses: Of losses, likewise, where samples are tokens.
        verdict: What follows from the numbers, a line each, the most important first.
    """

    task: Task
    teacher_accuracy: float
    rows: Sequence[Row]
    picture: str = ""
    losses: Sequence[Row] = ()
    verdict: Sequence[str] = ()

    @property
    def tables(self) -> list[Sequence[Row]]:
        """The rows of each table, ranked; what people read first before the others."""
        return [ranked(rows) for rows in (self.losses, self.rows) if rows]

    @property
    def baseline(self) -> str:
        """The first method that differences are taken to."""
        return next(iter(self.rows[0].differences))

    @property
    def title(self) -> str:
        """Its heading."""
        return point_name(self.task)


def write_report(
    folder: Path,
    sections: Sequence[Section],
    *,
    command: str,
    overall: Sequence[Overall] = (),
    warnings: Sequence[str] = (),
    summary: str = "",
) -> Path:
    """Write `report.md`: what was compared, the tables, the pictures, how to reproduce it. Return its path.

    Args:
        folder: The run folder.
        sections: One for each point.
        command: The command line that gives these results again.
        overall: The methods over all points, where there are several.
        warnings: What a reader must not miss, a line each.
        summary: What follows from all points together, where there are several.
    """
    return write_template(
        folder / "report.md",
        "report.md",
        sections=sections,
        overall=overall_table(overall) if overall else "",
        seeds=seeds,
        markdown_table=markdown_table,
        measures_table=measures_table,
        losses=any(one.losses for one in sections),
        few=min(row.n for one in sections for row in one.rows) < FEW_SEEDS,
        command=command,
        warnings=warnings,
        summary=summary,
    )
