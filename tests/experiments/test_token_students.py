"""Students of tokens, measured: losses and accuracies of the tokens, and of nothing that is padding."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tokens import LENGTH, token_problem
from torch.nn import functional as F

from rltemp import load_method
from rltemp.data.problem import Problem, outputs
from rltemp.experiments.compare import compare
from rltemp.experiments.measures import ACCURACY, LOSS, quantity_of
from rltemp.experiments.result_cache import ResultCache
from rltemp.experiments.showcase import Showcase
from rltemp.experiments.students import train_method
from rltemp.training.distill import Distillation
from rltemp.training.guards import RunGuard
from rltemp.training.steps import train

RULES = ("fixed:2", "idts", "matched:dtkd:2", "none")


@pytest.fixture(scope="module")
def tokens() -> Problem:
    return token_problem()


@pytest.mark.parametrize("rule", RULES)
def test_a_student_is_measured_on_its_tokens_alone(tokens: Problem, rule: str) -> None:
    found = train_method(tokens, rule, [3], 1)
    student = train(Distillation(tokens, 3), load_method(rule))
    for split, loss, accuracy in (
        (tokens.dataset.test, found.measures["negative_log_likelihood"], found.test_accuracy),
        (tokens.dataset.validation, found.measures["validation_loss"], found.validation_accuracy),
    ):
        logits, labels = outputs(student, tokens, split), split.known_labels
        kept = split.mask
        assert 0.3 < kept.double().mean() < 1
        expected = F.cross_entropy(logits[kept].double(), labels[kept])
        assert loss[0] == pytest.approx(float(expected), rel=1e-6)
        assert accuracy[0] == pytest.approx(float((logits.argmax(-1) == labels)[kept].double().mean()))


@pytest.mark.parametrize("rule", RULES)
def test_students_of_tokens_in_a_stack_are_those_alone(tokens: Problem, rule: str) -> None:
    stacked, alone = (train_method(tokens, rule, [3, 4, 5], size) for size in (3, 1))
    for name in ("negative_log_likelihood", "validation_loss"):
        np.testing.assert_allclose(stacked.measures[name], alone.measures[name], rtol=1e-5)


def test_what_a_student_says_of_padding_changes_no_number(tokens: Problem) -> None:
    other = token_problem(padding=1e30)
    first, second = (train_method(problem, "dtkd:2", [3, 4], 2) for problem in (tokens, other))
    np.testing.assert_array_equal(first.test_accuracy, second.test_accuracy)
    for name, row in first.measures.items():
        np.testing.assert_array_equal(row, second.measures[name])


def test_a_comparison_of_tokens_goes_by_their_loss(tokens: Problem, tmp_path: Path) -> None:
    assert quantity_of(tokens) is LOSS
    assert quantity_of(replace(tokens, task=replace(tokens.task, metric="margin"))) is ACCURACY
    cache = ResultCache(tmp_path / "cells")
    found = compare(tokens, ["none", "fixed:0.3|2"], range(2), selection_seeds=3, cache=cache, shown=["none"])
    chooser = range(500_000, 500_003)
    losses = {
        t: train_method(tokens, f"fixed:{t}", chooser, 3).measures["validation_loss"].mean() for t in ("0.3", "2")
    }
    assert found.results[1].rule == f"fixed:{min(losses, key=lambda t: losses[t])}"
    assert "chosen on validation loss from 0.3|2" in found.results[1].note
    showcase = Showcase.read(found.showcases["none"])
    assert showcase is not None
    assert np.isfinite(showcase.samples["loss"]).all()
    assert np.isfinite(showcase.features).all()


def test_a_step_that_is_passed_over_names_the_sequences(tokens: Problem, caplog: pytest.LogCaptureFixture) -> None:
    run, guard = Distillation(tokens, 3), RunGuard()
    with torch.no_grad():
        run.student.inner[0] = math.nan  # whoever sees token 0
    with caplog.at_level(logging.WARNING):
        guard.step(run, load_method("fixed:2"))
    inputs = tokens.dataset.train.inputs[run.batches.positions(0)]
    seen = (inputs == 0).any(-1)
    assert 0 < int(seen.sum()) < 16
    assert f"non-finite student logits: {int(seen.sum())} of 16 samples" in caplog.text
    assert guard.counts.skipped_steps == 1


def test_a_guarded_run_of_tokens_is_the_plain_one_and_counts_tokens(tokens: Problem) -> None:
    guard, guarded = RunGuard(strict=True), Distillation(tokens, 3)
    method = load_method("dtkd:2")
    student = train(guarded, method, step=guard.step)
    plain = train(Distillation(tokens, 3), method)
    for mine, theirs in zip(student.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert 0.3 * 16 * LENGTH * guarded.steps < guard.counts.samples < 16 * LENGTH * guarded.steps
