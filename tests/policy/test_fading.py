"""Outside what a policy has seen it steps aside: the fade by hand, the reference far out, and how it is counted."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from support.device_reads import DeviceReads
from support.policies import feature, policy_of, random_policy
from support.processes import code
from support.signals import drawn
from torch import Tensor

from rltemp import BadInputError, Controller, Signals, load_rule
from rltemp.agents.network import SampleNetwork
from rltemp.agents.policy_export import export_policy
from rltemp.envs.episode import Decision
from rltemp.integrations.export import exported
from rltemp.kd.guard_count import TOLD_AT
from rltemp.policy.fading import fade, seen_ranges
from rltemp.policy.manifest import PolicyFeature
from rltemp.policy.policy_file import read_policy

FIELDS = ("student", "teacher", "weight")


@pytest.fixture
def by_spread(tmp_path: Path) -> str:
    """Student action: -1, beyond -1 before it is clipped; the student's spread was seen from 0 to 1."""
    weights = {"0.weight": torch.tensor([[0.0], [0.0]]), "0.bias": torch.tensor([-3.0, 0.0])}
    return str(
        policy_of(
            tmp_path / "p.safetensors",
            weights,
            [feature("student_spread").model_copy(update={"low": 0.0, "high": 1.0})],
        )
    )


def with_spread(*spreads: float) -> Signals:
    """Samples whose feature `student_spread`, half a logarithm of a deviation, is this."""
    logits = torch.tensor([1.0, -1.0])
    return Signals(torch.stack([logits * torch.tensor(2 * one).exp() for one in spreads]), torch.zeros(len(spreads), 2))


# The function


@pytest.mark.parametrize(
    ("features", "kept"),
    [
        ([0.0, 10.0], 1.0),  # on two bounds
        ([1.0, 10.0], 0.5),  # 1 beyond a range of 8 is an eighth of its width: half of the margin
        ([-10.0, 0.0], 0.0),
        ([1.0, -2.5], 0.5),  # the farthest counts: the second is 2.5 of 20 below, an eighth as well
        ([1.5, -1.0], 0.25),
    ],
)
def test_the_fade_is_worked_by_hand(features: list[float], kept: float) -> None:
    low, high = torch.tensor([-8.0, 0.0]), torch.tensor([0.0, 20.0])
    assert fade(torch.tensor(features), low, high).item() == pytest.approx(kept)


def test_a_feature_that_is_not_finite_is_no_sample_within() -> None:
    assert fade(torch.tensor([[torch.nan, 0.0]]), -torch.ones(2), torch.ones(2)).isnan().all()


