"""The page of a comparison: `report.html`, one file that needs no other and asks nothing of any network.

`rltemp.report.plots` draws the figures, `templates/report.html` holds the words and the layout; here both meet. Clock
times stand in one section; the rest is the same whenever it is made. A grid has a page a point, and an index of them.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from rltemp.experiments.grid import Overall
from rltemp.experiments.method_results import Row, seeds, short
from rltemp.experiments.showcase import Showcase
from rltemp.experiments.statistics import points
from rltemp.report import plots
from rltemp.report.drawing import binned, svg
from rltemp.report.markdown import Section
from rltemp.report.rendering import write_template
from rltemp.report.tables import by_baseline, overall_cells, sides, table_cells

SHOWN = 8
"""Methods whose student is shown: a figure takes so many curves, and no more."""
EMBEDDED = 4
"""Of those, methods whose student's features are arranged by t-SNE, which takes a second or two each."""

ALONG = {
    "progress": ("over the run", "progress of the run (0 start, 1 end)"),
    "margin": ("by the teacher's margin", "teacher's logit margin (deviations; small: hard)"),
    "loss": ("by the student's loss", "student's loss (nats; large: hard)"),
}


@dataclass(frozen=True)
class Picture:
    """A figure as the page holds it.

    Args:
        caption: Says what it shows.
        alternative: Says what is to be seen, for readers who do not see it.
        source: A `data:` address that holds the figure whole.
    """

    caption: str
    alternative: str
    source: str


class Table(NamedTuple):
    """A table as the page holds it: every line has its cells, and 1 or -1 for each that says better or worse."""

    caption: str
    head: Sequence[str]
    body: Sequence[tuple[Sequence[str], Sequence[int]]]


def write_page(
    path: Path,
    section: Section,
    showcases: Mapping[str, Showcase],
    *,
    configuration: Mapping[str, Any],
    command: str,
) -> None:
    """Write the page.

    Args:
        path: Of the file.
        section: What was compared, with one baseline at least, and the verdict, which comes first.
        showcases: Of the methods that have one, by name; the most important first.
        configuration: The command's options by name.
        command: The command line that gives these results again.

    Raises:
        BadInputError: Where the file cannot be written.
    """
    rows = section.rows
    asked = {**configuration, "task": section.task.described()}
    shown = {row.rule: showcases[row.rule] for row in rows if row.rule in showcases}
    write_template(
        path,
        "report.html",
        title=section.title,
        task=section.task,
        teacher_accuracy=100 * section.teacher_accuracy,
        seeds=seeds(rows),
        tables=[_table(of_one) for found in section.tables for of_one in by_baseline(found)],
        methods=len(rows),
        losses=bool(section.losses),
        verdict=section.verdict,
        pictures={key: list(found) for key, found in _pictures(section, shown, [*showcases][:EMBEDDED]).items()},
        among="" if len(shown) == len(rows) else f" Shown are {len(shown)} of {len(rows)} methods.",
        embedded=EMBEDDED,
        options=[(name, _written(value)) for name, value in leaves(asked)],
        command=command,
    )


def write_index(
    path: Path, pages: Mapping[str, Section], overall: Sequence[Overall], verdict: str, command: str
) -> None:
    """Write the index of a grid's pages.

    Args:
        path: Of the file.
        pages: The points, by the names of their pages, which lie beside it.
        overall: The methods over all points.
        verdict: What follows from all points together.
        command: The command line that gives these results again.

    Raises:
        BadInputError: Where the file cannot be written.
    """
    head, *body = overall_cells(overall)
    table = Table("Interquartile means over all points", head, [(cells, [0] * len(head)) for cells in body])
    write_template(path, "index.html", table=table, pages=pages, verdict=verdict, command=command)


def _table(rows: Sequence[Row]) -> Table:
    """The differences to one baseline."""
    (baseline,), (head, *body) = rows[0].differences, table_cells(rows)
    lines = [(cells, sides(row, head)) for row, cells in zip(rows, body, strict=True)]
    return Table(f"{rows[0].quantity.name.capitalize()}, compared with {short(baseline, 60)}", head, lines)


