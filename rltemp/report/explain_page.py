"""What `explain` hands back to read: its findings in words, `why.md` and `why.png`."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from rltemp.experiments.explain import ANSWERS, NAMES, THIRDS, Trace, geometric_mean, thirds
from rltemp.experiments.method_results import side
from rltemp.experiments.statistics import Paired, points, stored_pair
from rltemp.io.files import atomic_write
from rltemp.io.versions import versions
from rltemp.report.picture import BLUE, GREY, ORANGE

PROPERTIES = {
    "margin": "teacher's logit margin (deviations)",
    "confidence": "student's largest probability",
    "difficulty": "student's loss at the label (nats)",
}
"""Of samples, that the answers are drawn by."""


def words(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The relation between difficulty and both temperatures in words, a line each for a scope and a network."""
    which = {1: "higher", 0: "no different", -1: "lower"}
    lines = []
    for row in rows:
        named = (f"{NAMES[row['answer']]} ", "", "")
        found = [
            f"{which[side(pair)]} {name}in the {third} ({points(pair)})"
            for third, name, pair in zip(THIRDS, named, map(stored_pair, row["thirds"]), strict=True)
        ]
        if row["answer"] in ("student", "teacher"):
            lines.append(f"{row['scope'].capitalize()}: harder samples get {', '.join(found)}.")
    return lines


