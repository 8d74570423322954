"""The bar that the demo is held to, with students that neither it nor the README's numbers saw. Minutes: `-m slow`."""

from __future__ import annotations

import pytest

from rltemp.agents.train import PolicyConfig, train_policy
from rltemp.experiments.compare import compare
from rltemp.experiments.statistics import paired_difference


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 5])
def test_a_policy_beats_dtkd_and_plain_distillation_on_unseen_students(digits, tmp_path, seed):
    train_policy(digits, PolicyConfig(seed=seed), tmp_path)
    rules = ["fixed:4", "dtkd:1|2|4|8", str(tmp_path / "policy.safetensors")]
    plain, dtkd, policy = compare(digits, rules, range(7000, 7064)).results
    for other in (plain, dtkd):
        assert paired_difference(policy.test_accuracy, other.test_accuracy).low > 0, other.rule
