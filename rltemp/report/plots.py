"""The figures of a comparison: `picture.png`, and those of its page, so narrow that they are read on a phone.

`rltemp.report.drawing` has what they are made of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from rltemp.experiments.method_results import Row, seeds
from rltemp.experiments.recorder import TemperatureTrace
from rltemp.experiments.showcase import Showcase
from rltemp.report.drawing import (
    BLUE,
    GREY,
    ORANGE,
    Values,
    binned,
    draw_band,
    draw_forest,
    logarithmic,
    printable,
)

COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8C6D1F")
DASHES, MARKERS = ("-", "--", "-.", ":"), "osD^vPX*"
WIDTH = 4.4
"""Inches: a phone's width shows 9-point letters of it at a size that can be read."""

Style = tuple[str, str]
"""A colour, and dashes with a marker."""


def picture(rows: Sequence[Row], baseline: str, trace: TemperatureTrace | None = None, title: str = "") -> Figure:
    """Draw every method's difference to the baseline and, given a trace, the temperatures that were learned.

    Args:
        rows: From `table_rows`, the baseline among their differences.
        baseline: The method at the zero line.
        trace: Temperatures by progress and by the teacher's margin; without one only the differences are drawn.
        title: Stands above all panels, with the number of seeds.
    """
    figure = Figure(figsize=(12 if trace else 8, max(4.0, 1.5 + 0.4 * len(rows))), layout="constrained")
    text = f"{printable(title, 80)} ({seeds(rows)})" if title else seeds(rows)
    figure.suptitle(text, fontsize="large", parse_math=False)
    panels = figure.subplots(1, 3 if trace else 1, squeeze=False, width_ratios=[1.4, 1, 1] if trace else None)[0]
    draw_forest(panels[0], rows, baseline)
    if trace:
        _draw_temperatures(panels[1:], trace)
    return figure


def _draw_temperatures(panels: Sequence[Axes], trace: TemperatureTrace) -> None:
    """Median and 5-95 % band of both networks' temperatures, by progress and by the teacher's margin."""
    panels[1].sharey(panels[0])
    for panel, along in zip(panels, (trace.progress, trace.teacher_margin), strict=True):
        draw_band(panel, binned(along, trace.student_temperature), ORANGE, "s-", "student")
        draw_band(panel, binned(along, trace.teacher_temperature), BLUE, "o-", "teacher")
        panel.axhline(trace.reference, color=GREY, linestyle="--", label=f"reference, mean {trace.reference:.3g}")
    logarithmic(panels[0])
    panels[0].set_ylabel("temperature (median, 5-95 % band; log)")
    panels[0].set_xlabel("progress of the run (0 start, 1 end)")
    panels[1].set_xlabel("teacher's logit margin (deviations)")
    panels[0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, columnspacing=1)


def styles(rules: Iterable[str]) -> dict[str, Style]:
    """A method's colour, dashes and marker, the same in every figure of a page."""
    marks = (f"{dashes}{marker}" for dashes, marker in zip(cycle(DASHES), MARKERS, strict=False))
    return dict(zip(rules, cycle(zip(COLOURS, marks, strict=True)), strict=False))


def intervals(rows: Sequence[Row], baseline: str) -> Figure:
    """Every method's difference to the baseline."""
    figure, panel = _panel(1.1 + 0.42 * len(rows))
    draw_forest(panel, rows, baseline)
    return figure


def cost(rows: Sequence[Row], seconds: Mapping[str, float], style: Mapping[str, Style]) -> Figure:
    """The rows' quantity against training time per epoch, a point a method, with its standard error."""
    figure, panel = _panel(2.8)
    quantity = rows[0].quantity
    for row in rows:
        if row.rule in seconds:
            colour, mark = style[row.rule]
            x, error = 1000 * seconds[row.rule], row.error if np.isfinite(row.error) else 0.0
            label = printable(row.rule)
            panel.errorbar(x, row.mean, yerr=error, fmt=mark[-1], color=colour, capsize=3, label=label)
    panel.set_xlabel("training time of an epoch (ms a student, by the clock)")
    panel.set_ylabel(f"test {quantity.name} ({quantity.unit}, ± standard error)")
    panel.margins(0.12)
    panel.grid(alpha=0.25)
    _legend(figure, panel)
    return figure


