"""The tables of a comparison, in Markdown and as `results.csv`, and the words that all tables share.

`rltemp.experiments.method_results` computes the rows, `rltemp.report.terminal_tables` shows them on a terminal.
`with_error` writes a mean with its error, `markdown` any table of a Markdown file.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rltemp.data.task import Task
from rltemp.errors import BadInputError
from rltemp.experiments.grid import Overall
from rltemp.experiments.measures import ACCURACY, LOSSES, MEASURES, Quantity
from rltemp.experiments.method_results import MethodResult, Row, short
from rltemp.experiments.statistics import Paired, interval, points
from rltemp.io.files import atomic_write

CSV_COLUMNS = (
    *("task", "teacher", "student", "rule", "seed", "test_accuracy", "validation_accuracy"),
    *(*MEASURES, *LOSSES),
)
TEST_COLUMNS = ("p (Holm)", "visible from", "seeds to see 0.1")
"""Columns behind each difference, the last for accuracy alone; the console shows the first two, of several differences
the first."""


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    r"""A table in GitHub's Markdown; the first column and notes are set to the left, all others to the right.

    >>> print(markdown(["rule", "n"], [["mine:a|b", "3"]]), end="")
    | rule | n |
    | --- | ---: |
    | mine:a\|b | 3 |
    """
    rule = ["---" if place == 0 or name == "note" else "---:" for place, name in enumerate(head)]
    lines = [head, rule, *body]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def with_error(mean: float, error: float, digits: int = 2) -> str:
    """A mean with its standard error where it has one; `-` where it is not finite.

    >>> with_error(92, 2)
    '92.00 ± 2.00'
    """
    if not math.isfinite(mean):
        return "-"
    return f"{mean:.{digits}f}" + (f" ± {error:.{digits}f}" if math.isfinite(error) else "")


def table_cells(rows: Sequence[Row]) -> list[list[str]]:
    """The table as text, its head first; the notes' column is there where any row has a note."""
    notes, quantity = any(row.note for row in rows), rows[0].quantity
    tests = TEST_COLUMNS if quantity is ACCURACY else TEST_COLUMNS[:-1]
    head = ["rule", quantity.heading, "s.e.", "n"]
    for name in rows[0].differences:
        head += [_minus(name, quantity), *tests]
    table = [head + ["note"] * notes]
    for row in rows:
        numbers = (f"{one:.{quantity.digits}f}" if math.isfinite(one) else "-" for one in (row.mean, row.error))
        line = [row.rule, *numbers, str(row.n)]
        for name, pair in row.differences.items():
            found = ["-"] if name == row.rule else [points(pair, quantity.digits), *_test(pair, quantity.digits)]
            line += (found + ["-"] * len(tests))[: 1 + len(tests)]
        table.append(line + [row.note] * notes)
    return table


def by_baseline(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows once for every baseline, each time with the differences to that one alone."""
    return [[replace(row, differences={name: row.differences[name]}) for row in rows] for name in rows[0].differences]


def sides(row: Row, head: Sequence[str]) -> list[int]:
    """For every column: 1 or -1 where it holds a difference whose interval says better or worse, else 0."""
    found = map(row.side, row.differences)
    return [next(found) if name.startswith("minus ") else 0 for name in head]


def markdown_table(rows: Sequence[Row]) -> str:
    """The rows in Markdown; differences whose interval leaves out zero are bold."""
    head, *body = table_cells(rows)
    lines = []
    for row, cells in zip(rows, body, strict=True):
        marked = [f"**{cell}**" if found else cell for cell, found in zip(cells, sides(row, head), strict=True)]
        lines.append([f"`{row.rule}`", *marked[1:]])
    return markdown(head, lines)


def measures_table(rows: Sequence[Row]) -> str:
    """What else was measured in Markdown, mean ± standard error; empty where nothing was."""
    shown = {name: measure for name, measure in MEASURES.items() if any(name in row.measures for row in rows)}
    nothing = (math.nan, math.nan)
    body = [
        [f"`{row.rule}`", *(with_error(*row.measures.get(name, nothing), one.digits) for name, one in shown.items())]
        for row in rows
    ]
    return markdown(["rule", *(measure.heading for measure in shown.values())], body) if shown else ""


def overall_table(overall: Sequence[Overall]) -> str:
    """The methods over all points of a grid in Markdown."""
    head, *body = overall_cells(overall)
    return markdown(head, [[f"`{rule}`", *rest] for rule, *rest in body])


def write_csv(path: Path, points: Sequence[tuple[Task, Sequence[MethodResult]]], seeds: Sequence[int]) -> None:
    """Write one line a method and seed: `CSV_COLUMNS`, accuracies as fractions, losses in nats, with six decimals.

    What was not measured, or is not finite, is empty. Methods that know their own seeds have a line for each of those,
    others one for each of `seeds`.

    Raises:
        BadInputError: Where a method does not have one accuracy a seed.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for task, result in ((task, result) for task, results in points for result in results):
        own = result.seeds or seeds
        if len(result.test_accuracy) != len(own):
            raise BadInputError(
                f"method {result.rule!r} has {len(result.test_accuracy)} accuracies for {len(own)} seeds"
            )
        for place, seed in enumerate(own):
            values = [result.test_accuracy[place], result.validation_accuracy[place]]
            names = (*MEASURES, *LOSSES.values())
            values += [result.measures[name][place] if name in result.measures else math.nan for name in names]
            written = [f"{value:.6f}" if math.isfinite(value) else "" for value in values]
            writer.writerow([task.name, task.teacher, task.student, result.rule, seed, *written])
    atomic_write(path, text.getvalue().encode())


def overall_cells(overall: Sequence[Overall]) -> list[list[str]]:
    """The table over all points of a grid as text, its head first."""
    notes = any(one.note for one in overall)
    differences = [_minus(name, ACCURACY) for name in overall[0].differences]
    table = [["rule", ACCURACY.heading, *differences, *["note"] * notes]]
    for one in overall:
        pairs = ["-" if name == one.rule else interval(*found) for name, found in one.differences.items()]
        table.append([one.rule, interval(*one.accuracy, form=".2f"), *pairs, *[one.note] * notes])
    return table


def minus(baseline: str) -> str:
    """The head of a column of differences, without its unit."""
    return f"minus {short(baseline, 22)}"


def _minus(baseline: str, quantity: Quantity) -> str:
    return f"{minus(baseline)} ({quantity.difference_unit.rpartition(' ')[2]})"


def _test(pair: Paired, digits: int) -> list[str]:
    """What `TEST_COLUMNS` say of a difference."""
    if not math.isfinite(pair.p_corrected):
        return ["-"] * len(TEST_COLUMNS)
    p = f"{pair.p_corrected:.3f}" if pair.p_corrected >= 0.001 else "<0.001"
    return [p, f"{pair.detectable:.{digits}f}", f"{pair.seeds_for_tenth:,}"]
