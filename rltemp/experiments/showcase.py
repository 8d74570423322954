"""The student that a page shows of a rule: what it saw and was answered in training, and how it sees test images.

It is the first student of the rule's first stack, watched while it trains; no run is made for it. What is kept lies
beside the stack's cell, written before it: who has the cell has the showcase, after a kill too.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor, nn
from torch.nn import functional as F

from rltemp.data.dataset import Dataset
from rltemp.data.problem import channels_last
from rltemp.io.files import atomic_write
from rltemp.kd.method import Method, NoTeacher, Objective, watch
from rltemp.kd.signals import Signals, Temperatures, full_precision
from rltemp.models.stack import StackedStudent
from rltemp.policy.features import featurize
from rltemp.training.distill import Distillation

POINTS = 4_000
"""About how many samples of a run's batches are kept."""
IMAGES, CLASSES = 300, 10
"""At most so many test images, of at most so many classes, are shown by their features."""
MOST_BYTES = 1 << 24
SAMPLED = (
    "progress",
    "margin",
    "loss",
    "teacher_sharpness",
    "student_sharpness",
    "teacher_temperature",
    "student_temperature",
    "softened_teacher_sharpness",
    "softened_student_sharpness",
)


@dataclass(frozen=True)
class Showcase:
    """What is shown of one student.

    Args:
        samples: By the names in `SAMPLED`, `[N]` each: progress of the run, 0..1; the teacher's margin, in deviations
            of its logits; the student's loss at the label, in nats; sharpness (logsumexp, as DTKD has it) of each
            network's logits, as they are and divided by the temperatures; the temperatures, nan without any.
        features: `[M, D]`, what the student's last layer sees of test images at the end.
        labels: `[M]`, their classes.
        seconds: Of an epoch, for one student, as the clock had it; nan where that is not known.
    """

    samples: dict[str, NDArray[np.float64]]
    features: NDArray[np.float64]
    labels: NDArray[np.int64]
    seconds: float = math.nan

    @classmethod
    def read(cls, path: Path) -> Showcase | None:
        """The showcase in a file; None where there is none that can be read: a page can do without."""
        try:
            if path.stat().st_size > MOST_BYTES:
                return None
            found = load(path.read_bytes())
            samples = dict(zip(SAMPLED, found["samples"].astype(np.float64), strict=True))
            features, labels = found["features"].astype(np.float64), found["labels"].astype(np.int64)
            if features.ndim != 2 or labels.shape != features.shape[:1] or found["samples"].ndim != 2:
                return None
        except (OSError, SafetensorError, LookupError, TypeError, ValueError):
            return None
        return cls(samples, features, labels, _read_clock(path))


