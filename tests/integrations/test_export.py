"""A rule as a file for hosts without rltemp: the same numbers, any size, and no rltemp in the process."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.hosts import blocks
from support.policies import random_policy
from support.processes import code
from torch import Tensor

from rltemp import BadInputError, Signals, SparseTeacher, Temperatures, kd_loss, load_rule
from rltemp.integrations.export import exported, write

BLOCKS = blocks("export")
WITHOUT_RLTEMP = "import sys\nsys.modules['rltemp'] = None  # an import of it fails from here on\n"
SIZES = [(1, 2), (5, 7), (130, 100)]
needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="the extras export and plugs are not installed",
)


def cases() -> list[tuple[Tensor, Tensor, float]]:
    generator = torch.Generator().manual_seed(0)
    return [(*(3 * torch.randn(2, *size, generator=generator)), 0.1 + 0.4 * i) for i, size in enumerate(SIZES)]


@pytest.mark.parametrize("name", ["universal", "dtkd", "ttm", "normkd"])
def test_a_program_has_the_rules_numbers_on_any_size_at_any_progress(name: str) -> None:
    run, rule = exported(name).module(), load_rule(name)
    for student, teacher, progress in cases():
        wanted = rule(Signals(student, teacher, progress=progress))
        found = run(student, teacher, torch.tensor(progress))
        for value, field in zip(found, wanted.outputs(), strict=True):
            torch.testing.assert_close(value, wanted.outputs()[field], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["universal", "dtkd"])
def test_a_program_for_the_top_of_a_teacher_has_the_rules_numbers(name: str) -> None:
    run, rule = exported(name, top=True).module(), load_rule(name)
    for (student, logits, progress), count in zip(cases()[1:], (2, 16), strict=True):
        teacher = SparseTeacher.of_logits(logits, count)
        wanted = rule(teacher.signals(student, progress=progress)).outputs()
        found = run(student, teacher.ids, teacher.log_probs, teacher.tail, torch.tensor(progress))
        for value, field in zip(found, wanted, strict=True):
            torch.testing.assert_close(value, wanted[field], rtol=1e-5, atol=1e-5)


def test_a_process_without_rltemp_runs_the_program_and_has_the_same_loss(tmp_path: Path) -> None:
    assert code("policy", "export", "universal", "--out", tmp_path / "policy.pt2") == 0
    torch.save(cases(), tmp_path / "cases.pt")
    program = f"""{WITHOUT_RLTEMP}{BLOCKS[0]}
print([kd_loss(*case).item() for case in torch.load("cases.pt")])
try:
    import rltemp
except ImportError:
    print("no rltemp")
"""
    said = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    rule, wanted = load_rule("universal"), []
    for student, teacher, progress in cases():
        signals = Signals(student, teacher, progress=progress)
        wanted.append(kd_loss(signals, rule(signals)).mean().item())
    assert [float(value) for value in said[0].strip("[]").split(",")] == pytest.approx(wanted, rel=1e-5)
    assert said[1] == "no rltemp"


@needs_onnx
@pytest.mark.parametrize("name", ["universal", "dtkd", "fading"])
def test_onnx_runtime_has_the_rules_numbers_in_a_process_without_rltemp(name: str, tmp_path: Path) -> None:
    if name == "fading":
        name = str(random_policy(tmp_path / "p.safetensors", 8, seen=(-1.0, 1.0), balanced=True))
    write(name, tmp_path / "policy.onnx", "onnx")
    torch.save(cases(), tmp_path / "cases.pt")
    program = f"""{WITHOUT_RLTEMP}import torch
{BLOCKS[1]}
found = [temperatures(s.numpy(), t.numpy(), p) for s, t, p in torch.load("cases.pt")]
torch.save([[torch.from_numpy(value) for value in one] for one in found], "found.pt")
"""
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    rule = load_rule(name)
    for (student, teacher, progress), found in zip(cases(), torch.load(tmp_path / "found.pt"), strict=True):
        wanted = rule(Signals(student, teacher, progress=progress))
        for value, field in zip(found, wanted.outputs(), strict=True):
            torch.testing.assert_close(value, wanted.outputs()[field], rtol=1e-5, atol=1e-5)


def test_a_rule_that_is_no_program_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    def moody(signals: Signals) -> Temperatures:
        value = torch.full(signals.student_logits.shape[:-1], 4.0 if float(signals.student_logits.sum()) > 0 else 2.0)
        return Temperatures(value, value, value.square())

    with pytest.raises(BadInputError, match=r"cannot be exported: .* A policy or a closed-form rule can"):
        write(moody, tmp_path / "policy.pt2", "torch")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_exists_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "policy.pt2"
    path.write_text("mine")
    assert code("policy", "export", "universal", "--out", path) == 2
    assert "exists and is not overwritten" in capsys.readouterr().err
    assert path.read_text() == "mine"


def test_a_rule_that_would_import_a_module_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert code("policy", "export", "my_package.my_file:rule") == 2
    assert "would import a module" in capsys.readouterr().err
