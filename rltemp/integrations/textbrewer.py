"""TextBrewer: a soft loss and its weight, registered by name for `DistillationConfig`.

    config = DistillationConfig(**register("universal"))

The loss is the method's: two temperatures and a weight for every sample. See docs/integrations/textbrewer.md.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rltemp.integrations.contract import Controller, MethodLike, RecordingController
from rltemp.integrations.host_versions import tested_with
from rltemp.kd.method import Method, soft_part

TESTED = ">=0.2.1,<0.3"


class Scheduled:
    """What TextBrewer calls for a loss and, after every optimizer step, for its weight.

    Args:
        method: A method without a cross-entropy.
        kd_loss_weight: TextBrewer's weight of the soft loss, >= 0.
    """

    def __init__(self, method: Method, kd_loss_weight: float) -> None:
        self.controller = RecordingController(method)
        self.kd_loss_weight = kd_loss_weight
        self.progress = 0.0

    def loss(self, logits_S: Tensor, logits_T: Tensor, temperature: Any = None) -> Tensor:  # noqa: N803
        """The method's weighted divergences with warm-up, mean over the samples, `[]`, in nats."""
        return self.controller.loss(logits_S, logits_T, progress=self.progress).mean()

    def weight(self, done: float) -> float:
        """The weight, unchanged; `done` tells how much of the run is done. After 1 a new run begins at 0."""
        self.progress = done if done < 1.0 else 0.0
        return self.kd_loss_weight


def register(
    method: MethodLike = "universal",
    kd_loss_weight: float | None = None,
    name: str = "rltemp",
) -> dict[str, Any]:
    """Register a method with TextBrewer and return what `DistillationConfig` needs of it.

    Args:
        method: As `rltemp.integrations.Controller` takes it; it sees no labels.
        kd_loss_weight: What TextBrewer multiplies the soft loss by, >= 0; None for the method's own `kd_weight`.
        name: In TextBrewer's tables.

    Returns:
        Keyword arguments of `textbrewer.DistillationConfig`. A registration serves one run at a time.
    """
    tested_with("textbrewer", TESTED)
    from textbrewer.presets import register_new

    method = Controller(method).method
    soft, weight = soft_part(method)
    scheduled = Scheduled(soft, weight if kd_loss_weight is None else kd_loss_weight)
    register_new("kd_loss", name, scheduled.loss)
    register_new("weight_scheduler", name, scheduled.weight)
    return {
        "kd_loss_type": name,
        "kd_loss_weight": scheduled.kd_loss_weight,
        "kd_loss_weight_scheduler": name,  # called after every step, which also tells the progress
        "hard_label_weight": method.ce_weight,
    }
