"""The rows of a comparison, and its tables in Markdown, on a console and as CSV; `report.md`."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from rltemp.data.tasks import load_task
from rltemp.errors import BadInputError
from rltemp.experiments import statistics as stats
from rltemp.experiments.grid import Overall
from rltemp.experiments.measures import LOSSES, MEASURES
from rltemp.experiments.method_results import MethodResult, ranked, table_rows
from rltemp.experiments.statistics import holm
from rltemp.report.markdown import Section, write_report
from rltemp.report.plots import picture
from rltemp.report.tables import CSV_COLUMNS, markdown_table, measures_table, write_csv
from rltemp.report.terminal_tables import console_table

TASK = load_task("digits", teacher="mlp", student="64-8-10")


def result(rule: str, *test: float, validation: float = 0.01, **more: Any) -> MethodResult:
    return MethodResult(rule, np.array(test), np.array(test) + validation, **more)


FIXED, WORSE = result("fixed:4", 0.90, 0.94), result("none", 0.80, 0.83)
BETTER = result("dtkd:reference=4,warmup=0.1", 0.91, 0.96, note="tuned")
RESULTS = [FIXED, BETTER, WORSE]


@pytest.fixture(autouse=True)
def bootstrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seeds suffice for tables worked by hand: their intervals go from one value to the other."""
    monkeypatch.setattr(stats, "_interval", lambda row, *_: (min(row), max(row)))


def table(*results: MethodResult, against: tuple[str, ...] = ("fixed:4",), **more: bool) -> list[str]:
    return markdown_table(table_rows(results, against, **more)).splitlines()


def printed(width: int, *, terminal: bool = False) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=terminal, color_system="standard" if terminal else None)
    console.print(console_table(table_rows(RESULTS, ["fixed:4"])))
    return file.getvalue()


def test_rows_hold_percent_and_points_worked_by_hand() -> None:
    first, better, worse = table_rows(RESULTS, ["fixed:4", "none"])
    # 90 and 94: mean 92, deviation 2 sqrt(2), error 2; better by 1 and 2 points; worse by 10 and 11
    assert (first.mean, first.error, first.n) == (pytest.approx(92.0), pytest.approx(2.0), 2)
    assert better.differences["fixed:4"].mean == pytest.approx(1.5)
    assert (better.differences["fixed:4"].low, better.differences["fixed:4"].high) == pytest.approx((1.0, 2.0))
    assert worse.differences["fixed:4"].mean == pytest.approx(-10.5)
    assert better.differences["none"].mean == pytest.approx(12.0)
    assert (first.differences["fixed:4"].low, first.differences["fixed:4"].high) == (0.0, 0.0)


def test_a_baseline_that_is_no_method_is_answered_with_the_closest() -> None:
    with pytest.raises(BadInputError, match=r"unknown baseline 'fixed:5': did you mean 'fixed:4'"):
        table_rows(RESULTS, ["fixed:5"])


@pytest.mark.parametrize("results", [[FIXED, FIXED], []], ids=["twice", "none"])
def test_the_same_rule_twice_and_no_rule_at_all_are_refused(results: list[MethodResult]) -> None:
    with pytest.raises(BadInputError, match=r"needs .* of different names"):
        table_rows(results, [])


UNLIKE = {
    "n differs (1, of fixed:4 2)": (result("odd", 0.93), "+3.00"),
    "seeds differ from those of fixed:4": (result("odd", 0.93, 0.5, seeds=(0, 7)), "+3.00"),
    "versions differ (torch 2.4 and torch 2.5)": (
        result("odd", 0.91, 0.96, versions=("torch 2.4", "torch 2.5")),
        "+1.50 [+1.00, +2.00]",
    ),
    "odd is degraded": (result("odd", 0.91, 0.96, degraded=True), "+1.50 [+1.00, +2.00]"),
}


@pytest.mark.parametrize("reason", UNLIKE)
def test_unlike_methods_are_compared_only_when_asked_and_then_marked(reason: str, tmp_path: Path) -> None:
    odd, expected = UNLIKE[reason]
    lines = table(FIXED, odd, WORSE)
    n, *shown, note = (cell.strip() for cell in lines[3].split("|")[4:10])
    assert (n, shown, note) == (str(len(odd.test_accuracy)), ["-"] * 4, f"not compared: {reason}")
    assert "**-10.50 [-11.00, -10.00]**" in lines[4], "the others are compared as ever"
    assert "not compared" not in lines[4]
    shown = [cell.strip() for cell in table(FIXED, odd, WORSE, allow_mixed=True)[3].replace("*", "").split("|")]
    assert (shown[5], shown[9]) == (expected, f"compared although {reason}")
    texts = [text.get_text() for text in picture(table_rows([FIXED, odd, WORSE], ["fixed:4"]), "fixed:4").axes[0].texts]
    assert texts == ["odd", "not compared", "none", "-10.50", "fixed:4", "the baseline"]
    write_csv(tmp_path / "r.csv", [(TASK, [odd])], odd.seeds or range(len(odd.test_accuracy)))


