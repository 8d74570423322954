"""One run on tokens, from Python: what its result and its log say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.tokens import token_problem, token_task
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import rltemp
from rltemp.experiments.students import train_method


@pytest.mark.parametrize("rule", ["universal", "idts"])
def test_a_run_on_padded_tokens_says_what_it_loses_a_token(rule: str, tmp_path: Path) -> None:
    result = rltemp.distill(token_task(), rule, tmp_path / "d", seed=3, log_every=5)
    alone = train_method(token_problem(), rule, [3], 1)
    assert result["test_loss"] == pytest.approx(alone.measures["negative_log_likelihood"][0])
    assert result["validation_loss"] == pytest.approx(alone.measures["validation_loss"][0])
    assert json.loads((tmp_path / "d" / "result.json").read_text())["test_loss"] == result["test_loss"]
    events = EventAccumulator(str(tmp_path / "d")).Reload()
    last = events.Scalars("student/validation_loss")[-1].value
    assert last == pytest.approx(result["validation_loss"], rel=1e-5)
    for tag, low in (("student/cross_entropy", 0.5), ("student/divergence", 0.0), ("temperature/teacher_q05", 0.3)):
        assert all(low < event.value < 20 for event in events.Scalars(tag)), tag