class Showing:
    """Watches one stack's run for its `Showcase` and writes that to a file.

    Args:
        path: Of the file.
        clock: Tells seconds.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.perf_counter) -> None:
        self.path = path
        self._clock = clock
        self._generator = torch.Generator().manual_seed(0)
        self._kept: list[Tensor] = []
        self._given: Temperatures | None = None
        self._run: Distillation | None = None
        self._started = self._watching = 0.0

    def begin(self, maker: Callable[[Distillation], Objective]) -> Callable[[Distillation], Objective]:
        """The same maker of methods, whose run is watched."""

        def make(run: Distillation) -> Objective:
            method = self._watched(maker(run))
            self._run, self._started = run, self._clock()
            return method

        return make

    def end(self) -> None:
        """Write what was seen, the run being over; what depends on the clock into a file of its own."""
        run = self._run
        assert run is not None, "a run begins before it ends"
        seconds = self._clock() - self._started - self._watching
        features, labels = seen_by_last_layer(_first(run.student), run.problem.dataset)
        rows = torch.cat(self._kept) if self._kept else torch.empty(0, len(SAMPLED))
        tensors = {"samples": rows.T, "features": features, "labels": labels}
        encoded = save({name: np.ascontiguousarray(value.cpu().numpy()) for name, value in tensors.items()})
        students = 1 if isinstance(run.seeds, int) else len(run.seeds)
        epoch = seconds * run.steps_per_epoch / (run.steps * students)
        atomic_write(self.path.with_suffix(".clock"), f"{epoch:.6g}\n".encode())
        atomic_write(self.path, encoded)

    def _watched(self, method: Objective) -> Objective:
        """The same method, which shows each step's signals and tells its temperatures, where it asks for some."""
        told = watch(method, self._tell)
        shown = _Shown if isinstance(told, Method) else _ShownAlone
        return shown(**{field.name: getattr(told, field.name) for field in fields(told)}, show=self._keep)

    def _tell(self, temperatures: Temperatures) -> None:
        self._given = temperatures

    @torch.no_grad()
    def _keep(self, signals: Signals) -> None:
        """Some samples of the first student's batch; of a long run, at some of its steps."""
        given, self._given = self._given, None
        assert self._run is not None
        if self._run.step % -(-self._run.steps // POINTS):
            return
        began = self._clock()
        drawn = torch.randperm(signals.shape[-1], generator=self._generator)[: max(1, POINTS // self._run.steps)]
        self._kept.append(_rows(signals, given, drawn.to(signals.student_logits.device)).cpu())
        self._watching += self._clock() - began


@dataclass(frozen=True)
class _Shown(Method):
    """A method that shows what it has seen."""

    show: Callable[[Signals], None] = lambda _: None

    def loss(self, signals: Signals) -> Tensor:
        loss = super().loss(signals)
        self.show(signals)
        return loss


@dataclass(frozen=True)
class _ShownAlone(NoTeacher):
    """The same, without a teacher."""

    show: Callable[[Signals], None] = lambda _: None

    def loss(self, signals: Signals) -> Tensor:
        self.show(signals)
        return super().loss(signals)


def _rows(signals: Signals, temperatures: Temperatures | None, drawn: Tensor) -> Tensor:
    """What `SAMPLED` names of these samples of the first student, `[N, len(SAMPLED)]`, float32."""

    def first(values: Tensor) -> Tensor:
        return (values[0] if signals.stacked else values)[drawn]

    student, teacher = (full_precision(first(logits)) for logits in (signals.student_logits, signals.teacher_logits))
    labels = None if signals.labels is None else first(signals.labels)
    given = [] if temperatures is None else [first(temperatures.teacher), first(temperatures.student)]
    teacher_by, student_by = given or [torch.full_like(student[:, 0], math.nan)] * 2
    columns = (
        torch.full_like(student[:, 0], float(signals.progress)),
        featurize(Signals(student, teacher), ["teacher_margin"])[:, 0] + 1,  # the feature is the margin less one
        torch.full_like(student[:, 0], math.nan)
        if labels is None
        else F.cross_entropy(student, labels, reduction="none"),
        teacher.logsumexp(-1),
        student.logsumexp(-1),
        teacher_by,
        student_by,
        (teacher / teacher_by[:, None]).logsumexp(-1),
        (student / student_by[:, None]).logsumexp(-1),
    )
    return torch.stack(columns, -1).float()


@torch.no_grad()
def seen_by_last_layer(student: nn.Module, dataset: Dataset) -> tuple[Tensor, Tensor]:
    """Features of test images, `[M, D]` float32, and their classes, `[M]`.

    The features are what the last linear layer is given; where that is the image itself, or there is no such layer,
    they are the logits. The images are spread evenly over the test part's first classes.
    """
    images, labels = dataset.test.images, dataset.test.labels
    chosen = torch.nonzero(labels < CLASSES).flatten()
    chosen = chosen[torch.linspace(0, len(chosen) - 1, min(IMAGES, len(chosen))).long().to(chosen.device)]
    layer, caught = _last_linear(student), list[Tensor]()
    handle = layer.register_forward_pre_hook(lambda _, given: caught.append(given[0].flatten(1))) if layer else None
    student.eval()
    try:
        for start in range(0, len(chosen), 100):
            index = chosen[start : start + 100]
            logits = student(channels_last(dataset.batch(dataset.test, index)))
            if layer is None:
                caught.append(logits)
    finally:
        if handle is not None:
            handle.remove()
    features = torch.cat(caught) if caught else torch.empty(0, 1, device=images.device)
    return features.float(), labels[chosen]


def _last_linear(student: nn.Module) -> nn.Module | None:
    """The last linear layer, if another layer with weights comes before it."""
    weighted = [module for module in student.modules() if next(module.parameters(recurse=False), None) is not None]
    linear: Sequence[nn.Module] = [module for module in weighted if isinstance(module, nn.Linear)]
    return linear[-1] if linear and len(weighted) > 1 else None


def _first(student: nn.Module) -> nn.Module:
    """The student, or the first of a stack of them as a module of its own."""
    if not isinstance(student, StackedStudent):
        return student
    alone = copy.deepcopy(student.skeleton)
    state = student.unstack(0)
    alone.to(next(iter(state.values())).device).load_state_dict(state)
    return alone


def _read_clock(path: Path) -> float:
    try:
        seconds = float(path.with_suffix(".clock").read_text("utf-8")[:40])
    except (OSError, ValueError):
        return math.nan
    return seconds if 0 < seconds < math.inf else math.nan
