"""The package as a user's own project has it: its types are checked there, by mypy and by pyright."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from support.source import ROOT

GOOD = """
from pathlib import Path

import torch

import rltemp


def warm(signals: rltemp.Signals) -> rltemp.Temperatures:
    four = signals.full(4.0)
    return rltemp.Temperatures(student=four, teacher=four, weight=four.square())


def loss(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    controller = rltemp.Controller(Path("policy.safetensors"))
    own = rltemp.Controller(rltemp.Method("cold", rltemp.load_rule("fixed:1"), kd_weight=0.5))
    own = rltemp.Controller(warm)
    signals = rltemp.Signals(student, teacher, labels, progress=0.5)
    kd = own.kd(student, teacher) + rltemp.kd_loss(signals, warm(signals))
    return kd + controller.loss(student, teacher, labels, 0.5)


task: rltemp.Task = rltemp.Task.of(student="mlp:6", teacher="mlp:128", train="digits")
rule: rltemp.TemperatureRule = rltemp.load_rule(Path("policy.safetensors"))
result: dict[str, object] = rltemp.compare(task, [Path("policy.safetensors"), "dtkd"], out=Path("runs"), seeds=4)
try:
    rltemp.distill("digits", "dtkd", seed=3)
except (rltemp.BadInputError, rltemp.TrainingDivergedError, rltemp.InterruptedRunError) as error:
    code: int = error.exit_code
"""
BAD = """
import rltemp

rltemp.load_rule(4)
rltemp.Controller(4)
rltemp.compare("digits")
number: int = rltemp.load_rule("dtkd")
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's environment with the package, its `py.typed` among it, and the libraries of this one."""
    folder = tmp_path_factory.mktemp("project")
    venv.create(folder / "env", symlinks=True)
    (site,) = folder.glob("env/lib/python*/site-packages")
    (site / "rltemp").symlink_to(ROOT / "rltemp")
    # Behind the package: an editable install of the checkout is not what is looked at.
    libraries = folder / "libraries"
    libraries.mkdir()
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if path.suffix != ".pth" and not path.name.startswith(("rltemp", "__editable__")):
            (libraries / path.name).symlink_to(path)
    (site / "libraries.pth").write_text(str(libraries))
    (folder / "pyrightconfig.json").write_text('{"typeCheckingMode": "standard"}')
    (folder / "good.py").write_text(GOOD)
    (folder / "bad.py").write_text(BAD)
    return folder


def checkers() -> list[list[str]]:
    python = "env/bin/python"
    mypy = ["mypy", "--strict", "--no-incremental", "--python-executable", python, "--config-file", ""]
    return [mypy, *([name, "--pythonpath", python] for name in ("pyright", "basedpyright"))]


@pytest.mark.parametrize("checker", checkers(), ids=lambda one: one[0])
def test_a_users_types_are_checked_against_those_of_the_package(checker: list[str], project: Path) -> None:
    if importlib.util.find_spec(checker[0]) is None:
        pytest.skip(f"{checker[0]} is not installed: pip install 'rltemp[types]'")
    words = [sys.executable, "-m", *checker, "good.py", "bad.py"]  # at once: to read torch takes a minute
    done = subprocess.run(words, cwd=project, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert "good.py" not in said
    assert {*re.findall(r"bad\.py:(\d+)", said)} == {"4", "5", "6", "7"}, said
