"""What the figures of every report share: colours, bins, bands, a forest plot, and how a figure becomes a file.

Colours are Okabe and Ito's, apart for every kind of colour vision; curves differ in their dashes and markers too.
"""

from __future__ import annotations

import io
import unicodedata
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from rltemp.experiments.method_results import Row, short
from rltemp.experiments.statistics import Paired
from rltemp.io.files import atomic_write

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"
QUANTILES = (0.05, 0.5, 0.95)
"""Of a band: its lower edge, its curve, its upper edge."""

PLAIN = FuncFormatter(lambda value, _: f"{value:g}")
"""Ticks of a log axis as plain numbers."""

Values = NDArray[np.float64]


def save_png(path: Path, figure: Figure, width: int = 1500) -> None:
    """Write a figure as a PNG of so many pixels across."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=width / figure.get_figwidth())
    atomic_write(path, data.getvalue())


def svg(figure: Figure) -> bytes:
    """The figure as SVG; the same figure gives the same bytes."""
    data = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "rltemp", "svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's fonts have it: text stays text
        figure.savefig(data, format="svg", metadata={"Date": None, "Creator": None})
    return data.getvalue()


def printable(name: str, most: int = 30) -> str:
    """A name that XML can hold, shortened to `most` characters."""
    kept = (
        letter if unicodedata.category(letter) not in ("Cc", "Cs", "Cn") else "\N{REPLACEMENT CHARACTER}"
        for letter in name
    )
    return short("".join(kept), most)


def binned(x: Values, y: Values, count: int = 16, quantiles: Sequence[float] = QUANTILES) -> Values:
    """Return the median of x and some quantiles of y in every bin of x, `[1 + Q, bins]`.

    A bin holds as many samples as the others, as far as equal values of x let it. The first and the last are split
    once more, at 2 % of all samples: there the hardest and the easiest ones are. Pairs that are not finite are left
    out, and bins with fewer than 0.5 % of the samples.

    Args:
        x: `[N]`, what the bins are made by.
        y: `[N]`.
        count: How many bins, before the outer ones are split.
        quantiles: `[Q]`, each 0..1.
    """
    kept = np.isfinite(x) & np.isfinite(y)
    x, y = x[kept], y[kept]
    if not len(x):
        return np.empty((1 + len(quantiles), 0))
    edges = np.unique(np.quantile(x, [0.02, *np.arange(1, count) / count, 0.98]))
    index = np.searchsorted(edges, x, side="right")
    chosen = [index == number for number in np.flatnonzero(np.bincount(index) >= max(1, len(x) / 200))]
    bins = [(np.median(x[here]), *np.quantile(y[here], quantiles)) for here in chosen]
    return np.array(list(zip(*bins, strict=True)), dtype=np.float64)


def draw_band(panel: Axes, bins: Values, colour: str, style: str, label: str) -> None:
    """A curve within its band: `bins` has x and the band's low, middle and high, from `binned`."""
    x, low, middle, high = bins
    panel.fill_between(x, low, high, color=colour, alpha=0.17, linewidth=0)
    panel.plot(x, middle, style, color=colour, markersize=3.5, label=label)
    panel.grid(axis="y", alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)


def logarithmic(panel: Axes, factor: float = 2.2) -> None:
    """Give a panel that is drawn a vertical log axis with plain numbers, so long that it has ticks."""
    panel.set_yscale("log", base=2)
    panel.yaxis.set_major_formatter(PLAIN)
    bottom, top = panel.get_ylim()
    middle = (bottom * top) ** 0.5
    panel.set_ylim(min(bottom, middle / factor), max(top, middle * factor))


def draw_forest(panel: Axes, rows: Sequence[Row], baseline: str) -> None:
    """Every method's difference to the baseline, its name above its interval, the best on top.

    A mean far outside the others is an arrow at the edge; the number beside the name says how far.
    """
    quantity = rows[0].quantity
    ordered = sorted(rows, key=lambda row: np.nan_to_num(quantity.better * row.differences[baseline].mean, nan=-np.inf))
    left, right = forest_limits([row.differences[baseline] for row in rows])
    beside, pad = panel.get_yaxis_transform(), 0.04 * (right - left)
    panel.axvline(0, color=GREY, linewidth=1, zorder=0)
    for y, row in enumerate(ordered):
        pair = row.differences[baseline]
        colour = {1: BLUE, 0: GREY, -1: ORANGE}[row.side(baseline)]
        if np.isfinite(pair.mean):
            panel.plot([pair.low, pair.high], [y, y], color=colour, linewidth=2.5, solid_capstyle="butt")
            mark = "<" if pair.mean < left else ">" if pair.mean > right else "o"
            place, fill = min(max(pair.mean, left), right), "white" if row.rule == baseline else colour
            panel.plot(place, y, mark, color=colour, markersize=5, markerfacecolor=fill)
        value = (
            "the baseline"
            if row.rule == baseline
            else f"{pair.mean:+.{quantity.digits}f}"
            if pair.n
            else "not compared"
        )
        text: dict[str, Any] = {"y": y + 0.27, "transform": beside, "fontsize": "small", "va": "center"}
        panel.text(0, s=printable(row.rule, 44), parse_math=False, **text)
        ground = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}  # the zero line stops at the letters
        panel.text(1, s=value, ha="right", bbox=ground, **text)
    panel.set(xlim=(left - pad, right + pad), ylim=(-0.5, len(rows) - 0.3), yticks=[])
    unit = quantity.difference_unit.rpartition(" ")[2]
    panel.set_xlabel(f"test {quantity.name} minus {printable(baseline)} ({unit}, 95 % interval)", parse_math=False)
    panel.spines[["top", "right", "left"]].set_visible(False)


def forest_limits(pairs: Sequence[Paired]) -> tuple[float, float]:
    """What the axis shows: one method that failed by ten points must not flatten all the others."""
    bounds = np.array([bound for pair in pairs for bound in (pair.mean, pair.low, pair.high)])
    bounds = bounds[np.isfinite(bounds) & (bounds != 0)]
    most = 4 * float(np.median(np.abs(bounds))) if len(bounds) else 1.0
    left, right = max(float(bounds.min(initial=0)), -most), min(float(bounds.max(initial=0)), most)
    return (left, right) if right > left else (-most, most)
