"""Each feature by hand on the note's vector A, and what all of them have to leave unchanged."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.device_reads import DeviceReads
from support.signals import drawn
from torch import Tensor

from rltemp import BadInputError, Signals
from rltemp.policy.features import FEATURES, LIMIT, RLKD_FEATURES, featurize

Vector = tuple[Tensor, Tensor, Tensor]

# Vector A: u = (4, 1, 0, -1) has mean 1 and deviations 3, 0, -1, -2; v = (2, 1, 0.5, -1) has mean 0.625.
TEACHER_STD = math.sqrt((9 + 0 + 1 + 4) / 4)
STUDENT_STD = math.sqrt((1.375**2 + 0.375**2 + 0.125**2 + 1.625**2) / 4)
CE, KL, TEACHER_LSE, STUDENT_LSE = 0.49518190, 0.27523024, 4.07217242, 2.49518190  # section 15.1


def entropy(logits: list[float], log_sum: float) -> float:
    return -sum(math.exp(z - log_sum) * (z - log_sum) for z in logits)


def softened(logits: list[float], temperature: float) -> list[float]:
    terms = [math.exp(z / temperature) for z in logits]
    return [term / sum(terms) for term in terms]


PLAIN_NORM = 4 * math.dist(softened([2, 1, 0.5, -1], 4), softened([4, 1, 0, -1], 4))
CE_NORM = math.dist(softened([2, 1, 0.5, -1], 1), [1, 0, 0, 0])
BY_HAND = {
    "progress": 2 * 0.75 - 1,
    "student_margin": (2 - 1) / STUDENT_STD - 1,
    "teacher_margin": (4 - 1) / TEACHER_STD - 1,
    "student_spread": math.log(STUDENT_STD) / 2,
    "teacher_spread": math.log(TEACHER_STD) / 2,
    "relative_spread": math.log(STUDENT_STD / TEACHER_STD) / 2,
    "student_entropy": 2 * entropy([2, 1, 0.5, -1], STUDENT_LSE) / math.log(4) - 1,
    "teacher_entropy": 2 * entropy([4, 1, 0, -1], TEACHER_LSE) / math.log(4) - 1,
    "divergence": math.log(1 + KL) - 1,
    "agreement": (2 - 1) / STUDENT_STD,
    "student_loss": math.log(1 + CE) - 1,
    "teacher_loss": math.log(1 + TEACHER_LSE - 4) - 1,
    "student_top_probability": 0.60946004,
    "teacher_top_probability": 0.93037047,
    "student_probability_margin": 0.38525222,
    "student_relative_loss": CE / math.log(4) - 1,
    "teacher_relative_loss": (TEACHER_LSE - 4) / math.log(4) - 1,
    "gradient_ratio": math.log((PLAIN_NORM + 0.05) / (CE_NORM + 0.05)) / 2,
    "class_count": math.log(4) / 2 - 1,
}
OF_SAMPLES = sorted(name for name, feature in FEATURES.items() if feature.over == "sample")
every_feature = pytest.mark.parametrize("name", OF_SAMPLES)


def test_every_feature_has_a_hand_worked_value() -> None:
    assert sorted(BY_HAND) == OF_SAMPLES


@pytest.mark.parametrize("name", sorted({*OF_SAMPLES} - {"progress", "class_count"}))
def test_a_batchs_mean_and_a_samples_deviation_are_of_its_own_batch(name: str) -> None:
    """Of a stack of two students with a mask: samples of another student or without a label count nowhere."""
    signals = drawn((2, 6), 10)
    mask = torch.tensor([[True] * 6, [True, True, False, True, False, True]])
    signals = replace(signals, mask=mask, stacked=True)
    own, mean, rest = featurize(signals, [name, f"batch_{name}", f"deviation_{name}"]).unbind(-1)
    for student in range(2):
        kept = mask[student]
        wanted = own[student, kept].mean()
        torch.testing.assert_close(mean[student, kept], wanted.expand(int(kept.sum())))
        torch.testing.assert_close(rest[student, kept], own[student, kept] - wanted)
    assert not mean[~mask].any()
    assert not rest[~mask].any()


@every_feature
def test_each_feature_is_its_hand_worked_value_on_vector_a(name: str, vector_a: Vector) -> None:
    teacher, student, label = vector_a
    value = featurize(Signals(student[None], teacher[None], label[None], 0.75), [name])
    assert value.shape == (1, 1)
    assert value.item() == pytest.approx(BY_HAND[name], abs=2e-6)


def test_the_state_of_rlkd_is_the_notes_on_both_vectors(vector_a: Vector, vector_b: Vector) -> None:
    """The margin is to the second largest probability; to the second smallest, as released, it is 0.473 and 0.281."""
    expected = [[0.60946004, 0.93037047, 0.38525222], [0.42110015, 0.76222237, 0.07633251]]
    teacher, student, label = (torch.stack(pair) for pair in zip(vector_a, vector_b, strict=True))
    state = featurize(Signals(student, teacher, label), RLKD_FEATURES)
    torch.testing.assert_close(state, torch.tensor(expected), rtol=0, atol=1e-6)


def test_agreement_is_negative_where_the_student_chooses_another_class() -> None:
    # The teacher chooses class 1; the student has 0 there and 3 at best: -3 over its deviation of sqrt(2).
    signals = Signals(torch.tensor([[3.0, 0.0, 0.0]]), torch.tensor([[0.0, 5.0, 1.0]]))
    assert featurize(signals, ["agreement"]).item() == pytest.approx(-3 / math.sqrt(2), rel=1e-6)


def test_columns_come_in_the_order_asked_for() -> None:
    signals = drawn((6,), 10, progress=0.25)
    both = featurize(signals, ["teacher_margin", "progress"])
    assert both.shape == (6, 2)
    assert torch.equal(both[:, 0], featurize(signals, ["teacher_margin"])[:, 0])
    assert both[:, 1].tolist() == [-0.5] * 6


SAMPLES, CLASSES = torch.tensor([17, 3, 11]), torch.randperm(10, generator=torch.Generator().manual_seed(1))
CHANGES = {
    "lower": lambda student, teacher, labels: (student - 20, teacher + 20, labels),
    "higher": lambda student, teacher, labels: (student + 7.5, teacher - 7.5, labels),
    "some samples": lambda *tensors: (tensor[SAMPLES] for tensor in tensors),
    "classes": lambda student, teacher, labels: (student[:, CLASSES], teacher[:, CLASSES], CLASSES.argsort()[labels]),
}


@every_feature
@pytest.mark.parametrize(("change", "digits"), [*zip(CHANGES, (2e-5, 2e-5, 1e-6, 2e-6), strict=True)])
def test_no_feature_sees_a_shift_the_other_samples_or_the_order_of_classes(
    name: str, change: str, digits: float
) -> None:
    signals = drawn((20,), 10)
    tensors = CHANGES[change](signals.student_logits, signals.teacher_logits, signals.labels)
    wanted = featurize(signals, [name])
    found = featurize(Signals(*tensors, signals.progress), [name])
    torch.testing.assert_close(found, wanted[SAMPLES] if change == "some samples" else wanted, rtol=0, atol=digits)


@given(
    shape=st.sampled_from([(), (4,), (2, 3)]),
    classes=st.sampled_from([2, 3, 10, 1000]),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 30.0, 1e4, 5e37]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=60)
def test_features_are_finite_and_bounded_for_any_logits(
    shape: tuple[int, ...], classes: int, scale: float, seed: int
) -> None:
    values = featurize(drawn(shape, classes, seed, scale), sorted(FEATURES))
    assert values.shape == (*shape, len(FEATURES))
    assert values.dtype == torch.float32
    assert values.isfinite().all()
    assert values.abs().max() <= LIMIT


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_features_are_finite_at_the_largest_float_and_float32(classes: int) -> None:
    signals = drawn((16,), classes)
    for change in (lambda z: 3.4e38 * z.sign(), torch.Tensor.half, torch.Tensor.bfloat16, torch.Tensor.double):
        student, teacher = change(signals.student_logits), change(signals.teacher_logits)
        values = featurize(Signals(student.requires_grad_(), teacher, signals.labels, 0.5), sorted(FEATURES))
        assert values.dtype == torch.float32
        assert values.isfinite().all()
        assert not values.requires_grad


@pytest.mark.parametrize("classes", [2, 1000])
def test_constant_logits_are_uniform_and_without_a_margin(classes: int) -> None:
    signals = Signals(torch.full((3, classes), 7.0), torch.full((3, classes), -7.0))
    margin, spread, uncertain, divergence, agreement = featurize(
        signals, ["student_margin", "teacher_spread", "student_entropy", "divergence", "agreement"]
    )[0].tolist()
    assert (margin, agreement, divergence) == (-1.0, 0.0, pytest.approx(-1.0, abs=1e-6))
    assert spread == pytest.approx(math.log(1e-6) / 2)
    assert uncertain == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("name", ["student_loss", "batch_teacher_relative_loss", "deviation_gradient_ratio"])
def test_without_labels_the_teachers_choice_stands_in(name: str) -> None:
    signals = drawn((6,), 10)
    chosen = replace(signals, labels=signals.teacher_logits.argmax(-1))
    assert torch.equal(featurize(replace(signals, labels=None), [name]), featurize(chosen, [name]))
    assert not torch.equal(featurize(signals, [name]), featurize(chosen, [name]))


def test_an_unknown_feature_is_answered_with_the_closest() -> None:
    with pytest.raises(BadInputError, match="unknown feature 'progres': did you mean 'progress'"):
        featurize(drawn((2,), 3), ["progres"])


@pytest.mark.parametrize("label", [-100, 10])
@pytest.mark.parametrize("shape", [(4,), (2, 2)])
def test_a_label_that_is_no_class_is_refused_with_its_place(label: int, shape: tuple[int, ...]) -> None:
    signals = drawn(shape, 10)
    signals.labels.view(-1)[3] = label
    place = "[3]" if len(shape) == 1 else "[1, 1]"
    with pytest.raises(BadInputError, match=rf"^label {label} at {re.escape(place)} is no class; needed: 0 to 9, and"):
        featurize(signals, ["student_loss"])


def test_no_feature_reads_the_device() -> None:
    signals = replace(drawn((4,), 10), progress=torch.tensor(0.3))
    with DeviceReads() as reads:
        found = featurize(signals, sorted(FEATURES))
    assert reads.places == []
    torch.testing.assert_close(found, featurize(replace(signals, progress=0.3), sorted(FEATURES)))
