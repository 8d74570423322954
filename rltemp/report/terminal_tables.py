"""The tables of a comparison for a terminal of any width; no name, number or column is ever lost or broken.

Where space is short, an interval goes below its number. Where it is shorter than that, methods have numbers, the
differences are spread over as many tables as they need, and a legend below says which number is which method.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from rltemp.experiments.grid import Overall
from rltemp.experiments.method_results import Row
from rltemp.report.tables import TEST_COLUMNS, minus, overall_cells, sides, table_cells

_UNBOUNDED = 10_000
"""Columns in which any table has its least width."""


@dataclass(frozen=True)
class MethodTable:
    """A table with a line for every method.

    Args:
        title: Above it.
        names: Of the methods.
        notes: What has to be said of each, or nothing.
        head: The columns behind the method's.
        body: The cells of every line.
        baselines: Where a baseline's columns begin, and its name.
    """

    title: str
    names: Sequence[str]
    notes: Sequence[str]
    head: Sequence[str]
    body: Sequence[Sequence[Text]]
    baselines: Sequence[tuple[int, str]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """The wide table where it fits, and else the narrow ones; called by rich."""
        wide = self._table(self._named(), range(len(self.head)), self.head, self.title)
        if _fits(wide, console, options):
            yield wide
            return
        labels = [Text(str(number)) for number in range(1, 1 + len(self.names))]
        head = list(self.head)
        for place, name in self.baselines:
            if name in self.names:
                head[place] = head[place].replace(minus(name), f"minus #{1 + list(self.names).index(name)}")
        title = self.title
        for columns in self._parts(labels, head, console, options):
            yield self._table(labels, columns, head, title)
            title = ""
        yield from self._legend()

    def _parts(
        self, labels: Sequence[Text], head: Sequence[str], console: Console, options: ConsoleOptions
    ) -> list[list[int]]:
        """The columns of each narrow table: a baseline's stay together."""
        starts = [place for place, _ in self.baselines]
        parts: list[list[int]] = [[]]
        for begin, end in zip([0, *starts], [*starts, len(head)], strict=True):
            wanted = [*parts[-1], *range(begin, end)]
            if parts[-1] and not _fits(self._table(labels, wanted, head, ""), console, options):
                parts.append([*range(begin, end)])
            else:
                parts[-1] = wanted
        return parts

    def _named(self) -> list[Text]:
        """Each method's name with its note below."""
        pairs = zip(self.names, self.notes, strict=True)
        return [Text.assemble(name, (f"\n{note}" if note else "", "dim")) for name, note in pairs]

    def _legend(self) -> Iterator[Table]:
        """What the numbers stand for."""
        legend = Table.grid(padding=(0, 1))
        legend.add_column(justify="right")
        legend.add_column(overflow="fold")
        for number, named in enumerate(self._named(), start=1):
            legend.add_row(f"#{number}", named)
        yield legend

    def _table(self, labels: Sequence[Text], columns: Sequence[int], head: Sequence[str], title: str) -> Table:
        table = Table(title=Text(title) if title else None, box=box.SIMPLE_HEAD, pad_edge=False)
        names = [label.plain.partition("\n")[0] for label in labels]
        numbered = names != list(self.names)
        # rich narrows the widest column that it may fold below its least width: not this one, where no note is longer.
        longest = max(len(line) for label in labels for line in label.plain.splitlines())
        least = max(map(len, names))
        table.add_column("#" if numbered else "rule", overflow="fold", min_width=least, no_wrap=longest <= least)
        for place in columns:
            words = [word for line in self.body for word in _narrow(line[place]).split()]
            table.add_column(
                Text(
                    re.sub(r" (?=\()|(?<=^visible) |(?<=^validation) ", "\n", head[place])
                ),  # a number's is not wrapped
                justify="right",
                overflow="fold",
                min_width=max(map(len, words), default=None),
                no_wrap=not any("[" in word for word in words),
            )
        for label, line in zip(labels, self.body, strict=True):
            table.add_row(label, *(Text(_narrow(line[place]), line[place].style) for place in columns))
        return table


def console_table(rows: Sequence[Row], title: str = "") -> MethodTable:
    """The rows; on a terminal green is better than the baseline, red worse."""
    left_out = ("rule", "note", *TEST_COLUMNS[2 if len(rows[0].differences) == 1 else 1 :])
    return _of_rows(rows, title, [name for name in table_cells(rows)[0] if name not in left_out])


def console_differences(rows: Sequence[Row], title: str = "") -> MethodTable:
    """The means of the rows and their differences alone."""
    _, mean, *others = table_cells(rows)[0]
    return _of_rows(rows, title, [mean, *(name for name in others if name.startswith("minus "))])


def _of_rows(rows: Sequence[Row], title: str, columns: Sequence[str]) -> MethodTable:
    head, *body = table_cells(rows)
    shown = [place for place, name in enumerate(head) if name in columns]
    colours = {1: "green", 0: "", -1: "red"}
    lines = [
        [Text(cells[place], colours[sides(row, head)[place]]) for place in shown]
        for row, cells in zip(rows, body, strict=True)
    ]
    starts = [number for number, place in enumerate(shown) if head[place].startswith("minus ")]
    baselines = [*zip(starts, rows[0].differences, strict=True)]
    names, notes = [row.rule for row in rows], [row.note for row in rows]
    return MethodTable(title, names, notes, [head[place] for place in shown], lines, baselines)


def console_overall(overall: Sequence[Overall], title: str) -> MethodTable:
    """The methods over all points of a grid."""
    head, *body = overall_cells(overall)
    shown = 2 + len(overall[0].differences)
    lines = [[*map(Text, cells[1:shown])] for cells in body]
    baselines = [*enumerate(overall[0].differences, start=1)]
    names, notes = [one.rule for one in overall], [one.note for one in overall]
    return MethodTable(title, names, notes, head[1:shown], lines, baselines)


def _fits(table: Table, console: Console, options: ConsoleOptions) -> bool:
    return Measurement.get(console, options.update(width=_UNBOUNDED), table).minimum <= options.max_width


def _narrow(cell: Text) -> str:
    """The text of a cell, whose interval has no blank inside."""
    return cell.plain.replace(", ", ",")
