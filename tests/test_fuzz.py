"""A minute of coverage-guided fuzzing for each reader: nothing but the project's own errors comes out, in time."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = 60


@pytest.mark.faults
@pytest.mark.parametrize("reader", ["policy", "configuration"])
def test_a_minute_of_fuzzing_finds_no_crash_and_no_hang(reader: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris has no wheel for this Python or system")
    script = Path(__file__).with_name("fuzz.py")
    command = [sys.executable, str(script), reader, str(tmp_path), f"-max_total_time={SECONDS}"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=3 * SECONDS)
    assert done.returncode == 0, done.stderr[-4000:]
    runs = re.search(r"Done (\d+) runs", done.stderr)
    assert runs is not None
    assert int(runs[1]) > 500, "it hardly ran"
