"""The one picture of a comparison: differences between rules and, where one was learned, its temperatures."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from rltemp.experiments.method_results import MethodResult, Row, seeds, short, side, table_rows
from rltemp.experiments.recorder import TemperatureTrace
from rltemp.experiments.statistics import Paired
from rltemp.io.files import atomic_write

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"  # apart for every kind of colour vision (Okabe and Ito)


def picture(
    path: Path,
    arms: Sequence[MethodResult],
    baseline: str,
    trace: TemperatureTrace | None = None,
    title: str = "",
    allow_mixed: bool = False,
) -> None:
    """Write the figure as a PNG, 1500 pixels wide; arguments and errors as for `figure`."""
    drawn, data = figure(arms, baseline, trace, title, allow_mixed), io.BytesIO()
    drawn.savefig(data, format="png", dpi=1500 / drawn.get_figwidth())
    atomic_write(path, data.getvalue())


def figure(
    arms: Sequence[MethodResult],
    baseline: str,
    trace: TemperatureTrace | None = None,
    title: str = "",
    allow_mixed: bool = False,
) -> Figure:
    """Draw every arm's difference to the baseline and, given a trace, the temperatures that were learned.

    Args:
        arms: The arms, `baseline` among them.
        baseline: The rule at the zero line.
        trace: Temperatures by progress and by the teacher's margin; without one only the
            differences are drawn.
        title: Stands above all panels, with the number of seeds.
        allow_mixed: As for `table_rows`; a difference that is refused is not drawn, its arm stands below all others.

    Raises:
        BadInputError: As for `table_rows`.
    """
    rows = table_rows(arms, [baseline], allow_mixed)
    drawn = Figure(figsize=(15 if trace else 10, max(4.8, 1.9 + 0.32 * len(rows))), layout="constrained")
    drawn.suptitle(f"{title} ({seeds(rows)})" if title else seeds(rows), fontsize=14, parse_math=False)
    panels = drawn.subplots(1, 3 if trace else 1, squeeze=False, width_ratios=[1.4, 1, 1] if trace else None)[0]
    _draw_differences(panels[0], rows, baseline)
    if trace:
        _draw_temperatures(panels[1:], trace)
    return drawn


def _draw_differences(panel: Axes, rows: Sequence[Row], baseline: str) -> None:
    """A forest plot, best arm on top; arms far outside get an arrow at the edge and their number."""
    ordered = sorted(rows, key=lambda row: np.nan_to_num(row.differences[baseline].mean, nan=-np.inf))
    left, right = limits([row.differences[baseline] for row in ordered])
    beside, pad = panel.get_yaxis_transform(), 0.05 * (right - left)
    panel.axvline(0, color=GREY, linewidth=1, zorder=0)
    for y, row in enumerate(ordered):
        pair = row.differences[baseline]
        colour = {1: BLUE, 0: GREY, -1: ORANGE}[side(pair)]
        if left <= pair.mean <= right:
            panel.plot([pair.low, pair.high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
            fill = "white" if row.rule == baseline else colour
            panel.plot(pair.mean, y, "o", color=colour, markerfacecolor=fill)
        elif not math.isnan(pair.mean):
            below = pair.mean < 0
            edge, step = (left, pad) if below else (right, -pad)
            panel.plot(edge, y, marker="<" if below else ">", color=colour)
            panel.text(edge + 0.7 * step, y, f"{pair.mean:+.1f}", va="center", ha="left" if below else "right")
        panel.text(1.02, y, f"{row.accuracy:.2f}", transform=beside, va="center")
    panel.text(1.02, len(rows) - 0.3, "mean %", transform=beside, color=GREY)
    panel.set_yticks(range(len(rows)), [short(row.rule) for row in ordered], parse_math=False)
    panel.set(xlim=(left - pad, right + pad), ylim=(-0.6, len(rows) - 0.4))
    panel.set_xlabel(f"test accuracy minus {short(baseline)} (points, 95 % interval)", parse_math=False)
    panel.tick_params(axis="y", length=0)
    panel.grid(axis="y", alpha=0.25)
    panel.spines[["top", "right", "left"]].set_visible(False)


def limits(pairs: Sequence[Paired]) -> tuple[float, float]:
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
        panel.axhline(trace.reference, color=GREY, linestyle="--", label=f"reference, mean {trace.reference:.3g}")
        panel.grid(axis="y", alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    bottom, top = panels[0].get_ylim()  # at least from half to twice the reference, so that there are ticks
    panels[0].set_ylim(min(bottom, 0.45 * trace.reference), max(top, 2.2 * trace.reference))
    panels[0].set_ylabel("temperature (median, 5-95 % band; log)")
    panels[0].set_xlabel("progress of the run (0 start, 1 end)")
    panels[1].set_xlabel("teacher's logit margin (deviations)")
    panels[0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, columnspacing=1)


def _bins(x: NDArray[np.float64], y: NDArray[np.float64], count: int = 20) -> NDArray[np.float64]:
    """Return `[4, bins]`: median x and the 5, 50, 95 % quantiles of y, of bins with 0.2 % of the samples."""
    span = np.ptp(x) or 1.0
    index = np.clip(((x - np.min(x)) / span * count).astype(int), 0, count - 1)
    held = np.bincount(index, minlength=count)
    chosen = [index == number for number in np.flatnonzero(held >= max(1, len(index) / 500))]
    bins = [(np.median(x[here]), *np.quantile(y[here], [0.05, 0.5, 0.95])) for here in chosen]
    return np.array(list(zip(*bins, strict=True)), dtype=np.float64)
