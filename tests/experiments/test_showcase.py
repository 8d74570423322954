"""The student that a rule's page shows: what is kept of it is what it saw, and watching it changes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import rltemp.experiments.showcase
from rltemp.data.problem import Problem
from rltemp.data.tasks import load_task
from rltemp.experiments.compare import compare
from rltemp.experiments.recorder import Recorder
from rltemp.experiments.result_cache import CachedResult, ResultCache
from rltemp.experiments.showcase import SAMPLED, Showcase, ShowcaseRecorder, seen_by_last_layer
from rltemp.experiments.students import by_name, train_stack
from rltemp.models.networks import seeded_model
from rltemp.training.distill import Distillation

RULES = ("fixed:4", "none", "dtkd", "matched:normkd", "ctkd", "universal", "annealing")


def steps(problem: Problem) -> int:
    return problem.task.recipe.steps(len(problem.dataset.train))


def trained(problem: Problem, rule: str, seeds: int | list[int], *recorders: Recorder) -> CachedResult:
    return train_stack(problem, seeds, by_name(rule), recorders=recorders)


def read(showing: ShowcaseRecorder, path: Path) -> Showcase:
    for suffix, data in showing.files.items():
        path.with_suffix(suffix).write_bytes(data)
    return Showcase.read(path)


def shown(problem: Problem, rule: str, seeds: int | list[int], path: Path) -> Showcase:
    showing = ShowcaseRecorder(steps(problem))
    trained(problem, rule, seeds, showing)
    return read(showing, path)


@pytest.mark.parametrize("rule", RULES)
def test_it_is_the_first_student_of_the_stack_and_changes_no_number(rule: str, short: Problem, tmp_path: Path):
    showing = ShowcaseRecorder(steps(short))
    assert trained(short, rule, [3, 4], showing) == trained(short, rule, [3, 4])
    stacked, alone = read(showing, tmp_path / "x.showcase"), shown(short, rule, 3, tmp_path / "y.showcase")
    for name in SAMPLED:
        np.testing.assert_allclose(stacked.samples[name], alone.samples[name], rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(stacked.features, alone.features, rtol=2e-3, atol=2e-3)


def test_a_fixed_temperature_is_shown_with_the_sharpness_it_leaves(short: Problem, tmp_path: Path):
    samples = shown(short, "fixed:4", [0, 1], tmp_path / "x.showcase").samples
    every = steps(short)
    assert sorted(set(samples["progress"])) == pytest.approx([step / every for step in range(every)])
    for network in ("teacher", "student"):
        assert set(samples[f"{network}_temperature"]) == {4.0}
        sharp, soft = samples[f"{network}_sharpness"], samples[f"softened_{network}_sharpness"]
        assert (soft > np.log(short.dataset.num_classes) - 3).all()
        # The largest logit over T is a lower bound, and log C above it an upper one.
        assert (np.abs(soft - sharp / 4) < np.log(short.dataset.num_classes)).all()
    assert (samples["loss"] > 0).all()
    assert samples["margin"].min() >= 0


def test_without_a_teacher_there_are_no_temperatures_but_logits(short: Problem, tmp_path: Path):
    samples = shown(short, "none", [0, 1], tmp_path / "x.showcase").samples
    assert np.isnan(samples["teacher_temperature"]).all()
    assert np.isnan(samples["softened_student_sharpness"]).all()
    assert np.isfinite(samples["student_sharpness"]).all()
    assert len(samples["progress"]) == 1000, "all of an epoch"
    leaves = shown(short, "annealing", [0, 1], tmp_path / "x.showcase").samples
    known = np.isfinite(leaves["teacher_temperature"])
    assert leaves["progress"][known].max() < leaves["progress"][~known].min(), "until it leaves its teacher"
    assert np.isfinite(leaves["student_sharpness"]).all()


def test_a_run_of_more_steps_than_points_keeps_some_from_everywhere(short: Problem, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(rltemp.experiments.showcase, "POINTS", 7)
    progress = shown(short, "fixed:4", [0, 1], tmp_path / "x.showcase").samples["progress"]
    assert 4 <= len(progress) <= 7
    assert progress[0] == 0
    assert progress[-1] >= 0.8


@pytest.mark.parametrize(
    ("student", "width"), [("mlp:6", 6), ("mlp:12x5", 5), ("linear", 10), ("cnn:8", 8), ("resnet8", 64)]
)
def test_features_are_the_last_layers_input_or_the_logits_of_a_linear_one(student: str, width: int, digits: Problem):
    network = seeded_model(student, digits.dataset.image_shape, digits.dataset.num_classes, 0)
    features, labels = seen_by_last_layer(network, digits)
    assert features.shape == (300, width)
    assert torch.equal(labels.unique(), torch.arange(10))
    last = list(network.modules())[-1]
    test = digits.dataset.test
    index = torch.linspace(0, len(test) - 1, 300).long()
    network.eval()
    logits = network(digits.dataset.batch(test, index).inputs)
    assert isinstance(last, torch.nn.Linear)
    torch.testing.assert_close(features if student == "linear" else last(features), logits)


def test_features_are_those_of_the_last_epoch_and_not_of_the_selected_one(short: Problem, tmp_path: Path):
    problem = replace(short, task=load_task("digits", epochs=3, learning_rate=3.0))  # so large that an early epoch wins
    seen: list[Tensor] = []

    class Last(ShowcaseRecorder):
        def end(self, run: Distillation) -> None:
            super().end(run)
            seen.append(seen_by_last_layer(run.student, problem)[0])

    showing = Last(steps(problem))
    result = trained(problem, "fixed:4", 0, showing)
    assert result.measures["selected_epoch"][0] != 3
    assert result.measures["selected_accuracy"][0] != result.test_accuracy[0]
    np.testing.assert_array_equal(read(showing, tmp_path / "x.showcase").features, seen[0].numpy())


def test_time_is_an_epochs_of_one_student_without_the_recording(short: Problem, tmp_path: Path):
    ticks = count()
    showing = ShowcaseRecorder(steps(short), clock=lambda: float(next(ticks)))
    trained(short, "fixed:4", [0, 1], showing)
    # Every look at the clock is a second: two a step around the recording, of which the one within does not count.
    assert read(showing, tmp_path / "x.showcase").seconds == pytest.approx((steps(short) + 1) / 2)


def test_what_is_damaged_or_missing_is_not_shown(short: Problem, tmp_path: Path):
    path = tmp_path / "x.showcase"
    assert Showcase.read(path) is None
    shown(short, "fixed:4", [0, 1], path)
    whole = path.read_bytes()
    half = len(whole) // 2
    for damaged in (b"", whole[:9], whole[:-1], whole[:half], b"\xff" * 64, whole.replace(b"labels", b"lapels")):
        path.write_bytes(damaged)
        assert Showcase.read(path) is None
    path.write_bytes(whole)
    path.with_suffix(".clock").write_text("-3 weeks")
    found = Showcase.read(path)
    assert np.isnan(found.seconds)


def test_a_comparison_watches_the_rules_that_are_to_be_shown(short: Problem, tmp_path: Path):
    cache = ResultCache(tmp_path / "cells")
    asked: dict[str, Any] = {"stack": 2, "cache": cache, "shown": ["universal", "fixed:4"]}
    found = compare(short, ["fixed:4", "none", "universal"], range(3), **asked)
    assert set(found.showcases) == {"fixed:4", "universal"}
    for rule, path in found.showcases.items():
        assert json.loads(path.with_suffix(".json").read_text())["key"]["seeds"] == [0, 1]
        one = Showcase.read(path)
        assert (set(one.samples["teacher_temperature"]) == {4.0}) == (rule == "fixed:4"), "watched though it is traced"
    assert len(list((tmp_path / "cells").glob("*.showcase"))) == 2
    assert compare(short, ["fixed:4", "none", "universal"], range(3), **asked).showcases == found.showcases
    assert compare(short, ["fixed:4"], range(2), shown=["fixed:4"]).showcases == {}
