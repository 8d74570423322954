"""The student that a page shows of a method: what it saw and was answered in training, and how it sees test images.

It is the first student of the method's first stack, recorded while it trains; no run is made for it. What is kept lies
beside the stack's cached result, written before it: who has the result has the showcase, after a kill too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor, nn
from torch.nn import functional as F

from rltemp.data.problem import Problem
from rltemp.experiments.recorder import Recorder, teacher_margin
from rltemp.kd.signals import Signals, full_precision
from rltemp.kd.temperatures import Temperatures
from rltemp.models.stack import Students, logits_of
from rltemp.training.distill import Distillation

POINTS = 4_000
"""About how many samples of a run's batches are kept."""
IMAGES, CLASSES, SEQUENCES = 300, 10, 32
"""At most so many test samples, of at most so many classes (and tokens of so many sequences), are shown."""
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
CONTENT, CLOCK = ".showcase", ".clock"
"""Suffixes of the two files: what is the same whenever it is made, and what the clock said."""


@dataclass(frozen=True)
class Showcase:
    """What is shown of one student.

    Args:
        samples: By the names in `SAMPLED`, `[N]` each: progress of the run, 0..1; the teacher's margin, in standard
            deviations of its logits; the student's loss at the label, in nats; sharpness (logsumexp, as DTKD has it)
            of each network's logits, as they are and divided by the temperatures; the temperatures, nan without any.
        features: `[M, D]`, what the student's last layer sees of test images at the end.
        labels: `[M]`, their classes.
        seconds: Of an epoch, for one student, by the clock; nan where that is not known.
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


class ShowcaseRecorder(Recorder):
    """Records the first student of a run for its `Showcase`.

    Args:
        steps: Of the run.
        clock: Tells seconds.

    Attributes:
        files: What to write, by suffix, once the run has ended.
    """

    def __init__(self, steps: int, clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__(_columns, steps, POINTS)
        self.files: dict[str, bytes] = {}
        self._clock = clock
        self._started = self._recording = 0.0

    def begin(self) -> None:
        """As `Recorder.begin`."""
        super().begin()
        self._started = self._clock()

    def keep(self, signals: Signals, temperatures: Temperatures | None) -> None:
        """As `Recorder.keep`; the seconds that it takes are not the run's."""
        began = self._clock()
        super().keep(signals, temperatures)
        self._recording += self._clock() - began

    def end(self, run: Distillation) -> None:
        """Make the files; the student has its last weights."""
        seconds = self._clock() - self._started - self._recording
        features, labels = seen_by_last_layer(_first_student(run.evaluated), run.problem)
        rows = torch.stack([value.flatten() for value in self.samples().values()]).float()
        tensors = {"samples": rows, "features": features, "labels": labels}
        students = 1 if isinstance(run.seeds, int) else len(run.seeds)
        epoch = seconds * run.steps_per_epoch / (run.steps * students)
        content = save({name: np.ascontiguousarray(value.cpu().numpy()) for name, value in tensors.items()})
        self.files = {CLOCK: f"{epoch:.6g}\n".encode(), CONTENT: content}


def _columns(signals: Signals, temperatures: Temperatures | None) -> dict[str, Tensor]:
    """What `SAMPLED` names of the first student's batch, `[B]` each."""

    def first(values: Tensor) -> Tensor:
        return values[0] if signals.stacked else values

    student, teacher = (full_precision(first(logits)) for logits in (signals.student_logits, signals.teacher_logits))
    unknown = torch.full_like(student[:, 0], math.nan)
    given = None if temperatures is None else (first(temperatures.teacher), first(temperatures.student))
    teacher_by, student_by = given or (unknown, unknown)
    labels = signals.labels
    columns = (
        torch.full_like(unknown, float(signals.progress)),
        teacher_margin(Signals(student, teacher)),
        unknown if labels is None else F.cross_entropy(student, first(labels), reduction="none"),
        teacher.logsumexp(-1),
        student.logsumexp(-1),
        teacher_by,
        student_by,
        (teacher / teacher_by[:, None]).logsumexp(-1),
        (student / student_by[:, None]).logsumexp(-1),
    )
    return dict(zip(SAMPLED, columns, strict=True))


@torch.no_grad()
def seen_by_last_layer(student: nn.Module, problem: Problem) -> tuple[Tensor, Tensor]:
    """Features of test samples, `[M, D]` float32, and their classes, `[M]`.

    The features are what the last linear layer is given; where that is the input itself, or there is no such layer,
    they are the logits. The samples are spread evenly over the first classes of the test split.
    """
    split = problem.dataset.test
    split = split.take(torch.arange(min(SEQUENCES, len(split)))) if split.tokens else split
    labels = split.known_labels.flatten()
    shown = labels < CLASSES if split.mask is None else (labels < CLASSES) & split.mask.flatten()
    chosen = torch.nonzero(shown).flatten()
    chosen = chosen[torch.linspace(0, len(chosen) - 1, min(IMAGES, len(chosen))).long().to(chosen.device)]
    layer, caught = _last_linear(student), list[Tensor]()
    flat = nn.Flatten(0, -2) if split.tokens else nn.Flatten(1)
    handle = layer.register_forward_pre_hook(lambda _, given: caught.append(flat(given[0]))) if layer else None
    asked = torch.arange(len(split), device=chosen.device) if split.tokens else chosen
    student.eval()
    try:
        for index in torch.split(asked, 100):
            logits = logits_of(student(problem.arranged(problem.dataset.batch(split, index).inputs, student)))
            if layer is None:
                caught.append(flat(logits))
    finally:
        if handle is not None:
            handle.remove()
    features = torch.cat(caught) if caught else torch.empty(0, 1, device=labels.device)
    return (features[chosen] if split.tokens else features).float(), labels[chosen]


def _last_linear(student: nn.Module) -> nn.Module | None:
    """The last linear layer, if another layer with weights comes before it."""
    weighted = [module for module in student.modules() if next(module.parameters(recurse=False), None) is not None]
    linear = [module for module in weighted if isinstance(module, nn.Linear)]
    return linear[-1] if linear and len(weighted) > 1 else None


def _first_student(student: nn.Module) -> nn.Module:
    """The student, or the first of a stack of them as a module of its own."""
    return student.alone(0) if isinstance(student, Students) else student


def _read_clock(path: Path) -> float:
    try:
        seconds = float(path.with_suffix(CLOCK).read_text("utf-8")[:40])
    except (OSError, ValueError):
        return math.nan
    return seconds if 0 < seconds < math.inf else math.nan
