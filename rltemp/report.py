"""What a comparison hands back: its tables, `results.csv`, one picture and `report.md`.

Accuracies come in as fractions (0.954) and go out as percent (95.40), differences as percentage points:
always paired by seed, with a 95 % interval. `table_rows` computes them; everything else only shows them.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from rich.text import Text

from rltemp.errors import BadInputError
from rltemp.files import atomic_write
from rltemp.names import lookup
from rltemp.runs import versions
from rltemp.stats import Paired, mean_and_error, paired_difference

CSV_COLUMNS = ("task", "teacher", "student", "rule", "seed", "test_accuracy", "validation_accuracy")
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"  # apart for every kind of colour vision (Okabe and Ito)


@dataclass(frozen=True)
class Arm:
    """One rule's students: accuracies as fractions, `[n]`, in the same order of seeds as every other arm's.

    Raises:
        BadInputError: Where the two accuracies are not rows of one length.
    """

    rule: str
    test_accuracy: NDArray[np.float64]
    validation_accuracy: NDArray[np.float64]
    note: str = ""

    def __post_init__(self) -> None:
        shapes = np.shape(self.test_accuracy), np.shape(self.validation_accuracy)
        if len(shapes[0]) != 1 or shapes[0] != shapes[1]:
            raise BadInputError(f"arm {self.rule!r} needs two accuracies a seed, shapes [n]; got {shapes}")


@dataclass(frozen=True)
class Row:
    """One line of the table: accuracy and standard error in percent, differences in points by baseline."""

    rule: str
    accuracy: float
    error: float
    differences: Mapping[str, Paired]
    n: int
    note: str = ""


@dataclass(frozen=True)
class TemperatureTrace:
    """The temperatures that a rule gave, over samples drawn from whole runs; every array is `[N]`.

    Args:
        progress: How much of the run was done, 0 to 1.
        teacher_margin: The teacher's first minus its second probability, 0 to 1.
        student_temperature: Positive.
        teacher_temperature: Positive.
        reference: The temperature that an idle policy would give.

    Raises:
        BadInputError: Where the four arrays are not rows of one length, or a temperature is not positive.
    """

    progress: NDArray[np.float64]
    teacher_margin: NDArray[np.float64]
    student_temperature: NDArray[np.float64]
    teacher_temperature: NDArray[np.float64]
    reference: float

    def __post_init__(self) -> None:
        names = ("progress", "teacher_margin", "student_temperature", "teacher_temperature")
        shapes = {name: np.shape(getattr(self, name)) for name in names}
        if len(set(shapes.values())) != 1 or len(shapes["progress"]) != 1 or shapes["progress"] == (0,):
            raise BadInputError(f"a trace needs four rows of one length; got {shapes}")
        temperatures = np.append(self.student_temperature, self.teacher_temperature)
        if not (np.isfinite(temperatures) & (temperatures > 0)).all() or not 0 < self.reference < math.inf:
            raise BadInputError("a trace needs temperatures that are positive and finite, for its log axis")


def table_rows(arms: Sequence[Arm], against: Sequence[str]) -> list[Row]:
    """Return one row an arm, in the order given, with its paired differences to every arm named in `against`.

    Raises:
        BadInputError: Where there is no arm, a rule is there twice, a baseline is no arm, or the numbers of
            seeds differ.
    """
    by_rule = {arm.rule: arm for arm in arms}
    if not arms or len(by_rule) != len(arms):
        raise BadInputError(f"a comparison needs arms of different names; got {[arm.rule for arm in arms]}")
    baselines = [lookup(by_rule, name, "baseline") for name in against]
    rows = []
    for arm in arms:
        percent = 100 * np.asarray(arm.test_accuracy)
        accuracy, error = mean_and_error(percent)
        differences = {
            base.rule: paired_difference(percent, 100 * np.asarray(base.test_accuracy)) for base in baselines
        }
        rows.append(Row(arm.rule, accuracy, error, differences, len(percent), arm.note))
    return rows


def markdown_table(rows: Sequence[Row]) -> str:
    """Return the rows as a GitHub Markdown table; differences whose interval leaves out zero are bold."""
    head, *body = _cells(rows)
    lines = [head, ["---" if name in ("rule", "note") else "---:" for name in head]]
    for row, (rule, accuracy, error, *rest) in zip(rows, body, strict=True):
        clear = [_side(difference) != 0 for difference in row.differences.values()] + [False]
        marked = [f"**{cell}**" if bold else cell for cell, bold in zip(rest, clear, strict=False)]
        lines.append([f"`{rule}`", accuracy, error, *marked])
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def console_table(rows: Sequence[Row], title: str = "") -> Table:
    """Return the rows for a rich console; on a terminal green is better than the baseline, red worse."""
    head, *body = _cells(rows)
    table = Table(title=Text(title) if title else None, box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(head[: 3 + len(rows[0].differences)]):
        # Where space is short, rules fold and intervals go below their difference; a number is never broken.
        header = Text(name.replace(" (", "\n("))
        table.add_column(
            header, justify="right" if index else "left", overflow="fold", no_wrap=index in (1, 2)
        )
    for row, (rule, accuracy, error, *rest) in zip(rows, body, strict=True):
        first = Text.assemble(rule, (f"\n{row.note}" if row.note else "", "dim"))
        cells = [
            Text(cell.replace(", ", ","), {1: "green", 0: "", -1: "red"}[_side(difference)])
            for cell, difference in zip(rest, row.differences.values(), strict=False)
        ]
        table.add_row(first, accuracy, error, *cells)
    return table


def write_csv(
    path: Path, task: str, teacher: str, student: str, arms: Sequence[Arm], seeds: Sequence[int]
) -> None:
    """Write one line an arm and seed: `CSV_COLUMNS`, accuracies as fractions with six decimals.

    Raises:
        BadInputError: Where an arm does not have one accuracy a seed.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for arm in arms:
        if len(arm.test_accuracy) != len(seeds):
            raise BadInputError(
                f"arm {arm.rule!r} has {len(arm.test_accuracy)} accuracies for {len(seeds)} seeds"
            )
        for seed, test, validation in zip(seeds, arm.test_accuracy, arm.validation_accuracy, strict=True):
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
    """
    parts = [
        f"# {title}",
        f"{len(rows)} rules taught `{student}` students on `{task}` ({_seeds(rows)} each); the teacher, "
        f"`{teacher}`, has {100 * teacher_accuracy:.2f} % test accuracy. Accuracy is the mean over seeds on "
        "test data, s.e. its standard error. Differences are percentage points, paired by seed, with 95 % "
        "BCa bootstrap intervals over seeds (bold where they leave out zero), each for one comparison by "
        "itself: among many, some leave out zero by chance. They speak for this task and teacher only.",
        markdown_table(rows).rstrip(),
        *([f"![Differences in accuracy and learned temperatures]({picture})"] if picture else []),
        f"## Reproduce\n\n```\n{command}\n```",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in versions().items()) + ".",
    ]
    path = folder / "report.md"
    atomic_write(path, ("\n\n".join(parts) + "\n").encode())
    return path


def picture(
    path: Path, arms: Sequence[Arm], baseline: str, trace: TemperatureTrace | None = None, title: str = ""
) -> None:
    """Write the figure as a PNG, 1500 pixels wide; arguments and errors as for `figure`."""
    drawn, data = figure(arms, baseline, trace, title), io.BytesIO()
    drawn.savefig(data, format="png", dpi=1500 / drawn.get_figwidth())
    atomic_write(path, data.getvalue())


def figure(
    arms: Sequence[Arm], baseline: str, trace: TemperatureTrace | None = None, title: str = ""
) -> Figure:
    """Draw every arm's difference to the baseline and, given a trace, the temperatures that were learned.

    Args:
        arms: The arms, `baseline` among them.
        baseline: The rule at the zero line.
        trace: Temperatures by progress and by the teacher's margin; without one only the
            differences are drawn.
        title: Stands above all panels, with the number of seeds.

    Raises:
        BadInputError: As for `table_rows`.
    """
    rows = table_rows(arms, [baseline])
    drawn = Figure(figsize=(15 if trace else 10, max(4.8, 1.9 + 0.32 * len(rows))), layout="constrained")
    drawn.suptitle(f"{title} ({_seeds(rows)})" if title else _seeds(rows), fontsize=14, parse_math=False)
    panels = drawn.subplots(1, 3 if trace else 1, squeeze=False, width_ratios=[1.4, 1, 1] if trace else None)[
        0
    ]
    _draw_differences(panels[0], rows, baseline)
    if trace:
        _draw_temperatures(panels[1:], trace)
    return drawn


def _draw_differences(panel: Axes, rows: Sequence[Row], baseline: str) -> None:
    """A forest plot, best arm on top; arms far outside get an arrow at the edge and their number."""
    ordered = sorted(rows, key=lambda row: row.differences[baseline].mean)
    left, right = _limits([row.differences[baseline] for row in ordered])
    beside, pad = panel.get_yaxis_transform(), 0.05 * (right - left)
    panel.axvline(0, color=GREY, linewidth=1, zorder=0)
    for y, row in enumerate(ordered):
        pair = row.differences[baseline]
        colour = {1: BLUE, 0: GREY, -1: ORANGE}[_side(pair)]
        if left <= pair.mean <= right:
            panel.plot([pair.low, pair.high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
            fill = "white" if row.rule == baseline else colour
            panel.plot(pair.mean, y, "o", color=colour, markerfacecolor=fill)
        else:
            below = pair.mean < 0
            edge, step = (left, pad) if below else (right, -pad)
            panel.plot(edge, y, marker="<" if below else ">", color=colour)
            panel.text(
                edge + 0.7 * step, y, f"{pair.mean:+.1f}", va="center", ha="left" if below else "right"
            )
        panel.text(1.02, y, f"{row.accuracy:.2f}", transform=beside, va="center")
    panel.text(1.02, len(rows) - 0.3, "mean %", transform=beside, color=GREY)
    panel.set_yticks(range(len(rows)), [_short(row.rule) for row in ordered], parse_math=False)
    panel.set(xlim=(left - pad, right + pad), ylim=(-0.6, len(rows) - 0.4))
    panel.set_xlabel(f"test accuracy minus {_short(baseline)} (points, 95 % interval)", parse_math=False)
    panel.tick_params(axis="y", length=0)
    panel.grid(axis="y", alpha=0.25)
    panel.spines[["top", "right", "left"]].set_visible(False)


def _limits(pairs: Sequence[Paired]) -> tuple[float, float]:
    """What the axis shows, in points: one arm that failed by ten points must not flatten all the others."""
    bounds = np.array([bound for pair in pairs for bound in (pair.mean, pair.low, pair.high)])
    bounds = bounds[np.isfinite(bounds) & (bounds != 0)]
    most = 4 * float(np.median(np.abs(bounds))) if len(bounds) else 1.0
    left, right = max(float(bounds.min(initial=0)), -most), min(float(bounds.max(initial=0)), most)
    return (left, right) if right > left else (-most, most)


def _draw_temperatures(panels: Sequence[Axes], trace: TemperatureTrace) -> None:
    """Median and 5-95 % band of both networks' temperatures, by progress and by the teacher's margin."""
    networks = (
        ("teacher", trace.teacher_temperature, BLUE, "o-"),
        ("student", trace.student_temperature, ORANGE, "s-"),
    )
    panels[1].sharey(panels[0])
    for panel, along in zip(panels, (trace.progress, trace.teacher_margin), strict=True):
        panel.set_yscale("log", base=2)
        for name, temperatures, colour, style in networks:
            x, low, middle, high = _bins(along, temperatures)
            panel.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
            panel.plot(x, middle, style, color=colour, markersize=4, label=name)
        panel.axhline(trace.reference, color=GREY, linestyle="--", label=f"reference ({trace.reference:g})")
        panel.set_xlim(0, 1)
        panel.grid(axis="y", alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    bottom, top = panels[0].get_ylim()  # at least from half to twice the reference, so that there are ticks
    panels[0].set_ylim(min(bottom, 0.45 * trace.reference), max(top, 2.2 * trace.reference))
    panels[0].set_ylabel("temperature (median, 5-95 % band; log)")
    panels[0].set_xlabel("progress of the run (0 start, 1 end)")
    panels[1].set_xlabel("teacher's margin (1st - 2nd probability)")
    panels[0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, columnspacing=1)


def _bins(x: NDArray[np.float64], y: NDArray[np.float64], count: int = 20) -> NDArray[np.float64]:
    """Return `[4, bins]`: median x and the 5, 50, 95 % quantiles of y, of bins with 0.2 % of the samples."""
    index = np.clip((np.asarray(x) * count).astype(int), 0, count - 1)
    held = np.bincount(index, minlength=count)
    chosen = [index == number for number in np.flatnonzero(held >= max(1, len(index) / 500))]
    bins = [(np.median(x[here]), *np.quantile(y[here], [0.05, 0.5, 0.95])) for here in chosen]
    return np.array(list(zip(*bins, strict=True)), dtype=np.float64)


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    """The table as text, its head first; the notes' column is there where any row has a note."""
    notes = any(row.note for row in rows)
    head = [
        "rule",
        "accuracy (%)",
        "s.e.",
        *(f"minus {_short(name, 22)} (points)" for name in rows[0].differences),
    ]
    table = [head + ["note"] * notes]
    for row in rows:
        pairs = ["-" if name == row.rule else _points(pair) for name, pair in row.differences.items()]
        error = f"{row.error:.2f}" if math.isfinite(row.error) else "-"
        table.append([row.rule, f"{row.accuracy:.2f}", error, *pairs, *[row.note] * notes])
    return table


def _points(pair: Paired) -> str:
    interval = f" [{pair.low:+.2f}, {pair.high:+.2f}]" if math.isfinite(pair.low) else ""
    return f"{pair.mean:+.2f}{interval}"


def _side(pair: Paired) -> int:
    """1 or -1 where the interval lies above or below zero, else 0."""
    return int(pair.low > 0) - int(pair.high < 0)


def _seeds(rows: Sequence[Row]) -> str:
    return f"n = {rows[0].n} {'seed' if rows[0].n == 1 else 'seeds'}"


def _short(name: str, most: int = 30) -> str:
    """`name` without its middle where it is longer than `most` characters."""
    return name if len(name) <= most else f"{name[: most // 2 - 1]}...{name[-(most // 2 - 2) :]}"
