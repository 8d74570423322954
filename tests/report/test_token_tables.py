"""What is shown of samples that are tokens: the loss in nats a token, beside the accuracy, by the same statistics."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from support.processes import code

from rltemp.data.tasks import load_task
from rltemp.experiments import statistics as stats
from rltemp.experiments.measures import LOSS
from rltemp.experiments.method_results import MethodResult, Row, ranked, stored_rows, table_rows
from rltemp.report.hparams import LOSSES, measured
from rltemp.report.html_page import write_page
from rltemp.report.markdown import Section, write_report
from rltemp.report.plots import picture
from rltemp.report.tables import markdown_table, write_csv
from rltemp.report.terminal_tables import console_table

TASK = load_task("digits", teacher="mlp", student="64-8-10")


def result(rule: str, *loss: float, validation: float = 0.5, **more: Any) -> MethodResult:
    """Students of these losses, all of one accuracy."""
    measures = {"negative_log_likelihood": np.array(loss), "validation_loss": np.array(loss) + validation}
    accuracy = np.full(len(loss), 0.25)
    return MethodResult(rule, accuracy, accuracy, measures=measures, **more)


FIXED, BETTER, WORSE = result("fixed:2", 2.0, 2.2), result("dtkd", 1.9, 2.08), result("none", 2.1, 2.4)
RESULTS = [FIXED, BETTER, WORSE]


@pytest.fixture(autouse=True)
def bootstrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seeds suffice for tables worked by hand: their intervals go from one value to the other."""
    monkeypatch.setattr(stats, "_interval", lambda row, *_: (min(row), max(row)))


def losses(*results: MethodResult) -> list[Row]:
    return table_rows(results or RESULTS, ["fixed:2"], quantity=LOSS)


def section() -> Section:
    return Section(TASK, 0.5, table_rows(RESULTS, ["fixed:2"]), "picture.png", losses())


def test_the_table_of_losses_is_this_one() -> None:
    # Differences of -0.10 and -0.12: standard error 0.01, times 32.64 as for accuracies.
    assert markdown_table(losses()) == (
        "| rule | loss (nats a token) | s.e. | n | minus fixed:2 (nats) | p (Holm) | visible from |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| `fixed:2` | 2.1000 | 0.1000 | 2 | - | - | - |\n"
        "| `dtkd` | 1.9900 | 0.0900 | 2 | **-0.1100 [-0.1200, -0.1000]** | 1.000 | 0.3264 |\n"
        "| `none` | 2.2500 | 0.1500 | 2 | **+0.1500 [+0.1000, +0.2000]** | 1.000 | 1.6321 |\n"
    )


def test_the_smaller_loss_is_the_better_one_everywhere() -> None:
    assert [row.side("fixed:2") for row in losses()] == [0, 1, -1]
    file = io.StringIO()
    Console(file=file, width=100, force_terminal=True, color_system="standard").print(console_table(losses()))
    better, worse = (line for line in file.getvalue().splitlines() if "dtkd" in line or "none" in line)
    assert "\x1b[32m" in better
    assert "\x1b[31m" in worse
    panel = picture(losses(), "fixed:2").axes[0]
    texts = [text.get_text() for text in panel.texts]
    assert texts == ["none", "+0.1500", "fixed:2", "the baseline", "dtkd", "-0.1100"], "the best is on top"
    assert panel.get_xlabel() == "test loss minus fixed:2 (nats, 95 % interval)"


def test_a_student_without_a_loss_leaves_its_method_uncompared() -> None:
    row = losses(FIXED, result("odd", 1.9, math.nan))[1]
    assert (math.isnan(row.mean), row.differences["fixed:2"].n) == (True, 0)
    assert "| `odd` | - | - | 2 | - | - | - |" in markdown_table([row])


def test_alternatives_of_tokens_are_judged_by_validation_loss() -> None:
    lost = result("lost", 0.1, math.nan)
    best = max([WORSE, lost, BETTER, FIXED], key=lambda one: one.chosen_by(LOSS))
    assert best is BETTER
    assert BETTER.chosen_by(LOSS) == pytest.approx(-(1.99 + 0.5))
    old = MethodResult("old", np.ones(2), np.ones(2))
    assert old.chosen_by(LOSS) == -math.inf


