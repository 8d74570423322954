"""The page of a comparison: `report.html`, one file that needs no other and asks nothing of any network.

`rltemp.report.plots` draws, `templates/report.html` lays out; here what both need is put together. All names on the
page are somebody's input: Jinja2 escapes them. Clock times stand in one section; the rest is the same whenever it is
made.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from rltemp.data.tasks import Task
from rltemp.experiments.method_results import Row, seeds, short, side
from rltemp.experiments.showcase import Showcase
from rltemp.experiments.statistics import points
from rltemp.io.files import atomic_write
from rltemp.io.versions import versions
from rltemp.report import plots
from rltemp.report.tables import table_cells

SHOWN = 8
"""Rules whose student is shown: a figure takes so many lines, and no more."""
EMBEDDED = 4
"""Of those, rules whose student's features are arranged by t-SNE, which takes a second or two each."""

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
        alternative: Says what is to be seen, for who does not see it.
        source: A `data:` address.
    """

    caption: str
    alternative: str
    source: str


@dataclass(frozen=True)
class Section:
    """A part of the page with figures."""

    key: str
    heading: str
    introduction: str
    pictures: list[Picture]


def write_page(
    path: Path,
    rows: Sequence[Row],
    showcases: Mapping[str, Showcase],
    *,
    title: str,
    task: Task,
    teacher_accuracy: float,
    configuration: Mapping[str, Any],
    command: str,
    verdict: Sequence[str] = (),
) -> None:
    """Write the page.

    Args:
        path: Of the file.
        rows: From `table_rows`, with one baseline at least.
        showcases: Of the rules that have one, by rule; the most important first.
        title: The heading.
        task: What was trained.
        teacher_accuracy: On the test part, 0..1.
        configuration: The command's options by name.
        command: The command line that gives these results again.
        verdict: What follows from the numbers, a line each.

    Raises:
        BadInputError: Where the file cannot be written.
    """
    head, *body = table_cells(rows)
    environment = Environment(
        loader=PackageLoader("rltemp.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html").render(
        title=title,
        task=task,
        teacher_accuracy=100 * teacher_accuracy,
        seeds=seeds(rows),
        head=head,
        body=[(cells, _marks(row, head)) for row, cells in zip(rows, body, strict=True)],
        verdict=verdict,
        sections=[part for part in sections(rows, showcases) if part.pictures],
        options=[(name, words(value)) for name, value in leaves({**configuration, "task": asdict(task)})],
        versions=versions(),
        command=command,
    )
    atomic_write(path, page.encode("utf-8", "replace"))


def sections(rows: Sequence[Row], showcases: Mapping[str, Showcase]) -> list[Section]:
    """The parts of the page that have figures; one that nothing is known for has none."""
    shown = {row.rule: showcases[row.rule] for row in rows if row.rule in showcases}
    style = plots.styles(shown)
    embedded = [*showcases][:EMBEDDED]
    among = "" if len(shown) == len(rows) else f" Shown are {len(shown)} of {len(rows)} rules."
    return [
        Section(
            "differences",
            "Differences",
            "Paired by seed. Blue intervals lie above zero, orange ones below, grey ones hold it.",
            [_interval_picture(rows, baseline) for baseline in rows[0].differences],
        ),
        Section(
            "time",
            "Accuracy against training time",
            "What an epoch took, by the clock, divided by the students that trained side by side: rough numbers, and "
            f"the only ones on this page that are others when it is made again.{among}",
            list(_cost(rows, shown, style)),
        ),
        Section(
            "temperatures",
            "Temperatures",
            f"Of one student a rule, the first seed's, as it trained: mean and 5-95 % band of its samples.{among}",
            list(_temperatures(shown, style)),
        ),
        Section(
            "sharpness",
            "Sharpness",
            "Of both networks' logits in the last tenth of training, before and after division by the temperatures: "
            f"median, middle half and 5-95 % of the samples of the first seed's student.{among}",
            list(_sharpness(shown)),
        ),
        Section(
            "features",
            "What the students see",
            "Test images by what the student's last layer is given, arranged in the plane by t-SNE, each drawn as the "
            "number of its class. Neighbours are alike; distances between groups mean little. Shown is the first "
            f"seed's student of {EMBEDDED} rules at most.",
            list(_embeddings({rule: one for rule, one in shown.items() if rule in embedded})),
        ),
    ]


def _interval_picture(rows: Sequence[Row], baseline: str) -> Picture:
    found = "; ".join(f"{row.rule} {points(row.differences[baseline])}" for row in rows if row.rule != baseline)
    caption = f"Test accuracy minus that of {baseline}, in percentage points, with 95 % intervals."
    return picture(plots.intervals(rows, baseline), caption, f"{caption} {found or 'There is no other rule.'}")


def _cost(rows: Sequence[Row], shown: Mapping[str, Showcase], style: Mapping[str, plots.Style]) -> Iterator[Picture]:
    seconds = {rule: one.seconds for rule, one in shown.items() if math.isfinite(one.seconds)}
    if seconds:
        found = "; ".join(
            f"{row.rule} {row.accuracy:.2f} % at {1000 * seconds[row.rule]:.3g} ms"
            for row in rows
            if row.rule in seconds
        )
        caption = "Test accuracy against training time of an epoch."
        yield picture(plots.cost(rows, seconds, style), caption, f"{caption} {found}.")


def _temperatures(shown: Mapping[str, Showcase], style: Mapping[str, plots.Style]) -> Iterator[Picture]:
    having = {rule: one for rule, one in shown.items() if not np.isnan(one.samples["teacher_temperature"]).all()}
    for along, (words, label) in ALONG.items() if having else ():
        for network in ("teacher", "student"):
            caption = f"The {network}'s temperature {words}."
            found = "; ".join(_course(rule, one, network, along) for rule, one in having.items())
            yield picture(plots.temperatures(having, style, network, along, label), caption, f"{caption} {found}.")


def _course(rule: str, showcase: Showcase, network: str, along: str) -> str:
    mean = plots.binned(showcase.samples[along], showcase.samples[f"{network}_temperature"])[2]
    return f"{rule} from {mean[0]:.3g} to {mean[-1]:.3g}" if len(mean) else f"{rule} unknown"


def _sharpness(shown: Mapping[str, Showcase]) -> Iterator[Picture]:
    for softened, when in ((False, "before"), (True, "after")):
        having = {rule: one for rule, one in shown.items() if len(_medians(one, softened)) == 2}
        if having:
            caption = f"Sharpness {when} division by the temperatures."
            found = (
                f"{rule} teacher {_medians(one, softened)[0]:.3g}, student {_medians(one, softened)[1]:.3g}"
                for rule, one in having.items()
            )
            yield picture(plots.sharpness(having, softened), caption, f"{caption} Medians: {'; '.join(found)}.")


def _medians(showcase: Showcase, softened: bool) -> list[float]:
    names = (f"{'softened_' * softened}{network}_sharpness" for network in ("teacher", "student"))
    found = (plots.late(showcase, name) for name in names)
    return [float(sorted(values)[len(values) // 2]) for values in found if len(values)]


def _embeddings(shown: Mapping[str, Showcase]) -> Iterator[Picture]:
    for rule, one in shown.items():
        positions = plots.arranged(one.features)
        if positions is not None:
            alternative = f"{len(one.labels)} test images of {len(set(one.labels.tolist()))} classes in the plane."
            yield picture(plots.embedding(positions, one.labels), short(rule, 60), f"{rule}: {alternative}")


def picture(drawn: Figure, caption: str, alternative: str) -> Picture:
    """A figure as an address that holds it whole."""
    source = f"data:image/svg+xml;base64,{base64.b64encode(plots.svg(drawn)).decode()}"
    return Picture(caption, alternative, source)


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every value inside nested mappings by its dotted name; what is left to its default is left out."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{name}.{key}" if name else str(key))
    elif value is not None and value != () and value != []:
        yield name, value


def words(value: Any) -> str:
    """An option's value as a person writes it."""
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _marks(row: Row, head: Sequence[str]) -> list[str]:
    """A class for every cell of a row of the table, by the columns' names."""
    sides = iter([side(pair) for pair in row.differences.values()])
    classes = {1: "better", 0: "", -1: "worse"}
    return [
        "words" if name == "note" else classes[next(sides, 0)] if name.startswith("minus ") else "" for name in head
    ]
