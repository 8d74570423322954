"""Integrations of NVIDIA ModelOpt: a criterion for its `kd_loss` mode, and a mixin for its `KDTrainer`.

    import modelopt.torch.distill as mtd
    from rltemp.integrations.modelopt import DistillationLoss

    config = {"teacher_model": teacher, "criterion": DistillationLoss("universal"), "loss_balancer": ...}
    model = mtd.convert(student, mode=[("kd_loss", config)])
    ...
    loss = model.compute_kd_loss(student_loss=cross_entropy, labels=labels, progress=step / steps)

docs/integrations/modelopt.md has the details.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.modules.loss import _Loss

from rltemp.errors import BadInputError
from rltemp.integrations.contract import MethodLike, controller_of, mean_of
from rltemp.integrations.host_versions import tested_with
from rltemp.integrations.trainers import IGNORED, HostLossTrainer
from rltemp.kd.names import lookup

HOST, TESTED = "nvidia-modelopt", ">=0.47,<0.48"


class DistillationLoss(_Loss):
    """A criterion on logits `[..., C]`: the method's weighted divergence, with temperatures for each sample.

    It replaces the host's `LogitsDistillationLoss`. It includes the method's `kd_weight`, but not its cross-entropy,
    warm-up and second divergence: the host's balancer adds the student's own loss.

    Args:
        controller: What `Controller` takes: `"universal"`, `"dtkd"`, a policy file, a rule, a Method.
        reduction: `"mean"` over samples (the host's own mean is over samples and classes), `"sum"`, or `"none"` for
            one number a sample, `[...]`, which `compute_kd_loss(loss_reduction_fn=...)` then reduces.
    """

    def __init__(self, controller: MethodLike = "universal", reduction: str = "mean") -> None:
        tested_with(HOST, TESTED)
        super().__init__(reduction=lookup({name: name for name in ("mean", "sum", "none")}, reduction, "reduction"))
        self.controller = controller_of(controller)

    def forward(
        self,
        logits_s: Tensor,
        logits_t: Tensor,
        labels: Tensor | None = None,
        progress: float | Tensor = 0.0,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The loss in nats; `compute_kd_loss` passes its keyword arguments on to here.

        Args:
            logits_s: The student's, `[..., C]`.
            logits_t: The teacher's.
            labels: `[...]`, where the method's features need them.
            progress: Of the run, 0..1.
            mask: `[...]` bool, False where there is no sample: 0 there, and not counted by a mean.
        """
        losses = self.controller.kd(logits_s, logits_t, labels, progress, mask)
        if self.reduction == "mean":
            return mean_of(losses, mask)
        return losses.sum() if self.reduction == "sum" else losses


class KDTrainerMixin(HostLossTrainer):
    """A base class to name before the host's `KDTrainer`.

    The loss is the method's weighted divergence, `kd_weight` included, mean over the tokens of the whole accumulated
    batch. The temperature of the host's `DistillArguments` is not used.

    Raises:
        BadInputError: Where Liger's fused loss is switched on: it has no logits and one temperature.
    """

    host = HOST
    tested = TESTED
    _last_teacher_outputs: Any  # the host's

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.use_liger_kernel:
            raise BadInputError(
                "use_liger_kernel=True fuses the loss over hidden rows at one temperature; "
                "set it to False: a temperature for each token needs KDTrainer's loss on logits"
            )

    def _standard_kd_loss(
        self, outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None, **_: Any
    ) -> Tensor:
        student, teacher = outputs.logits[..., :-1, :], self._last_teacher_outputs.logits[..., :-1, :]
        self._last_teacher_outputs = None  # the host drops them here too
        if labels is None:
            raise BadInputError("the batch has no `labels`, which say where samples are (any class but -100)")
        labels = labels[..., 1:]
        mask = labels != IGNORED
        losses = self.watched(mask).kd(student, teacher, labels, self.progress, mask)
        return self.over_items(losses, mask, num_items_in_batch)
