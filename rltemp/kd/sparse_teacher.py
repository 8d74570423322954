"""Teachers of which only the top classes are known: `SparseTeacher`, from a file or a server.

Both distributions are compared on K + 1 buckets: the K classes that the teacher names, and one bucket of all others.
The student's buckets are exact at every temperature, since its logits are all there. The teacher's are exact for its
top classes; the mass of its other classes depends on its temperature, and is known as far as `tail` says.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rltemp.errors import BadInputError
from rltemp.kd.bucketed import bucketed
from rltemp.kd.classes import ABSENT, mean_over
from rltemp.kd.rowwise import is_transformed
from rltemp.kd.signals import Signals, full_precision
from rltemp.kd.temperatures import Temperatures

TAIL_TEMPERATURES = (0.5, 1.0, 2.0, 4.0)
"""Where the sum of a tail is known."""
TAIL_SIZES = (len(TAIL_TEMPERATURES), len(TAIL_TEMPERATURES) + 2)
"""Numbers of a tail: its sums, or these and the mean and the deviation of all log-probabilities."""


@dataclass(frozen=True, repr=False)
class SparseTeacher:
    """A teacher's K likeliest classes for every sample, in place of its logits.

    Args:
        ids: `[..., K]` integers, the classes; none twice in a sample.
        log_probs: `[..., K]`, their log-probabilities at T = 1, in nats, the likeliest first.
        tail: `[..., 4]`, of all other classes log sum_k exp(log p_k / T) at T = 0.5, 1, 2 and 4. With it the teacher is
            softened up to T = 4. Or `[..., 6]`, and then the mean and the standard deviation of log p over all classes:
            up to any T. Without it, up to T = 1. A higher temperature counts as the highest, and as guarded.

    Raises:
        BadInputError: Where types or shapes are not these, or K is 0.

    >>> SparseTeacher(torch.tensor([[7, 2]]), torch.tensor([[0.7, 0.2]]).log())
    SparseTeacher(1 samples, top 2, no tail)
    """

    ids: Tensor
    log_probs: Tensor
    tail: Tensor | None = None

    def __post_init__(self) -> None:
        needed = "needed: ids and log_probs [..., K], K of 1 or more, and a tail [..., 4] or [..., 6], or None"
        given = {"ids": self.ids, "log_probs": self.log_probs} | ({} if self.tail is None else {"tail": self.tail})
        for name, value in given.items():
            if not isinstance(value, Tensor):
                raise BadInputError(f"{name} must be a tensor; got {type(value).__name__}")
            if value.is_floating_point() == (name == "ids") or value.dtype == torch.bool:
                raise BadInputError(f"{name} has type {value.dtype}; needed: integers for ids, floats for the others")
        shapes = {name: tuple(value.shape) for name, value in given.items()}
        top, tails = shapes["ids"], [(*shapes["ids"][:-1], size) for size in TAIL_SIZES]
        if not top or top[-1] < 1 or shapes["log_probs"] != top or shapes.get("tail", tails[0]) not in tails:
            raise BadInputError(f"a sparse teacher has shapes {shapes}; {needed}")

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.ids.shape[:-1])) or 1
        return f"SparseTeacher({size} samples, top {self.ids.shape[-1]}, {'no' if self.tail is None else 'a'} tail)"

    @classmethod
    def of_logits(cls, logits: Tensor, count: int, tail: bool = True) -> SparseTeacher:
        """The `count` likeliest classes of logits `[..., C]`, float32, with their tail `[..., 6]`."""
        log_probs = full_precision(logits).log_softmax(-1)
        top, ids = log_probs.topk(count, -1)
        if not tail:
            return cls(ids, top)
        rest = log_probs.scatter(-1, ids, -math.inf)
        sums = [(rest / temperature).logsumexp(-1) for temperature in TAIL_TEMPERATURES]
        known = log_probs.clamp(min=ABSENT)
        mean = mean_over(known, known <= ABSENT)
        deviation = mean_over((known - mean.unsqueeze(-1)).square(), known <= ABSENT).sqrt()
        return cls(ids, top, torch.stack([*sums, mean, deviation], -1))

    @property
    def limit(self) -> float:
        """The highest temperature that the teacher can be softened by."""
        if self.tail is None:
            return 1.0
        return TAIL_TEMPERATURES[-1] if self.tail.shape[-1] == TAIL_SIZES[0] else math.inf

    def each(self, change: Callable[[Tensor], Tensor]) -> SparseTeacher:
        """The same with every tensor changed, such as moved to a device."""
        return SparseTeacher(*(None if one is None else change(one) for one in (self.ids, self.log_probs, self.tail)))  # type: ignore[arg-type]

    def softened(self, temperature: Tensor, classes: int) -> Tensor:
        """Logits of the K + 1 buckets over temperatures `[...]`, of at most `limit`, `[..., K + 1]`."""
        sharpness = 1 / temperature.clamp(max=self.limit)
        top = full_precision(self.log_probs)
        rest = self._rest(top, sharpness, classes - top.shape[-1])
        return torch.cat([top * sharpness.unsqueeze(-1), rest.unsqueeze(-1)], -1).clamp(min=ABSENT)

    def _rest(self, top: Tensor, sharpness: Tensor, others: int) -> Tensor:
        """Log of the summed exp(log p / T) of the other classes, `[...]`."""
        if others < 1:
            return torch.full_like(sharpness, ABSENT)
        if self.tail is not None:
            return _interpolated(full_precision(self.tail), top, sharpness, others)
        mass = (-top.exp().sum(-1)).log1p().clamp(min=ABSENT)  # nan where rounding brought the top above 1
        mass = mass.nan_to_num(nan=ABSENT)
        # Half-way, in logarithms, between the least that it can be (all others alike) and the most (each of the others
        # that have any mass as likely as the last of the top); both are the mass at T = 1.
        count = _log(others, mass)
        least, most = sharpness * mass + (1 - sharpness) * count, mass + (sharpness - 1) * top[..., -1]
        return (least + torch.minimum(most, -least.new_tensor(ABSENT)).clamp(min=ABSENT)) / 2

    def check(self, classes: int, mask: Tensor | None = None) -> None:
        """Refuse what is no top of a distribution over so many classes; one number is read from the device.

        Raises:
            BadInputError: Naming the first token that is wrong, and what is wrong with it.
        """
        ids, top = self.ids.sort(-1).values, full_precision(self.log_probs)
        slack = max(1e-3, 8 * torch.finfo(self.log_probs.dtype).eps)
        mass = top.exp().sum(-1)
        wrong = {
            f"has an id that is no class; needed: 0 to {classes - 1}": (ids[..., 0] < 0) | (ids[..., -1] >= classes),
            "has an id twice": (ids[..., 1:] == ids[..., :-1]).any(-1),
            "has a log-probability that is not 0 or less": ~(top <= 0).all(-1),
            "has log-probabilities that are not in order, the likeliest first": (top.diff(dim=-1) > 0).any(-1),
            "has probabilities that sum to more than 1": mass > 1 + slack,
        }
        if self.tail is not None:
            wrong |= _contradictions(full_precision(self.tail), top, max(classes - top.shape[-1], 1), slack)
        found = torch.stack(list(wrong.values()))
        if mask is not None:
            found = found & mask
        if bool(found.any()):
            fault, *place = found.nonzero()[0].tolist()
            raise BadInputError(f"the sparse teacher's token {place} {list(wrong)[fault]}")

    def signals(
        self,
        student_logits: Tensor,
        labels: Tensor | None = None,
        progress: float | Tensor = math.nan,
        mask: Tensor | None = None,
    ) -> Signals:
        """Signals of K + 1 classes, the buckets at T = 1, that keep the student's logits `[..., C]` for the loss.

        Raises:
            BadInputError: As `check`, or where shapes disagree.
        """
        if not isinstance(student_logits, Tensor) or student_logits.shape[:-1] != self.ids.shape[:-1]:
            got = tuple(student_logits.shape) if isinstance(student_logits, Tensor) else type(student_logits).__name__
            raise BadInputError(
                f"student_logits are {got}, the sparse teacher's ids {tuple(self.ids.shape)}: "
                "needed are [..., C] and [..., K]"
            )
        if not is_transformed():
            self.check(student_logits.shape[-1], mask)
        buckets = TeacherBuckets(student_logits, self, labels)
        if mask is not None and mask.shape == student_logits.shape[:-1]:
            buckets = buckets.within(mask)
        one = torch.ones(self.ids.shape[:-1], device=student_logits.device)
        student, teacher = buckets.softened(Temperatures(one, one, one))
        return Signals(
            student, teacher.to(student.dtype), buckets.places(), progress, mask, safe=mask is not None, buckets=buckets
        )


@dataclass(frozen=True, eq=False)
class TeacherBuckets:
    """What signals of a sparse teacher stand for.

    Args:
        student_logits: All of them, `[..., C]`, with their graph.
        teacher: Its top.
        labels: `[...]` among all classes.
    """

    student_logits: Tensor
    teacher: SparseTeacher
    labels: Tensor | None

    def softened(self, temperatures: Temperatures) -> tuple[Tensor, Tensor]:
        """Both networks' buckets at these temperatures, `[..., K + 1]`."""
        student = bucketed(self.student_logits, self.teacher.ids.long(), temperatures.student)
        return student, self.teacher.softened(temperatures.teacher, self.student_logits.shape[-1])

    def capped(self, temperatures: Temperatures) -> Temperatures:
        """The same with the teacher's at most at its limit, and guarded where they were above."""
        over = temperatures.teacher > self.teacher.limit
        guarded = over if temperatures.guarded is None else temperatures.guarded | over
        return replace(temperatures, teacher=temperatures.teacher.clamp(max=self.teacher.limit), guarded=guarded)

    def places(self) -> Tensor | None:
        """The bucket of every label, `[...]`; K where it is none of the top."""
        if self.labels is None:
            return None
        found = self.teacher.ids == self.labels.unsqueeze(-1)
        return torch.where(found.any(-1), found.long().argmax(-1), self.teacher.ids.shape[-1])

    def within(self, mask: Tensor) -> TeacherBuckets:
        """The same with harmless numbers where the mask has no sample."""
        out, ids = ~mask, self.teacher.ids
        first = torch.arange(ids.shape[-1], dtype=ids.dtype, device=ids.device)
        top = self.teacher.log_probs.masked_fill(out.unsqueeze(-1), -10.0)
        tail = None if self.teacher.tail is None else self.teacher.tail.masked_fill(out.unsqueeze(-1), 0.0)
        teacher = SparseTeacher(torch.where(mask.unsqueeze(-1), ids, first), top, tail)
        labels = None if self.labels is None else self.labels.masked_fill(out, 0)
        return TeacherBuckets(self.student_logits.masked_fill(out.unsqueeze(-1), 0.0), teacher, labels)


