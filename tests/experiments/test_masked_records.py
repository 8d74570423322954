"""What is recorded of a stack with masks is what its samples were given, and nothing of the other places."""

from __future__ import annotations

import pytest
import torch
from support.masks import masked_stack
from torch import Tensor

from rltemp import Signals, Temperatures
from rltemp.experiments.recorder import Recorder
from rltemp.kd.guard_count import GuardCount
from rltemp.kd.method import watch
from rltemp.loading import load_method

MASK = torch.tensor([[1, 1, 0, 1, 0, 1], [0, 0, 0, 0, 1, 0]], dtype=torch.bool)


def columns(signals: Signals, temperatures: Temperatures | None) -> dict[str, Tensor]:
    return {"place": torch.arange(6.0).expand(signals.shape), "largest": signals.teacher_logits.amax(-1)}


def kept(points: int) -> tuple[Recorder, Signals]:
    recorder, signals = Recorder(columns, steps=2, points=points), masked_stack(MASK)
    recorder.begin()
    recorder.keep(signals, None)
    return recorder, signals


def test_sums_and_samples_are_of_the_samples_that_a_mask_leaves() -> None:
    recorder, signals = kept(points=8)
    assert recorder.means()["place"] == pytest.approx((0 + 1 + 3 + 5 + 4) / 5)
    assert recorder.means()["largest"] == pytest.approx(float(signals.teacher_logits[MASK].amax(-1).mean()))
    places = recorder.samples()["place"]
    assert places.shape == (2, 1, 4)
    assert places[0, 0].sort().values.tolist() == [0, 1, 3, 5]
    assert places[1, 0].tolist() == [4, 4, 4, 4], "one sample stands for all that are wanted"
    assert torch.equal(recorder.samples()["largest"][1, 0], signals.teacher_logits[1, 4].amax().double().expand(4))


def test_a_mask_of_trues_draws_the_samples_that_are_drawn_without_one() -> None:
    signals = masked_stack(torch.ones(2, 6, dtype=torch.bool))
    plain = Signals(signals.student_logits, signals.teacher_logits, signals.labels, 0.5, stacked=True)
    found = []
    for each in (signals, plain):
        recorder = Recorder(columns, steps=2, points=8)
        recorder.begin()
        recorder.keep(each, None)
        found.append((recorder.samples()["place"].tolist(), recorder.means()))
    assert found[0] == found[1]


@pytest.mark.parametrize("rule", ["dtkd", "idts", "shuffled:dtkd"])
def test_whoever_watches_a_method_sees_the_temperatures_of_the_whole_stack(rule: str) -> None:
    given: list[Temperatures] = []
    signals = masked_stack(MASK)
    watch(load_method(rule), given.append).loss(signals)
    assert [one.student.shape for one in given] == [signals.shape]
    count = GuardCount()
    count(given[0].of_samples(signals.mask))
    assert count.samples == 5
