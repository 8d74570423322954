"""Every rule and divergence once more, sample by sample, in plain Python: what the tensors are checked against.

Written from the formulas of shared/reference/temperature-methods.md with `math` and lists alone, so that no mistake is
shared with what is tested. A rule takes a batch: the teacher's logits `u`, the student's `v` through which gradient
flows, and `held`, the same numbers held still: what a rule reads off `held` is a constant of the graph. So a central
difference over `v` is the gradient that the rule lets through, and no other.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

Row = Sequence[float]
Batch = Sequence[Row]
Answer = tuple[float, float, float]  # T_s, T_t, weight


def logsumexp(row: Row) -> float:
    largest = max(row)
    return largest + math.log(math.fsum(math.exp(value - largest) for value in row))


def softmax(row: Row) -> list[float]:
    total = logsumexp(row)
    return [math.exp(value - total) for value in row]


def deviation(row: Row, divisor: int) -> float:
    mean = math.fsum(row) / len(row)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in row) / divisor)


# Rules


class Step(NamedTuple):
    """A batch at a moment of the run: logits of the teacher, of the student, and the student's held still."""

    u: Batch
    v: Batch
    held: Batch
    progress: float


def fixed(s: Step, temperature: float = 4.0) -> list[Answer]:
    return alike([temperature] * len(s.u))


def alike(values: Row) -> list[Answer]:
    return [(value, value, value**2) for value in values]


def _shared(
    sharpness: Callable[[Row], float], s: Step, reference: float = 4.0, minimum: float = 0.5, maximum: float = 20.0
) -> list[Answer]:
    answers = []
    for x, y in ((sharpness(a), sharpness(b)) for a, b in zip(s.u, s.v, strict=True)):
        student = teacher = reference
        if x > 0 and y > 0:
            teacher, student = 2 * x / (x + y) * reference, 2 * y / (x + y) * reference
        student, teacher = (min(max(value, minimum), maximum) for value in (student, teacher))
        answers.append((student, teacher, student * teacher))
    return answers


dtkd, dtkd_logsumexp = partial(_shared, max), partial(_shared, logsumexp)


def dtkd_exact(s: Step, reference: float = 4.0) -> list[Answer]:
    def gap(teacher: Row, student: Row, shift: float) -> float:
        sharp = logsumexp([value / (reference + shift) for value in teacher])
        return sharp - logsumexp([value / (reference - shift) for value in student])

    answers = []
    for teacher, student in zip(s.u, s.held, strict=True):
        low, high = -0.875 * reference, 0.875 * reference
        if gap(teacher, student, low) < 0 or gap(teacher, student, high) > 0:
            low = high = 0.0
        while high - low > 1e-13:
            middle = (low + high) / 2
            low, high = (middle, high) if gap(teacher, student, middle) > 0 else (low, middle)
        answers.append((reference - low, reference + low, (reference - low) * (reference + low)))
    return answers


def ttm(s: Step, gamma: float = 0.25) -> list[Answer]:
    return [(1.0, 1 / gamma, 1.0)] * len(s.u)


def wttm(s: Step, gamma: float = 0.25) -> list[Answer]:
    return [(1.0, 1 / gamma, math.fsum(p**gamma for p in softmax(row))) for row in s.u]


def normkd(s: Step, temperature: float = 2.0) -> list[Answer]:
    return [(student, teacher, teacher**2) for student, teacher, _ in lskd(s, temperature)]


def lskd(s: Step, temperature: float = 2.0, divisor: str = "K-1", published: bool = False) -> list[Answer]:
    fewer, eps = int(divisor == "K-1"), 1e-7 if published else 0.0
    student, teacher = ([temperature * (deviation(row, len(row) - fewer) + eps) for row in b] for b in (s.v, s.u))
    return [(own, other, temperature**2) for own, other in zip(student, teacher, strict=True)]


def atkd(s: Step, reading: str = "code") -> list[Answer]:
    def standardized(row: Row) -> list[float]:
        mean = math.fsum(row) / len(row)
        return [(value - mean) / deviation(row, len(row) - 1) for value in row]

    answers = []
    for teacher, student, still in zip(s.u, s.v, s.held, strict=True):
        largest = {
            "code": max(abs(z) for z in standardized(teacher) + standardized(still)),
            "teacher_absolute": max(abs(z) for z in standardized(teacher)),
            "teacher_signed": max(standardized(teacher)),
        }[reading]
        shared = (1 + math.sqrt(3)) / 2 * largest
        spread = [deviation(row, len(row) - 1) for row in (student, teacher)]
        answers.append((shared * spread[0], shared * spread[1], shared**2))
    return answers


def ctkd(s: Step, theta: float = 1.0) -> list[Answer]:
    return fixed(s, 1 + 20 / (1 + math.exp(-theta)))


