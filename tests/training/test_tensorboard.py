import math
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rltemp import Signals, Temperatures
from rltemp.training.tensorboard import TAGS, Tracker, step_scalars, temperature_scalars, validation_scalars

STUDENT = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]], requires_grad=True)
TEACHER = torch.tensor([[0.0, 0.0], [0.0, 5.0]])


def test_step_numbers_are_those_worked_by_hand():
    # student (3/4, 1/4) and (1/2, 1/2), teacher (1/2, 1/2) and (0.0067, 0.9933); ties go to class 0
    found = step_scalars(Signals(STUDENT, TEACHER, torch.tensor([0, 1])), torch.tensor([1.0, 3.0]))
    assert found["kd/loss"] == 2.0
    assert found["kd/cross_entropy"] == pytest.approx(0.5 * (math.log(4 / 3) + math.log(2)))
    first = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    p = 1 / (1 + math.exp(5))
    second = p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5)
    assert found["kd/divergence"] == pytest.approx((first + second) / 2, rel=1e-5)
    assert found["kd/agreement"] == 0.5
    assert found["student/train_accuracy"] == 0.5


def test_every_number_has_a_documented_tag_of_its_network():
    values = torch.linspace(1, 5, 5)
    found = temperature_scalars(Temperatures(student=values, teacher=10 * values, weight=values))
    assert found["temperature/student_mean"] == found["temperature/student_q50"] == 3.0
    assert found["temperature/teacher_q05"] == pytest.approx(12.0)
    assert found["temperature/teacher_q95"] == pytest.approx(48.0)
    found |= step_scalars(Signals(STUDENT, TEACHER, torch.tensor([0, 1])), torch.ones(2))
    assert set(found | validation_scalars(TEACHER, torch.tensor([0, 1]))) <= set(TAGS)
    assert all("(" in text or "rate" in text for text in TAGS.values())


def test_numbers_under_a_mask_are_those_of_the_samples_left():
    places, mask = torch.tensor([[0, 0, 1], [1, 0, 0]]), torch.tensor([[True, False, True], [False, False, True]])
    labels, loss = torch.tensor([0, 1])[places], torch.arange(6.0).view(2, 3)
    signals = Signals(
        *(values[places].masked_fill(~mask[..., None], math.nan) for values in (STUDENT, TEACHER)),
        labels.masked_fill(~mask, -100),
        mask=mask,
        stacked=True,
    )
    found = step_scalars(signals, loss.masked_fill(~mask, math.nan))
    kept = Signals(STUDENT[places][mask], TEACHER[places][mask], labels[mask])
    assert found == pytest.approx(step_scalars(kept, loss[mask]))
    assert found["kd/loss"] == pytest.approx((0 + 2 + 5) / 3)


def test_what_needs_labels_is_left_out_without_and_all_of_an_empty_batch():
    signals = Signals(STUDENT, TEACHER)
    assert set(step_scalars(signals, torch.ones(2))) == {"kd/loss", "kd/divergence", "kd/agreement"}
    nothing = Signals(STUDENT, TEACHER, torch.tensor([0, 1]), mask=torch.tensor([False, False]))
    assert step_scalars(nothing, torch.zeros(2)) == {}


def test_temperatures_of_no_sample_are_not_written(tmp_path: Path):
    ones = Temperatures(torch.ones(3), torch.ones(3), torch.ones(3))
    with Tracker(tmp_path) as tracker:
        tracker.temperatures(ones.of_samples(torch.zeros(3, dtype=torch.bool)), step=1)
        tracker.temperatures(ones.of_samples(torch.tensor([True, False, False])), step=2)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("temperature/teacher_mean")] == [2]


def test_what_is_written_can_be_read_back(tmp_path: Path):
    with Tracker(tmp_path) as tracker:
        tracker.scalars({"kd/loss": 0.25}, step=7)
        tracker.temperatures(Temperatures(torch.ones(3), 2 * torch.ones(3), torch.ones(3)), step=7)
        # A histogram of what is not finite is left out.
        tracker.temperatures(Temperatures(torch.tensor([math.nan]), torch.ones(1), torch.ones(1)), step=8)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("kd/loss")] == [(7, 0.25)]
    assert events.Scalars("temperature/teacher_mean")[0].value == 2.0
    assert [event.step for event in events.Histograms("temperature/student")] == [7]
    assert [event.step for event in events.Histograms("temperature/teacher")] == [8]  # the last is kept
