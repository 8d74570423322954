"""docs/add-a-rule.md is followed to the letter, on a copy of the project."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "add-a-rule.md").read_text("utf-8")


def python(folder: Path, *words: str) -> str:
    """Run Python in the copy, which comes before the installed package."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_adds_a_rule_that_every_command_knows(tmp_path: Path) -> None:
    for name in ("rltemp", "tests", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    module, imported, entry, test = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    rules = tmp_path / "rltemp" / "rules"
    (rules / "certainty.py").write_text(module, "utf-8")
    head, table = (rules / "__init__.py").read_text("utf-8").split("\nRULES: ")
    opening, body = table.split("{\n", 1)
    (rules / "__init__.py").write_text(f"{head}{imported}\nRULES: {opening}{{\n{entry}{body}", "utf-8")
    (tmp_path / "tests" / "test_certainty.py").write_text(test, "utf-8")

    contract = python(
        tmp_path, "-m", "pytest", "-q", "tests/test_certainty.py", "tests/rules/test_rules.py", "-k", "certainty"
    )
    assert int(re.findall(r"(\d+) passed", contract)[0]) > 10
    options = "'--task', 'toy', '--epochs', '1', '--device', 'cpu', '--out', 'run'"
    distilled = f"main(['distill', '--rule', 'certainty:low=1', {options}])"
    said = python(tmp_path, "-c", f"from rltemp.cli.main import main, run; run(['rules', 'certainty']); {distilled}")
    assert "T = high - (high - low) max p" in said
    assert "under certainty:low=1" in said
