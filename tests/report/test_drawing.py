"""Bins, bands, the forest plot, and the picture of a comparison."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import pytest

from rltemp.errors import BadInputError
from rltemp.experiments.method_results import Row
from rltemp.experiments.recorder import TemperatureTrace
from rltemp.experiments.statistics import Paired
from rltemp.report.drawing import binned, save_png, svg
from rltemp.report.plots import picture


def row(rule: str, *pair: float) -> Row:
    """A method by its difference to the baseline: mean and bounds."""
    return Row(rule, 92.0 + pair[0], 0.5, {"base": Paired(*pair, n=2)}, 2)


ROWS = [row("base", 0.0, 0.0, 0.0), row("better", 1.5, 1.0, 2.0), row("worse", -10.5, -11.0, -10.0)]
NEAR = [row(name, 0.1 * place, 0.1 * place - 0.5, 0.1 * place + 0.5) for place, name in enumerate("abc", 1)]


def trace(n: int = 1000) -> TemperatureTrace:
    progress = np.linspace(0.0, 1.0, n)
    return TemperatureTrace(progress, progress[::-1], 2 + 2 * progress, np.full(n, 8.0), reference=4.0)


def test_bins_hold_alike_many_samples_and_the_outermost_are_split() -> None:
    x = np.arange(1200.0)
    median, *quartiles = binned(x, 2 * x, 12, (0.25, 0.5, 0.75))
    assert len(median) == 14
    assert np.diff(median)[1:-1] == pytest.approx([88, *[100] * 9, 88], abs=1)
    np.testing.assert_allclose(quartiles[1], 2 * median)
    assert binned(np.ones(10), np.arange(10.0), 12, (0.25, 0.5, 0.75)).T.tolist() == [[1, 2.25, 4.5, 6.75]]


def test_a_band_holds_the_middle_nine_tenths_of_each_bin() -> None:
    x, y = np.repeat([0.0, 1.0], 101), np.tile(np.arange(101.0), 2)
    assert binned(x, np.where(x > 0, 2 * y, y)).tolist() == [[0, 1], [5, 10], [50, 100], [95, 190]]


def test_bins_leave_out_what_is_not_finite_and_bins_with_hardly_a_sample() -> None:
    x = np.append(np.full(1000, 0.975), [0.025, math.nan, 0.5])
    y = np.append(np.full(1001, 4.0), [4.0, math.nan])
    assert binned(x, y).tolist() == [[0.975], [4.0], [4.0], [4.0]]
    assert binned(np.full(3, math.nan), np.ones(3)).shape == (4, 0)


def test_the_forest_has_the_best_on_top_and_each_interval_where_it_is() -> None:
    panel = picture(ROWS, "base").axes[0]
    texts = [text.get_text() for text in panel.texts]
    assert texts == ["worse", "-10.50", "base", "the baseline", "better", "+1.50"]
    drawn = [np.asarray(line.get_xdata()).tolist() for line in panel.lines[1:]]
    assert drawn[2:] == [[0.0, 0.0], [0.0], [1.0, 2.0], [1.5]]


def test_a_method_far_below_gets_an_arrow_and_does_not_flatten_the_others() -> None:
    panel = picture([ROWS[0], *NEAR, row("failed", -70.0, -71.0, -69.0)], "base").axes[0]
    marks = {line.get_marker(): line.get_xdata()[0] for line in panel.lines if len(line.get_xdata()) == 1}
    left, right = panel.get_xlim()
    assert -3 < left < 0.0 < 0.3 < right < 3
    assert marks["<"] == pytest.approx(left, abs=0.3)
    assert "-70.00" in [text.get_text() for text in panel.texts]


def test_one_method_alone_and_methods_of_one_seed_can_be_drawn() -> None:
    single = Row("one", 50.0, math.nan, {"base": Paired(-25.0, math.nan, math.nan, 1)}, 1)
    for rows in (ROWS[:1], [ROWS[0], single]):
        left, right = picture(rows, "base").axes[0].get_xlim()
        assert math.isfinite(left)
        assert left <= 0.0 < right


def test_the_title_states_the_seeds_and_leaves_dollar_signs_alone() -> None:
    assert picture(ROWS, "base", title="$a_b$ digits").get_suptitle() == "$a_b$ digits (n = 2 seeds)"


def test_the_temperature_panels_show_medians_per_bin_on_one_log_axis() -> None:
    panels = picture(ROWS, "base", trace()).axes
    assert len(panels) == 3
    student, teacher, reference = panels[1].lines
    assert np.asarray(teacher.get_ydata()) == pytest.approx(8.0)
    # The first bin has 2 % of the samples: its middle is at 0.01, where the student's temperature is 2.02.
    found = np.asarray(student.get_xdata())[0], np.asarray(student.get_ydata())[0]
    assert found == pytest.approx((0.01, 2.02), abs=2e-3)
    assert np.asarray(panels[2].lines[0].get_ydata())[0] == pytest.approx(3.98, abs=2e-3)
    assert np.asarray(reference.get_ydata()).tolist() == [4.0, 4.0]
    assert {panel.get_yscale() for panel in panels[1:]} == {"log"}
    assert panels[1].get_ylim() == panels[2].get_ylim()


def test_the_band_of_the_picture_has_the_edges_of_its_bins() -> None:
    n = 101
    data = TemperatureTrace(np.full(n, 0.5), np.full(n, 0.5), np.arange(1.0, n + 1), np.ones(n), reference=4.0)
    band = picture(ROWS, "base", data).axes[1].collections[0].get_paths()[0].vertices
    assert (np.min(band[:, 1]), np.max(band[:, 1])) == pytest.approx((6.0, 96.0))


ONE = [np.ones(1)] * 4
UNUSABLE = [
    *[([*ONE[:2], np.array([bad]), ONE[3]], "positive and finite") for bad in (0.0, -1.0, math.nan, math.inf)],
    *[
        (rows, "four rows of one length")
        for rows in ([np.ones(2), *ONE[1:]], [np.ones((1, 1)), *ONE[1:]], [np.ones(0)] * 4)
    ],
]


@pytest.mark.parametrize(("rows", "message"), UNUSABLE)
def test_a_trace_that_cannot_be_drawn_is_refused(rows: list[np.ndarray], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        TemperatureTrace(*rows, reference=4.0)


@pytest.mark.parametrize("data", [None, trace(50)])
def test_the_picture_is_a_png_1500_pixels_wide(tmp_path: Path, data: TemperatureTrace | None) -> None:
    save_png(tmp_path / "picture.png", picture(ROWS, "base", data, "digits"))
    header = (tmp_path / "picture.png").read_bytes()[:24]
    width, height = struct.unpack(">II", header[16:24])
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert width == 1500
    assert 400 < height < 1500
    assert [entry.name for entry in tmp_path.iterdir()] == ["picture.png"]


def test_a_drawing_is_the_same_bytes_again() -> None:
    assert svg(picture(ROWS, "base", trace())) == svg(picture(ROWS, "base", trace()))