def test_ranges_are_quantiles_and_the_progress_has_all_of_its_range() -> None:
    grid = torch.linspace(0, 1, 10_001)
    seen = torch.stack([grid / 2, 3 * grid, torch.full_like(grid, 0.5)], -1)
    progress, spread, constant = seen_ranges(seen, ("progress", "student_spread", "agreement"))
    assert progress == (-1.0, 1.0)
    assert spread == pytest.approx((0.003, 2.997))
    assert constant == pytest.approx((0.5, 0.501))


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (torch.zeros(3), "needs? observations"),
        (torch.zeros(0, 1), "observations"),
        (torch.full((2, 1), torch.nan), "finite"),
    ],
)
def test_observations_without_ranges_are_refused(seen: Tensor, said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        seen_ranges(seen, ("progress",))


# The policy


def test_the_clipped_action_falls_to_the_reference_beyond_the_range(by_spread: str) -> None:
    found = load_rule(by_spread)(with_spread(0.0, 1.0, 1.125, 1.25, 5.0))
    wanted = [1.0, 1.0, 4 * 4**-0.5, 4.0, 4.0]  # fixed:4 over 4 to the power of what is kept of 1
    assert found.student.tolist() == pytest.approx(wanted, rel=1e-4)
    assert found.teacher.tolist() == [4.0] * 5
    assert found.guarded is not None
    assert found.guarded.tolist()[2:] == [True] * 3


@pytest.mark.parametrize("balanced", [False, True])
def test_far_outside_every_sample_gets_the_reference_exactly(balanced: bool, tmp_path: Path) -> None:
    action = {"weight_ratio": 3.0, "balanced": balanced}
    path = random_policy(tmp_path / "p.safetensors", 8, reference="dtkd", seen=(8.0, 9.0), **action)
    signals = drawn((40,), 10)
    found, wanted = load_rule(str(path))(signals), load_rule("dtkd")(signals)
    for name in FIELDS:
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name
    assert found.guarded is not None
    assert found.guarded.all()


@pytest.mark.parametrize("balanced", [False, True])
def test_within_its_ranges_a_policy_is_the_one_without_any(balanced: bool, tmp_path: Path) -> None:
    plain = random_policy(tmp_path / "p.safetensors", 8, balanced=balanced)
    path = random_policy(tmp_path / "wide.safetensors", 8, balanced=balanced, seen=(-10.0, 10.0))
    found, wanted = (load_rule(str(each))(drawn((40,), 10)) for each in (path, plain))
    for name in FIELDS:
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name
    assert wanted.guarded is None
    assert found.guarded is not None
    assert not found.guarded.any()


def test_a_file_without_ranges_has_the_hash_that_it_always_had() -> None:
    assert feature("progress").model_dump().keys() == {"name", "version", "unit", "mean", "std"}


@pytest.mark.parametrize(("ends", "said"), [({"low": 0.0}, "both"), ({"low": 1.0, "high": 1.0}, "below")])
def test_half_a_range_and_an_empty_one_are_refused(ends: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PolicyFeature(name="progress", version=1, unit="x", mean=0.0, std=1.0, **ends)


def test_an_exported_network_fades_beyond_the_ranges_of_its_training(tmp_path: Path) -> None:
    names = ("student_margin", "student_spread")
    observations = torch.randn(5_000, 2, generator=torch.Generator().manual_seed(0))
    ranges = seen_ranges(observations, names)
    network = SampleNetwork(torch.zeros(2), torch.ones(2))
    for given in (None, ranges):
        path = tmp_path / f"{given is None}.safetensors"
        export_policy(path, network, network.weights, Decision.make("fixed:4", names), ranges=given)
        features = read_policy(path).manifest.features
        assert [(one.low, one.high) for one in features] == [*(given or [(None, None)] * 2)]


def test_show_tells_the_ranges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert code("policy", "show", random_policy(tmp_path / "p.safetensors", seen=(-0.5, 2.0))) == 0
    assert (
        "Feature 0: progress v1 [fraction of the run], less 0.1, over 0.7, seen from -0.5 to 2"
        in capsys.readouterr().out
    )


# Compiled, exported, counted


def test_a_compiled_policy_and_an_exported_one_fade_too(by_spread: str) -> None:
    signals = with_spread(0.5, 1.125, 5.0)
    wanted = load_rule(by_spread)(signals)
    whole = torch.compile(lambda s, t: load(s, t), fullgraph=True, backend="aot_eager")
    load = Controller(by_spread).temperatures
    program = exported(by_spread).module()
    given = signals.student_logits, signals.teacher_logits
    compiled, run = whole(*given), program(*given, torch.tensor(0.5))
    for place, name in enumerate(FIELDS):
        torch.testing.assert_close(getattr(compiled, name), getattr(wanted, name))
        torch.testing.assert_close(run[place], getattr(wanted, name))


def test_a_controller_counts_samples_outside_and_says_so(by_spread: str, caplog: pytest.LogCaptureFixture) -> None:
    controller, signals = Controller(by_spread), with_spread(0.5, 0.6, 3.0, 4.0)
    labels, mask = torch.zeros(4, dtype=torch.long), torch.tensor([True, True, True, False])
    assert controller.guarded == 0.0
    with caplog.at_level(logging.WARNING, "rltemp"):
        for _ in range(min(TOLD_AT)):
            controller.loss(signals.student_logits, signals.teacher_logits, labels)
    assert controller.guarded == 0.5
    (said,) = caplog.messages
    assert "was guarded on 50.0 % of the samples" in said
    controller.temperatures(signals.student_logits, signals.teacher_logits, mask=mask)
    assert controller.guarded == pytest.approx((200 + 1) / (400 + 3))


def test_nothing_waits_for_the_device_to_fade_or_to_count(by_spread: str) -> None:
    controller, signals = Controller(by_spread), with_spread(0.5, 3.0)
    labels, mask = torch.zeros(2, dtype=torch.long), torch.tensor([True, False])
    with DeviceReads() as reads:
        for _ in range(3):
            controller.loss(signals.student_logits, signals.teacher_logits, labels)
            controller.temperatures(signals.student_logits, signals.teacher_logits, mask=mask)
    assert reads.places == []


def test_a_transform_of_torch_is_not_counted_and_not_disturbed(by_spread: str) -> None:
    controller, signals = Controller(by_spread), with_spread(3.0, 4.0)

    def loss(student: Tensor) -> Tensor:
        return controller.loss(student, signals.teacher_logits, torch.zeros(2, dtype=torch.long)).sum()

    assert torch.func.grad(loss)(signals.student_logits).isfinite().all()
    assert controller.guarded == 0.0
