"""`~` is the home folder in every option that holds a path, and no folder of that name is made."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.pictures import write_folder
from support.policies import random_policy
from support.processes import code

import rltemp
from rltemp.cli.dispatch import parse

RULE = "import rltemp\n\n\ndef warm(signals):\n    t = signals.teacher_logits.amax(-1) * 0 + 3\n"
RULE += "    return rltemp.Temperatures(student=t, teacher=t, weight=t**2)\n"
TOY = ("--task", "toy", "--epochs", 1)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, empty; the working folder is another one."""
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def test_every_option_of_a_path_is_expanded(home: Path) -> None:
    random_policy(home / "policy.safetensors")
    (home / "warm_rules.py").write_text(RULE)
    assert code("train-teacher", *TOY, "--out=~/t") == 0
    weights = "--teacher-weights=~/t/teacher.safetensors"
    for number, rule in enumerate(("~/policy.safetensors", "matched:~/policy.safetensors", "~/warm_rules.py:warm")):
        out = f"~/d{number}"
        assert code("distill", *TOY, weights, "--rule", rule, "--out", out, "--data-root=~/data") == 0
        assert (home / f"d{number}" / "student.safetensors").is_file()
    assert code("distill", "--config=~/d0", "--out=~/d0") == 0
    assert code("compare", *TOY, "--no-html", "--seeds", 1, "--rules", "none", "~/policy.safetensors", "--out=~/c") == 0
    assert code("policy", "show", "~/policy.safetensors") == 0
    assert [*Path().iterdir()] == []


def test_a_path_behind_a_name_is_expanded(home: Path) -> None:
    assert parse("serve", ["--models", "mine=~/p", "--state=~/s"]).models == (f"mine={home}/p",)
    pictures = write_folder(home / "pictures", {part: {"a": 20, "b": 20} for part in ("train", "test")})
    options = parse("distill", ["--task", "imagefolder:~/pictures"])
    assert options.task == f"imagefolder:{pictures}"


def test_a_hand_written_configuration_has_a_home_too(home: Path) -> None:
    (home / "c.json").write_text('{"data_root": "~/data", "rule": "~/warm_rules.py:warm"}')
    with pytest.raises(rltemp.BadInputError, match="would import and run a module"):
        parse("distill", ["--config", "~/c.json"])
    found = parse("distill", ["--config", "~/c.json", "--rule", "fixed:4"])
    assert found.data_root == home / "data"


def test_what_is_no_home_is_left_as_it_is(home: Path) -> None:
    assert parse("distill", ["--out", "runs/a~b/~"]).out == Path("runs/a~b/~")


def test_python_takes_it_too(home: Path) -> None:
    random_policy(home / "policy.safetensors")
    rltemp.distill("toy", "~/policy.safetensors", out="~/d", epochs=1)
    assert (home / "d" / "student.safetensors").is_file()
    assert rltemp.load_method("~/policy.safetensors").name == "~/policy.safetensors"
    assert [*Path().iterdir()] == []
