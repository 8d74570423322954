"""The wheel holds the package under one name, every file once, and works where there is no checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


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
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        str(folder / "source"),
        "--no-deps",
        "--quiet",
        "-w",
        str(folder / "built"),
    ]
    # Without what a build needs, pip fetches it into an isolated environment.
    build += ["--no-build-isolation"] if _setuptools_is_new_enough() else []
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
        *(f"rltemp/report/templates/{name}" for name in ("report.html", "report.md", "why.md")),
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


def _setuptools_is_new_enough() -> bool:
    try:
        return int(version("setuptools").split(".")[0]) >= 77
    except PackageNotFoundError:
        return False
