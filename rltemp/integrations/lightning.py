"""Lightning: a mixin for your `LightningModule`, which knows the Trainer's progress and logs the temperatures.

    class Student(DistillationMixin, lightning.LightningModule):
        def training_step(self, batch, batch_idx):
            images, labels = batch
            return self.distillation_loss(self.student(images), self.teacher_logits(images), labels)

With Fabric you write the loop, and `rltemp.integrations.Controller` is enough. docs/integrations/lightning.md has both.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from rltemp.errors import BadInputError
from rltemp.integrations.contract import RecordingController, mean_of
from rltemp.integrations.host_versions import tested_with
from rltemp.kd.method import Method
from rltemp.kd.temperatures import temperature_scalars

TESTED = ">=2.5,<2.7"


class DistillationMixin:
    """Gives a `LightningModule` the method `distillation_loss`; name it before `LightningModule` among the bases.

    Attributes:
        method: What `rltemp.load_method` reads, or a `Method` (a rule of yours is one as `Method("mine", rule)`); a
            subclass or an instance sets its own.
    """

    method: str | Method = "universal"
    _controller: RecordingController | None = None

    # What a LightningModule brings.
    trainer: Any
    training: bool
    log_dict: Any

    def distillation_loss(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
        progress: float | None = None,
    ) -> Tensor:
        """The loss of the method, mean over the samples, in nats, `[]`; logs temperatures in steps that Lightning logs.

        Args:
            student_logits: `[..., C]`.
            teacher_logits: `[..., C]`.
            labels: `[...]`, where the method needs them.
            mask: `[...]`, False where there is no sample.
            progress: How much of the run is done, 0..1; None asks the Trainer.

        Raises:
            BadInputError: Where shapes disagree, or the Trainer has no last step and so no progress.
        """
        if self._controller is None:
            tested_with(_distribution(type(self)), TESTED)
            self._controller = RecordingController(self.method)
        seen = student_logits, teacher_logits, labels, trainer_progress(self.trainer) if progress is None else progress
        losses = self._controller.loss(*seen, mask)
        # Numbers for the log wait for the device, so only steps that the Trainer logs compute them.
        due = (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0
        if self.training and due and (last := self._controller.kept(mask)) is not None:
            self.log_dict(temperature_scalars(last), on_step=True, on_epoch=False)
        return mean_of(losses, mask)


Distillation = DistillationMixin
"""The name of version 0.1."""


def trainer_progress(trainer: Any) -> float:
    """The fraction of a Trainer's optimizer steps that are done, 0..1.

    Raises:
        BadInputError: Where it has no last step: neither epochs of a known length nor `max_steps`.
    """
    steps = trainer.estimated_stepping_batches
    if not 0 < steps < math.inf:
        raise BadInputError(
            "this Trainer has no last step, so progress is unknown: "
            "give Trainer(max_steps=...), or distillation_loss(..., progress=...)"
        )
    return min(float(trainer.global_step / steps), 1.0)


def _distribution(module: type) -> str:
    """The distribution that a module's `LightningModule` is from: Lightning is published under two names."""
    old = any(base.__module__.startswith("pytorch_lightning.") for base in module.__mro__)
    return "pytorch-lightning" if old else "lightning"