def test_a_baseline_that_is_degraded_is_compared_with_nobody() -> None:
    rows = table_rows([result("fixed:4", 0.90, 0.94, degraded=True), BETTER], ["fixed:4"])
    refused = "not compared: fixed:4 is degraded"
    assert [row.note for row in rows] == [refused, f"tuned; {refused}"]
    assert rows[1].differences["fixed:4"].n == 0


def test_a_result_needs_one_value_of_everything_a_seed() -> None:
    with pytest.raises(BadInputError, match="'none' needs two accuracies a seed"):
        MethodResult("none", np.ones(3), np.ones(2))
    with pytest.raises(BadInputError, match=r"one agreement a seed, \(2,\); got \(3,\)"):
        result("none", 1, 1, measures={"agreement": np.ones(3)})


def test_the_markdown_table_is_this_one() -> None:
    # Two pairs of one sign: 2 of the 4 ways to set signs are as far from zero, p = 1/2, and twice that by Holm.
    # Differences of 1 and 2: standard error 1/2; t of one degree of freedom at 2.5 % / 2 is 25.45, and a noncentral
    # t of shift 32.64 exceeds it in 80 % of cases: 32.64 / 2.
    assert markdown_table(table_rows(RESULTS, ["fixed:4"])) == (
        "| rule | accuracy (%) | s.e. | n | minus fixed:4 (points) | p (Holm) | visible from | seeds to see 0.1 "
        "| note |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |\n"
        "| `fixed:4` | 92.00 | 2.00 | 2 | - | - | - | - |  |\n"
        "| `dtkd:reference=4,warmup=0.1` | 93.50 | 2.50 | 2 | **+1.50 [+1.00, +2.00]** | 1.000 | 16.32 | 478 "
        "| tuned |\n"
        "| `none` | 81.50 | 1.50 | 2 | **-10.50 [-11.00, -10.00]** | 1.000 | 16.32 | 478 |  |\n"
    )


@pytest.mark.parametrize(
    ("results", "against", "line", "expected"),
    [
        ([FIXED, result("same", 0.89, 0.96)], ("fixed:4",), 3, "| +0.50 [-1.00, +2.00] |"),
        ([result("mine:a|b", 1, 1)], (), 2, r"| `mine:a\|b` | 100.00 | 0.00 | 2 |"),
        ([result("fixed:4", 0.5), result("none", 0.25)], ("fixed:4",), 3, "| 25.00 | - | 1 | -25.00 | - | - | - |"),
    ],
    ids=["zero inside is not bold", "a bar splits no row", "one seed has no error and no interval"],
)
def test_a_row_is_written_so(results: list[MethodResult], against: tuple[str, ...], line: int, expected: str) -> None:
    assert expected in table(*results, against=against)[line]


def test_the_console_table_is_plain_lines_and_on_a_terminal_coloured() -> None:
    lines = [line.split() for line in printed(100).splitlines()]
    assert ["fixed:4", "92.00", "2.00", "2", "-", "-", "-"] in lines
    assert ["dtkd:reference=4,warmup=0.1", "93.50", "2.50", "2", "+1.50", "[+1.00,+2.00]", "1.000", "16.32"] in lines
    assert "\x1b" not in printed(100)
    better, worse = (line for line in printed(100, terminal=True).splitlines() if "dtkd" in line or "none" in line)
    assert "\x1b[32m" in better
    assert "\x1b[31m" in worse


def test_a_narrow_console_folds_rules_and_breaks_no_number() -> None:
    text = printed(60)
    assert max(map(len, text.splitlines())) <= 60
    assert {"93.50", "+1.50", "[+1.00,+2.00]", "-10.50", "[-11.00,-10.00]"} <= set(text.split())


def test_square_brackets_in_a_rule_are_shown_and_not_read_as_markup() -> None:
    file = io.StringIO()
    Console(file=file, width=80).print(console_table(table_rows([result("[red]x", 1, 1)], []), title="[bold]t"))
    assert "[red]x" in file.getvalue()
    assert "[bold]t" in file.getvalue()


