"""What a comparison measures of a student beside its accuracy at the last epoch, and the epoch that validation selects.

All of it is measured on test data, chooses nothing, and is computed in double precision.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rltemp.data.dataset import Split
from rltemp.data.problem import Problem, predict
from rltemp.models.stack import put_back
from rltemp.training.distill import Distillation

BINS = 15
"""Of the calibration error, of equal width, as in Guo et al. (2017)."""
TOP5_CLASSES = 10
"""From so many classes on, the accuracy of the five largest logits is reported."""


@dataclass(frozen=True)
class Measure:
    """How a measure is shown.

    Args:
        heading: Of its column.
        scale: From what a result holds to what is shown.
        digits: After the point.
    """

    heading: str
    scale: float = 100.0
    digits: int = 2


MEASURES: dict[str, Measure] = {
    "selected_accuracy": Measure("selected (%)"),
    "selected_epoch": Measure("epoch", 1.0, 1),
    "top5_accuracy": Measure("top-5 (%)"),
    "calibration_error": Measure("ECE (%)"),
    "negative_log_likelihood": Measure("NLL (nats)", 1.0, 3),
    "agreement": Measure("agreement (%)"),
}
"""What `measure` and `Selection` give, by the name that results have for it."""

VALIDATION_LOSS = "validation_loss"
"""The name that results have for the negative log-likelihood on validation data, beside `MEASURES`."""
LOSSES = {"test_loss": "negative_log_likelihood", VALIDATION_LOSS: VALIDATION_LOSS}
"""The losses in `results.csv`, in nats a sample (a picture or a token), by the name that results have for each."""


@dataclass(frozen=True)
class Quantity:
    """What methods are compared by.

    Args:
        name: In words.
        unit: Of its means.
        difference_unit: Of its differences.
        measured: The name that results have for it.
        scale: From what a result holds to what is shown.
        digits: After the point.
        better: 1 where more is better, -1 where less is.
        matters: The least difference that is worth a choice, as it is shown.
        keys: Of its mean, its standard error and its differences in `result.json`.
    """

    name: str
    unit: str
    difference_unit: str
    measured: str
    scale: float
    digits: int
    better: int
    matters: float
    keys: tuple[str, str, str]

    @property
    def heading(self) -> str:
        """Of its column."""
        return f"{self.name} ({self.unit})"


ACCURACY = Quantity(
    name="accuracy",
    unit="%",
    difference_unit="percentage points",
    measured="test_accuracy",
    scale=100.0,
    digits=2,
    better=1,
    matters=0.5,
    keys=("accuracy_percent", "standard_error_percent", "differences_points"),
)
LOSS = Quantity(
    name="loss",
    unit="nats a token",
    difference_unit="nats",
    measured="negative_log_likelihood",
    scale=1.0,
    digits=4,
    better=-1,
    matters=0.01,
    keys=("loss_nats", "loss_standard_error_nats", "loss_differences_nats"),
)


ON_VALIDATION = {
    ACCURACY.name: replace(ACCURACY, name="validation accuracy", measured="validation_accuracy"),
    LOSS.name: replace(LOSS, name="validation loss", measured=VALIDATION_LOSS),
}
"""The same on validation data, by the name of what is measured on test data."""


def quantity_of(problem: Problem) -> Quantity:
    """What people read of a problem first, and what alternatives are chosen by on validation data."""
    return LOSS if problem.tokens and problem.metric == "log_likelihood" else ACCURACY


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """How often the largest of `[..., N, C]` logits is the label's: `[...]`, 0..1, in double precision."""
    return (logits.argmax(-1) == labels).double().mean(-1)


