"""What runs write to TensorBoard: `TAGS` names every tag with its unit, pure functions compute the numbers.

Nothing here takes part in training: a run with and without a `Tracker` gives the same student. Numbers cost a
little, so loops ask for them every few steps only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rltemp.kd.losses import cross_entropy
from rltemp.kd.names import lookup
from rltemp.kd.signals import Signals
from rltemp.kd.temperatures import NETWORKS, Temperatures, temperature_scalars

BINS = 50

_STATISTICS = {"mean": "mean over the batch"}
_STATISTICS |= {"q05": "5 % quantile of the batch", "q50": "median of the batch", "q95": "95 % quantile of the batch"}

TAGS: dict[str, str] = {
    "reward/validation_gain": "the next, minus that of the reference's students: what the policy is worth (its unit)",
    "reward/validation_potential": (
        "of the policy's students on validation data: smooth accuracy (0 to 1); of a policy of many tasks their gain "
        "over the better of no teacher and plain distillation (-2 to 2)"
    ),
    "reward/run_mean": "change of the potential over a run, mean over students (0 to 1 is the whole range)",
    "reward/run_std": "the same, standard deviation over students (potential)",
    "reward/probe_potential": "smooth accuracy on probe samples at a run's end, mean over students (0 to 1)",
    "reward/explained": "variance of the rewards that the calibration's model explains (fraction, at most 1)",
    "student/validation_accuracy": "accuracy on the validation part, once an epoch (fraction, 0 to 1)",
    "student/validation_loss": "cross-entropy on the validation part, once an epoch (nats a sample)",
    "student/train_accuracy": "accuracy on the batch's samples, before the step (fraction, 0 to 1)",
    "student/loss": "the whole objective, mean over the batch's samples, pictures or tokens (nats)",
    "student/cross_entropy": "cross-entropy of the student with the labels at T = 1 (nats a sample)",
    "student/divergence": "KL(teacher || student) at T = 1 (nats a sample)",
    "student/agreement": "samples where student and teacher predict the same class (fraction, 0 to 1)",
    "student/learning_rate": "learning rate of the step",
    "student/diverged": "students of the run whose numbers stopped being finite (count)",
    **{
        f"temperature/{network}_{name}": f"{network} temperature, {words} (no unit, above 0)"
        for network in ("teacher", "student")
        for name, words in _STATISTICS.items()
    },
    "temperature/teacher": "histogram of the batch's teacher temperatures (no unit, above 0)",
    "temperature/student": "histogram of the batch's student temperatures (no unit, above 0)",
    "temperature/guarded": (
        "samples of the batch where a rule's guard stood in for its formula, or a policy faded (fraction, 0 to 1)"
    ),
    "online/version": "version of the learned policy that a run's draws were around (count, from 1)",
    "online/improvement": "change of the potential over a run, mean over its students (0 to 1 is the whole range)",
    "online/validation_accuracy": "accuracy on the validation part after a run, mean over its students (fraction)",
    "online/waiting_records": "records that wait for the service at the end of a run (count)",
    "controller/fallback_steps": "steps so far that a controller's answer was missing for (count)",
    "controller/round_trip_ms": "the last answer of a controller, from question to answer (milliseconds)",
    "controller/policy_version": "version of the policy that gave the last answer (number)",
    "controller/open": "whether a controller is away (0 or 1)",
    "time/step_ms": "wall time of a training step, mean since the last entry (milliseconds)",
    "time/run_seconds": "wall time of a run (seconds)",
    "warning/at_bounds": "samples with both temperatures within 1 % of the policy's bounds (fraction, 0 to 1)",
    "warning/collapsed": "whether there has been an alarm about a collapsed policy (0 or 1)",
}
"""The tags, what matters most first. TensorBoard sorts them: rewards come before the rest, and warnings last."""

Layout = Mapping[str, Mapping[str, tuple[str, Sequence[str]]]]
"""Charts of TensorBoard's tab "Custom Scalars": by category and title a kind (`Multiline`, `Margin`) and its tags."""

