"""A minute of coverage-guided fuzzing for each reader: nothing but the project's own errors comes out, in time."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = 60


@pytest.mark.faults
def test_a_minute_of_fuzzing_finds_no_crash_and_no_hang_in_either_reader(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris has no wheel for this Python or system")
    script = str(Path(__file__).parents[1] / "support" / "fuzz.py")
    # Side by side: a processor each.
    started = [
        subprocess.Popen(
            [sys.executable, script, reader, str(tmp_path / reader), f"-max_total_time={SECONDS}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        for reader in ("policy", "configuration")
    ]
    for process in started:
        said = process.communicate(timeout=3 * SECONDS)[1]
        assert process.returncode == 0, said[-4000:]
        runs = re.search(r"Done (\d+) runs", said)
        assert runs is not None
        assert int(runs[1]) > 500, "it hardly ran"
