"""What the integrations of Hugging Face's trainers share: a controller, the progress, means for the log."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rltemp.errors import BadInputError
from rltemp.integrations.contract import Controller, MethodLike, controller_of, mean_of
from rltemp.integrations.host_versions import tested_with
from rltemp.kd.divergences import entropy
from rltemp.kd.rowwise import rowwise
from rltemp.kd.signals import Signals
from rltemp.kd.temperature_rule import TemperatureRule, WrappedRule
from rltemp.kd.temperatures import Temperatures

IGNORED = -100
"""The label that marks no sample, in these trainers and in torch's cross-entropy."""

FOR_TEXT = "fixed:1"
"""What nothing was better than on tokens (docs/results/tokens.md)."""


TAGS = (
    "temperature/student_mean",
    "temperature/teacher_mean",
    "temperature/weight_mean",
    "temperature/guarded",
    "entropy/student_mean",
    "entropy/teacher_mean",
)
"""What is logged beside a training loss: means, the share that a guard has set, and entropies at T = 1 in nats."""


class Means:
    """Means of what `TAGS` names since the last `take`; sums stay on the device, so that no step waits for it."""

    def __init__(self) -> None:
        self.calls = 0
        self._sums: Tensor | None = None

    @torch.no_grad()
    def add(self, signals: Signals, found: Temperatures, mask: Tensor | None = None) -> None:
        """Add the temperatures of the samples that a mask of the same shape keeps, or of all, and their entropies."""
        self.calls += 1
        one = torch.ones_like(found.student)
        guarded = torch.zeros_like(one) if found.guarded is None else found.guarded.to(one)
        entropies = [rowwise(entropy, logits).to(one) for logits in (signals.student_logits, signals.teacher_logits)]
        rows = torch.stack([one, found.student, found.teacher, found.weight, guarded, *entropies])
        if mask is not None and mask.shape == found.student.shape:
            rows = rows.masked_fill(~mask, 0.0)
        sums = rows.flatten(1).sum(1)
        self._sums = sums if self._sums is None else self._sums + sums

    def take(self) -> dict[str, float]:
        """Return the means by tag and begin anew; empty where no sample was added."""
        sums, self._sums = self._sums, None
        count, *totals = [0.0] if sums is None else sums.tolist()
        return {tag: total / count for tag, total in zip(TAGS, totals, strict=False)} if count else {}


class ControlledTrainer:
    """Gives a trainer a controller; the mixin of each host derives from it and uses the controller.

    Args:
        *args: Arguments of the trainer.
        controller: What `Controller` takes: `"universal"`, `"dtkd"`, a policy file, a rule, a Method. The default is
            for language models.
        **kwargs: Arguments of the trainer.

    Raises:
        BadInputError: Where several devices share one process (`nn.DataParallel`), or the rule is one that learns.
    """

    host = "transformers"
    tested = ">=5.23,<5.25"
    args: Any
    state: Any
    accelerator: Any
    model: Any

    def __init__(self, *args: Any, controller: MethodLike = FOR_TEXT, **kwargs: Any) -> None:
        tested_with(self.host, self.tested)
        self.controller = controller_of(controller)
        self.temperature_means = Means()
        super().__init__(*args, **kwargs)
        if self.args.n_gpu > 1:
            raise BadInputError(
                f"{self.args.n_gpu} devices in one process (nn.DataParallel) cannot share a loss of per-sample "
                "temperatures; start one process a device, with torchrun or accelerate launch"
            )

    @property
    def progress(self) -> float:
        """How much of the run is done, 0 to 1; 0 before it begins."""
        return float(min(self.state.global_step / max(self.state.max_steps, 1), 1.0))

    def watched(self, mask: Tensor) -> Controller:
        """The controller; in training, one that adds the samples of the mask to the means."""
        if not self.model.training:
            return self.controller

        def told(signals: Signals, rule: TemperatureRule) -> Temperatures:
            found = rule(signals)
            self.temperature_means.add(signals, found, mask)
            return found

        method = replace(self.controller.method, rule=WrappedRule(self.controller.method.rule, told))
        watched = Controller(method, align_classes=self.controller.align_classes)
        watched._guards = self.controller._guards  # which counts over all steps
        return watched

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as the trainer does; beside a training loss, log the means since the last such entry."""
        if "loss" in logs:
            logs.update(self.temperature_means.take())
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def over_items(self, losses: Tensor, mask: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
        """Average losses `[...]` as `transformers.Trainer` does, so that accumulated and distributed steps add up.

        The divisor is the number of items in the accumulated batch where the trainer knows it, else in the mask.
        """
        if num_items_in_batch is None:
            return mean_of(losses, mask)
        if torch.is_tensor(num_items_in_batch):
            num_items_in_batch = num_items_in_batch.to(losses.device)
        loss = losses.sum() / num_items_in_batch
        if self.args.average_tokens_across_devices:  # the count is of all processes, and gradients get averaged
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())  # type: ignore[attr-defined]
        return loss


class HostLossTrainer(ControlledTrainer):
    """A controlled trainer whose host computes the loss: a step that asks for no temperature is an error.

    A host that computes its loss elsewhere than expected would otherwise train without temperatures.
    """

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Take the host's step, and check that it asked for temperatures."""
        before = self.temperature_means.calls
        loss: Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]
        if self.temperature_means.calls == before:
            raise BadInputError(
                f"this {type(self).__name__} computed its loss without a temperature from the controller: "
                f"{self.host} computes it elsewhere than the tested versions do, {self.tested}"
            )
        return loss
