"""A comparison's tables on terminals of any width: every name, number and column is there and whole."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from rich.console import Console

from rltemp.experiments.grid import Overall
from rltemp.experiments.method_results import MethodResult, Row, table_rows
from rltemp.report.tables import table_cells
from rltemp.report.terminal_tables import MethodTable, console_overall, console_table

NAMES = ("fixed:4", "dtkd:1", "wttm", "runs/demo/policy/policy.safetensors")
LONG = "dtkd:reference=1,ce_weight=0.1,kd_weight=0.9,plain_kd_weight=0,warmup=0"
NOTE = "temperature=2 chosen on validation from 1|2|4|8; guarded 20.3 % of samples"


def printed(table: MethodTable, width: int) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width).print(table)
    return file.getvalue().splitlines()


def compared(baselines: int) -> list[Row]:
    """Rows of methods that differ clearly, against so many baselines."""
    draws = np.random.default_rng(0)
    results = [
        MethodResult(name, 0.8 + 0.01 * place + 0.02 * draws.random(8), draws.random(8), note=NOTE if place > 2 else "")
        for place, name in enumerate((*NAMES, LONG))
    ]
    return table_rows(results, NAMES[:baselines])


@pytest.mark.parametrize("width", [60, 80, 100, 160, 240])
@pytest.mark.parametrize("baselines", [1, 2, 4])
def test_nothing_is_lost_at_any_width(baselines: int, width: int) -> None:
    rows = compared(baselines)
    lines = printed(console_table(rows, "digits"), width)
    assert max(map(len, lines)) <= width
    text, words = " ".join(lines), " ".join(lines).split()
    for row in rows:
        for pair in row.differences.values():
            wanted = [] if not np.isfinite(pair.mean) or pair.mean == 0 else [f"{pair.mean:+.2f}"]
            assert {*wanted, *([f"[{pair.low:+.2f},{pair.high:+.2f}]"] if wanted else [])} <= {*words}
        assert row.rule in text or width < len(row.rule) + 4
    assert len(re.findall(r"minus ", text)) == baselines
    assert len(re.findall(r"\(Holm\)", text)) == baselines
    assert text.count(NOTE[:20]) == 2


def test_a_narrow_table_has_numbers_and_says_below_what_they_are() -> None:
    lines = printed(console_table(compared(2), "digits: 8 students"), 80)
    assert re.match(r" +accuracy +minus #1 +p +minus #2 +p", lines[2])
    assert lines[3].split() == ["#", "(%)", "s.e.", "n", "(points)", "(Holm)", "(points)", "(Holm)"]
    legend = [line.strip() for line in lines if line.strip().startswith("#") and not line.startswith(" # ")]
    assert legend == [f"#{place} {name}" for place, name in enumerate((*NAMES, LONG), start=1)]


def test_a_wide_table_has_names() -> None:
    lines = printed(console_table(compared(2)), 160)
    assert not any("#" in line for line in lines)
    assert "minus fixed:4" in lines[1]
    assert table_cells(compared(2))[5][0] == LONG


def test_a_grids_summary_is_narrow_where_it_has_to_be() -> None:
    far = (1.5, -10.25, 12.75)
    overall = [Overall(name, (91.5, 90.25, 92.75), dict.fromkeys(NAMES, far)) for name in (*NAMES, LONG)]
    lines = printed(console_overall(overall, "Over all 3"), 80)
    assert max(map(len, lines)) <= 80
    assert len(re.findall("minus #", " ".join(lines))) == 4
    assert any(line.strip() == f"#5 {LONG}" for line in lines)