_STUDENT_CHARTS = {
    "accuracy": ("Multiline", ("student/validation_accuracy", "student/train_accuracy")),
    "loss and its parts": ("Multiline", ("student/loss", "student/cross_entropy", "student/divergence")),
}
_QUANTILES = {
    f"{network}: median, 5 % to 95 %": ("Margin", [f"temperature/{network}_{name}" for name in ("q50", "q05", "q95")])
    for network in ("student", "teacher")
}
_GAIN = {
    "gain over the reference": ("Multiline", ("reward/validation_gain",)),
    "potential": ("Multiline", ("reward/validation_potential", "reward/probe_potential")),
}
_RUNS = {
    "accuracy": ("Multiline", ("online/validation_accuracy",)),
    "improvement": ("Multiline", ("online/improvement",)),
}
POLICY_LAYOUT: Layout = {"Reward": _GAIN, "Temperatures": _QUANTILES}
STUDENT_LAYOUT: Layout = {"Student": _STUDENT_CHARTS, "Temperatures": _QUANTILES}
ONLINE_LAYOUT: Layout = {"Runs": _RUNS}


def step_scalars(signals: Signals, loss: Tensor) -> dict[str, float]:
    """What one step says of its batch: objective, its parts at T = 1, agreement, accuracy.

    Args:
        signals: `[...]` samples, as the step saw them, before its update.
        loss: `[...]`, the step's per-sample objective, in nats.

    Returns:
        Means over the samples that a mask leaves, by tag; none where it leaves none. What needs labels is left out
        where there are none.
    """
    mask = torch.ones_like(loss, dtype=torch.bool) if signals.mask is None else signals.mask
    student, teacher = signals.student_logits.detach()[mask].float(), signals.teacher_logits[mask].float()
    predicted = student.argmax(-1)
    divergence = F.kl_div(F.log_softmax(student, -1), F.log_softmax(teacher, -1), reduction="none", log_target=True)
    found = {
        "student/loss": loss.detach()[mask],
        "student/divergence": divergence.sum(-1),
        "student/agreement": (predicted == teacher.argmax(-1)).float(),
    }
    if signals.labels is not None:
        labels = signals.labels[mask]
        found["student/cross_entropy"] = cross_entropy(Signals(student, teacher, labels))
        found["student/train_accuracy"] = predicted.eq(labels).float()
    return {tag: float(values.mean()) for tag, values in found.items() if values.numel()}


def validation_scalars(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy and cross-entropy of one student on the samples of the validation part: `[N, C]` and `[N]`."""
    return {
        "student/validation_accuracy": float((logits.argmax(-1) == labels).float().mean()),
        "student/validation_loss": float(F.cross_entropy(logits.float(), labels)),
    }


class Tracker:
    """Writes numbers of known tags to the TensorBoard events of a run folder.

    Args:
        folder: The run folder.
        size: Bytes of the events of an earlier part of this run, as `flush` gave them; later ones are cut off.
        layout: Of its custom charts.

    >>> import tempfile
    >>> with Tracker(Path(tempfile.mkdtemp())) as tracker:
    ...     tracker.scalars({"student/los": 1.0}, step=0)
    Traceback (most recent call last):
    rltemp.errors.BadInputError: unknown tag 'student/los': did you mean 'student/loss'? Known: ...
    """

    def __init__(self, folder: Path, size: int = 0, layout: Layout = POLICY_LAYOUT) -> None:
        # Here, because it takes a second that most commands need not wait for.
        from torch.utils.tensorboard import summary

        from rltemp.io.events_file import EventFile  # imports TensorBoard too

        self._make = summary
        self._events = EventFile(folder, size)
        self._layout = None if size else layout

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        self._events.close()

    def flush(self) -> int:
        """Write what waits; the size of the events so far, in bytes."""
        return self._events.flush()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write numbers by tag, at optimizer step `step`."""
        for tag, value in values.items():
            lookup(TAGS, tag, "tag")
            self.scalar(tag, value, step)

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Write one number under any tag."""
        self._add(self._make.scalar(tag, value), step)  # type: ignore[no-untyped-call]

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        """Write how numbers are spread, where they are finite: a histogram of anything else raises."""
        if bool(values.isfinite().all()):
            numbers = values.detach().float().cpu().numpy()
            self._add(self._make.histogram(tag, numbers, BINS), step)  # type: ignore[no-untyped-call]

    def _add(self, summary: Any, step: int) -> None:
        """Append a summary; the layout goes before the first of a run, so that nothing is written of one without."""
        if self._layout is not None:
            self._events.add(self._make.custom_scalars(self._layout), 0)  # type: ignore[no-untyped-call]
            self._layout = None
        self._events.add(summary, step)

    def temperatures(self, temperatures: Temperatures, step: int) -> None:
        """Write `temperature_scalars` and both histograms; nothing of no sample."""
        if not temperatures.weight.numel():
            return
        self.scalars(temperature_scalars(temperatures), step)
        for network in NETWORKS:
            self.histogram(f"temperature/{network}", getattr(temperatures, network), step)