def temperatures(
    showcases: Mapping[str, Showcase], style: Mapping[str, Style], network: str, along: str, label: str
) -> Figure:
    """Median and 5-95 % band of one network's temperatures, a curve a method, over a quantity that was sampled."""
    figure, panel = _panel(2.6)
    for rule, showcase in showcases.items():
        bins = binned(showcase.samples[along], showcase.samples[f"{network}_temperature"])
        draw_band(panel, bins, *style[rule], printable(rule))
    logarithmic(panel, 1.4)
    panel.set_xlabel(label)
    panel.set_ylabel(f"{network}'s temperature")
    _legend(figure, panel)
    return figure


def sharpness(showcases: Mapping[str, Showcase], softened: bool) -> Figure:
    """How sharp both networks' logits are late in training: median, middle half and 5-95 % of a method's samples."""
    figure, panel = _panel(1.1 + 0.5 * len(showcases))
    beside = panel.get_yaxis_transform()
    for y, (rule, showcase) in enumerate(reversed(list(showcases.items()))):
        for offset, network, colour, marker in ((0.08, "student", ORANGE, "s"), (-0.16, "teacher", BLUE, "o")):
            values = late(showcase, f"{'softened_' * softened}{network}_sharpness")
            if len(values):
                low, first, middle, third, high = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
                panel.plot([low, high], [y + offset] * 2, color=colour, linewidth=1)
                panel.plot([first, third], [y + offset] * 2, color=colour, linewidth=4, solid_capstyle="butt")
                label = network if y == len(showcases) - 1 else None
                panel.plot(middle, y + offset, marker, color=colour, mec="white", markersize=6, label=label)
        panel.text(0, y + 0.34, printable(rule, 44), transform=beside, fontsize=8, va="center", parse_math=False)
    panel.set(ylim=(-0.5, len(showcases) - 0.4), yticks=[])
    panel.spines["left"].set_visible(False)
    panel.set_xlabel(f"logsumexp of the logits{' divided by their temperatures' * softened} (nats)")
    panel.grid(axis="x", alpha=0.25)
    _legend(figure, panel)
    return figure


def embedding(positions: Values, labels: NDArray[np.int64]) -> Figure:
    """Test samples where t-SNE puts them, `[M, 2]`, each as the number of its class."""
    figure, panel = _panel(3.6)
    for number, colour in zip(np.unique(labels), cycle(COLOURS), strict=False):
        here = positions[labels == number]
        panel.scatter(here[:, 0], here[:, 1], marker=f"${number}$", s=26, color=colour, linewidths=0.3)
    panel.set(xticks=[], yticks=[], aspect="equal")
    panel.spines[["left", "bottom"]].set_visible(False)
    return figure


def arranged(features: Values) -> Values | None:
    """Positions in the plane by t-SNE, `[M, 2]`; None where there is nothing to arrange.

    Args:
        features: `[M, D]`.
    """
    from sklearn.manifold import TSNE  # takes a second, and not every page has features
    from threadpoolctl import threadpool_limits

    if len(features) < 10 or not np.isfinite(features).all() or not features.std(0).max() > 1e-9:
        return None
    widest = features[:, np.argsort(-features.std(0), kind="stable")]
    start = widest[:, :2] if widest.shape[1] > 1 else np.repeat(widest, 2, 1)
    arrangement = TSNE(
        init=1e-4 * (start / start[:, 0].std()), perplexity=min(30, (len(features) - 1) / 3), random_state=0
    )
    with threadpool_limits(1):  # sums in another order would be another picture
        found: Values = arrangement.fit_transform(features)
    return found


def late(showcase: Showcase, name: str) -> Values:
    """A sampled quantity in the last tenth of the run, where it is finite."""
    values = showcase.samples[name][showcase.samples["progress"] >= 0.9]
    return values[np.isfinite(values)]


def _panel(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    panel = figure.subplots()
    panel.tick_params(labelsize=8)
    panel.xaxis.label.set_fontsize(9)
    panel.yaxis.label.set_fontsize(9)
    panel.xaxis.set_major_locator(MaxNLocator(6))
    panel.spines[["top", "right"]].set_visible(False)
    return figure, panel


def _legend(figure: Figure, panel: Axes) -> None:
    handles, labels = panel.get_legend_handles_labels()
    if not handles:
        return
    columns = 2 if max(map(len, labels)) <= 18 else 1
    legend = figure.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False, fontsize=8)
    figure.set_figheight(figure.get_figheight() + 0.17 * -(-len(labels) // columns))
    for text in legend.get_texts():
        text.set_parse_math(False)
