"""The tables of a finished comparison in every format say what its result says, whatever methods are named."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from support.processes import code

from rltemp.experiments.method_results import MethodResult, table_rows
from rltemp.report.formats import CSV_HEAD, FORMATS, ReportTable

TOY = ("--epochs", 1, "--seeds", 3, "--no-html")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished grid of two tasks, of which three methods are compared to two."""
    out = tmp_path_factory.mktemp("runs") / "c"
    rules = ("--rules", "none", "fixed:4", "dtkd", "--against", "fixed:4", "none")
    assert code("compare", "--tasks", "toy", "iris", *TOY, *rules, "--out", out) == 0
    return out


def reported(folder: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert code("report", folder, "--format", kind) == 0
    return capsys.readouterr().out


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def test_markdown_has_the_tables_of_the_report(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = re.findall(r"(?:^\|.*\n)+", reported(finished, "markdown", capsys), re.MULTILINE)
    assert len(tables) == 3
    text = (finished / "report.md").read_text()
    assert all(table in text for table in tables)


def test_csv_has_every_number_of_the_result(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = list(csv.DictReader(reported(finished, "csv", capsys).splitlines()))
    assert tuple(lines[0]) == CSV_HEAD
    assert len(lines) == 2 * 3 * 2
    arms = {(point["task"]["name"], one["rule"]): one for point in result(finished)["points"] for one in point["arms"]}
    for line in lines:
        one = arms[line["task"], line["rule"]]
        assert float(line["mean"]) == pytest.approx(one["accuracy_percent"], rel=1e-5)
        if line["minus"] != line["rule"]:
            assert float(line["low"]) == pytest.approx(one["differences_points"][line["minus"]]["low"], rel=1e-5)
        else:
            assert line["difference"] == ""


def test_html_is_well_formed_and_has_the_cells_of_markdown(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = ElementTree.fromstring(f"<all>{reported(finished, 'html', capsys)}</all>")
    found = [[[cell.text or "" for cell in line] for line in table.iter("tr")] for table in tables]
    lines = reported(finished, "markdown", capsys).replace("`", "").replace("**", "").splitlines()
    wanted = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")]
    assert [line for table in found for line in table] == [line for line in wanted if "---" not in line[0]]


def test_latex_has_a_table_a_point(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = reported(finished, "latex", capsys)
    tables = re.findall(r"\\begin\{tabular\}\{(l[r]+)\}\n(.*?)\\end\{tabular\}", text, re.DOTALL)
    assert len(tables) == 3
    for columns, body in tables:
        lines = [line for line in body.splitlines() if line != r"\hline"]
        assert all(line.endswith(r" \\") and line.count(" & ") == len(columns) - 1 for line in lines)
        assert len(lines) == 4
    assert "seeds for" not in text


@pytest.mark.parametrize("kind", FORMATS)
def test_a_strange_name_stays_text(kind: Any) -> None:
    name = r"</td><script>x_y & 100 % $\alpha$ {#1} ~^|"
    values = np.array([0.5, 0.6])
    rows = table_rows([MethodResult(name, values, values), MethodResult("none", values, values + 0.1)], ["none"])
    text = FORMATS[kind]([ReportTable("a title", {"name": "a", "teacher": "b", "student": "c"}, rows)])
    if kind == "html":
        assert any(cell.text == name for cell in ElementTree.fromstring(text).iter("th"))
    if kind == "latex":
        shown = text.replace(r"\$", "").replace(r"\_", "").replace(r"\&", "").replace(r"\%", "").replace(r"\#", "")
        (line,) = (one for one in shown.splitlines() if "script" in one)
        assert not set("$_%#~^|<>") & {*line}
    if kind == "csv":
        assert next(iter(csv.DictReader(text.splitlines())))["rule"] == name


def test_a_file_is_written_once(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("report", finished, "--format", "latex", "--out", tmp_path / "table.tex")
    assert code(*words) == 0
    assert (tmp_path / "table.tex").read_text() == reported(finished, "latex", capsys)
    assert code(*words) == 2
    assert "exists and is not overwritten" in capsys.readouterr().err


def test_what_is_no_finished_comparison_is_one_line(finished: Path, tmp_path: Path, capsys) -> None:
    assert code("distill", "--task", "toy", "--epochs", 1, "--out", tmp_path / "d") == 0
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.json").write_text('{"command": "compare"}')
    (tmp_path / "bad" / "result.json").write_text('{"seeds": [0]}')
    for folder, said in (
        ("d", "is a run of 'distill'"),
        ("nothing", "holds no config.json"),
        ("bad", "is not a result"),
    ):
        capsys.readouterr()
        assert code("report", tmp_path / folder) == 2
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1