def ctkd_instance(s: Step, inner: Batch, inner_bias: Row, outer: Row, outer_bias: float) -> list[Answer]:
    answers = []
    for teacher, student in zip(s.u, s.held, strict=True):
        seen = softmax(teacher) + softmax(student)
        columns = list(zip(*inner, strict=True))
        hidden = [
            max(0.0, bias + math.fsum(x * weight for x, weight in zip(seen, column, strict=True)))
            for column, bias in zip(columns, inner_bias, strict=True)
        ]
        theta = outer_bias + math.fsum(h * weight for h, weight in zip(hidden, outer, strict=True))
        answers += ctkd(Step([teacher], [student], [student], s.progress), theta)
    return answers


def idts(s: Step, reference: float = 1.0, strength: float = 0.5) -> list[Answer]:
    distances = []
    for teacher, student in zip(s.u, s.held, strict=True):
        pairs = zip(softmax(teacher), softmax(student), strict=True)
        distances.append(math.sqrt(math.fsum((math.sqrt(p) - math.sqrt(q)) ** 2 for p, q in pairs) / 2))
    median = sorted(distances)[(len(distances) - 1) // 2]
    return alike([reference * math.exp(-strength * math.tanh(math.log(d / median))) for d in distances])


def energy(s: Step, reference: float = 4.0, step: float = 2.0, share: float = 0.3) -> list[Answer]:
    order = sorted(range(len(s.u)), key=lambda sample: -logsumexp(s.u[sample]))
    count, values = int(share * len(s.u)), [reference] * len(s.u)
    for sample in order[:count]:
        values[sample] += step
    for sample in order[len(s.u) - count :]:
        values[sample] -= step
    return alike(values)


def cswt(s: Step, minimum: float = 2.0, maximum: float = 6.0) -> list[Answer]:
    cosines = []
    for teacher, student in zip(s.u, s.held, strict=True):
        p, q = softmax(teacher), softmax(student)
        dot = math.fsum(a * b for a, b in zip(p, q, strict=True))
        cosines.append(dot / math.sqrt(math.fsum(a * a for a in p) * math.fsum(b * b for b in q)))
    low, high = min(cosines), max(cosines)
    return alike([maximum - (maximum - minimum) * (cosine - low) / (high - low) for cosine in cosines])


def cist(s: Step, ratio: float = 2.0) -> list[Answer]:
    def degree(row: Row) -> float:
        return (max(row) - math.fsum(row) / len(row)) / ratio

    rows = zip(s.u, s.v, s.held, strict=True)
    return [(degree(student), degree(teacher), degree(still) * degree(teacher)) for teacher, student, still in rows]


def doubt(row: Row) -> float:
    return -math.fsum(p * math.log(p) for p in softmax(row)) / math.log(len(row))


def entropy(s: Step, sure: float = 2.0, unsure: float = 6.0) -> list[Answer]:
    return alike([sure * (1 - doubt(row)) + unsure * doubt(row) for row in s.u])


def entropy_gate(s: Step, lowest: float = 0.2, highest: float = 1.0, network: str = "teacher") -> list[Answer]:
    rows = {"teacher": s.u, "student": s.held}[network]
    return [(1.0, 1.0, float(lowest <= doubt(row) <= highest)) for row in rows]


def tip(s: Step, share: float = 0.5) -> list[Answer]:
    doubts = [doubt(row) for row in s.held]
    distances = [kl(student, teacher, 0) for student, teacher in zip(s.held, s.u, strict=True)]

    def ranged(values: Row) -> list[float]:
        return [(value - min(values)) / (max(values) - min(values)) for value in values]

    scores = [1 - (1 - h) * (1 - d) for h, d in zip(ranged(doubts), ranged(distances), strict=True)]
    last = sorted(scores, reverse=True)[math.ceil(share * len(scores)) - 1]
    return [(1.0, 1.0, float(score >= last)) for score in scores]


def annealing(s: Step, maximum: int = 10, until: float = 10 / 13) -> list[Answer]:
    phase = min(1 + math.floor(maximum * s.progress / until), maximum) / maximum  # the paper's Phi
    return [(1.0, 1 / phase, 1.0)] * len(s.u)


def linear_schedule(s: Step, start: float = 8.0, end: float = 1.0) -> list[Answer]:
    return fixed(s, start * (1 - s.progress) + end * s.progress)


def cosine_schedule(s: Step, start: float = 8.0, end: float = 1.0) -> list[Answer]:
    high = math.cos(math.pi * s.progress / 2) ** 2
    return fixed(s, start * high + end * (1 - high))


def step_schedule(s: Step, start: float = 8.0, end: float = 1.0, levels: int = 4) -> list[Answer]:
    level = min(math.floor(s.progress * levels), levels - 1)
    return fixed(s, math.exp(math.log(start) + math.log(end / start) * level / (levels - 1)))


def mkd(s: Step, initial: float = 4.0, minimum: float = 1.0, maximum: float = 10.0) -> list[Answer]:
    return fixed(s, initial)  # before any look ahead


def random(s: Step, minimum: float = 1.0, maximum: float = 10.0, seed: int = 0) -> list[Answer]:
    def signed(number: int) -> int:
        number %= 2**64
        return number - 2**64 if number >= 2**63 else number

    def mixed(state: int) -> int:
        for _ in range(2):
            state = signed(state * 6_364_136_223_846_793_005 + 1_442_695_040_888_963_407)
            state ^= state >> 29
        return state

    values = []
    for row in s.u:
        words = [struct.unpack("<i", struct.pack("<f", value))[0] for value in row[:16]]
        state = signed(sum(word * (mixed(place) | 1) for place, word in enumerate(words, 1)))
        state = mixed(mixed(state ^ seed * 2_654_435_761 % 2**31) ^ round(s.progress * 2**40))
        uniform = (state >> 11) % 2**48 / 2**48
        values.append(math.exp(math.log(minimum) + uniform * math.log(maximum / minimum)))
    return alike(values)


# Divergences, of softened logits: the student's v, the teacher's u, the label.


def kl(v: Row, u: Row, label: int) -> float:
    return math.fsum(p * math.log(p / q) for p, q in zip(softmax(u), softmax(v), strict=True))


def reverse_kl(v: Row, u: Row, label: int) -> float:
    return kl(u, v, label)


def jensen_shannon(v: Row, u: Row, label: int) -> float:
    pairs = list(zip(softmax(u), softmax(v), strict=True))
    return math.fsum(p * math.log(2 * p / (p + q)) + q * math.log(2 * q / (p + q)) for p, q in pairs) / 2


def mse(v: Row, u: Row, label: int) -> float:
    return math.fsum((a - b) ** 2 for a, b in zip(u, v, strict=True)) / len(u)


def tckd(v: Row, u: Row, label: int) -> float:
    def two(row: Row) -> tuple[float, float]:
        probabilities = softmax(row)
        return probabilities[label], math.fsum(p for k, p in enumerate(probabilities) if k != label)

    return math.fsum(p * math.log(p / q) for p, q in zip(two(u), two(v), strict=True))


def nckd(v: Row, u: Row, label: int) -> float:
    others = [[value for k, value in enumerate(row) if k != label] for row in (v, u)]
    return kl(others[0], others[1], label)


def dkd(v: Row, u: Row, label: int, target: float = 1.0, non_target: float = 8.0) -> float:
    return target * tckd(v, u, label) + non_target * nckd(v, u, label)


def todi(v: Row, u: Row, label: int, held: Row) -> float:
    shares = [p / (p + q) for p, q in zip(softmax(u), softmax(held), strict=True)]
    pairs = zip(shares, softmax(u), softmax(v), strict=True)
    return math.fsum(s * p * math.log(p / q) + (1 - s) * q * math.log(q / p) for s, p, q in pairs)


def veto(v: Row, u: Row, label: int, held: Row, beta: float = 0.3) -> float:
    product = [p * q**beta for p, q in zip(softmax(u), softmax(held), strict=True)]
    return kl(v, [math.log(value) for value in product], label)


def multi(v: Row, u: Row, label: int, lowest: float = 0.5, highest: float = 1.5, count: int = 5) -> float:
    factors = [lowest + (highest - lowest) * step / (count - 1) for step in range(count)]
    return math.fsum(f * f * kl([a / f for a in v], [b / f for b in u], label) for f in factors) / count


def top_k(v: Row, u: Row, label: int, count: int = 64) -> float:
    order = sorted(range(len(u)), key=lambda k: -u[k])

    def buckets(row: Row) -> list[float]:
        probabilities = softmax(row)
        rest = [math.fsum(probabilities[k] for k in order[count:])] if len(row) > count else []
        return [probabilities[k] for k in order[:count]] + rest

    return math.fsum(p * math.log(p / q) for p, q in zip(buckets(u), buckets(v), strict=True))


HOLDING = {todi, veto}
"""Divergences in which the student takes part as a constant, too: `held`, its softened logits held still."""


def loss(divergence: Callable[..., float], answer: Answer, v: Row, u: Row, label: int) -> float:
    """Weight times the divergence of the softened logits."""
    student, teacher, weight = answer
    return weight * divergence([value / student for value in v], [value / teacher for value in u], label)


def gradient(loss_of: Callable[[Batch], float], v: Batch, step: float = 1e-4) -> list[list[float]]:
    """Central differences of the fourth order over every entry of `v`."""
    rows = []
    for sample, row in enumerate(v):
        found = []
        for k in range(len(row)):

            def at(shift: float, sample: int = sample, k: int = k) -> float:
                moved = [list(other) for other in v]
                moved[sample][k] += shift
                return loss_of(moved)

            near, far = at(step) - at(-step), at(2 * step) - at(-2 * step)
            found.append((8 * near - far) / (12 * step))
        rows.append(found)
    return rows
