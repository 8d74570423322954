"""What the README says is what the code does: its commands, its code."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from support.source import ROOT

import rltemp
from rltemp.cli.commands import COMMANDS
from rltemp.data.problem import Problem

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_six_lines_run_as_they_stand(digits: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rltemp.agents.train import PolicyConfig, train_policy

    folder = tmp_path / "runs/demo/policy"
    config = PolicyConfig(updates=1, students=2, replicas=2, validation_students=1)
    train_policy(digits, config, folder)
    monkeypatch.chdir(tmp_path)
    names = {
        "student_logits": torch.randn(5, 10, requires_grad=True),
        "teacher_logits": torch.randn(5, 10),
        "labels": torch.arange(5),
        "progress": 0.5,
    }
    exec(compile(BLOCKS[0], "README.md", "exec"), names)
    names["loss"].backward()
    assert names["student_logits"].grad.abs().sum() > 0


def test_the_method_of_the_readme_counts_the_samples_of_the_mask_alone() -> None:
    logits = torch.randn(2, 3, 10)
    names = {
        "rltemp": rltemp,
        "student_logits": (1.1 * logits).requires_grad_(),
        "teacher_logits": logits,
        "labels": torch.zeros(2, 3, dtype=torch.long),
        "progress": 0.5,
        "mask": torch.tensor([[True, True, False], [True, False, False]]),
    }
    exec(compile(BLOCKS[1], "README.md", "exec"), names)
    names["loss"].backward()
    assert ((names["student_logits"].grad != 0).any(-1) == names["mask"]).all()


def test_the_rule_of_the_readme_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rules.py").write_text(BLOCKS[2])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_rules", raising=False)
    rule = rltemp.load_rule("my_rules:softer_where_unsure")
    certain, unsure = torch.tensor([[50.0, 0.0]]), torch.zeros(1, 2)
    assert rule(rltemp.Signals(certain, certain)).teacher.item() == pytest.approx(2.0)
    assert rule(rltemp.Signals(unsure, unsure)).teacher.item() == pytest.approx(4.0)


def test_the_environment_of_the_readme_runs() -> None:
    names: dict[str, object] = {}
    exec(compile(BLOCKS[3], "README.md", "exec"), names)
    assert names["observation"].shape == (50, 8)
    assert names["terminated"] is False
    assert names["truncated"] is False


def test_every_command_of_the_readme_exists_and_every_command_is_in_it() -> None:
    lines = re.findall(r"^    (rltemp [a-z-]+.*)$", README, re.MULTILINE)
    words = [shlex.split(line, comments=True)[1:3] for line in lines]
    named = {" ".join(two) if " ".join(two) in COMMANDS else two[0] for two in words}
    assert named == set(COMMANDS)


def test_the_make_targets_that_the_readme_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make ([a-z]+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_picture_of_the_readme_is_there() -> None:
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / picture).is_file()
