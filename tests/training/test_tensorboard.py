import math
import re
from pathlib import Path

import pytest
import torch
from support.source import ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from rltemp import Signals, Temperatures
from rltemp.report.hparams import METRICS
from rltemp.training.tensorboard import (
    ONLINE_LAYOUT,
    POLICY_LAYOUT,
    STUDENT_LAYOUT,
    TAGS,
    Tracker,
    step_scalars,
    temperature_scalars,
    validation_scalars,
)

STUDENT = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]], requires_grad=True)
TEACHER = torch.tensor([[0.0, 0.0], [0.0, 5.0]])


def test_step_numbers_are_those_worked_by_hand():
    # student (3/4, 1/4) and (1/2, 1/2), teacher (1/2, 1/2) and (0.0067, 0.9933); ties go to class 0
    found = step_scalars(Signals(STUDENT, TEACHER, torch.tensor([0, 1])), torch.tensor([1.0, 3.0]))
    assert found["student/loss"] == 2.0
    assert found["student/cross_entropy"] == pytest.approx(0.5 * (math.log(4 / 3) + math.log(2)))
    first = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    p = 1 / (1 + math.exp(5))
    second = p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5)
    assert found["student/divergence"] == pytest.approx((first + second) / 2, rel=1e-5)
    assert found["student/agreement"] == 0.5
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
    assert found["student/loss"] == pytest.approx((0 + 2 + 5) / 3)


def test_what_needs_labels_is_left_out_without_and_all_of_an_empty_batch():
    signals = Signals(STUDENT, TEACHER)
    assert set(step_scalars(signals, torch.ones(2))) == {"student/loss", "student/divergence", "student/agreement"}
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
        tracker.scalars({"student/loss": 0.25}, step=7)
        tracker.temperatures(Temperatures(torch.ones(3), 2 * torch.ones(3), torch.ones(3)), step=7)
        # A histogram of what is not finite is left out.
        tracker.temperatures(Temperatures(torch.tensor([math.nan]), torch.ones(1), torch.ones(1)), step=8)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("student/loss")] == [(7, 0.25)]
    assert events.Scalars("temperature/teacher_mean")[0].value == 2.0
    assert [event.step for event in events.Histograms("temperature/student")] == [7]
    assert [event.step for event in events.Histograms("temperature/teacher")] == [8]  # the last is kept


def layouts(folder: Path) -> list[Layout]:
    """The layouts of custom charts in a folder's events."""
    events = EventAccumulator(str(folder)).Reload()
    found = events.Tensors("custom_scalars__config__")
    return [Layout.FromString(one.tensor_proto.string_val[0]) for one in found]


def test_a_run_has_one_layout_with_the_quantiles_of_both_temperatures(tmp_path: Path):
    with Tracker(tmp_path) as tracker:
        tracker.scalars({"student/loss": 0.25}, step=7)
        size = tracker.flush()
    with Tracker(tmp_path, size) as tracker:
        tracker.scalars({"student/loss": 0.5}, step=8)
    (layout,) = layouts(tmp_path)
    assert [category.title for category in layout.category] == ["Reward", "Temperatures"]
    assert list(layout.category[0].chart[0].multiline.tag) == ["reward/validation_gain"]
    bands = [chart.margin.series[0] for chart in layout.category[1].chart]
    expected = [[f"temperature/{name}_{part}" for part in ("q50", "q05", "q95")] for name in ("student", "teacher")]
    assert [[band.value, band.lower, band.upper] for band in bands] == expected


def test_nothing_is_written_for_a_run_that_writes_nothing(tmp_path: Path):
    with Tracker(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_every_chart_of_a_layout_is_of_tags_that_there_are():
    for layout in (POLICY_LAYOUT, STUDENT_LAYOUT, ONLINE_LAYOUT):
        assert {tag for charts in layout.values() for _, tags in charts.values() for tag in tags} <= set(TAGS)


def test_tensorboard_sorts_rewards_to_the_front_and_warnings_to_the_end():
    agents = {"rollout/ep_rew_mean", "train/loss", "time/fps"}  # of Stable-Baselines3
    elsewhere = ("controller/", "online/")  # no policy is trained where these are written
    order = sorted(agents | {tag for tag in TAGS if not tag.startswith(elsewhere)})
    assert order[0].startswith("reward/")
    assert [tag.partition("/")[0] for tag in order][-2:] == ["warning", "warning"]


def test_the_page_has_every_tag_and_every_column_of_the_code():
    page = (ROOT / "docs/tensorboard.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z0-9_/]+)` \| (.+) \|$", page, re.MULTILINE))
    assert rows == TAGS | {name.removeprefix("compare/"): words for name, words in METRICS.items()}
