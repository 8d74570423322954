"""Which objectives need labels: exactly those of which some step without labels is refused."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.policies import random_policy
from support.signals import drawn, started

from rltemp import BadInputError, Method, Signals, Temperatures, load_method
from rltemp.kd.divergences import DIVERGENCES
from rltemp.kd.method import Objective, needs_labels, watch
from rltemp.policy.features import FEATURES
from rltemp.rules.controls import CONTROLS
from rltemp.rules.published_methods import METHODS

PROGRESS = (0.0, 0.3, 0.97, 1.0, torch.tensor(0.3), torch.tensor(1.0))


def works_without_labels(objective: Objective) -> bool:
    """Whether every step of a run does."""
    try:
        for progress in PROGRESS:
            signals = replace(drawn((6,), 5), labels=None, progress=progress)
            started(objective, 5).loss(replace(signals, student_logits=signals.student_logits.requires_grad_()))
    except BadInputError as error:
        return "labels" not in str(error)  # refused for another reason: no answer, and the test fails
    return True


@pytest.mark.parametrize(
    "spec",
    [
        *sorted(METHODS),
        *(f"{name}:ce_weight=0" for name in sorted(METHODS)),
        *(f"fixed:ce_weight=0,divergence={name}" for name in sorted(DIVERGENCES)),
        *(f"matched:{name}:ce_weight=0" for name in sorted(METHODS) if name != "none"),
        *(f"{control}:dtkd:ce_weight={weight}" for control, weight in itertools.product(CONTROLS, (0, 1))),
        "universal",
        "weighting:fixed:divergence=dkd,ce_weight=0",
    ],
)
def test_labels_are_needed_exactly_where_a_step_without_them_is_refused(spec: str) -> None:
    objective = load_method(spec)
    assert needs_labels(objective) is not works_without_labels(objective)
    assert needs_labels(watch(objective, lambda found: None)) is needs_labels(objective)


@pytest.mark.parametrize("feature", sorted(FEATURES))
@pytest.mark.parametrize("control", ["", "shuffled:"])
def test_no_feature_of_a_policy_needs_labels(tmp_path: Path, feature: str, control: str) -> None:
    path = random_policy(tmp_path / "p.safetensors", features=("progress", feature)[feature == "progress" :])
    objective = load_method(f"{control}{path}")
    assert needs_labels(objective)
    unlabelled = replace(objective, ce_weight=0.0)
    assert not needs_labels(unlabelled)
    assert works_without_labels(unlabelled)


def test_a_rule_and_a_divergence_of_ones_own_say_that_they_need_labels() -> None:
    def rule(signals: Signals) -> Temperatures:
        return Temperatures(*(signals.full(2.0) for _ in range(3)))

    def divergence(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        return (student - teacher).square().mean(-1)

    assert not needs_labels(Method("mine", rule, ce_weight=0.0, divergence=divergence))
    rule.uses_labels = True
    assert needs_labels(Method("mine", rule, ce_weight=0.0))
    divergence.uses_labels = True
    assert needs_labels(Method("mine", load_method("fixed").rule, ce_weight=0.0, divergence=divergence))
