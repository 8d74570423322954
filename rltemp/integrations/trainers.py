"""What the plugs for Hugging Face's trainers share: a controller in a trainer, its progress, its means in the log."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from rltemp.errors import BadInputError
from rltemp.integrations.contract import Controller, tested_with, without_parameters
from rltemp.kd.method import Method, watch
from rltemp.kd.signals import Temperatures
from rltemp.kd.temperature_rule import TemperatureRule

IGNORED = -100
"""The label of what is no sample, in these trainers and in torch's own cross-entropy."""


def controller_of(given: Controller | str | Method | TemperatureRule) -> Controller:
    """A controller from itself or from what one is made from.

    Raises:
        BadInputError: Where its rule learns in every run anew: nothing here would train its parameters.
    """
    return without_parameters(given if isinstance(given, Controller) else Controller(given))


class Means:
    """Mean temperatures and weight since they were last taken, summed on the device: a step waits for nothing."""

    def __init__(self) -> None:
        self.calls = 0
        self._sums: Tensor | None = None

    def add(self, found: Temperatures, mask: Tensor | None = None) -> None:
        """Count the temperatures of the samples that a mask of their shape leaves, or of all."""
        self.calls += 1
        rows = torch.stack([torch.ones_like(found.student), found.student, found.teacher, found.weight]).detach()
        if mask is not None and mask.shape == found.student.shape:
            rows = rows.masked_fill(~mask, 0.0)
        sums = rows.flatten(1).sum(1)
        self._sums = sums if self._sums is None else self._sums + sums

    def take(self) -> dict[str, float]:
        """The means by their tags, and begin anew; nothing where no sample was counted."""
        sums, self._sums = self._sums, None
        count, *totals = [0.0] if sums is None else sums.tolist()
        tags = ("temperature/student_mean", "temperature/teacher_mean", "temperature/weight_mean")
        return {tag: total / count for tag, total in zip(tags, totals, strict=False)} if count else {}


class ControlledTrainer:
    """Give a trainer a controller; each host's mixin puts it to use, and stands before the trainer among the bases.

    Args:
        *args: The trainer's own.
        controller: A `Controller`, or what one is made from: `"universal"`, `"dtkd"`, a policy file, a rule, a Method.
        **kwargs: The trainer's own.

    Raises:
        BadInputError: Where several devices share one process (`nn.DataParallel`), or the rule is one that learns.
    """

    host = "transformers"
    tested = ">=5.23,<5.24"
    args: Any
    state: Any
    accelerator: Any
    model: Any

    def __init__(
        self, *args: Any, controller: Controller | str | Method | TemperatureRule = "universal", **kwargs: Any
    ) -> None:
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
        """The controller; in training one that counts in the means what it answers for the samples of the mask."""
        if not self.model.training:
            return self.controller
        return Controller(watch(self.controller.method, partial(self.temperature_means.add, mask=mask)))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as the trainer does, and beside the loss of training the means since the last time."""
        if "loss" in logs:
            logs.update(self.temperature_means.take())
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def over_items(self, losses: Tensor, mask: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
        """Average losses `[...]` as `transformers.Trainer` does, so that accumulated and distributed steps add up.

        Over the items of the whole accumulated batch where the trainer has counted them, else over the mask's own.
        """
        if num_items_in_batch is None:
            return losses.sum() / mask.sum().clamp(min=1)
        if torch.is_tensor(num_items_in_batch):
            num_items_in_batch = num_items_in_batch.to(losses.device)
        loss = losses.sum() / num_items_in_batch
        if self.args.average_tokens_across_devices:  # the count is of all processes, and gradients get averaged
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())  # type: ignore[attr-defined]
        return loss


class AskedTrainer(ControlledTrainer):
    """A controlled trainer whose loss is inside the host: a step that asked for no temperature is an error.

    A host that computes its loss elsewhere than where the plug stands would train on without temperatures.
    """

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Take the host's step, and see that it asked."""
        before = self.temperature_means.calls
        loss: Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]
        if self.temperature_means.calls == before:
            raise BadInputError(
                f"this {type(self).__name__} computed its loss without a temperature from the controller: "
                f"{self.host} has its loss elsewhere than the version this plug was tested with, {self.tested}"
            )
        return loss
