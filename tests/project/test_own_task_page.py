"""The page "Your own task" does what it says: its blocks and commands run as they stand, with public names alone."""

from __future__ import annotations

import ast
import math
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.processes import code
from support.source import ROOT

import rltemp

PAGE = (ROOT / "docs" / "own-task.md").read_text("utf-8")
NETWORK, TOKENS, LOGITS, FILE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(COMMANDS,) = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
BLOCKS = pytest.mark.parametrize("block", [NETWORK, TOKENS, LOGITS, FILE], ids=["network", "tokens", "logits", "file"])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, which is empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLTEMP_CACHE", str(tmp_path / "cache"))
    return tmp_path


def run(block: str) -> dict[str, Any]:
    """The names that a block leaves."""
    names: dict[str, Any] = {"__name__": "own_task"}
    exec(compile(block, "own-task.md", "exec"), names)
    return names


def temperatures(policy: str, classes: int) -> torch.Tensor:
    """What a policy file answers for some samples, `[8]`."""
    student, teacher = torch.randn(2, 8, classes, generator=torch.Generator().manual_seed(0))
    return rltemp.Controller(policy).temperatures(student, 3 * teacher, torch.arange(8) % classes, progress=0.5).student


@BLOCKS
def test_a_block_touches_public_names_alone(block: str) -> None:
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Import):
            assert all(not alias.name.startswith("rltemp.") for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.module is not None
            assert node.module.partition(".")[0] != "rltemp"
        if isinstance(node, ast.Attribute):
            assert node.attr == "__init__" or not node.attr.startswith("_")
            if isinstance(node.value, ast.Name) and node.value.id == "rltemp":
                assert node.attr in rltemp.__all__


def test_teacher_logits_from_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    names = run(LOGITS)
    assert names["result"]["test_accuracy"] > 0.8
    assert names["result"]["task"]["teacher"] == "logits.npy"
    assert f"{100 * names['result']['test_accuracy']:.1f} %" in capsys.readouterr().out
    saved = load_file("runs/from-a-file/student.safetensors")
    right = [saved["weight"] @ torch.tensor(image) + saved["bias"] for image in names["images"][1400:]]
    found = (torch.stack(right).argmax(-1).numpy() == names["labels"][1400:]).mean()
    assert found == pytest.approx(names["result"]["test_accuracy"])


@pytest.mark.slow
def test_a_network_with_dropout_and_batch_norm(folder: Path) -> None:
    names = run(NETWORK)
    policy = "runs/own/policy/policy.safetensors"
    rules = [row["rule"] for row in names["compared"]["arms"]]
    assert [rule.partition(":")[0] for rule in rules[:3]] == ["none", "fixed", "dtkd"]
    assert rules[3:] == [policy]
    assert all(row["n"] == 8 and row["accuracy_percent"] > 50 for row in names["compared"]["arms"])
    assert temperatures(policy, 10).unique().numel() > 1
    state = load_file("runs/own/student/student.safetensors")
    assert names["make_student"](0).load_state_dict(state).missing_keys == []
    assert state["features.1.num_batches_tracked"] > 0
    assert names["student"]["test_accuracy"] > 0.5
    assert (folder / "runs/own/compare/report.html").stat().st_size > 10_000
    assert list((folder / "runs/own/policy").rglob("events.out.tfevents.*"))


@pytest.mark.slow
def test_tokens_with_padding() -> None:
    rows = run(TOKENS)["compared"]["arms"]
    policy = "runs/tokens/policy/policy.safetensors"
    assert [row["rule"] for row in rows] == ["none", "fixed:1", "fixed:2", policy]
    losses = [row["measures"]["negative_log_likelihood"]["mean"] for row in rows]
    assert all(loss < math.log(12) - 0.5 for loss in losses)  # of one who guesses
    assert len(set(losses)) == 4
    assert temperatures(policy, 12).unique().numel() > 1


def test_the_command_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "my_task.py").write_text(FILE)
    monkeypatch.delitem(sys.modules, "my_task", raising=False)
    lines = COMMANDS.splitlines()
    assert [line.split()[1] for line in lines] == ["distill", "compare", "train-policy", "distill"]
    for line in lines:
        assert code(*shlex.split(line)[1:]) == 0, line
    mine = folder / "runs/mine"
    student, other = (load_file(mine / name / "student.safetensors") for name in ("student", "other"))
    assert [value.shape for value in student.values()] == [value.shape for value in other.values()]
    assert any(not torch.equal(value, other[name]) for name, value in student.items())
    assert len((mine / "compare" / "results.csv").read_text().splitlines()) == 1 + 4 * 16
    assert temperatures(str(mine / "policy" / "policy.safetensors"), 3).unique().numel() > 1
    sys.modules.pop("my_task")
