"""The one picture of a comparison: differences between methods and, where one was learned, its temperatures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rltemp.errors import BadInputError
from rltemp.experiments.method_results import Row, seeds
from rltemp.report.drawing import BLUE, GREY, ORANGE, binned, draw_band, draw_forest, logarithmic, printable, save_png


@dataclass(frozen=True)
class TemperatureTrace:
    """The temperatures that a rule gave, over samples drawn from whole runs; every array is `[N]`.

    Args:
        progress: How much of the run was done, 0 to 1.
        teacher_margin: The teacher's first minus its second logit, in standard deviations of its logits. (The
            difference of probabilities is near 1 for almost every sample of a good teacher, and shows nothing.)
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


def save_picture(
    path: Path, rows: Sequence[Row], baseline: str, trace: TemperatureTrace | None = None, title: str = ""
) -> None:
    """Write the figure as a PNG, 1500 pixels wide; arguments as for `picture`."""
    save_png(path, picture(rows, baseline, trace, title))


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