def test_the_report_and_the_page_have_the_losses_before_the_accuracies(tmp_path: Path) -> None:
    text = write_report(tmp_path, [section()], command="rltemp compare").read_text("utf-8")
    ordered = map(ranked, (losses(), table_rows(RESULTS, ["fixed:2"])))
    first, second = (text.index(markdown_table(rows)) for rows in ordered)
    assert first < second
    assert "- **loss**: the mean negative log-likelihood" in text
    write_page(tmp_path / "report.html", section(), {}, configuration={}, command="rltemp compare")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert re.findall("<caption>(.*)</caption>", page) == [
        "Loss, compared with fixed:2",
        "Accuracy, compared with fixed:2",
    ]
    assert 'class="better">-0.1100 [-0.1200, -0.1000]</td>' in page
    assert 'class="worse">+0.1500 [+0.1000, +0.2000]</td>' in page
    assert "Test loss minus that of fixed:2, in nats, with 95 % intervals." in page
    plain = Section(TASK, 0.5, table_rows(RESULTS, ["fixed:2"]))
    assert "nats a token" not in write_report(tmp_path, [plain], command="").read_text("utf-8")


def test_the_csv_ends_with_both_losses(tmp_path: Path) -> None:
    write_csv(tmp_path / "r.csv", [(TASK, [BETTER, MethodResult("old", np.ones(2), np.ones(2))])], seeds=[0, 1])
    with (tmp_path / "r.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert list(lines[0])[-2:] == ["test_loss", "validation_loss"]
    assert [(line["test_loss"], line["validation_loss"]) for line in lines] == [
        ("1.900000", "2.400000"),
        ("2.080000", "2.580000"),
        ("", ""),
        ("", ""),
    ]


def test_tensorboards_session_of_a_method_has_its_loss() -> None:
    found = measured(losses()[1], "fixed:2")
    assert found == pytest.approx(dict(zip(LOSSES, (1.99, 0.09, -0.11, -0.12, -0.10), strict=True)))


def test_a_result_without_losses_is_shown_as_it_was() -> None:
    rows = table_rows(RESULTS, ["fixed:2"])
    arms = [{"rule": row.rule, **row.as_json(), "n": row.n, "note": row.note} for row in rows]
    stored = json.loads(json.dumps({"arms": arms}))
    assert stored_rows(stored, 2, LOSS) == []
    assert markdown_table(stored_rows(stored, 2)) == markdown_table(ranked(rows))
    for arm, loss in zip(arms, losses(), strict=True):
        arm |= loss.as_json()
    assert markdown_table(stored_rows({"arms": arms}, 2, LOSS)) == markdown_table(ranked(losses()))


def test_a_comparison_of_tokens_shows_and_chooses_by_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rltemp.experiments.compare.quantity_of", lambda problem: LOSS)
    words = ("compare", "--task", "toy", "--epochs", "1", "--rules", "none", "fixed:0.5|8", "--seeds", "4")
    assert code(*words, "--selection-seeds", "4", "--no-html", "--out", tmp_path / "run") == 0
    assert "(nats a token)" in capsys.readouterr().out
    found = json.loads((tmp_path / "run" / "result.json").read_text())
    assert [arm["note"] for arm in found["arms"]] == ["", "0.5 chosen on validation loss from 0.5|8"]
    with (tmp_path / "run" / "results.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    for arm in found["arms"]:
        own = [float(line["test_loss"]) for line in lines if line["rule"] == arm["rule"]]
        assert arm["loss_nats"] == pytest.approx(np.mean(own), abs=1e-6)
    pair = found["arms"][1]["loss_differences_nats"]["none"]
    assert pair["n"] == 4
    assert pair["low"] <= pair["mean"] <= pair["high"]
    assert "loss (nats a token)" in (tmp_path / "run" / "report.md").read_text("utf-8")
