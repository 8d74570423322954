"""The wheel holds the package under one name, every file once, and works where there is no checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from support.source import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the tracked files and of new ones that git does not ignore."""
    folder = tmp_path_factory.mktemp("wheel")
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if os.path.lexists(ROOT / name):
            target = folder / "source" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target, follow_symlinks=False)
    # A path, never a bare name: pip would look that up in the registry.
    words = ["wheel", folder / "source", "--no-deps", "--no-build-isolation", "--quiet", "-w", folder / "built"]
    build = [sys.executable, "-m", "pip", *words]
    done = subprocess.run(build, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = (folder / "built").glob("rltemp-*.whl")
    return built


def test_every_module_is_in_it_once_under_the_name_it_is_imported_by(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert len(names) == len(set(names))
    folders = [ROOT / "rltemp", *(file.parent for file in ROOT.glob("rltemp/*/__init__.py"))]
    expected = {f"{file.relative_to(ROOT)}" for folder in folders for file in folder.glob("*.py")}
    assert {name for name in names if name.endswith(".py")} == expected
    assert {
        "rltemp/py.typed",
        "rltemp/policies/universal.safetensors",
        *(f"rltemp/report/templates/{name}.html" for name in ("base", "index", "report", "table")),
        *(f"rltemp/report/templates/{name}.md" for name in ("report", "why")),
        "rltemp/envs/vector.py",
        "rltemp/envs/distill_env.py",
    } <= set(names)


def test_it_installs_nothing_else_at_the_top(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"rltemp"}


def test_the_environment_runs_from_the_wheel_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import rltemp, rltemp.envs, gymnasium\n"
        "assert rltemp.envs.__file__.startswith(rltemp.__path__[0])\n"
        "env = gymnasium.make('rltemp/Distill-v0')\n"
        "env.reset(seed=0)\n"
        "env.step(env.action_space.sample())\n"
        "print(env.spec.id, rltemp.__file__)"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["rltemp/Distill-v0", str(tmp_path / "site" / "rltemp" / "__init__.py")]


THREE_LINES = """
import importlib.metadata, sys
import torch
import rltemp
from rltemp.rules.published_methods import METHODS

student, labels = torch.randn(4, 10, requires_grad=True), torch.arange(4)
for name in ("universal", sys.argv[1], *(name for name in METHODS if name != "none")):
    controller = rltemp.Controller(name)
    controller.loss(student, torch.randn(4, 10), labels, progress=0.5).mean().backward()
    signals = rltemp.Signals(student, torch.randn(4, 10), labels, 0.5)
    assert rltemp.kd_loss(signals, rltemp.load_rule(name)(signals)).isfinite().all(), name
assert student.grad.abs().sum() > 0
print(*sorted(importlib.metadata.packages_distributions()))
"""


def test_the_three_lines_run_where_nothing_but_what_they_need_is_installed(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own, with torch, numpy, safetensors, pydantic, and what those require."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    for name in _required({"torch", "numpy", "safetensors", "pydantic"}):
        for top in {file.parts[0] for file in distribution(name).files or () if file.parts[0] != ".."}:
            if not (site / top).exists():
                (site / top).symlink_to(distribution(name).locate_file(top))
    words = [tmp_path / "venv" / "bin" / "python", "-c", THREE_LINES, site / "rltemp/policies/universal.safetensors"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    installed = set(done.stdout.split())
    assert {"torch", "pydantic", "rltemp"} <= installed
    assert not installed & {"torchvision", "gymnasium", "stable_baselines3", "tensorboard", "sklearn", "rich", "tyro"}


def _required(names: set[str]) -> set[str]:
    """Those packages and all that they require here, without extras."""
    found: set[str] = set()
    while names:
        found |= names
        requirements = [Requirement(text) for name in names for text in distribution(name).requires or ()]
        names = {one.name for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})} - found
    return found
