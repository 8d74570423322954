"""What a comparison hands back: its tables, `results.csv` and `report.md`.

`rltemp.arms` computes the rows, `rltemp.picture` draws them; here they are written out.
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

from rltemp.arms import Arm, Row, seeds, short, side
from rltemp.errors import BadInputError
from rltemp.files import atomic_write
from rltemp.runs import versions
from rltemp.stats import Paired

CSV_COLUMNS = ("task", "teacher", "student", "rule", "seed", "test_accuracy", "validation_accuracy")


def markdown_table(rows: Sequence[Row]) -> str:
    """Return the rows as a GitHub Markdown table; differences whose interval leaves out zero are bold."""
    head, *body = table_cells(rows)
    lines = [head, ["---" if name in ("rule", "note") else "---:" for name in head]]
    for row, (rule, accuracy, error, n, *rest) in zip(rows, body, strict=True):
        clear = [side(difference) != 0 for difference in row.differences.values()] + [False]
        marked = [f"**{cell}**" if bold else cell for cell, bold in zip(rest, clear, strict=False)]
        lines.append([f"`{rule}`", accuracy, error, n, *marked])
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def console_table(rows: Sequence[Row], title: str = "") -> Table:
    """Return the rows for a rich console; on a terminal green is better than the baseline, red worse."""
    head, *body = table_cells(rows)
    table = Table(title=Text(title) if title else None, box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(head[: 4 + len(rows[0].differences)]):
        # Where space is short, rules fold and intervals go below their difference; a number is never broken.
        header = Text(name.replace(" (", "\n("))
        table.add_column(header, justify="right" if index else "left", overflow="fold", no_wrap=index in (1, 2, 3))
    for row, (rule, accuracy, error, n, *rest) in zip(rows, body, strict=True):
        first = Text.assemble(rule, (f"\n{row.note}" if row.note else "", "dim"))
        cells = [
            Text(cell.replace(", ", ","), {1: "green", 0: "", -1: "red"}[side(difference)])
            for cell, difference in zip(rest, row.differences.values(), strict=False)
        ]
        table.add_row(first, accuracy, error, n, *cells)
    return table


def write_csv(path: Path, task: str, teacher: str, student: str, arms: Sequence[Arm], seeds: Sequence[int]) -> None:
    """Write one line an arm and seed: `CSV_COLUMNS`, accuracies as fractions with six decimals.

    Arms that know their own seeds have a line for each of those, others one for each of `seeds`.

    Raises:
        BadInputError: Where an arm does not have one accuracy a seed.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for arm in arms:
        own = arm.seeds or seeds
        if len(arm.test_accuracy) != len(own):
            raise BadInputError(f"arm {arm.rule!r} has {len(arm.test_accuracy)} accuracies for {len(own)} seeds")
        for seed, test, validation in zip(own, arm.test_accuracy, arm.validation_accuracy, strict=True):
            writer.writerow([task, teacher, student, arm.rule, seed, f"{test:.6f}", f"{validation:.6f}"])
    atomic_write(path, text.getvalue().encode())


def write_report(
    folder: Path,
    rows: Sequence[Row],
    *,
    title: str,
    task: str,
    teacher: str,
    teacher_accuracy: float,
    student: str,
    command: str,
    picture: str | None = "picture.png",
    verdict: Sequence[str] = (),
) -> Path:
    """Write `report.md`: what was compared, the table, the picture, how to reproduce it. Return its path.

    Args:
        folder: The run folder.
        rows: From `table_rows`.
        title: The heading.
        task: Name of the task.
        teacher: Name of the teacher network.
        teacher_accuracy: The teacher's test accuracy, a fraction.
        student: Name of the student network.
        command: The command line that gives these results again.
        picture: The picture's file name in `folder`, or None where none was drawn.
        verdict: What follows from the numbers, a line each; nothing by default.
    """
    parts = [
        f"# {title}",
        f"{len(rows)} rules taught `{student}` students on `{task}` ({seeds(rows)} each); the teacher, "
        f"`{teacher}`, has {100 * teacher_accuracy:.2f} % test accuracy. Accuracy is the mean over seeds on "
        "test data, s.e. its standard error. Differences are percentage points, paired by seed, with 95 % "
        "bootstrap intervals over seeds (BCa; Student's t below 8 seeds; bold where they leave out zero), each for "
        "one comparison by itself: among many, some leave out zero by chance. They speak for this task and teacher "
        "only.",
        markdown_table(rows).rstrip(),
        *([f"![Differences in accuracy and learned temperatures]({picture})"] if picture else []),
        *(["## Verdict", "\n".join(map(_item, verdict))] if verdict else []),
        f"## Reproduce\n\n```\n{command}\n```",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in versions().items()) + ".",
    ]
    path = folder / "report.md"
    atomic_write(path, ("\n\n".join(parts) + "\n").encode())
    return path


def table_cells(rows: Sequence[Row]) -> list[list[str]]:
    """The table as text, its head first; the notes' column is there where any row has a note."""
    notes = any(row.note for row in rows)
    head = [
        "rule",
        "accuracy (%)",
        "s.e.",
        "n",
        *(f"minus {short(name, 22)} (points)" for name in rows[0].differences),
    ]
    table = [head + ["note"] * notes]
    for row in rows:
        pairs = ["-" if name == row.rule else points(pair) for name, pair in row.differences.items()]
        error = f"{row.error:.2f}" if math.isfinite(row.error) else "-"
        table.append([row.rule, f"{row.accuracy:.2f}", error, str(row.n), *pairs, *[row.note] * notes])
    return table


def _item(line: str) -> str:
    """A line as an item of a Markdown list, indented as it is."""
    text = line.lstrip()
    return f"{line[: len(line) - len(text)]}- {text}"


def points(pair: Paired) -> str:
    """A difference in points with its interval, where it has one: `+1.29 [+0.87, +1.83]`; `-` where it is refused."""
    if not math.isfinite(pair.mean):
        return "-"
    interval = f" [{pair.low:+.2f}, {pair.high:+.2f}]" if math.isfinite(pair.low) else ""
    return f"{pair.mean:+.2f}{interval}"
