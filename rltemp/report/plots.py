"""The figures of a comparison's page: each a small SVG that is read on a phone as on paper.

Colours are Okabe and Ito's, apart for every kind of colour vision; lines differ in their dashes and markers too.
"""

from __future__ import annotations

import io
import unicodedata
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from rltemp.experiments.method_results import Row, short, side
from rltemp.experiments.showcase import Showcase
from rltemp.report.picture import BLUE, GREY, ORANGE, limits

COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8C6D1F")
DASHES, MARKERS = ("-", "--", "-.", ":"), "osD^vPX*"
WIDTH = 4.4
"""Inches: a phone's width shows 9-point letters of it at a size that can be read."""
BINS = 16

Values = NDArray[np.float64]
Style = tuple[str, str, str]


def svg(drawn: Figure) -> bytes:
    """The figure as SVG, the same bytes whenever it is drawn again."""
    data = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "rltemp", "svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's fonts have it: text stays text
        drawn.savefig(data, format="svg", metadata={"Date": None, "Creator": None})
    return data.getvalue()


def intervals(rows: Sequence[Row], baseline: str) -> Figure:
    """A forest plot: every arm's difference to the baseline, its name above its interval, the best on top."""
    ordered = sorted(rows, key=lambda row: np.nan_to_num(row.differences[baseline].mean, nan=-np.inf))
    drawn, panel = _panel(1.1 + 0.42 * len(rows))
    panel.axvline(0, color=GREY, linewidth=1, zorder=0)
    beside = panel.get_yaxis_transform()
    left, right = limits([row.differences[baseline] for row in rows])
    pad = 0.04 * (right - left)
    for y, row in enumerate(ordered):
        pair = row.differences[baseline]
        colour = {1: BLUE, 0: GREY, -1: ORANGE}[side(pair)]
        if np.isfinite(pair.mean):
            panel.plot([pair.low, pair.high], [y, y], color=colour, linewidth=2.5, solid_capstyle="butt")
            mark = "<" if pair.mean < left else ">" if pair.mean > right else "o"  # an arm far outside: an arrow
            place = min(max(pair.mean, left), right)
            panel.plot(place, y, mark, color=colour, markersize=5, mfc="white" if row.rule == baseline else colour)
        value = "the baseline" if row.rule == baseline else f"{pair.mean:+.2f}" if pair.n else "not compared"
        panel.text(0, y + 0.27, _safe(row.rule, 44), transform=beside, fontsize=8, va="center", parse_math=False)
        ground = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}  # the zero line stops at the letters
        panel.text(1, y + 0.27, value, transform=beside, fontsize=8, va="center", ha="right", bbox=ground)
    panel.set(xlim=(left - pad, right + pad), ylim=(-0.5, len(rows) - 0.3), yticks=[])
    panel.set_xlabel(f"test accuracy minus {_safe(baseline)} (points, 95 % interval)", parse_math=False)
    panel.spines["left"].set_visible(False)
    return drawn


def styles(rules: Iterable[str]) -> dict[str, Style]:
    """A rule's colour, dashes and marker, the same in every figure of a page."""
    return dict(zip(rules, cycle(zip(COLOURS, cycle(DASHES), MARKERS, strict=False)), strict=False))


def cost(rows: Sequence[Row], seconds: Mapping[str, float], style: Mapping[str, Style]) -> Figure:
    """Accuracy against training time per epoch, a point an arm, with its standard error."""
    drawn, panel = _panel(2.8)
    for row in rows:
        if row.rule in seconds:
            colour, _, marker = style[row.rule]
            error = row.error if np.isfinite(row.error) else 0.0
            where = 1000 * seconds[row.rule], row.accuracy
            panel.errorbar(*where, yerr=error, fmt=marker, color=colour, capsize=3, label=_safe(row.rule))
    panel.set_xlabel("training time of an epoch (ms a student, by the clock)")
    panel.set_ylabel("test accuracy (%, ± standard error)")
    panel.margins(0.12)
    panel.grid(alpha=0.25)
    _legend(drawn, panel)
    return drawn


def temperatures(
    showcases: Mapping[str, Showcase], style: Mapping[str, Style], network: str, along: str, label: str
) -> Figure:
    """Mean and 5-95 % band of one network's temperatures, a line an arm, over a quantity that was sampled."""
    drawn, panel = _panel(2.6)
    panel.set_yscale("log", base=2)
    for rule, showcase in showcases.items():
        colour, dashes, marker = style[rule]
        x, low, mean, high = binned(showcase.samples[along], showcase.samples[f"{network}_temperature"])
        panel.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        panel.plot(x, mean, dashes, marker=marker, markersize=3.5, color=colour, label=_safe(rule))
    bottom, top = panel.get_ylim()
    panel.set_ylim(min(bottom, 0.7 * top**0.5 * bottom**0.5), max(top, 1.4 * top**0.5 * bottom**0.5))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.set_xlabel(label)
    panel.set_ylabel(f"{network}'s temperature")
    panel.grid(axis="y", alpha=0.25)
    _legend(drawn, panel)
    return drawn


