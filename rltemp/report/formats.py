"""The tables of a finished comparison as Markdown, LaTeX, CSV or HTML, to be put into a page or a paper.

Everything is read from `result.json`; nothing is trained. To add a format, write a function of the tables and enter it
into `FORMATS`.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

from rltemp.experiments.grid import Overall
from rltemp.experiments.measures import LOSS
from rltemp.experiments.method_results import Row, stored_rows
from rltemp.report.tables import TEST_COLUMNS, markdown_table, overall_cells, overall_table, sides, table_cells

Format = Literal["markdown", "latex", "csv", "html"]

CSV_HEAD = (
    *("task", "teacher", "student", "quantity", "rule", "n", "mean", "standard_error"),
    *("minus", "difference", "low", "high", "p_holm", "note"),
)
_NOT_IN_LATEX = (*TEST_COLUMNS[1:], "note")
"""A page of a paper has no room for them; notes are comments above the table."""
_LATEX = {one: "\\" + one for one in "_&%#${}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}
_LATEX |= {"^": r"\textasciicircum{}", "±": r"$\pm$", "|": r"\textbar{}", "<": r"\textless{}", ">": r"\textgreater{}"}


@dataclass(frozen=True)
class ReportTable:
    """One table of a comparison.

    Args:
        title: What it is of.
        task: Task, teacher and student, by name; empty for a table over all points of a grid.
        rows: A row a method; none for a table over all points of a grid.
        overall: The rows of such a table.
    """

    title: str
    task: Mapping[str, str]
    rows: Sequence[Row] = ()
    overall: Sequence[Overall] = ()

    def cells(self) -> list[tuple[list[str], list[int]]]:
        """Every line, the head first, and for each cell 1 or -1 where it says better or worse, else 0."""
        head, *body = table_cells(self.rows) if self.rows else overall_cells(self.overall)
        found = [sides(row, head) for row in self.rows] or [[0] * len(head)] * len(body)
        return [(head, [0] * len(head)), *zip(body, found, strict=True)]


def stored_tables(result: Mapping[str, Any]) -> list[ReportTable]:
    """The tables of a comparison's `result.json`: of each point what people read first before the others."""
    points, seeds, tables = result.get("points", [result]), len(result["seeds"]), []
    for point in points:
        task = {name: str(point["task"][name]) for name in ("name", "teacher", "student")}
        for rows in (stored_rows(point, seeds, LOSS), stored_rows(point, seeds)):
            if rows:
                title = "{name}: {teacher} teaches {student}".format(**task)
                tables.append(ReportTable(f"{title}, test {rows[0].quantity.name}", task, rows))
    if "points" in result:
        overall = [Overall.from_json(one) for one in result["overall"]]
        tables.append(ReportTable(f"Over all {len(points)}: interquartile means", {}, overall=overall))
    return tables


def as_markdown(tables: Sequence[ReportTable]) -> str:
    """GitHub's Markdown, a heading a table; differences whose interval leaves out zero are bold."""
    written = [(one.title, markdown_table(one.rows) if one.rows else overall_table(one.overall)) for one in tables]
    return "\n".join(f"## {title}\n\n{table}" for title, table in written)


def as_latex(tables: Sequence[ReportTable]) -> str:
    """A `tabular` a table, for LaTeX without a package; differences whose interval leaves out zero are bold."""
    return "\n".join(_tabular(one) for one in tables)


def as_html(tables: Sequence[ReportTable]) -> str:
    """A `<table>` a table, without any style; the class of a cell is `better` or `worse` where it says so."""
    return "\n".join(_html(one) for one in tables)


def as_csv(tables: Sequence[ReportTable]) -> str:
    """A line for each method and baseline (`CSV_HEAD`), in the units of the report; empty where there is no number.

    The summary over all points of a grid is left out.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    for table in tables:
        for row in table.rows:
            known = (*table.task.values(), row.quantity.name, row.rule, row.n, *map(_number, (row.mean, row.error)))
            for base, pair in row.differences.items():
                numbers = (pair.mean, pair.low, pair.high, pair.p_corrected) if base != row.rule else (math.nan,) * 4
                writer.writerow([*known, base, *map(_number, numbers), row.note])
    return text.getvalue()


FORMATS: Mapping[Format, Callable[[Sequence[ReportTable]], str]] = {
    "markdown": as_markdown,
    "latex": as_latex,
    "csv": as_csv,
    "html": as_html,
}
"""What writes each format."""


def _tabular(table: ReportTable) -> str:
    (head, _), *body = table.cells()
    shown = [place for place, name in enumerate(head) if name not in _NOT_IN_LATEX]
    lines = [" & ".join(_latex(head[place]) for place in shown) + r" \\", r"\hline"]
    for cells, found in body:
        written = [rf"\textbf{{{_latex(cells[place])}}}" if found[place] else _latex(cells[place]) for place in shown]
        lines.append(" & ".join(written) + r" \\")
    notes = [f"% {row.rule}: {row.note}" for row in table.rows if row.note]
    columns = "l" + "r" * (len(shown) - 1)
    return "\n".join([f"% {table.title}", *notes, rf"\begin{{tabular}}{{{columns}}}", *lines, r"\end{tabular}", ""])


def _html(table: ReportTable) -> str:
    (head, _), *body = table.cells()
    classes = {1: ' class="better"', -1: ' class="worse"', 0: ""}
    lines = [f"<table>\n<caption>{escape(table.title)}</caption>"]
    lines.append("<tr>" + "".join(f'<th scope="col">{escape(name)}</th>' for name in head) + "</tr>")
    for (rule, *cells), (_, *found) in body:
        pairs = zip(cells, found, strict=True)
        written = "".join(f"<td{classes[side]}>{escape(cell)}</td>" for cell, side in pairs)
        lines.append(f'<tr><th scope="row">{escape(rule)}</th>{written}</tr>')
    return "\n".join([*lines, "</table>", ""])


def _latex(text: str) -> str:
    r"""Text as LaTeX shows it.

    >>> print(_latex("ttm:kd_weight=0.9 100 %"))
    ttm:kd\_weight=0.9 100 \%
    """
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _number(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else ""
