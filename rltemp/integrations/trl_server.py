"""Integration of TRL's `ServerDistillationTrainer`, whose teacher is a server that tells its likeliest classes.

    from trl.experimental.server_distillation import ServerDistillationTrainer
    from rltemp.integrations.trl_server import ServerDistillationTrainerMixin

    class Distiller(ServerDistillationTrainerMixin, ServerDistillationTrainer):
        pass

    Distiller(model=student, controller="fixed:1", args=..., train_dataset=...).train()

docs/integrations/trl.md has the details.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rltemp.errors import BadInputError
from rltemp.integrations.contract import mean_of
from rltemp.integrations.trainers import IGNORED, HostLossTrainer
from rltemp.kd.sparse_teacher import SparseTeacher

log = logging.getLogger(__name__)


class ServerDistillationTrainerMixin(HostLossTrainer):
    """A base class to name before `trl.experimental.server_distillation.ServerDistillationTrainer`.

    With `beta=0` the loss is the method's divergence between K + 1 buckets: the `loss_top_k` classes that the server
    tells, and all others. The teacher's temperature counts as 1 where it is above: what the top holds then is not
    known. With `beta` above 0 the server tells the sampled token alone, which has no temperature: the host's own loss
    of a token is multiplied by its weight, and no more.

    Raises:
        BadInputError: Where the host's `temperature` is not 1, or `loss_add_tail` is off.
    """

    host = "trl"
    tested = ">=1.16,<1.17"
    _weights: Tensor | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.temperature != 1:
            raise BadInputError(
                f"temperature={self.args.temperature}: the host asks its server for log-probabilities at this "
                "temperature, too; needed is 1, the controller has the others"
            )
        if not self.args.loss_add_tail:
            raise BadInputError("loss_add_tail=False: the controller's loss has a bucket for the tail; needed is True")
        if self.args.beta:
            log.info(
                "beta=%s: the server tells the sampled token alone, which has no temperature; its loss is weighted",
                self.args.beta,
            )

    def _compute_server_forward_kl_loss(
        self, teacher_result: Mapping[str, Tensor], student_log_probs: Tensor, labels: Tensor
    ) -> Tensor:
        """The mean loss of the completion's tokens, as the host calls it; its log-probabilities serve as logits."""
        mask = labels != IGNORED
        teacher = SparseTeacher(teacher_result["topk_token_ids"], teacher_result["topk_logprobs"])
        return mean_of(self.watched(mask).kd(student_log_probs, teacher, labels, self.progress, mask), mask)

    def _compute_server_sparse_top_1_divergence_loss(
        self, teacher_result: Mapping[str, Tensor], student_log_probs: Tensor, completion_tokens: Tensor, labels: Tensor
    ) -> Any:
        mask = labels != IGNORED
        sampled = SparseTeacher(completion_tokens.unsqueeze(-1), teacher_result["actual_logprobs"].unsqueeze(-1))
        found = self.watched(mask).temperatures(student_log_probs, sampled, labels, self.progress, mask)
        self._weights = self.controller.method.kd_weight * found.weight
        try:
            return super()._compute_server_sparse_top_1_divergence_loss(  # type: ignore[misc]
                teacher_result=teacher_result,
                student_log_probs=student_log_probs,
                completion_tokens=completion_tokens,
                labels=labels,
            )
        finally:
            self._weights = None

    def _reduce_divergence_loss(self, jsd: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Weigh every token's divergence `[B, T, S]` before the host takes their mean."""
        if self._weights is not None:
            jsd = self._weights.unsqueeze(-1) * jsd
        return super()._reduce_divergence_loss(jsd, *args, **kwargs)  # type: ignore[misc]