def sharpness(showcases: Mapping[str, Showcase], softened: bool) -> Figure:
    """How sharp both networks' logits are late in training: median, middle half and 5-95 % of each arm's samples."""
    drawn, panel = _panel(1.1 + 0.5 * len(showcases))
    beside = panel.get_yaxis_transform()
    for y, (rule, showcase) in enumerate(reversed(list(showcases.items()))):
        for offset, network, colour, marker in ((0.08, "teacher", BLUE, "o"), (-0.16, "student", ORANGE, "s")):
            values = late(showcase, f"{'softened_' * softened}{network}_sharpness")
            if len(values):
                low, first, middle, third, high = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
                panel.plot([low, high], [y + offset] * 2, color=colour, linewidth=1)
                panel.plot([first, third], [y + offset] * 2, color=colour, linewidth=4, solid_capstyle="butt")
                label = network if y == len(showcases) - 1 else None
                panel.plot(middle, y + offset, marker, color=colour, mec="white", markersize=6, label=label)
        panel.text(0, y + 0.34, _safe(rule, 44), transform=beside, fontsize=8, va="center", parse_math=False)
    panel.set(ylim=(-0.5, len(showcases) - 0.4), yticks=[])
    panel.spines["left"].set_visible(False)
    panel.set_xlabel(f"logsumexp of the logits{' divided by their temperatures' * softened} (nats)")
    panel.grid(axis="x", alpha=0.25)
    _legend(drawn, panel)
    return drawn


def embedding(positions: Values, labels: NDArray[np.int64]) -> Figure:
    """Test images where t-SNE puts them, `[M, 2]`, each as the number of its class."""
    drawn, panel = _panel(3.6)
    for number, colour in zip(np.unique(labels), cycle(COLOURS), strict=False):
        here = positions[labels == number]
        panel.scatter(here[:, 0], here[:, 1], marker=f"${number}$", s=26, color=colour, linewidths=0.3)
    panel.set(xticks=[], yticks=[], aspect="equal")
    panel.spines[["left", "bottom"]].set_visible(False)
    return drawn


def arranged(features: Values) -> Values | None:
    """Positions in the plane by t-SNE, `[M, 2]`; None where there is nothing to arrange.

    Args:
        features: `[M, D]`.
    """
    from sklearn.manifold import TSNE  # takes a second, and not every page has features
    from threadpoolctl import threadpool_limits

    if len(features) < 10 or not np.isfinite(features).all() or not features.std(0).max() > 1e-9:
        return None
    spread = features[:, np.argsort(-features.std(0), kind="stable")]
    start = spread[:, :2] if spread.shape[1] > 1 else np.repeat(spread, 2, 1)
    arrangement = TSNE(
        init=1e-4 * (start / start[:, 0].std()), perplexity=min(30, (len(features) - 1) / 3), random_state=0
    )
    with threadpool_limits(1):  # sums in another order would be another picture
        found: Values = arrangement.fit_transform(features)
    return found


def binned(x: Values, y: Values, count: int = BINS) -> tuple[Values, Values, Values, Values]:
    """Mean of x, the 5 % quantile, the mean and the 95 % quantile of y, of bins with 0.5 % of the samples or more."""
    kept = np.isfinite(x) & np.isfinite(y)
    x, y = x[kept], y[kept]
    if not len(x):
        return (np.empty(0),) * 4
    index = np.clip(((x - x.min()) / (np.ptp(x) or 1.0) * count).astype(int), 0, count - 1)
    chosen = [index == number for number in range(count) if (index == number).sum() >= max(1, len(x) / 200)]
    bins = [(x[here].mean(), np.quantile(y[here], 0.05), y[here].mean(), np.quantile(y[here], 0.95)) for here in chosen]
    middle, low, mean, high = np.array(bins).T
    return middle, low, mean, high


def late(showcase: Showcase, name: str) -> Values:
    """A sampled quantity in the last tenth of the run, where it is finite."""
    values = showcase.samples[name][showcase.samples["progress"] >= 0.9]
    return values[np.isfinite(values)]


def _panel(height: float) -> tuple[Figure, Axes]:
    drawn = Figure(figsize=(WIDTH, height), layout="constrained")
    panel = drawn.subplots()
    panel.tick_params(labelsize=8)
    panel.xaxis.label.set_fontsize(9)
    panel.yaxis.label.set_fontsize(9)
    panel.xaxis.set_major_locator(MaxNLocator(6))
    panel.spines[["top", "right"]].set_visible(False)
    return drawn, panel


def _legend(drawn: Figure, panel: Axes) -> None:
    handles, labels = panel.get_legend_handles_labels()
    if not handles:
        return
    columns = 2 if max(map(len, labels)) <= 18 else 1
    legend = drawn.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False, fontsize=8)
    drawn.set_figheight(drawn.get_figheight() + 0.17 * -(-len(labels) // columns))
    for text in legend.get_texts():
        text.set_parse_math(False)


def _safe(name: str, most: int = 30) -> str:
    """A name that XML can hold, shortened."""
    kept = (
        letter if unicodedata.category(letter) not in ("Cc", "Cs", "Cn") else "\N{REPLACEMENT CHARACTER}"
        for letter in name
    )
    return short("".join(kept), most)