def deciding(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which features move the temperatures, and which move accuracy, a line each."""
    moved = [f"{row['feature']} {row['student'] + row['teacher']:.2f}" for row in rows[:3]]
    lines = [f"Most of both log temperatures hangs on: {', '.join(moved)} (mean absolute change, shuffled)."]
    pairs = {row["feature"]: stored_pair(row["accuracy_points"]) for row in rows if row["accuracy_points"]}
    clear = [f"{name} {points(pair)}" for name, pair in pairs.items() if side(pair)]
    if pairs:
        lines += [f"Accuracy changes, shuffled, by points: {', '.join(clear) or 'for no feature, by their intervals'}."]
    return lines


def report(result: Mapping[str, Any], command: str) -> str:
    """The text of `why.md`."""
    task = result["task"]
    parts = [
        f"# {task['name']}: why the policy sets its temperatures",
        f"`{result['policy']}`, reference `{result['reference']}`, taught {result['students']} students "
        f"`{task['student']}` on `{task['name']}`: {result['accuracy_percent']:.2f} % mean test accuracy (the teacher, "
        f"`{task['teacher']}`, {100 * result['teacher_accuracy']:.2f} %). Every step and sample of these runs is "
        "looked at below, or an even part of them. Intervals are 95 % over students (BCa; Student's t below 8); bold "
        "leaves out zero.",
        "![Temperatures by margin, confidence, difficulty and time](why.png)",
        *_relations_part(result["relations"]),
        *_course_part(result["course"]),
        *_importance_part(result["importance"], result["importance_students"]),
        f"## Reproduce\n\n```\n{command}\n```",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in versions().items()) + ".",
    ]
    return "\n\n".join(parts) + "\n"


def _relations_part(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    cells = [
        [NAMES[row["answer"]], row["scope"], *(_bold(stored_pair(pair)) for pair in row["thirds"])] for row in rows
    ]
    return [
        "## Do harder samples get a higher temperature?",
        "A sample's difficulty is the student's loss at its label, at that step. The sign is that of Spearman's rank "
        "correlation over all samples of a third of the run (in which the drift of that third takes part), and within "
        "each batch (it does not). Rows of the reference, where it is not constant, are what it answers by itself.",
        "\n".join(f"- {line}" for line in words(rows)),
        _table(["rank correlation with difficulty", "over", *THIRDS], cells),
    ]


def _course_part(thirds: Sequence[Mapping[str, float]]) -> list[str]:
    names = {
        **{name: NAMES[name] for name in ANSWERS},
        "student_sharpness": "student sharpness (logits)",
        "teacher_sharpness": "teacher sharpness (logits)",
        "agreement": "agreement",
        **{name: PROPERTIES[name] for name in ("confidence", "difficulty")},
    }
    return [
        "## The course of the run",
        "Temperatures and weights are geometric means; sharpness is the largest minus the mean logit; agreement is the "
        "share of samples on which both networks choose one class.",
        _table(["", *THIRDS], [[label, *(f"{third[name]:.3g}" for third in thirds)] for name, label in names.items()]),
    ]


def _importance_part(rows: Sequence[Mapping[str, Any]], students: int) -> list[str]:
    pairs = [_bold(stored_pair(row["accuracy_points"])) if row["accuracy_points"] else "-" for row in rows]
    cells = [
        [f"`{row['feature']}`", *(f"{row[name]:.3f}" for name in ANSWERS), pair]
        for row, pair in zip(rows, pairs, strict=True)
    ]
    accuracy = (
        f"The last says how the test accuracy of {students} students changes that are trained so, paired by seed; each "
        "interval is for one feature by itself. "
    )
    return [
        "## Which features decide",
        "One feature at a time comes from another sample of the same batch (progress, which a batch has in common: "
        "from another time of the run). The first three columns say how far the natural logarithms of the answers "
        f"move, on the students above, on average. {accuracy if students else ''}Features say much the same as each "
        "other: what one loses another may replace, and a shuffled one makes states that no run has. What the "
        "reference rule makes of a sample stays as it is.",
        _table(["feature", "log T_s", "log T_t", "log weight", "test accuracy (points)"], cells),
        "\n".join(f"- {line}" for line in deciding(rows)),
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _bold(pair: Paired) -> str:
    return f"**{points(pair)}**" if side(pair) else points(pair)


def draw(path: Path, trace: Trace, title: str) -> None:
    """Write the figure as a PNG, 1500 pixels wide: answers by what a sample is like, and everything by time."""
    drawn, data = Figure(figsize=(15, 16.5), layout="constrained"), io.BytesIO()
    drawn.suptitle(title, fontsize=14, parse_math=False)
    panels = drawn.subplots(4, 3)
    labels = {**NAMES, "weight": "weight of the divergence"}
    for row, answer in zip(panels[:3], ANSWERS, strict=True):
        for panel, along in zip(row, PROPERTIES, strict=True):
            _draw_curves(panel, trace, along, answer)
            panel.sharey(row[0])
        _logarithmic(row[0], trace[answer])
        row[0].set_ylabel(f"{labels[answer]} (median, quartiles; log)")
    panels[0, 0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, columnspacing=1)
    for panel, name in zip(panels[2], PROPERTIES.values(), strict=True):
        panel.set_xlabel(name)
    _draw_courses(panels[3], trace)
    drawn.savefig(data, format="png", dpi=1500 / drawn.get_figwidth())
    atomic_write(path, data.getvalue())


def binned(x: NDArray[np.float64], y: NDArray[np.float64], count: int = 12) -> NDArray[np.float64]:
    """Return `[4, bins]`: median x and the quartiles of y, of bins that hold as many samples each as ties let them.

    The outermost bins, where the hardest and the easiest samples are, are split once more: 2 % of all at the ends.
    """
    edges = np.unique(np.quantile(x, [0, 0.02, *np.arange(1, count) / count, 0.98, 1]))
    index = np.searchsorted(edges[1:-1], x, side="right")
    chosen = [index == number for number in np.unique(index)]
    bins = [(np.median(x[here]), *np.quantile(y[here], [0.25, 0.5, 0.75])) for here in chosen]
    return np.array(list(zip(*bins, strict=True)), dtype=np.float64)


def _draw_curves(panel: Axes, trace: Trace, along: str, answer: str) -> None:
    """One answer by one property of the samples, a curve for each third of the run."""
    styles = ((BLUE, "o-"), (GREY, "^--"), (ORANGE, "s-"))
    for name, part, (colour, style) in zip(THIRDS, thirds(trace), styles, strict=True):
        x, *rest = binned(part[along].ravel(), part[answer].ravel())
        _draw_band(panel, np.minimum(x, 1 - 1e-5) if along == "confidence" else x, rest, colour, style, name)
    if along == "difficulty":
        panel.set_xscale("log")
    if along == "confidence":  # most samples are near 1, in the end
        panel.set_xscale("logit", nonpositive="clip")
        panel.set_xticks([0.1, 0.5, 0.9, 0.99, 0.999], ["0.1", "0.5", "0.9", "0.99", "0.999"])
        panel.set_xticks([], minor=True)


def _draw_courses(panels: Sequence[Axes], trace: Trace) -> None:
    """Mean and 5-95 % band by time: both temperatures, the weight, both sharpnesses."""
    networks = {"teacher": (BLUE, "-"), "student": (ORANGE, "--")}
    for panel, names, label in zip(
        panels,
        (("teacher", "student"), ("weight",), ("teacher_sharpness", "student_sharpness")),
        ("temperature (mean, 5-95 % band; log)", "weight (mean, 5-95 % band; log)", "largest minus mean logit"),
        strict=True,
    ):
        for name in names:
            network = name.partition("_")[0]
            colour, style = networks.get(network, (GREY, "-"))
            x, *rest = _by_time(trace["progress"], trace[name])
            _draw_band(panel, x, rest, colour, style, network)
        if "sharpness" not in names[0]:
            _logarithmic(panel, np.stack([trace[name] for name in names]))
        panel.set(xlabel="progress of the run (0 start, 1 end)", ylabel=label)
        panel.legend(frameon=False)


def _draw_band(
    panel: Axes, x: NDArray[np.float64], band: Sequence[NDArray[np.float64]], colour: str, style: str, label: str
) -> None:
    """A curve within its band, which is low, middle and high."""
    low, middle, high = band
    panel.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    panel.plot(x, middle, style, color=colour, markersize=4, label=label)
    panel.grid(axis="y", alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)


def _by_time(progress: NDArray[np.float64], values: NDArray[np.float64], most: int = 100) -> NDArray[np.float64]:
    """Return `[4, bins]`: progress, and 5 %, mean and 95 % of the values, of stretches of the run's steps."""
    bins = []
    for here in np.array_split(np.arange(values.shape[1]), min(most, values.shape[1])):
        low, high = np.quantile(values[:, here], [0.05, 0.95])
        bins.append((progress[:, here].mean(), low, values[:, here].mean(), high))
    return np.array(list(zip(*bins, strict=True)), dtype=np.float64)


def _logarithmic(panel: Axes, values: NDArray[np.float64]) -> None:
    """A log axis with plain numbers, at least a factor of four long."""
    panel.set_yscale("log", base=2)
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    centre = geometric_mean(values)
    bottom, top = panel.get_ylim()
    panel.set_ylim(min(bottom, centre / 2.2), max(top, centre * 2.2))
