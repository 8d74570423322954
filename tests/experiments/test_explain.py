"""Why a policy sets its temperatures: hand-made policies are explained as they were made."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from support.policies import feature, policy_of
from support.processes import code
from torch import Tensor

from rltemp.data.problem import Problem
from rltemp.data.tasks import load_task
from rltemp.experiments.explain import (
    NAMES,
    POINTS,
    Probe,
    Trace,
    change_name,
    course,
    observed,
    rank_correlation,
    ranked,
    relations,
)
from rltemp.experiments.recorder import Recorder
from rltemp.experiments.students import train_method
from rltemp.kd.signals import Signals
from rltemp.report.explain_page import importance_words, relation_words
from rltemp.training.preparation import prepare

SEEN = ("student_loss", "teacher_margin", "progress")


def policy(path: Path, slope: float, reference: str = "fixed:4", names: tuple[str, ...] = SEEN, **action: Any) -> Path:
    """A policy whose T_s moves with its first feature alone, and whose teacher stays at the reference."""
    weight = torch.zeros(3 if action.get("weight_ratio", 1.0) > 1 else 2, len(names))
    weight[0, 0] = slope
    weights = {"0.weight": weight, "0.bias": torch.zeros(len(weight))}
    return policy_of(path, weights, [feature(name, 0.1, 2.0) for name in names], reference, ratio=2.0, **action)


def drawn(*shape: int, progress: float = 0.25) -> Signals:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, *shape, 5, generator=generator) * 3
    labels = torch.randint(5, shape, generator=generator)
    return Signals(student, teacher, labels, progress, stacked=len(shape) > 1)


def recorded(problem: Problem, path: Path, stack: int = 4) -> Recorder:
    recorder = Recorder(Probe(path).columns, problem.task.recipe.steps(len(problem.dataset.train)), POINTS)
    train_method(problem, str(path), [0, 1, 2, 3], stack, recorders=[recorder])
    return recorder


def trace(recorder: Recorder) -> Trace:
    return {name: value.numpy() for name, value in recorder.samples().items()}


@pytest.fixture(scope="module")
def short() -> Problem:
    return prepare(load_task("digits", epochs=2))


@pytest.fixture(scope="module", params=[1.0, -1.0], ids=["rises", "falls"])
def explained(request, short, tmp_path_factory):
    """The sign of the slope in the student's loss, and four students' runs under that policy."""
    path = policy(tmp_path_factory.mktemp("policy") / "p.safetensors", request.param)
    return int(request.param), recorded(short, path)


def test_a_temperature_that_moves_with_the_loss_correlates_so_and_is_told(explained: tuple[int, Recorder]):
    sign, recorder = explained
    for row in relations(trace(recorder)):
        for third in row["thirds"]:
            expected = sign if row["answer"] in ("student", "weight") else 0
            assert third["mean"] == pytest.approx(expected, abs=0.01), row
    lines, way = relation_words(relations(trace(recorder))), {1: "higher", -1: "lower"}[sign]
    assert len(lines) == 4
    assert lines[0].startswith(f"All samples: harder samples get {way} student temperature in the first third")
    assert (lines[0].count(way), lines[1].count("no different")) == (3, 3)
    assert "harder samples get no different teacher temperature in the first third" in lines[1]
    assert lines[2].startswith(f"Within a batch: harder samples get {way} student temperature")


def test_only_the_feature_that_the_policy_uses_has_importance(explained: tuple[int, Recorder]):
    _, recorder = explained
    rows = ranked(SEEN, recorder.means(), {})
    assert rows[0]["feature"] == "student_loss"
    assert rows[0]["student"] > 0.05
    assert rows[0]["teacher"] == 0
    assert rows[0]["weight"] == pytest.approx(rows[0]["student"], rel=1e-4)
    assert all(row[answer] == 0 for row in rows[1:] for answer in ("student", "teacher", "weight"))
    assert "depend most on: student_loss" in importance_words(rows)[0]


def test_progress_is_shuffled_over_the_run_as_a_batch_has_it_in_common(tmp_path: Path):
    probe = Probe(policy(tmp_path / "p.safetensors", 1.0, names=("progress", "teacher_margin")))
    for progress in (0.0, 0.5):
        signals = drawn(4000, progress=progress)
        found = probe.answer(signals, probe.reference(signals), "progress").student
        # T_s = 4 * 2^((2u - 1 - 0.1) / 2) for u uniform, so its logarithm to base 2 is uniform around 2 - 0.05
        place = found.log2() - 2 + 0.05
        assert place.abs().max() <= 0.5 + 1e-5
        assert place.mean().abs() < 0.02
        assert place.std().item() == pytest.approx(12**-0.5, rel=0.05)
        assert probe.changes(signals)[change_name("teacher_margin", "student")].max() == 0


@pytest.mark.parametrize("shape", [(40,), (3, 40)])
def test_a_shuffled_feature_keeps_its_values_within_each_students_batch(tmp_path: Path, shape: tuple[int, ...]):
    probe = Probe(policy(tmp_path / "p.safetensors", 1.0))
    signals = drawn(*shape)
    reference = probe.reference(signals)
    intact, other = (probe.answer(signals, reference, name).student for name in (None, "student_loss"))
    assert not (intact == other).any()
    torch.testing.assert_close(intact.sort(-1).values, other.sort(-1).values)
    moved = (intact.log() - other.log()).abs()
    for answer, expected in (("student", moved), ("teacher", torch.zeros_like(moved)), ("weight", moved)):
        torch.testing.assert_close(probe.changes(signals)[change_name("student_loss", answer)], expected)
    if signals.stacked and signals.labels is not None:  # a student is shuffled as it is alone
        alone = Signals(signals.student_logits[1], signals.teacher_logits[1], signals.labels[1], signals.progress)
        torch.testing.assert_close(probe.answer(alone, probe.reference(alone), "student_loss").student, other[1])


@pytest.mark.parametrize("reference", ["fixed:4", "dtkd:1"])
@pytest.mark.parametrize(("weight_ratio", "balanced"), [(1.0, False), (4.0, True)])
def test_with_nothing_shuffled_the_probe_answers_as_the_policy(tmp_path, reference, weight_ratio, balanced):
    path = policy(tmp_path / "p.safetensors", 1.0, reference, weight_ratio=weight_ratio, balanced=balanced)
    probe, signals = Probe(path), drawn(3, 40)
    found, expected = probe.answer(signals, probe.reference(signals)), probe.policy(signals)
    for name in ("student", "teacher", "weight"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def test_what_is_recorded_of_a_sample_worked_by_hand(vector_a: tuple[Tensor, Tensor, Tensor]):
    teacher, student, label = vector_a  # teacher 4 1 0 -1, student 2 1 0.5 -1, label 0
    found = observed(Signals(student[None], teacher[None], label[None], 0.5))
    top = float(student.softmax(-1)[0])
    expected = {
        "progress": 0.5,
        "margin": 3 / 3.5**0.5,
        "confidence": top,
        "agreement": 1.0,
        "difficulty": -np.log(top),
        "student_sharpness": 2 - 0.625,
        "teacher_sharpness": 3.0,
    }
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, rel=1e-6)


def test_rank_correlations_are_scipys_and_zero_for_a_constant():
    generator = np.random.default_rng(0)
    x, y = generator.integers(0, 9, (2, 3, 50)).astype(float)
    expected = [spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(rank_correlation(x, y), expected, atol=1e-12)
    assert rank_correlation(x, np.full_like(x, 0.3)).tolist() == [0, 0, 0]


def test_students_trained_one_by_one_give_the_trace_of_the_stack(tmp_path: Path, toy: Problem):
    problem = replace(toy, task=load_task("toy", epochs=1))
    path = policy(tmp_path / "p.safetensors", 1.0)
    stacked, single = (trace(recorded(problem, path, stack)) for stack in (4, 1))
    assert stacked["student"].shape == single["student"].shape
    np.testing.assert_allclose(course(stacked)[2]["student"], course(single)[2]["student"], rtol=1e-3)


def test_a_reference_that_differs_by_sample_has_rows_of_its_own(tmp_path: Path, short: Problem):
    found = trace(recorded(short, policy(tmp_path / "p.safetensors", 1.0, "dtkd:1")))
    assert {row["answer"] for row in relations(found)} == set(NAMES)


def test_the_command_writes_its_files_once(tmp_path, teacher_cache, capsys, monkeypatch):
    path = policy(tmp_path / "p.safetensors", 1.0, names=("student_loss", "progress"), weight_ratio=2.0, balanced=True)
    line = ["explain", "--task", "digits", "--epochs", "2", "--seeds", "4", "--importance-seeds", "4"]
    line += ["--rules", str(path), "--out", str(tmp_path / "why")]
    assert code(*line) == 0
    result = json.loads((tmp_path / "why" / "result.json").read_text())
    assert (tmp_path / "why" / "why.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "why" / "why.md").read_text()
    assert "harder samples get higher student temperature in the first third" in text
    used, unused = result["importance"]
    assert (used["feature"], unused["feature"]) == ("student_loss", "progress")
    assert used["accuracy_points"]["n"] == 4
    assert used["accuracy_points"]["mean"] != 0
    assert [unused["accuracy_points"][name] for name in ("mean", "low", "high", "n")] == [0, 0, 0, 4]
    first = capsys.readouterr().out
    monkeypatch.setattr("rltemp.experiments.explain.train_method", None)
    assert code(*line) == 0
    again = capsys.readouterr().out
    assert "finished before" in again
    assert first.splitlines()[-5:] == again.splitlines()[-5:]


@pytest.mark.parametrize("rules", [["fixed:4"], [], ["a.safetensors", "b.safetensors"], ["missing.safetensors"]])
def test_what_is_not_one_policy_file_is_refused_in_a_line(rules, tmp_path, capsys):
    assert code("explain", "--out", tmp_path / "why", *(["--rules", *rules] if rules else [])) == 2
    assert "policy" in capsys.readouterr().err
    assert not (tmp_path / "why").exists()