def _contradictions(tail: Tensor, top: Tensor, others: int, slack: float) -> dict[str, Tensor]:
    """What is wrong with a tail: for each kind of fault, the tokens that have it, bool `[...]`."""
    sums, sharpness = tail[..., : TAIL_SIZES[0]], 1 / tail.new_tensor(TAIL_TEMPERATURES)
    last, whole = top[..., -1:], tail[..., 1:2] * sharpness
    about = slack * (1 + sharpness * torch.maximum(last.abs(), tail[..., 1:2].abs()))
    # The mass of all others in one class, and shared out evenly: every tail is between them.
    ends = whole, whole + (1 - sharpness) * math.log(others)
    low, high = torch.minimum(*ends) - about, torch.maximum(*ends) + about
    known, none = (sums >= low) & (sums <= high), (sums <= ABSENT).all(-1)
    found = {
        "has a tail that does not add up to 1 with its top": ~(
            (top.exp().sum(-1) + tail[..., 1].exp() - 1).abs() < slack
        ),
        "has a tail above what classes less likely than its top can have": ~(
            sums <= last * sharpness + math.log(others) + about
        ).all(-1),
        "has a tail whose sums contradict each other": ~(known.all(-1) | none),
    }
    if tail.shape[-1] > TAIL_SIZES[0]:
        lawful = (tail[..., -2] <= top[..., 0] + slack) & (tail[..., -1] >= 0) & tail[..., -2:].isfinite().all(-1)
        found["has a mean above its top, or a deviation that is none"] = ~lawful
    return found


