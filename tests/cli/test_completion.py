"""bash completes commands, options, and the names that options take, by the script that the command line prints."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from rltemp.cli.commands import COMMANDS
from rltemp.data.tasks import TASKS
from rltemp.rules.published_methods import METHODS

pytestmark = pytest.mark.skipif(not shutil.which("bash"), reason="no bash")


@pytest.fixture(scope="module")
def script() -> str:
    words = [sys.executable, "-m", "rltemp", "completion"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def completed(script: str, *words: str) -> list[str]:
    """What bash offers for the last of the words."""
    line = " ".join(f"'{word}'" for word in words)
    asked = f"{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _rltemp; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "--norc", "-c", asked], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_commands_are_completed(script: str) -> None:
    assert completed(script, "rltemp", "dist") == ["distill"]
    assert {*completed(script, "rltemp", "")} == {name.partition(" ")[0] for name in COMMANDS} | {"--help", "--version"}
    assert completed(script, "rltemp", "policy", "") == ["show", "import", "export"]
    assert completed(script, "rltemp", "policy", "s") == ["show"]


def test_options_are_completed(script: str) -> None:
    assert completed(script, "rltemp", "distill", "--lea") == ["--learning-rate", "--learn"]
    assert completed(script, "rltemp", "compare", "--no-h") == ["--no-html"]
    assert completed(script, "rltemp", "policy", "export", "--f") == ["--format"]
    assert completed(script, "rltemp", "rules", "--help") == ["--help", "--help-all"]


def test_names_are_completed(script: str) -> None:
    assert completed(script, "rltemp", "distill", "--device", "") == ["auto", "cpu", "cuda"]
    assert completed(script, "rltemp", "distill", "--task", "w") == ["wine"]
    assert {*completed(script, "rltemp", "compare", "--tasks", "digits", "")} == {*TASKS}
    assert completed(script, "rltemp", "compare", "--rules", "fixed", ":", "4", "dtkd_") == [
        name for name in METHODS if name.startswith("dtkd_")
    ]
    assert completed(script, "rltemp", "rules", "nor") == ["normkd"]
    assert completed(script, "rltemp", "distill", "--out", "x") == []  # bash goes on with files
