"""What a comparison hands back: its tables, for a console and in Markdown, and `results.csv`.

`rltemp.experiments.method_results` computes the rows, `rltemp.report.picture` draws them, `rltemp.report.markdown`
writes `report.md`.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from rltemp.data.tasks import Task
from rltemp.errors import BadInputError
from rltemp.experiments.measures import MEASURES
from rltemp.experiments.method_results import MethodResult, Overall, Row, short, side
from rltemp.experiments.statistics import Paired, points
from rltemp.io.files import atomic_write

CSV_COLUMNS = ("task", "teacher", "student", "rule", "seed", "test_accuracy", "validation_accuracy", *MEASURES)
WORTH = ("p (Holm)", "could show", "seeds for 0.1")
"""Columns behind each difference; the console shows the first two, of several differences the first."""


def markdown_table(rows: Sequence[Row]) -> str:
    """Return the rows as a GitHub Markdown table; differences whose interval leaves out zero are bold."""
    head, *body = table_cells(rows)
    lines = [head, ["---" if name in ("rule", "note") else "---:" for name in head]]
    for row, (rule, accuracy, error, n, *rest) in zip(rows, body, strict=True):
        clear = [bold for pair in row.differences.values() for bold in (side(pair) != 0, *[False] * len(WORTH))]
        marked = [f"**{cell}**" if bold else cell for cell, bold in zip(rest, [*clear, False], strict=False)]
        lines.append([f"`{rule}`", accuracy, error, n, *marked])
    return _markdown(lines)


def measures_table(rows: Sequence[Row]) -> str:
    """Return what else was measured as a GitHub Markdown table, mean ± standard error; empty where nothing was."""
    names = [name for name in MEASURES if any(name in row.measures for row in rows)]
    if not names:
        return ""
    lines = [["rule", *(MEASURES[name].heading for name in names)], ["---", *["---:"] * len(names)]]
    lines += [[f"`{row.rule}`", *(_measured(row, name) for name in names)] for row in rows]
    return _markdown(lines)


def console_table(rows: Sequence[Row], title: str = "") -> Table:
    """Return the rows for a rich console; on a terminal green is better than the baseline, red worse."""
    head, *body = table_cells(rows)
    table = Table(title=Text(title) if title else None, box=box.SIMPLE_HEAD, pad_edge=False)
    left_out = ("note", *WORTH[2 if len(rows[0].differences) == 1 else 1 :])
    shown = [index for index, name in enumerate(head) if name not in left_out]
    for index, name in ((index, head[index]) for index in shown):
        # Where space is short, rules fold and intervals go below their difference; a number is never broken.
        header = Text(name.replace(" (", "\n(").replace("could ", "could\n"))
        words = [word for line in body for word in line[index].replace(", ", ",").split()] if index else []
        table.add_column(
            header,
            justify="right" if index else "left",
            overflow="fold",
            min_width=max(map(len, words), default=None),
            no_wrap=index > 0 and not name.startswith("minus "),
        )
    for row, (rule, accuracy, error, n, *rest) in zip(rows, body, strict=True):
        first = Text.assemble(rule, (f"\n{row.note}" if row.note else "", "dim"))
        colours = [
            colour
            for pair in row.differences.values()
            for colour in ({1: "green", 0: "", -1: "red"}[side(pair)], *[""] * len(WORTH))
        ]
        cells = [Text(cell.replace(", ", ","), colour) for cell, colour in zip(rest, colours, strict=False)]
        table.add_row(first, accuracy, error, n, *(cells[index - 4] for index in shown if index >= 4))
    return table


def write_csv(path: Path, points: Sequence[tuple[Task, Sequence[MethodResult]]], seeds: Sequence[int]) -> None:
    """Write one line an arm and seed: `CSV_COLUMNS`, accuracies as fractions with six decimals.

    What was not measured, or is not finite, is empty. Arms that know their own seeds have a line for each of those,
    others one for each of `seeds`.

    Raises:
        BadInputError: Where an arm does not have one accuracy a seed.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for task, arm in ((task, arm) for task, arms in points for arm in arms):
        own = arm.seeds or seeds
        if len(arm.test_accuracy) != len(own):
            raise BadInputError(f"arm {arm.rule!r} has {len(arm.test_accuracy)} accuracies for {len(own)} seeds")
        for place, seed in enumerate(own):
            values = [arm.test_accuracy[place], arm.validation_accuracy[place]]
            values += [arm.measures[name][place] if name in arm.measures else math.nan for name in MEASURES]
            written = [f"{value:.6f}" if math.isfinite(value) else "" for value in values]
            writer.writerow([task.name, task.teacher, task.student, arm.rule, seed, *written])
    atomic_write(path, text.getvalue().encode())