def _interpolated(tail: Tensor, top: Tensor, sharpness: Tensor, others: int) -> Tensor:
    """Log of the summed exp(log p / T) of the tail, for any T.

    It is a convex function of 1 / T: at 0 the logarithm of the number of classes, its slope there their mean log p and
    its curvature the variance. Up to 1 / T = 2 a polynomial stands for it, beyond that the middle of the least that
    convexity allows and the most that classes less likely than the top allow.
    """
    count = _log(others, sharpness)
    sums, inside = tail[..., : TAIL_SIZES[0]].unbind(-1), sharpness.clamp(max=1 / TAIL_TEMPERATURES[0])
    found = _polynomial([count], sums, inside)
    if tail.shape[-1] > TAIL_SIZES[0]:  # slope and curvature at 0 tell nothing beyond 1
        found = torch.where(inside > 1, found, _polynomial([count, *_moments(tail, top, others)], sums, inside))
    slope = (top[..., -1] + (sums[0] - sums[1]) / (1 / TAIL_TEMPERATURES[0] - 1 / TAIL_TEMPERATURES[1])) / 2
    return torch.where(sums[1] > ABSENT, found + slope * (sharpness - inside), ABSENT)


def _log(count: int, like: Tensor) -> Tensor:
    """Its logarithm, by an operation that a program with any number of classes can have."""
    return torch.full_like(like, count).log()


def _polynomial(low: list[Tensor], sums: tuple[Tensor, ...], at: Tensor) -> Tensor:
    """The polynomial through a tail's sums whose lowest coefficients are known."""
    places = [1 / temperature for temperature in TAIL_TEMPERATURES]

    def lower(at: Tensor | float) -> Tensor:
        return sum((part * at**power for power, part in enumerate(low)), torch.zeros_like(low[0]))

    found = lower(at)
    for place, value in zip(places, sums, strict=True):
        share = (value - lower(place)) * (at / place) ** len(low)
        for other in places:
            if other != place:
                share = share * (at - other) / (place - other)
        found = found + share
    return found


def _moments(tail: Tensor, top: Tensor, others: int) -> list[Tensor]:
    """Mean and half the variance of the tail's log-probabilities, `[...]` each, where the tail tells those of all."""
    if tail.shape[-1] == TAIL_SIZES[0]:
        return []
    mean, deviation = tail[..., -2], tail[..., -1]
    centred = top - mean.unsqueeze(-1)  # of the top; the centred ones of all classes add up to 0
    shift = -centred.sum(-1) / others
    squares = (others + top.shape[-1]) * deviation.square() - centred.square().sum(-1)
    return [mean + shift, (squares / others - shift.square()).clamp(min=0.0) / 2]