def measure(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None) -> dict[str, Tensor]:
    """Measure students by their logits.

    Args:
        logits: `[N, C]`, or `[S, N, C]` of a stack.
        labels: `[N]`.
        teacher_logits: `[N, C]`, on the same samples; None: there is no agreement.

    Returns:
        `[]` or `[S]` each: the expected calibration error and the agreement with the teacher, 0..1, the negative
        log-likelihood in nats, and, of 10 classes or more, how often the label is among the five largest logits.
        A student whose logits are not all finite has no calibration error and no likelihood: nan.
    """
    finite, log_probs = _log_probabilities(logits)
    confidence, predicted = log_probs.max(-1)
    found = {
        "calibration_error": calibration_error(confidence.exp(), predicted == labels).where(finite, torch.nan),
        "negative_log_likelihood": _mean_loss(log_probs, labels).where(finite, torch.nan),
    }
    if teacher_logits is not None:
        found["agreement"] = (logits.argmax(-1) == teacher_logits.argmax(-1)).double().mean(-1)
    if logits.shape[-1] >= TOP5_CLASSES:
        found["top5_accuracy"] = (logits.topk(5).indices == labels[:, None]).any(-1).double().mean(-1)
    return found


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean negative log-likelihood of the labels at T = 1, in nats; shapes and nan as `measure` has them."""
    finite, log_probs = _log_probabilities(logits)
    return _mean_loss(log_probs, labels).where(finite, torch.nan)


def _log_probabilities(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Whether all of a student's logits are finite, `[...]`, and if so their log-probabilities, `[..., N, C]`."""
    finite = logits.isfinite().flatten(-2).all(-1)
    return finite, torch.where(finite[..., None, None], logits, 0.0).double().log_softmax(-1)


def _mean_loss(log_probs: Tensor, labels: Tensor) -> Tensor:
    return -log_probs.gather(-1, labels.expand(log_probs.shape[:-1])[..., None]).squeeze(-1).mean(-1)


def calibration_error(confidence: Tensor, correct: Tensor) -> Tensor:
    """The expected calibration error: mean distance of accuracy and confidence over bins, weighted by their samples.

    Args:
        confidence: `[..., N]`, in (0, 1], in double precision.
        correct: `[..., N]`, bool.

    Returns:
        `[...]`, 0..1.

    >>> round(float(calibration_error(torch.tensor([0.9, 0.9], dtype=torch.float64), torch.tensor([True, False]))), 6)
    0.4
    """
    # The bins hold their upper bound, (0, 1/15], (1/15, 2/15], ...; a confidence of 0 cannot be.
    places = ((confidence * BINS).ceil().long() - 1).clamp(0, BINS - 1)
    gaps = torch.zeros(*confidence.shape[:-1], BINS, dtype=confidence.dtype, device=confidence.device)
    gaps.scatter_add_(-1, places, correct.to(confidence.dtype) - confidence)
    return gaps.abs().sum(-1) / confidence.shape[-1]


class Selection:
    """Evaluates validation accuracy whenever an epoch ends, and keeps the weights of each student's best epoch.

    Of several epochs that are equally good the first is kept. The students themselves stay as they are.

    Args:
        run: A run that is at its beginning, of one student or a stack.
    """

    def __init__(self, run: Distillation) -> None:
        self.run = run
        self._kept: nn.Module | None = None
        self._best = self._epoch = torch.empty(0)

    def evaluate(self) -> None:
        """Evaluate, where the step just taken was the last of an epoch."""
        run = self.run
        if run.step % run.steps_per_epoch:
            return
        accuracy = self._accuracy(run.evaluated, run.problem.dataset.validation)
        if self._kept is None:
            self._kept = copy.deepcopy(run.evaluated)
            self._best, self._epoch = accuracy, torch.ones_like(accuracy)
            return
        better = accuracy > self._best
        put_back(self._kept, run.evaluated, better)
        self._best = torch.where(better, accuracy, self._best)
        self._epoch = torch.where(better, run.step / run.steps_per_epoch, self._epoch)

    def measure(self) -> dict[str, Tensor]:
        """The test accuracy at each student's best epoch, and which it was, counted from 1."""
        accuracy = self._accuracy(self.selected(), self.run.problem.dataset.test)
        return {"selected_accuracy": accuracy, "selected_epoch": self._epoch}

    def selected(self) -> nn.Module:
        """A copy of the students, each with the weights of its best epoch; as they are before the end of the first."""
        return self.run.evaluated if self._kept is None else self._kept

    def _accuracy(self, student: nn.Module, split: Split) -> Tensor:
        return accuracy(predict(student, self.run.problem, split), split.targets)
