import csv
import io
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from rich.console import Console

from rltemp.data.tasks import load_task
from rltemp.errors import BadInputError
from rltemp.experiments import statistics as stats
from rltemp.experiments.grid import Overall
from rltemp.experiments.measures import MEASURES
from rltemp.experiments.method_results import MethodResult, table_rows
from rltemp.experiments.statistics import holm
from rltemp.report.markdown import Section, write_report
from rltemp.report.picture import TemperatureTrace, figure, picture
from rltemp.report.tables import console_table, markdown_table, measures_table, write_csv

FIXED = MethodResult("fixed:4", np.array([0.90, 0.94]), np.array([0.91, 0.95]))
TASK = load_task("digits", teacher="mlp", student="64-8-10")
BETTER = MethodResult("dtkd:reference=4,warmup=0.1", np.array([0.91, 0.96]), np.array([0.92, 0.97]), note="tuned")
WORSE = MethodResult("none", np.array([0.80, 0.83]), np.array([0.80, 0.83]))
ARMS = [FIXED, BETTER, WORSE]


@pytest.fixture(autouse=True)
def bootstrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seeds suffice for tables worked by hand: their intervals go from one value to the other."""
    monkeypatch.setattr(stats, "_interval", lambda row, *_: (min(row), max(row)))


def trace(n: int = 1000) -> TemperatureTrace:
    progress = np.linspace(0.0, 1.0, n)
    return TemperatureTrace(progress, progress[::-1], 2 + 2 * progress, np.full(n, 8.0), reference=4.0)


def printed(width: int, *, terminal: bool = False) -> str:
    console = Console(
        file=io.StringIO(),
        width=width,
        force_terminal=terminal,
        color_system="standard" if terminal else None,
    )
    console.print(console_table(table_rows(ARMS, ["fixed:4"])))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def texts(panel: Axes) -> list[str]:
    return [text.get_text() for text in panel.texts]


def test_rows_hold_percent_and_points_worked_by_hand():
    first, better, worse = table_rows(ARMS, ["fixed:4", "none"])
    # 90 and 94: mean 92, deviation 2 sqrt(2), error 2; better by 1 and 2 points; worse by 10 and 11
    assert (first.accuracy, first.error, first.n) == (pytest.approx(92.0), pytest.approx(2.0), 2)
    assert better.differences["fixed:4"].mean == pytest.approx(1.5)
    assert (better.differences["fixed:4"].low, better.differences["fixed:4"].high) == pytest.approx((1.0, 2.0))
    assert worse.differences["fixed:4"].mean == pytest.approx(-10.5)
    assert better.differences["none"].mean == pytest.approx(12.0)
    assert (first.differences["fixed:4"].low, first.differences["fixed:4"].high) == (0.0, 0.0)


def test_a_baseline_that_is_no_arm_is_answered_with_the_closest():
    with pytest.raises(BadInputError, match=r"unknown baseline 'fixed:5': did you mean 'fixed:4'"):
        table_rows(ARMS, ["fixed:5"])


def test_the_same_rule_twice_and_no_rule_at_all_are_refused():
    for arms in ([FIXED, FIXED], []):
        with pytest.raises(BadInputError, match="needs arms of different names"):
            table_rows(arms, [])


UNLIKE = {
    "n differs (1, of fixed:4 2)": (MethodResult("odd", np.array([0.93]), np.array([0.93])), "+3.00"),
    "seeds differ from those of fixed:4": (
        MethodResult("odd", np.array([0.93, 0.5]), np.ones(2), seeds=(0, 7)),
        "+3.00",
    ),
    "versions differ (torch 2.4 and torch 2.5)": (
        MethodResult("odd", np.array([0.91, 0.96]), np.ones(2), versions=("torch 2.4", "torch 2.5")),
        "+1.50 [+1.00, +2.00]",
    ),
    "odd is degraded": (MethodResult("odd", np.array([0.91, 0.96]), np.ones(2), degraded=True), "+1.50 [+1.00, +2.00]"),
}


@pytest.mark.parametrize("reason", UNLIKE)
def test_arms_that_are_not_alike_are_not_compared_unless_asked_to_and_marked(reason: str, tmp_path):
    odd, expected = UNLIKE[reason]
    arms = [FIXED, odd, WORSE]
    lines = markdown_table(table_rows(arms, ["fixed:4"])).splitlines()
    n, *shown, note = (cell.strip() for cell in lines[3].split("|")[4:10])
    assert (n, shown, note) == (str(len(odd.test_accuracy)), ["-"] * 4, f"not compared: {reason}")
    assert "**-10.50 [-11.00, -10.00]**" in lines[4], "the others are compared as ever"
    assert "not compared" not in lines[4]
    allowed = markdown_table(table_rows(arms, ["fixed:4"], allow_mixed=True)).splitlines()[3].replace("*", "")
    shown = [cell.strip() for cell in allowed.split("|")]
    assert (shown[5], shown[9]) == (expected, f"compared although {reason}")
    panel = figure(arms, "fixed:4").axes[0]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["odd", "none", "fixed:4"]
    assert "nan" not in " ".join(texts(panel))
    write_csv(tmp_path / "r.csv", [(TASK, [odd])], odd.seeds or range(len(odd.test_accuracy)))


def test_a_baseline_that_is_degraded_is_compared_with_nobody():
    base = MethodResult("fixed:4", FIXED.test_accuracy, FIXED.validation_accuracy, degraded=True)
    rows = table_rows([base, BETTER], ["fixed:4"])
    assert [row.note for row in rows] == [
        "not compared: fixed:4 is degraded",
        "tuned; not compared: fixed:4 is degraded",
    ]
    assert rows[1].differences["fixed:4"].n == 0


def test_an_arm_needs_as_many_validation_as_test_accuracies():
    with pytest.raises(BadInputError, match="arm 'none' needs two accuracies a seed"):
        MethodResult("none", np.ones(3), np.ones(2))


def test_the_markdown_table_is_this_one():
    # Two pairs of one sign: 2 of the 4 ways to set signs are as far from zero, p = 1/2, and twice that by Holm.
    # Differences of 1 and 2: standard error 1/2; t of one degree of freedom at 2.5 % / 2 is 25.45, and a noncentral
    # t of shift 32.64 exceeds it in 80 % of cases: 32.64 / 2.
    assert markdown_table(table_rows(ARMS, ["fixed:4"])) == (
        "| rule | accuracy (%) | s.e. | n | minus fixed:4 (points) | p (Holm) | could show | seeds for 0.1 | note |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |\n"
        "| `fixed:4` | 92.00 | 2.00 | 2 | - | - | - | - |  |\n"
        "| `dtkd:reference=4,warmup=0.1` | 93.50 | 2.50 | 2 | **+1.50 [+1.00, +2.00]** | 1.000 | 16.32 | 478 "
        "| tuned |\n"
        "| `none` | 81.50 | 1.50 | 2 | **-10.50 [-11.00, -10.00]** | 1.000 | 16.32 | 478 |  |\n"
    )


def test_an_interval_that_holds_zero_is_not_bold():
    arms = [FIXED, MethodResult("same", np.array([0.89, 0.96]), np.array([0.9, 0.9]))]
    assert "| +0.50 [-1.00, +2.00] |" in markdown_table(table_rows(arms, ["fixed:4"]))


def test_a_bar_in_a_rule_name_does_not_split_the_markdown_row():
    table = markdown_table(table_rows([MethodResult("mine:a|b", np.ones(2), np.ones(2))], []))
    assert table.splitlines()[2] == r"| `mine:a\|b` | 100.00 | 0.00 | 2 |"


def test_one_seed_has_no_error_and_no_interval():
    arms = [
        MethodResult("fixed:4", np.array([0.5]), np.array([0.5])),
        MethodResult("none", np.array([0.25]), np.array([0.5])),
    ]
    line = markdown_table(table_rows(arms, ["fixed:4"])).splitlines()[3]
    assert line == "| `none` | 25.00 | - | 1 | -25.00 | - | - | - |"


def test_without_a_terminal_the_console_table_is_plain_lines():
    lines = [line.split() for line in printed(100).splitlines()]
    assert ["fixed:4", "92.00", "2.00", "2", "-", "-", "-"] in lines
    assert ["dtkd:reference=4,warmup=0.1", "93.50", "2.50", "2", "+1.50", "[+1.00,+2.00]", "1.000", "16.32"] in lines
    assert "\x1b" not in printed(100)


def test_on_a_terminal_better_is_green_and_worse_red():
    better, worse = (line for line in printed(100, terminal=True).splitlines() if "dtkd" in line or "none" in line)
    assert "\x1b[32m" in better
    assert "\x1b[31m" in worse


def test_a_narrow_console_folds_rules_and_breaks_no_number():
    text = printed(60)
    assert max(map(len, text.splitlines())) <= 60
    for number in ("93.50", "+1.50", "[+1.00,+2.00]", "-10.50", "[-11.00,-10.00]"):
        assert number in text.split()


def test_square_brackets_in_a_rule_are_shown_and_not_read_as_markup():
    console = Console(file=io.StringIO(), width=80)
    console.print(console_table(table_rows([MethodResult("[red]x", np.ones(2), np.ones(2))], []), title="[bold]t"))
    assert isinstance(console.file, io.StringIO)
    assert "[red]x" in console.file.getvalue()
    assert "[bold]t" in console.file.getvalue()


def test_the_csv_reads_back_with_commas_in_rule_names_and_six_decimals(tmp_path):
    path = tmp_path / "results.csv"
    write_csv(path, [(TASK, [FIXED, BETTER])], seeds=[100, 101])
    with path.open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert [(line["rule"], line["seed"]) for line in lines] == [
        ("fixed:4", "100"),
        ("fixed:4", "101"),
        ("dtkd:reference=4,warmup=0.1", "100"),
        ("dtkd:reference=4,warmup=0.1", "101"),
    ]
    assert lines[3] == {
        "task": "digits",
        "teacher": "mlp",
        "student": "64-8-10",
        "rule": "dtkd:reference=4,warmup=0.1",
        "seed": "101",
        "test_accuracy": "0.960000",
        "validation_accuracy": "0.970000",
        **dict.fromkeys(MEASURES, ""),
    }


def test_a_csv_of_too_few_seeds_is_refused_and_not_written(tmp_path):
    with pytest.raises(BadInputError, match="arm 'fixed:4' has 2 accuracies for 1 seeds"):
        write_csv(tmp_path / "results.csv", [(TASK, [FIXED])], seeds=[0])
    assert not list(tmp_path.iterdir())


def test_the_forest_is_sorted_with_the_best_on_top_and_its_accuracy_beside():
    panel = figure(ARMS, "fixed:4").axes[0]
    assert [label.get_text() for label in panel.get_yticklabels()] == [
        "none",
        "fixed:4",
        "dtkd:reference=4,warmup=0.1",
    ]
    assert [text for text in texts(panel) if "%" not in text] == ["81.50", "92.00", "93.50"]


def test_the_forest_draws_each_interval_and_its_mean_where_they_are():
    panel = figure([FIXED, BETTER], "fixed:4").axes[0]
    drawn = [np.asarray(line.get_xdata()).tolist() for line in panel.lines[1:]]
    assert drawn == [pytest.approx([0.0, 0.0]), [0.0], pytest.approx([1.0, 2.0]), pytest.approx([1.5])]


def test_an_arm_far_below_gets_an_arrow_and_does_not_flatten_the_others():
    near = [MethodResult(f"fixed:{t}", FIXED.test_accuracy + t / 1000, FIXED.test_accuracy) for t in (1, 2, 3)]
    panel = figure([FIXED, *near, MethodResult("bad", FIXED.test_accuracy - 0.2, FIXED.test_accuracy)], "fixed:4").axes[
        0
    ]
    assert "-20.0" in texts(panel)
    left, right = panel.get_xlim()
    assert -1.5 < left < 0.0 < 0.3 < right < 1.5


def test_one_arm_alone_and_arms_of_one_seed_can_be_drawn():
    single = MethodResult("fixed:4", np.array([0.5]), np.array([0.5]))
    for arms in ([FIXED], [single], [single, MethodResult("none", np.array([0.25]), np.array([0.5]))]):
        left, right = figure(arms, "fixed:4").axes[0].get_xlim()
        assert math.isfinite(left)
        assert left <= 0.0 < right


def test_the_title_states_the_seeds_and_leaves_dollar_signs_alone():
    title = figure(ARMS, "fixed:4", title="$a_b$ digits").get_suptitle()
    assert title == "$a_b$ digits (n = 2 seeds)"


def test_the_temperature_panels_show_medians_per_bin_on_one_log_axis():
    panels = figure(ARMS, "fixed:4", trace()).axes
    assert len(panels) == 3
    teacher, student, reference = panels[1].lines
    assert np.asarray(teacher.get_ydata()) == pytest.approx(8.0)
    # 20 bins of 0.05: the first has its middle at 0.025, where the student's temperature is 2.05
    assert (np.asarray(student.get_xdata())[0], np.asarray(student.get_ydata())[0]) == pytest.approx(
        (0.025, 2.05), abs=2e-3
    )
    assert np.asarray(panels[2].lines[1].get_ydata())[0] == pytest.approx(3.95, abs=2e-3)
    assert np.asarray(reference.get_ydata()).tolist() == [4.0, 4.0]
    assert {panel.get_yscale() for panel in panels[1:]} == {"log"}
    assert panels[1].get_ylim() == panels[2].get_ylim()


def test_the_band_reaches_from_the_5_to_the_95_percent_quantile():
    n = 101
    data = TemperatureTrace(np.full(n, 0.5), np.full(n, 0.5), np.arange(1.0, n + 1), np.ones(n), reference=4.0)
    band = figure(ARMS, "fixed:4", data).axes[1].collections[1].get_paths()[0].vertices
    assert (np.min(band[:, 1]), np.max(band[:, 1])) == pytest.approx((6.0, 96.0))


def test_bins_with_hardly_a_sample_are_not_drawn():
    margin = np.append(np.full(1000, 0.975), 0.025)
    data = TemperatureTrace(np.linspace(0, 1, 1001), margin, np.full(1001, 4.0), np.full(1001, 4.0), reference=4.0)
    assert np.asarray(figure(ARMS, "fixed:4", data).axes[2].lines[0].get_xdata()).tolist() == [0.975]


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_trace_with_a_temperature_that_is_not_positive_is_refused(bad):
    with pytest.raises(BadInputError, match="positive and finite"):
        TemperatureTrace(np.array([0.5]), np.array([0.5]), np.array([bad]), np.array([1.0]), reference=4.0)


def test_a_trace_of_uneven_or_empty_rows_is_refused():
    for progress in (np.ones(2), np.ones((1, 1))):
        with pytest.raises(BadInputError, match="four rows of one length"):
            TemperatureTrace(progress, np.ones(1), np.ones(1), np.ones(1), reference=4.0)
    with pytest.raises(BadInputError, match="four rows of one length"):
        TemperatureTrace(*[np.ones(0)] * 4, reference=4.0)


@pytest.mark.parametrize("data", [None, trace(50)])
def test_the_picture_is_a_png_1500_pixels_wide(tmp_path, data):
    path = tmp_path / "picture.png"
    picture(path, ARMS, "fixed:4", data, "digits")
    header = path.read_bytes()[:24]
    width, height = struct.unpack(">II", header[16:24])
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert width == 1500
    assert 400 < height < 1500
    assert [entry.name for entry in tmp_path.iterdir()] == ["picture.png"]


def report(folder: Path, picture: str = "picture.png", times: int = 1, **more: Any) -> str:
    rows = table_rows(ARMS, ["fixed:4"])
    sections = [Section("digits", "mlp", 0.975, "64-8-10", rows, picture)] * times
    path = write_report(folder, sections, command="rltemp compare --task digits --seeds 2", **more)
    assert path == folder / "report.md"
    return path.read_text()


def test_the_report_says_what_was_compared_shows_it_and_how_to_do_it_again(tmp_path):
    text = report(tmp_path, warnings=["Mind the gap."])
    assert text.startswith(
        "# digits: mlp teaches 64-8-10\n\n3 rules taught `64-8-10` students on `digits` (n = 2 seeds"
    )
    assert "97.50 % test accuracy" in text
    assert markdown_table(table_rows(ARMS, ["fixed:4"])) in text
    assert "](picture.png)" in text
    assert "\n\nMind the gap.\n\n" in text
    assert "```\nrltemp compare --task digits --seeds 2\n```" in text
    assert f"numpy {np.__version__}" in text


def test_a_report_without_a_picture_links_to_none(tmp_path):
    assert "![" not in report(tmp_path, picture="")


def test_the_report_of_few_seeds_says_what_their_intervals_are_worth(tmp_path):
    assert "With fewer than 32 seeds" in report(tmp_path)
    many = MethodResult("fixed:4", np.linspace(0.8, 0.9, 32), np.ones(32))
    write_report(tmp_path, [Section("t", "a", 0.9, "b", table_rows([many], []))], command="")
    assert "With fewer than 32 seeds" not in (tmp_path / "report.md").read_text()


def test_the_report_of_a_grid_begins_with_the_table_over_all_its_points(tmp_path):
    over = [
        Overall("fixed:4", (91.0, 90.0, 92.0), {"fixed:4": (0.0, 0.0, 0.0)}),
        Overall("dtkd:1|2", (92.0, 91.0, 93.0), {"fixed:4": (1.0, 0.5, 1.5)}, "why"),
    ]
    text = report(tmp_path, times=2, overall=over)
    assert text.index("## Over all 2") < text.index("## digits: mlp teaches 64-8-10")
    assert text.count(markdown_table(table_rows(ARMS, ["fixed:4"]))) == 2
    assert "| `fixed:4` | 91.00 [90.00, 92.00] | - |  |\n" in text
    assert "| `dtkd:1\\|2` | 92.00 [91.00, 93.00] | +1.00 [+0.50, +1.50] | why |\n" in text


def test_what_else_was_measured_is_shown_as_mean_and_error_in_its_unit(tmp_path):
    measures = {
        "selected_accuracy": np.array([0.90, 0.94]),
        "negative_log_likelihood": np.array([0.25, 0.75]),
        "calibration_error": np.array([0.5, math.nan]),
    }
    arm = MethodResult("fixed:4", FIXED.test_accuracy, FIXED.validation_accuracy, measures=measures)
    assert measures_table(table_rows([arm], [])) == (
        "| rule | selected (%) | ECE (%) | NLL (nats) |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| `fixed:4` | 92.00 ± 2.00 | - | 0.500 ± 0.250 |\n"
    )
    assert measures_table(table_rows(ARMS, [])) == ""
    write_csv(tmp_path / "r.csv", [(TASK, [arm])], seeds=[0, 1])
    with (tmp_path / "r.csv").open(newline="") as stream:
        first, second = csv.DictReader(stream)
    assert (first["selected_accuracy"], first["calibration_error"]) == ("0.900000", "0.500000")
    assert (second["calibration_error"], second["agreement"]) == ("", "")


def test_a_measure_has_one_value_a_seed():
    with pytest.raises(BadInputError, match=r"one agreement a seed, \(2,\); got \(3,\)"):
        MethodResult("none", np.ones(2), np.ones(2), measures={"agreement": np.ones(3)})


def test_p_values_are_corrected_for_the_arms_of_one_baseline_and_the_baseline_is_no_test():
    rng = np.random.default_rng(0)
    base = rng.random(16)
    arms = [MethodResult("fixed:4", base, base)]
    arms += [MethodResult(f"fixed:{t}", base + 0.004 * t + 0.01 * rng.normal(size=16), base) for t in (1, 2, 3)]
    pairs = [row.differences["fixed:4"] for row in table_rows(arms, ["fixed:4"])]
    assert [pair.p_corrected for pair in pairs[1:]] == holm([pair.p for pair in pairs[1:]])
    alone = table_rows(arms[:2], ["fixed:4"])[1].differences["fixed:4"]
    assert alone.p_corrected == alone.p == pairs[1].p
    assert alone.detectable < pairs[1].detectable
