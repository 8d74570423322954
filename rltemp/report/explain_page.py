"""An explanation of a policy from options to files: its findings in words, `why.md` and `why.png`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from rltemp.experiments.compare import OnProgress
from rltemp.experiments.explain import ANSWERS, NAMES, THIRDS, Trace, explain, policy_to_explain, thirds
from rltemp.experiments.method_results import side
from rltemp.experiments.options import ExplainOptions
from rltemp.experiments.statistics import points, stored_pair
from rltemp.report.drawing import BLUE, GREY, ORANGE, PLAIN, binned, draw_band, logarithmic, save_png
from rltemp.report.rendering import write_template
from rltemp.report.tables import markdown
from rltemp.training.options import command_line

PROPERTIES = {
    "margin": "teacher's logit margin (deviations)",
    "confidence": "student's largest probability",
    "difficulty": "student's loss at the label (nats)",
}
"""Properties of samples that the answers are drawn by."""
COURSE = {
    **{name: NAMES[name] for name in ANSWERS},
    "student_sharpness": "student sharpness (logits)",
    "teacher_sharpness": "teacher sharpness (logits)",
    "agreement": "agreement",
    **{name: PROPERTIES[name] for name in ("confidence", "difficulty")},
}
"""What the course of a run is told by."""


def run_explanation(
    options: ExplainOptions, progress: Callable[[], AbstractContextManager[OnProgress]]
) -> dict[str, Any]:
    """Check everything, train every student, write the files, return the result."""
    probe = policy_to_explain(options)
    problem, out = options.problem(), options.folder()
    options.open()
    started = time.monotonic()
    with progress() as told:
        result, trace = explain(options, problem, probe, told)
    title = f"{problem.task.name}: {options.rules[0]} ({options.seeds} students)"
    save_explanation_picture(out / "why.png", trace, title)
    write_explanation(out, result, command_line(options))
    return options.finish(result, started)


def relation_words(rows: Sequence[Mapping[str, Any]]) -> list[str]:
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


def importance_words(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which features move the temperatures, and which move accuracy, a line each."""
    moved = ", ".join(f"{row['feature']} {row['student'] + row['teacher']:.2f}" for row in rows[:3])
    lines = [f"Both log temperatures depend most on: {moved} (mean absolute change when the feature is shuffled)."]
    pairs = {row["feature"]: stored_pair(row["accuracy_points"]) for row in rows if row["accuracy_points"]}
    clear = [f"{name} {points(pair)}" for name, pair in pairs.items() if side(pair)]
    if pairs:
        found = ", ".join(clear) or "no feature beyond its interval"
        lines += [f"Accuracy changes, in points, when this is shuffled: {found}."]
    return lines


def write_explanation(folder: Path, result: Mapping[str, Any], command: str) -> None:
    """Write `why.md` from what `result.json` holds."""
    relations, importance = result["relations"], result["importance"]
    write_template(
        folder / "why.md",
        "why.md",
        **result,
        command=command,
        relation_words=relation_words(relations),
        importance_words=importance_words(importance),
        relations_table=markdown(
            ["rank correlation with difficulty", "over", *THIRDS],
            [[NAMES[row["answer"]], row["scope"], *map(_bold, row["thirds"])] for row in relations],
        ),
        course_table=markdown(
            ["", *THIRDS],
            [[label, *(f"{third[name]:.3g}" for third in result["course"])] for name, label in COURSE.items()],
        ),
        importance_table=markdown(
            ["feature", "log T_s", "log T_t", "log weight", "test accuracy (points)"],
            [
                [f"`{row['feature']}`", *(f"{row[name]:.3f}" for name in ANSWERS), _bold(row["accuracy_points"])]
                for row in importance
            ],
        ),
    )


def save_explanation_picture(path: Path, trace: Trace, title: str) -> None:
    """Write a PNG, 1500 pixels wide: the answers by what a sample is like, and everything by time."""
    figure = Figure(figsize=(15, 16.5), layout="constrained")
    figure.suptitle(title, fontsize=14, parse_math=False)
    panels = figure.subplots(4, 3)
    labels = {**NAMES, "weight": "weight of the divergence"}
    for row, answer in zip(panels[:3], ANSWERS, strict=True):
        for panel, along in zip(row, PROPERTIES, strict=True):
            _draw_curves(panel, trace, along, answer)
            panel.sharey(row[0])
        logarithmic(row[0])
        row[0].set_ylabel(f"{labels[answer]} (median, quartiles; log)")
    panels[0, 0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, columnspacing=1)
    for panel, name in zip(panels[2], PROPERTIES.values(), strict=True):
        panel.set_xlabel(name)
    _draw_course(panels[3, 0], trace, ("student", "teacher"), "temperature (median, 5-95 % band; log)")
    _draw_course(panels[3, 1], trace, ("weight",), "weight (median, 5-95 % band; log)")
    _draw_course(panels[3, 2], trace, ("student_sharpness", "teacher_sharpness"), "largest minus mean logit")
    for panel in panels[3, :2]:
        logarithmic(panel)
    save_png(path, figure)


def _draw_curves(panel: Axes, trace: Trace, along: str, answer: str) -> None:
    """One answer by one property of the samples, a curve for each third of the run."""
    styles = ((BLUE, "o-"), (GREY, "^--"), (ORANGE, "s-"))
    for name, third, (colour, style) in zip(THIRDS, thirds(trace), styles, strict=True):
        bins = binned(third[along].ravel(), third[answer].ravel(), 12, (0.25, 0.5, 0.75))
        if along == "confidence":
            bins[0] = np.minimum(bins[0], 1 - 1e-5)
        draw_band(panel, bins, colour, style, name)
    if along == "difficulty":
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(PLAIN)
        panel.xaxis.set_minor_formatter(NullFormatter())
    if along == "confidence":  # most samples are near 1, in the end
        panel.set_xscale("logit", nonpositive="clip")
        panel.set_xticks([0.1, 0.5, 0.9, 0.99, 0.999], ["0.1", "0.5", "0.9", "0.99", "0.999"])
        panel.set_xticks([], minor=True)


def _draw_course(panel: Axes, trace: Trace, names: Sequence[str], label: str) -> None:
    """Median and 5-95 % band over the run, a curve for each name."""
    styles = {"student": (ORANGE, "--"), "teacher": (BLUE, "-")}
    for name in names:
        network = name.partition("_")[0]
        bins = binned(trace["progress"].ravel(), trace[name].ravel(), 50)
        draw_band(panel, bins, *styles.get(network, (GREY, "-")), network)
    panel.set(xlabel="progress of the run (0 start, 1 end)", ylabel=label)
    panel.legend(frameon=False)


def _bold(found: Mapping[str, Any] | None) -> str:
    """A difference as a result holds it, bold where its interval leaves out zero; `-` where none was made."""
    if not found:
        return "-"
    pair = stored_pair(found)
    return f"**{points(pair)}**" if side(pair) else points(pair)
