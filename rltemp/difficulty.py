"""Rules that look at how hard a sample is among its batch: IDTS, energy, cosine similarity; and random, their control.

Their temperatures are constants of the graph. The literature disagrees on the sign: a hard sample gets a lower
temperature by IDTS and by energy, a higher one by cosine similarity.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rltemp.blocks import logsumexp, rowwise
from rltemp.checks import fraction, positive
from rltemp.errors import BadInputError
from rltemp.types import Signals, TemperatureRule, Temperatures, full_precision

_LEAST_DISTANCE = 1e-6
"""Distances below count as this: two equal distributions are as far apart as any other two equal ones."""
_HASHED_CLASSES = 16


def idts(reference: float = 1.0, strength: float = 0.5) -> TemperatureRule:
    """Lower the temperature where student and teacher are further apart than the batch's median sample.

    Formula: T = reference exp(-strength tanh(log(d / median d))), weight T^2; d the Hellinger distance of the two
    distributions at T = 1, the median the lower one of the batch.
    Source: the code beside Xie et al. (2025), https://arxiv.org/abs/2510.11615 (AdaKD), for tokens of language models.
    Labels: no
    Bounds: 0.60 to 1.65
    Invariant: shift
    Batch: compared
    Guard: a distance below 1e-6 counts as 1e-6, so that equal networks get the reference.

    Args:
        reference: T of the median sample, > 0.
        strength: How far T moves: within exp(-strength) and exp(strength) of the reference; > 0.
    """
    value, reach = positive(reference, "idts", "reference"), positive(strength, "idts", "strength")

    @torch.no_grad()
    def rule(signals: Signals) -> Temperatures:
        distance = rowwise(_hellinger, signals.student_logits, signals.teacher_logits)
        if not distance.numel():  # a batch that is all mask has no median
            return _same(distance)
        floored = distance.clamp(min=_LEAST_DISTANCE)
        median = signals.groups(floored).median(-1, keepdim=True).values
        ratio = (signals.groups(floored) / median).view_as(distance)
        return _same(value * torch.exp(-reach * torch.tanh(ratio.log())), distance < _LEAST_DISTANCE)

    return rule


def energy(reference: float = 4.0, step: float = 2.0, share: float = 0.3) -> TemperatureRule:
    """Raise the temperature of the batch's samples that the teacher is surest of, lower that of the least sure.

    Only the abstract of the source was read: the direction is its own, the thresholds within a batch and the
    constants are ours.

    Formula: energy = -logsumexp(teacher logits). T = reference + step on the `share` of the batch with the lowest
    energy, reference - step on that with the highest, reference between; weight T^2.
    Source: Kim et al. (2023), https://arxiv.org/abs/2311.14334.
    Labels: no
    Bounds: 2 to 6
    Invariant: none
    Batch: compared
    Guard: none; a sample that is in both shares (one sample, equal energies) gets the reference.

    Args:
        reference: T between the shares, > 0.
        step: Distance of the other two from it, > 0 and below the reference.
        share: Of the batch, at each end, 0..0.5.
    """
    value, reach, part = positive(reference, "energy", "reference"), positive(step, "energy", "step"), share
    if fraction(part, "energy", "share") > 0.5 or reach >= value:
        raise BadInputError(
            f"energy: share must be at most 0.5 and step below the reference; got {share}, {step} and {reference}"
        )

    @torch.no_grad()
    def rule(signals: Signals) -> Temperatures:
        sureness = logsumexp(signals.teacher_logits)
        grouped = signals.groups(sureness)
        ordered = grouped.sort(-1).values
        count, last = math.floor(part * grouped.shape[1]), grouped.shape[1] - 1
        if count == 0:
            return _same(torch.full_like(sureness, value))
        sure = grouped >= ordered[:, last - count + 1, None]
        unsure = grouped <= ordered[:, count - 1, None]
        moved = value + reach * (sure.float() - unsure.float())
        return _same(moved.to(sureness.dtype).view_as(sureness))

    return rule


def cswt(minimum: float = 2.0, maximum: float = 6.0) -> TemperatureRule:
    """Raise the temperature where student and teacher predict differently.

    Only the abstract of the source was read: the direction is its own, the linear map over the batch's range and
    the constants are ours.

    Formula: T = maximum - (maximum - minimum) (c - min c) / (max c - min c), weight T^2; c the cosine of the two
    distributions at T = 1, its range taken over the batch.
    Source: Ham et al. (2023), https://arxiv.org/abs/2311.14307 (CSKD).
    Labels: no
    Bounds: 2 to 6
    Invariant: shift
    Batch: compared
    Guard: where the batch's cosines are equal (one sample), T is half-way.

    Args:
        minimum: T of the batch's most similar sample, > 0.
        maximum: T of its least similar sample.
    """
    lowest, highest = _range("cswt", minimum, maximum)

    @torch.no_grad()
    def rule(signals: Signals) -> Temperatures:
        cosine = rowwise(_cosine, signals.student_logits, signals.teacher_logits)
        if not cosine.numel():  # a batch that is all mask has no range
            return _same(cosine)
        grouped = signals.groups(cosine)
        low, high = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
        flat = high <= low
        place = ((grouped - low) / (high - low).masked_fill(flat, 1.0)).masked_fill(flat, 0.5)
        guarded = flat.expand_as(grouped).reshape(cosine.shape)
        return _same((highest - (highest - lowest) * place).view_as(cosine), guarded)

    return rule


def random(minimum: float = 1.0, maximum: float = 10.0, seed: int = 0) -> TemperatureRule:
    """Draw the temperature of every sample and step at random, log-uniformly: a control that knows nothing.

    The draw is a hash of the sample's teacher logits, the progress and the seed: so it is the same for the same
    sample at the same step whatever stands beside it, and needs no state that a resumed run would lose.

    Formula: T = minimum (maximum / minimum)^U, U uniform on [0, 1), weight T^2.
    Source: a control; 1 to 10 is the range of RLKD's documentation, https://arxiv.org/abs/2407.00115.
    Labels: no
    Bounds: 1 to 10
    Invariant: none
    Guard: none.

    Args:
        minimum: Lowest T, > 0.
        maximum: Highest T.
        seed: Of the draws, an integer of 0 or more.
    """
    lowest, highest = _range("random", minimum, maximum)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise BadInputError(f"random: seed must be an integer of 0 or more; got {seed!r}")

    @torch.no_grad()
    def rule(signals: Signals) -> Temperatures:
        uniform = _hashed_uniform(signals, seed).to(full_precision(signals.teacher_logits).dtype)
        return _same(lowest * (highest / lowest) ** uniform)

    return rule


def _hellinger(student: Tensor, teacher: Tensor) -> Tensor:
    """Hellinger distance of the two distributions at T = 1, 0..1."""
    student, teacher = (full_precision(logits).softmax(-1).sqrt_() for logits in (student, teacher))
    # The sum of squared differences, not one minus the overlap: that loses all digits where the two are close.
    return (student.sub_(teacher).square_().sum(-1) / 2).sqrt()


def _cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """Cosine of the two distributions at T = 1, 0..1; neither can be shorter than 1 / sqrt C."""
    student, teacher = (full_precision(logits).softmax(-1) for logits in (student, teacher))
    overlap = (student * teacher).sum(-1)
    return overlap / (student.square_().sum(-1) * teacher.square_().sum(-1)).sqrt()


def _hashed_uniform(signals: Signals, seed: int) -> Tensor:
    """A number in [0, 1) for every sample, float64, from the bits of its teacher logits, the progress and the seed."""
    bits = signals.teacher_logits[..., :_HASHED_CLASSES].float().contiguous().view(torch.int32)
    # Every word has a factor of its own; int64 wraps around.
    hashed = (bits * _FACTORS[: bits.shape[-1]].to(bits.device)).sum(-1)
    mixed = _mixed(_mixed(hashed ^ seed * 2_654_435_761 % 2**31) ^ round(signals.progress * 2**40))
    return (mixed >> 11 & (2**48 - 1)).double() / 2**48


def _mixed(word: Tensor) -> Tensor:
    """Two rounds of a 64-bit mixer: multiply, fold the high half down."""
    for _ in range(2):
        word = word * 6_364_136_223_846_793_005 + 1_442_695_040_888_963_407
        word = word ^ (word >> 29)
    return word


_FACTORS = _mixed(torch.arange(1, _HASHED_CLASSES + 1)) | 1  # odd: no bit of a word is lost


def _same(temperature: Tensor, guarded: Tensor | None = None) -> Temperatures:
    return Temperatures(temperature, temperature, temperature.square(), guarded)


def _range(name: str, minimum: float, maximum: float) -> tuple[float, float]:
    lowest, highest = positive(minimum, name, "minimum"), positive(maximum, name, "maximum")
    if lowest >= highest:
        raise BadInputError(f"{name}: minimum must be below maximum; got {minimum} and {maximum}")
    return lowest, highest