def test_the_csv_reads_back_with_commas_in_names_and_six_decimals(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    write_csv(path, [(TASK, [FIXED, BETTER])], seeds=[100, 101])
    with path.open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    expected = [(rule, seed) for rule in (FIXED.rule, BETTER.rule) for seed in ("100", "101")]
    assert [(line["rule"], line["seed"]) for line in lines] == expected
    values = ["digits", "mlp", "64-8-10", BETTER.rule, "101", "0.960000", "0.970000", *[""] * len((*MEASURES, *LOSSES))]
    assert list(lines[3].items()) == list(zip(CSV_COLUMNS, values, strict=True))
    path.unlink()
    with pytest.raises(BadInputError, match="method 'fixed:4' has 2 accuracies for 1 seeds"):
        write_csv(path, [(TASK, [FIXED])], seeds=[0])
    assert not path.exists()


def test_what_else_was_measured_is_shown_as_mean_and_error(tmp_path: Path) -> None:
    measures = {
        "selected_accuracy": np.array([0.90, 0.94]),
        "negative_log_likelihood": np.array([0.25, 0.75]),
        "calibration_error": np.array([0.5, math.nan]),
    }
    measured = result("fixed:4", 0.90, 0.94, measures=measures)
    assert measures_table(table_rows([measured], [])) == (
        "| rule | selected (%) | ECE (%) | NLL (nats) |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| `fixed:4` | 92.00 ± 2.00 | - | 0.500 ± 0.250 |\n"
    )
    assert measures_table(table_rows(RESULTS, [])) == ""
    write_csv(tmp_path / "r.csv", [(TASK, [measured])], seeds=[0, 1])
    with (tmp_path / "r.csv").open(newline="") as stream:
        first, second = csv.DictReader(stream)
    assert (first["selected_accuracy"], first["calibration_error"]) == ("0.900000", "0.500000")
    assert (second["calibration_error"], second["agreement"]) == ("", "")


def test_p_values_are_corrected_for_the_methods_of_one_baseline() -> None:
    rng = np.random.default_rng(0)
    base = rng.random(16)
    results = [result("fixed:4", *base)]
    results += [result(f"fixed:{t}", *(base + 0.004 * t + 0.01 * rng.normal(size=16))) for t in (1, 2, 3)]
    pairs = [row.differences["fixed:4"] for row in table_rows(results, ["fixed:4"])]
    assert [pair.p_corrected for pair in pairs[1:]] == holm([pair.p for pair in pairs[1:]])
    alone = table_rows(results[:2], ["fixed:4"])[1].differences["fixed:4"]
    assert alone.p_corrected == alone.p == pairs[1].p, "the baseline is no test"
    assert alone.detectable < pairs[1].detectable


def report(
    folder: Path,
    *results: MethodResult,
    picture: str = "picture.png",
    times: int = 1,
    verdict: Sequence[str] = (),
    **more: Any,
) -> str:
    section = Section(TASK, 0.975, table_rows(results or RESULTS, ["fixed:4"]), picture, verdict=verdict)
    path = write_report(folder, [section] * times, command="rltemp compare --task digits --seeds 2", **more)
    assert path == folder / "report.md"
    return path.read_text("utf-8")


def test_the_report_says_what_was_compared_and_how_to_do_it_again(tmp_path: Path) -> None:
    text = report(tmp_path, warnings=["Mind the gap."], verdict=["It is <so>.", "Few.", "  Because."])
    taught = "`64-8-10` students were taught on `digits` by 3 methods"
    verdict = "**It is <so>.**\n\n- Few.\n  - Because.\n\n"
    assert text.startswith(f"# digits: mlp teaches 64-8-10\n\n{verdict}{taught}"), "the verdict comes first"
    assert "(n = 2 seeds each)" in text
    assert "97.50 % test accuracy" in text
    assert markdown_table(ranked(table_rows(RESULTS, ["fixed:4"]))) in text
    assert "](picture.png)" in text
    assert "\n\nMind the gap.\n\n" in text
    assert "```\nrltemp compare --task digits --seeds 2\n```" in text
    assert f"numpy {np.__version__}" in text
    assert "![" not in report(tmp_path, picture="")


def test_the_report_of_few_seeds_says_what_their_intervals_are_worth(tmp_path: Path) -> None:
    assert "With fewer than 32 seeds" in report(tmp_path)
    assert "With fewer than 32 seeds" not in report(tmp_path, result("fixed:4", *np.linspace(0.8, 0.9, 32)))


def test_the_report_of_a_grid_begins_with_the_table_over_all_its_points(tmp_path: Path) -> None:
    over = [
        Overall("fixed:4", (91.0, 90.0, 92.0), {"fixed:4": (0.0, 0.0, 0.0)}),
        Overall("dtkd:1|2", (92.0, 91.0, 93.0), {"fixed:4": (1.0, 0.5, 1.5)}, "why"),
    ]
    text = report(tmp_path, times=2, overall=over, summary="The best of all.")
    assert text.startswith("# A grid of comparisons\n\n**The best of all.**\n\n## Over all 2")
    assert text.index("## Over all 2") < text.index("## digits: mlp teaches 64-8-10")
    assert text.count(markdown_table(ranked(table_rows(RESULTS, ["fixed:4"])))) == 2
    assert "| `fixed:4` | 91.00 [90.00, 92.00] | - |  |\n" in text
    assert "| `dtkd:1\\|2` | 92.00 [91.00, 93.00] | +1.00 [+0.50, +1.50] | why |\n" in text
