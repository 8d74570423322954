"""Rules of how hard a sample is among its batch: IDTS, energy, cosine similarity; and random, their control.

Their temperatures are constants of the graph. The literature disagrees on the sign: a hard sample gets a lower
temperature by IDTS and by energy, a higher one by cosine similarity.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.linalg import vector_norm

from rltemp.errors import BadInputError
from rltemp.kd.checks import below, fraction, positive, whole
from rltemp.kd.classes import ABSENT
from rltemp.kd.rowwise import logsumexp, rowwise
from rltemp.kd.signals import Signals, full_precision
from rltemp.kd.temperature_rule import TemperatureRule, over_time, per_batch
from rltemp.kd.temperatures import Temperatures

_LEAST_DISTANCE = 1e-6
"""Distances below count as this: two equal distributions are as far apart as any other two equal ones."""
_HASHED_CLASSES = 16


def idts(reference: float = 1.0, strength: float = 0.5) -> TemperatureRule:
    """Lower the temperature where student and teacher are further apart than the batch's median sample.

    The method `idts` takes the reverse divergence and no labels, as the source's scripts do. Its numbers: ROUGE-L 31.70
    to 32.97 on five sets of instructions, with the forward divergence 26.56 to 26.63. It also leaves out the easier
    tokens, which is not here.

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

    @per_batch
    def rule(signals: Signals) -> Temperatures:
        distance = rowwise(_hellinger, signals.student_logits.detach(), signals.teacher_logits.detach())
        if not distance.numel():  # a batch that is all mask has no median
            return _same(distance)
        logarithm = signals.groups(distance.clamp(min=_LEAST_DISTANCE)).log()
        moved = logarithm.sub_(logarithm.median(-1, keepdim=True).values).tanh_().mul_(-reach).exp_().mul_(value)
        return _same(moved.view(distance.shape), distance < _LEAST_DISTANCE)

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

    @per_batch
    def rule(signals: Signals) -> Temperatures:
        sureness = logsumexp(signals.teacher_logits.detach())
        grouped = signals.groups(sureness)
        size = grouped.shape[1]
        count = math.floor(part * size)
        if count == 0:
            return _same(torch.full_like(sureness, value))
        ordered = grouped.sort(-1).values
        sure, unsure = grouped >= ordered[:, size - count, None], grouped <= ordered[:, count - 1, None]
        moved = torch.full_like(grouped, value).masked_fill_(sure, value + reach).masked_fill_(unsure, value - reach)
        return _same(moved.masked_fill_(sure.logical_and_(unsure), value).view(sureness.shape))

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

    @per_batch
    def rule(signals: Signals) -> Temperatures:
        cosine = rowwise(_cosine, signals.student_logits.detach(), signals.teacher_logits.detach())
        if not cosine.numel():  # a batch that is all mask has no range
            return _same(cosine)
        grouped = signals.groups(cosine)
        low, high = grouped.aminmax(dim=-1, keepdim=True)
        flat = high <= low
        place = (high - grouped).div_(high - low).masked_fill_(flat, 0.5)  # 0 over 0 where they are equal
        temperature = place.mul_(highest - lowest).add_(lowest)
        return _same(temperature.view(cosine.shape), flat.expand_as(grouped).reshape(cosine.shape))

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
    whole(seed, 0, "random", "seed")

    @over_time
    def rule(signals: Signals) -> Temperatures:
        exponent = _hashed_uniform(signals, seed).mul_(math.log(highest / lowest))
        return _same(exponent.exp_().mul_(lowest).to(full_precision(signals.teacher_logits).dtype))

    return rule


def _hellinger(student: Tensor, teacher: Tensor) -> Tensor:
    """Hellinger distance of the two distributions at T = 1, 0..1."""
    student, teacher = full_precision(student).softmax(-1).sqrt_(), full_precision(teacher).softmax(-1).sqrt_()
    # The length of the difference, not one minus the overlap: that loses all digits where the two are close.
    length: Tensor = vector_norm(student.sub_(teacher), dim=-1)
    return length.mul_(math.sqrt(0.5))


def _cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """Cosine of the two distributions at T = 1, 0..1; neither can be shorter than 1 / sqrt C."""
    student, teacher = full_precision(student).softmax(-1), full_precision(teacher).softmax(-1)
    lengths: Tensor = vector_norm(student, dim=-1).mul_(vector_norm(teacher, dim=-1))
    return student.mul_(teacher).sum(-1).div_(lengths)


def _hashed_uniform(signals: Signals, seed: int) -> Tensor:
    """A number in [0, 1) for every sample, float64, from the bits of its teacher logits, the progress and the seed."""
    logits = signals.teacher_logits.detach().float()
    there = logits > ABSENT
    place = there.long().cumsum(-1).sub_(1)  # among the classes that are there
    factors = _FACTORS.to(logits.device)[place.clamp(0, _HASHED_CLASSES - 1)]
    unused = (place >= _HASHED_CLASSES).logical_or_(there.logical_not())
    # Every word has a factor of its own; int64 wraps around.
    hashed = logits.view(torch.int32).long().mul_(factors).masked_fill_(unused, 0).sum(-1)
    done = signals.progress
    moment = (done.double() * 2**40).round().long() if isinstance(done, Tensor) else round(done * 2**40)
    for salt in (seed * 2_654_435_761 % 2**31, moment):
        hashed = _mixed(hashed.bitwise_xor_(salt))
    return hashed.bitwise_right_shift_(11).bitwise_and_(2**48 - 1).double().mul_(2.0**-48)


def _mixed(word: Tensor) -> Tensor:
    """Two rounds of a 64-bit mixer: multiply, fold the high half down."""
    step = _STEP.to(word.device)
    for _ in range(2):
        word = torch.add(step, word, alpha=6_364_136_223_846_793_005)
        word = word.bitwise_xor_(word.bitwise_right_shift(29))
    return word


_STEP = torch.tensor(1_442_695_040_888_963_407)
_FACTORS = _mixed(torch.arange(1, _HASHED_CLASSES + 1)) | 1  # odd: no bit of a word is lost


def _same(temperature: Tensor, guarded: Tensor | None = None) -> Temperatures:
    return Temperatures(temperature, temperature, temperature.square(), guarded)


def _range(name: str, minimum: float, maximum: float) -> tuple[float, float]:
    lowest, highest = positive(minimum, name, "minimum"), positive(maximum, name, "maximum")
    below(lowest, highest, name)
    return lowest, highest
