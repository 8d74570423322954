"""The policy that comes with the package: found by its name, for any number of classes, and worth having."""

from __future__ import annotations

import pytest
import torch

from rltemp import Signals, load_method, load_rule
from rltemp.cli.listings import Methods
from rltemp.data.problem import Problem
from rltemp.data.tasks import load_task
from rltemp.experiments.compare import compare
from rltemp.experiments.statistics import paired_difference
from rltemp.loading import SHIPPED
from rltemp.policy.features import FEATURES
from rltemp.policy.rule import Policy
from rltemp.training.preparation import prepare


def test_a_shipped_policy_is_a_few_kilobytes_and_says_how_it_was_made() -> None:
    for name, file in SHIPPED.items():
        assert file.stat().st_size < 10_000, name
        provenance = Policy.load(file).manifest.provenance
        assert {"task", "seed", "updates", "students", "kept_update"} <= set(provenance)


def test_it_needs_no_labels() -> None:
    policy = load_method("universal").rule
    assert not {feature.name for feature in policy.manifest.features} & {"student_loss", "teacher_loss"}
    assert {feature.name for feature in policy.manifest.features} <= set(FEATURES)


@pytest.mark.parametrize("classes", [2, 3, 10, 100, 1000, 50_000])
def test_it_answers_within_its_bounds_for_any_number_of_classes(classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    student, teacher = torch.randn(2, 8, classes, generator=generator) * torch.tensor([0.5, 6.0]).view(2, 1, 1)
    found = load_rule("universal")(Signals(student, teacher, progress=0.3))
    for temperature in (found.student, found.teacher):
        assert bool(((temperature >= 0.5) & (temperature <= 20)).all())
    assert bool((found.weight.isfinite() & (found.weight > 0)).all())


def test_it_stands_where_any_method_stands() -> None:
    assert load_method("universal").name == "universal"
    assert load_method("matched:universal").matched
    assert load_method("shuffled:universal").name == "shuffled:universal"


def test_the_listing_of_methods_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    Methods().run()
    assert "shipped with the package: universal" in capsys.readouterr().out


def test_its_students_are_better_than_those_without_a_teacher(digits: Problem) -> None:
    nobody, policy = compare(digits, ["none", "universal"], range(9000, 9032)).results
    assert paired_difference(policy.test_accuracy, nobody.test_accuracy).low > 0


def test_its_students_stand_a_rate_that_plain_distillation_does_not() -> None:
    fast = prepare(load_task("iris", learning_rate=0.45))
    nobody, plain, policy = compare(fast, ["none", "fixed:4", "universal"], range(9000, 9016)).results
    assert policy.test_accuracy.mean() > nobody.test_accuracy.mean() - 0.05
    assert policy.test_accuracy.mean() > plain.test_accuracy.mean() + 0.05