def _pictures(section: Section, shown: Mapping[str, Showcase], embedded: Sequence[str]) -> dict[str, Iterator[Picture]]:
    """The pictures of every section of the page; a section that nothing is known for has none."""
    style = plots.styles(shown)
    return {
        "differences": (_interval_picture(rows, name) for rows in section.tables for name in rows[0].differences),
        "time": _cost(section.tables[0], shown, style),
        "temperatures": _temperatures(shown, style),
        "sharpness": _sharpness(shown),
        "features": _embeddings({rule: one for rule, one in shown.items() if rule in embedded}),
    }


def _interval_picture(rows: Sequence[Row], baseline: str) -> Picture:
    quantity, others = rows[0].quantity, [row for row in rows if row.rule != baseline]
    found = "; ".join(f"{row.rule} {points(row.differences[baseline], quantity.digits)}" for row in others)
    caption = f"Test {quantity.name} minus that of {baseline}, in {quantity.difference_unit}, with 95 % intervals."
    return _picture(plots.intervals(rows, baseline), caption, f"{caption} {found or 'There is no other method.'}")


def _cost(rows: Sequence[Row], shown: Mapping[str, Showcase], style: Mapping[str, plots.Style]) -> Iterator[Picture]:
    seconds = {rule: one.seconds for rule, one in shown.items() if math.isfinite(one.seconds)}
    if seconds:
        quantity = rows[0].quantity
        found = "; ".join(
            f"{row.rule} {row.mean:.{quantity.digits}f} {quantity.unit} at {1000 * seconds[row.rule]:.3g} ms"
            for row in rows
            if row.rule in seconds
        )
        caption = f"Test {quantity.name} against training time of an epoch."
        yield _picture(plots.cost(rows, seconds, style), caption, f"{caption} {found}.")


def _temperatures(shown: Mapping[str, Showcase], style: Mapping[str, plots.Style]) -> Iterator[Picture]:
    having = {rule: one for rule, one in shown.items() if not np.isnan(one.samples["teacher_temperature"]).all()}
    for along, (words, label) in ALONG.items() if having else ():
        for network in ("student", "teacher"):
            caption = f"The {network}'s temperature {words}."
            found = "; ".join(_course(rule, one, network, along) for rule, one in having.items())
            yield _picture(plots.temperatures(having, style, network, along, label), caption, f"{caption} {found}.")


def _course(rule: str, showcase: Showcase, network: str, along: str) -> str:
    median = binned(showcase.samples[along], showcase.samples[f"{network}_temperature"])[2]
    return f"{rule} from {median[0]:.3g} to {median[-1]:.3g}" if len(median) else f"{rule} unknown"


def _sharpness(shown: Mapping[str, Showcase]) -> Iterator[Picture]:
    for softened, when in ((False, "before"), (True, "after")):
        medians = {rule: _medians(one, softened) for rule, one in shown.items()}
        having = {rule: shown[rule] for rule, found in medians.items() if len(found) == 2}
        if having:
            caption = f"Sharpness {when} division by the temperatures."
            found = "; ".join("{} student {:.3g}, teacher {:.3g}".format(rule, *medians[rule]) for rule in having)
            yield _picture(plots.sharpness(having, softened), caption, f"{caption} Medians: {found}.")


def _medians(showcase: Showcase, softened: bool) -> list[float]:
    names = (f"{'softened_' * softened}{network}_sharpness" for network in ("student", "teacher"))
    return [float(np.median(values)) for name in names if len(values := plots.late(showcase, name))]


def _embeddings(shown: Mapping[str, Showcase]) -> Iterator[Picture]:
    for rule, one in shown.items():
        positions = plots.arranged(one.features)
        if positions is not None:
            alternative = f"{len(one.labels)} test samples of {len(set(one.labels.tolist()))} classes in the plane."
            yield _picture(plots.embedding(positions, one.labels), short(rule, 60), f"{rule}: {alternative}")


def _picture(figure: Figure, caption: str, alternative: str) -> Picture:
    source = f"data:image/svg+xml;base64,{base64.b64encode(svg(figure)).decode()}"
    return Picture(caption, alternative, source)


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every value inside nested mappings by its dotted name; what is left to its default is left out."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{name}.{key}" if name else str(key))
    elif value is not None and value != () and value != []:
        yield name, value


def _written(value: Any) -> str:
    """An option's value as a person writes it."""
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
