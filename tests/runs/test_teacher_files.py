"""A teacher's likeliest classes in a folder: what is written is read, and what was damaged is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rltemp import ArtifactRefusedError, BadInputError, Controller, SparseTeacher
from rltemp.runs.teacher_files import TeacherTokens, sparse_teacher, write_teacher


class Teacher(nn.Module):
    """A model whose answer has `logits`, as those of transformers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(50, 50)
        nn.init.normal_(self.table.weight, std=3.0)

    def forward(self, tokens: Tensor) -> Any:
        return SimpleNamespace(logits=self.table(tokens))


TEACHER = Teacher()
TOKENS = torch.randint(0, 50, (5, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_teacher(TEACHER, TOKENS, tmp_path / "teacher", count=8, batch_size=2)
    return tmp_path / "teacher"


def test_what_is_written_is_read_and_trains(written: Path) -> None:
    dataset = TeacherTokens(written)
    assert (len(dataset), dataset.classes) == (5, 50)
    batch = next(iter(torch.utils.data.DataLoader(dataset, batch_size=5)))
    assert torch.equal(batch["input_ids"], TOKENS)
    wanted = SparseTeacher.of_logits(TEACHER(TOKENS).logits, 8)
    found = sparse_teacher(batch)
    assert torch.equal(found.ids.long(), wanted.ids)
    torch.testing.assert_close(found.log_probs, wanted.log_probs.bfloat16())
    assert wanted.tail is not None
    torch.testing.assert_close(found.tail, wanted.tail.detach())
    student = torch.zeros(5, 7, 50)
    losses = [Controller("fixed:2").kd(student, teacher) for teacher in (found, wanted.each(Tensor.detach))]
    torch.testing.assert_close(*losses, rtol=0.02, atol=0.01)


def test_a_token_takes_about_400_bytes_at_64_classes(tmp_path: Path) -> None:
    write_teacher(lambda tokens: torch.randn(*tokens.shape, 100), TOKENS, tmp_path, count=64)
    assert sum(file.stat().st_size for file in tmp_path.glob("*.bin")) == 412 * TOKENS.numel()


def test_a_damaged_or_unfinished_folder_is_refused(written: Path) -> None:
    with (written / "teacher_ids.bin").open("r+b") as file:
        file.write(b"\x07")
    with pytest.raises(ArtifactRefusedError, match=r"teacher_ids.bin has another checksum"):
        TeacherTokens(written)
    assert len(TeacherTokens(written, verify=False)) == 5
    (written / "teacher_tail.bin").write_bytes(b"")
    with pytest.raises(ArtifactRefusedError, match=r"teacher_tail.bin has 0 bytes, needed: 840"):
        TeacherTokens(written, verify=False)
    (written / "manifest.json").unlink()
    with pytest.raises(ArtifactRefusedError, match=r"has no manifest.json of rltemp-teacher-1"):
        TeacherTokens(written)


def test_what_cannot_be_written_is_refused(written: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ((TEACHER, TOKENS, written), "is there and not empty"),
        ((TEACHER, TOKENS.float(), tmp_path / "a"), "tokens must be integers"),
        ((TEACHER, TOKENS, tmp_path / "b", 51), "count must be 1 to 50"),
        ((lambda tokens: tokens, TOKENS, tmp_path / "c"), "logits must be"),
    ):
        with pytest.raises(BadInputError, match=message):
            write_teacher(*arguments)
