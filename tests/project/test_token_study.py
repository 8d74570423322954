"""scripts/token_study.py: results are trained once, and a table holds every rule against tuned plain distillation."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tokens import token_task

from rltemp import load_method
from rltemp.training.preparation import load_data

ROOT = Path(__file__).parents[2]
STUDY = runpy.run_path(str(ROOT / "scripts" / "token_study.py"))
FORWARD, REVERSE = "fixed:temperature=1,divergence=kl", "fixed:temperature=1,divergence=reverse_kl"


def test_every_rule_of_the_study_is_a_method() -> None:
    assert len({*STUDY["RULES"]}) == len(STUDY["RULES"])
    for rule in STUDY["RULES"]:
        assert load_method(rule).name == rule


def test_students_are_trained_once_and_their_losses_stand_in_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main, file = STUDY["main"], tmp_path / "tokens.jsonl"
    made = {"characters": lambda teacher_epochs, epochs: token_task(epochs=epochs)}
    monkeypatch.setitem(main.__globals__, "TEXTS", made)
    words = ["train", "--texts", "characters", "--teachers", "1", "--seeds", "2", "--cells", str(file), "--rules"]
    main([*words, FORWARD, REVERSE])
    first = file.read_text("utf-8")
    main([*words, FORWARD, REVERSE, "none"])
    assert file.read_text("utf-8").startswith(first)
    results = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert [one["rule"] for one in results] == [FORWARD, REVERSE, "none"]
    main(["write", str(tmp_path / "tokens.md"), str(file)])
    page = (tmp_path / "tokens.md").read_text("utf-8")
    for one in results:
        assert f"| `{one['rule']}` | 2 | {np.mean(one['test']):.3f} ± " in page
    best = min(results[:2], key=lambda one: float(np.mean(one["validation"])))["rule"]
    assert f"Tuned: `{best}`." in page


def test_byte_pairs_are_windows_labelled_with_what_follows() -> None:
    pytest.importorskip("tokenizers")
    data = load_data(STUDY["byte_pairs"](teacher_epochs=1, epochs=1))
    for split in (data.train, data.test):
        assert (split.inputs[:, 1:] == split.labels[:, :-1]).all()
        assert split.inputs.shape[1] == 64
        assert 256 < split.inputs.max() < 512


def result(rule: str, test: list[float], validation: float) -> dict[str, Any]:
    cell = {"text": "a", "teacher_epochs": 3, "epochs": 1, "rule": rule, "test": test, "validation": [validation]}
    return cell | {"teacher_accuracy": 60.0, "samples": 9, "torch": "t", "machine": "m", "accuracy": [50.0] * len(test)}


def test_what_is_tuned_is_chosen_on_validation_data() -> None:
    matched = f"matched:{REVERSE}"
    rows = [result(FORWARD, [1.0, 1.2], 2.0), result(REVERSE, [1.5, 1.8], 1.0), result("dtkd", [1.3, 1.4], 0.1)]
    page = STUDY["page"]([*rows, result(matched, [9.0, 9.5], 5.0), result("matched:dtkd", [8.0, 8.4], 5.0)])
    assert f"Tuned: `{REVERSE}` and `{matched}`." in page
    lines = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    assert [*lines] == [FORWARD, "dtkd", REVERSE, "matched:dtkd", matched]
    assert "| -0.300 [" in lines["dtkd"]  # (1.3 - 1.5 + 1.4 - 1.8) / 2
    assert "| -1.050 [" in lines["matched:dtkd"]


def test_the_page_in_docs_is_what_the_results_in_docs_give(tmp_path: Path) -> None:
    folder = ROOT / "docs" / "results"
    STUDY["main"](["write", str(tmp_path / "tokens.md"), str(folder / "tokens.jsonl")])
    assert (tmp_path / "tokens.md").read_text("utf-8") == (folder / "tokens.md").read_text("utf-8")
