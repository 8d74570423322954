"""Policy files written by version 0.1 load, and answer what version 0.1 answered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rltemp import Signals, load_rule

FOLDER = Path(__file__).parent / "version-0.1"
STORED = json.loads((FOLDER / "answers.json").read_text())


@pytest.mark.parametrize("name", sorted(STORED["answers"]))
@pytest.mark.parametrize("progress", ["0.0", "0.4", "1.0"])
def test_a_policy_of_version_0_1_answers_the_same_today(name: str, progress: str) -> None:
    student, teacher, labels = (torch.tensor(STORED[key]) for key in ("student_logits", "teacher_logits", "labels"))
    rule = load_rule("universal@1" if name == "universal" else str(FOLDER / name))
    found = rule(Signals(student, teacher, labels, float(progress)))
    for field, values in STORED["answers"][name][progress].items():
        torch.testing.assert_close(getattr(found, field), torch.tensor(values), rtol=1e-6, atol=1e-6)


def test_every_stored_file_has_answers() -> None:
    assert {path.name for path in FOLDER.glob("*.safetensors")} | {"universal"} == set(STORED["answers"])
