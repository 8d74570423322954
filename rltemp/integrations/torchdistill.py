"""torchdistill: a registered loss, so that a YAML file alone brings the temperatures.

    dependencies:
      - name: 'rltemp.integrations.torchdistill'

registers the loss `TemperatureKDLoss` and the process `follow_progress`, which a stage names as its
`pre_epoch_process`: it tells the loss how far the stage is. docs/integrations/torchdistill.md has a whole YAML.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from rltemp.errors import BadInputError
from rltemp.integrations.contract import Controller, RecordingController
from rltemp.integrations.host_versions import tested_with

TESTED = ">=1.1.5,<1.2"


class TemperatureKDLoss(nn.Module):
    """A mid-level loss: the whole loss of a method, cross-entropy included, mean over the batch, in nats.

    Args:
        student_module_path: Path of the module with the student's logits `[B, C]`; `'.'` is the model itself.
        student_module_io: `'output'` or `'input'` of that module.
        teacher_module_path: Path of the module with the teacher's logits.
        teacher_module_io: `'output'` or `'input'` of that module.
        rule: As `rltemp.integrations.Controller` takes it: `'universal'`, `'dtkd'`, the path of a policy file.
        ce_weight: Replaces the method's coefficient of the cross-entropy, >= 0; 0 where another term brings it.
        kd_weight: Replaces the method's coefficient of the divergence, >= 0.
    """

    def __init__(
        self,
        student_module_path: str = ".",
        student_module_io: str = "output",
        teacher_module_path: str = ".",
        teacher_module_io: str = "output",
        rule: str = "universal",
        ce_weight: float | None = None,
        kd_weight: float | None = None,
    ) -> None:
        super().__init__()
        tested_with("torchdistill", TESTED)
        method = Controller(rule).method
        if ce_weight is not None:
            method = replace(method, ce_weight=float(ce_weight))
        if kd_weight is not None:
            method = replace(method, kd_weight=float(kd_weight))
        self.controller = RecordingController(method)
        self.student = student_module_path, student_module_io
        self.teacher = teacher_module_path, teacher_module_io
        self.progress: StageProgress | None = None

    def forward(
        self, student_io_dict: dict[str, Any], teacher_io_dict: dict[str, Any], targets: Tensor | None = None
    ) -> Tensor:
        """The loss, `[]`.

        Raises:
            BadInputError: Where nothing tells how far the training is, or tensors do not fit.
        """
        if self.progress is None:
            raise BadInputError(
                "TemperatureKDLoss does not know how far the training is; "
                "add to the stage in the YAML: pre_epoch_process: 'follow_progress'"
            )
        student, teacher = (
            io[path][key]
            for io, (path, key) in zip((student_io_dict, teacher_io_dict), (self.student, self.teacher), strict=True)
        )
        return self.controller.loss(student, teacher, targets, self.progress.now()).mean()

    def __str__(self) -> str:
        return f"TemperatureKDLoss({self.controller.method.name})"


class StageProgress:
    """The progress of a box's stage: the whole epochs that are done, and the optimizer steps of the current one.

    Args:
        box: A `DistillationBox` at the start of an epoch.
        epoch: Which, from 0, as `pre_epoch_process` was told; a resumed run begins above 0.
    """

    def __init__(self, box: Any, epoch: int) -> None:
        self._box, self._at_start = box, box.stage_grad_count
        self._epochs, before = box.num_epochs, 0
        if (stage := getattr(box, "stage_number", None)) is not None:
            self._epochs = box.train_config[f"stage{stage}"]["num_epochs"]
            before = box.stage_end_epoch - self._epochs
        self._epoch = epoch - before

    def now(self) -> float:
        """The fraction of the stage that is done, 0..1."""
        accumulated = self._box.grad_accum_step
        batches = (self._box.stage_grad_count // accumulated - self._at_start // accumulated) * accumulated
        return float(min((self._epoch + batches / len(self._box.train_data_loader)) / self._epochs, 1.0))


def follow_progress(self: Any, epoch: int | None = None, **kwargs: Any) -> None:
    """Run torchdistill's process before an epoch, put the teacher into eval mode, and tell the losses the progress.

    torchdistill itself leaves the teacher in the mode that it came in. A teacher that learns too is not touched.
    """
    from torchdistill.core.interfaces import pre_epoch_proc

    pre_epoch_proc.default_pre_epoch_process_with_teacher(self, epoch=epoch, **kwargs)
    if not self.teacher_updatable:
        self.teacher_model.eval()
    if epoch is None:
        raise BadInputError("follow_progress needs the epoch: call box.pre_epoch_process(epoch=epoch)")
    for loss in _losses(self.criterion):
        loss.progress = StageProgress(self, epoch)


def _losses(criterion: Any) -> Iterator[TemperatureKDLoss]:
    """The losses of that kind among the terms of a high-level loss."""
    for term, _ in getattr(criterion, "term_dict", {}).values():
        if isinstance(term, TemperatureKDLoss):
            yield term


# torchdistill imports this module when it reads a YAML. Others may import it without torchdistill, or where its
# torchvision does not fit its torch (a RuntimeError).
with contextlib.suppress(ImportError, RuntimeError):
    from torchdistill.core.interfaces.registry import register_pre_epoch_proc_func
    from torchdistill.losses.registry import register_mid_level_loss

    register_mid_level_loss(TemperatureKDLoss)
    register_pre_epoch_proc_func(follow_progress)