def overall_table(overall: Sequence[Overall]) -> str:
    """Return the rules over all points of a grid as a GitHub Markdown table."""
    head, *body = _overall_cells(overall)
    lines = [head, ["---" if name in ("rule", "note") else "---:" for name in head]]
    return _markdown([*lines, *([f"`{rule}`", *rest] for rule, *rest in body)])


def console_overall(overall: Sequence[Overall], title: str) -> Table:
    """Return the same for a rich console."""
    head, *body = _overall_cells(overall)
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(head):
        table.add_column(Text(name.replace(" (", "\n(")), justify="right" if index else "left", overflow="fold")
    for line in body:
        table.add_row(*(Text(cell.replace(", ", ",")) for cell in line))
    return table


def _overall_cells(overall: Sequence[Overall]) -> list[list[str]]:
    notes = any(one.note for one in overall)
    names = [f"minus {short(name, 22)} (points)" for name in overall[0].differences]
    table = [["rule", "accuracy (%)", *names, *["note"] * notes]]
    for one in overall:
        mean, low, high = one.accuracy
        accuracy = f"{mean:.2f} [{low:.2f}, {high:.2f}]" if math.isfinite(low) else f"{mean:.2f}"
        pairs = ["-" if name == one.rule else points(Paired(*pair, n=0)) for name, pair in one.differences.items()]
        table.append([one.rule, accuracy, *pairs, *[one.note] * notes])
    return table


def table_cells(rows: Sequence[Row]) -> list[list[str]]:
    """The table as text, its head first; the notes' column is there where any row has a note."""
    notes = any(row.note for row in rows)
    head = [
        "rule",
        "accuracy (%)",
        "s.e.",
        "n",
        *(title for name in rows[0].differences for title in (f"minus {short(name, 22)} (points)", *WORTH)),
    ]
    table = [head + ["note"] * notes]
    for row in rows:
        pairs = [
            cell
            for name, pair in row.differences.items()
            for cell in (["-"] * (1 + len(WORTH)) if name == row.rule else [points(pair), *_worth(pair)])
        ]
        error = f"{row.error:.2f}" if math.isfinite(row.error) else "-"
        table.append([row.rule, f"{row.accuracy:.2f}", error, str(row.n), *pairs, *[row.note] * notes])
    return table


def _worth(pair: Paired) -> list[str]:
    """What stands behind a difference: `WORTH`."""
    if not math.isfinite(pair.p_corrected):
        return ["-"] * len(WORTH)
    p = f"{pair.p_corrected:.3f}" if pair.p_corrected >= 0.001 else "<0.001"
    return [p, f"{pair.detectable:.2f}", f"{pair.seeds_for_tenth:,}"]


def _measured(row: Row, name: str) -> str:
    mean, error = row.measures.get(name, (math.nan, math.nan))
    digits = MEASURES[name].digits
    spread = f" ± {error:.{digits}f}" if math.isfinite(error) else ""
    return f"{mean:.{digits}f}{spread}" if math.isfinite(mean) else "-"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
