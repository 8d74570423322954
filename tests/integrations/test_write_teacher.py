"""`rltemp write-teacher`, on a small language model of transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.hosts import OF_HOSTS
from support.tiny import WORDS, llama, tokenizer

from rltemp import BadInputError, SparseTeacher
from rltemp.cli.dispatch import dispatch
from rltemp.runs.teacher_files import TeacherTokens, sparse_teacher

pytest.importorskip("transformers", reason="the host is not installed: pip install rltemp[transformers]")
pytestmark = OF_HOSTS


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    llama(0).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def test_a_text_becomes_a_data_set_of_the_models_likeliest_classes(model: Path, tmp_path: Path) -> None:
    tokens = torch.randint(3, 64, (23,), generator=torch.Generator().manual_seed(0))
    text, out = tmp_path / "text.txt", tmp_path / "teacher"
    text.write_text(" ".join(WORDS[token] for token in tokens), "utf-8")
    dispatch(["write-teacher", str(model), str(text), "--length", "5", "--count", "4", "--out", str(out)])
    data = TeacherTokens(out)
    assert (len(data), data.classes) == (4, 64)  # of 23 tokens the last three are left out
    item = data[1]
    assert torch.equal(item["input_ids"], tokens[5:10])
    with torch.no_grad():
        wanted = SparseTeacher.of_logits(llama(0).eval()(tokens[None, 5:10]).logits[0], 4)
    assert torch.equal(sparse_teacher(item).ids.long(), wanted.ids)
    torch.testing.assert_close(item["teacher_log_probs"].float(), wanted.log_probs, rtol=0.01, atol=0.01)


def test_tokens_of_numpy_are_taken_as_they_are(model: Path, tmp_path: Path) -> None:
    tokens = np.arange(12).reshape(3, 4)
    np.save(tmp_path / "tokens.npy", tokens)
    dispatch(["write-teacher", str(model), str(tmp_path / "tokens.npy"), "--count", "2", "--out", str(tmp_path / "t")])
    assert torch.equal(TeacherTokens(tmp_path / "t")[2]["input_ids"], torch.tensor(tokens[2]))


def test_what_cannot_be_written_is_one_line_and_leaves_nothing(model: Path, tmp_path: Path) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "out"
    text.write_text("w1 w2 w3", "utf-8")
    np.save(tmp_path / "odd.npy", np.array([[1, 99]]))
    for words, named in (
        ([str(tmp_path / "nothing"), str(text)], "no .*config.json"),
        ([str(model), str(tmp_path / "nothing.txt")], "cannot be read as a text"),
        ([str(model), str(text)], "has 3 tokens, fewer than one sequence of 512"),
        ([str(model), str(text), "--length", "2", "--count", "65"], "count must be 1 to 64"),
        ([str(model), str(text), "--length", "2", "--device", "abacus"], "--device abacus"),
        ([str(model), str(tmp_path / "odd.npy"), "--count", "2"], "the teacher raised IndexError"),
    ):
        with pytest.raises(BadInputError, match=named):
            dispatch(["write-teacher", *words, "--out", str(out)])
        assert not out.exists()
