"""Integration of sentence-transformers: a temperature for each query's candidates.

    from rltemp.integrations.sentence_transformers import QueryDistillationLoss, ProgressCallback

    loss = QueryDistillationLoss(student, controller="fixed:1")
    SentenceTransformerTrainer(model=student, loss=loss, callbacks=[ProgressCallback(loss)], ...).train()

The samples are queries, the classes their candidates, the logits scores: what `DistillKLDivLoss` compares at one
temperature. docs/integrations/sentence-transformers.md has the details.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss
from torch import Tensor
from transformers import TrainerCallback

from rltemp.errors import BadInputError
from rltemp.integrations.contract import MethodLike, controller_of
from rltemp.integrations.host_versions import tested_with


class QueryDistillationLoss(DistillKLDivLoss):  # type: ignore[misc]  # a host, maybe not here
    """The distillation term of a method, of the scores of each query's candidates, as a mean over the queries.

    Args:
        model: The student, a `SentenceTransformer`.
        controller: What `Controller` takes.
        **options: Of `DistillKLDivLoss`, but for its temperatures: `similarity_fct`.

    Attributes:
        progress: How much of the run is done, 0..1; `ProgressCallback` keeps it.

    Raises:
        BadInputError: For a temperature of the host's, or a rule that learns.
    """

    def __init__(self, model: Any, controller: MethodLike = "fixed:1", **options: Any) -> None:
        tested_with("sentence-transformers", ">=6.2,<6.3")
        if given := sorted(name for name in options if name.endswith("temperature")):
            raise BadInputError(f"the controller sets the temperatures of this loss: leave out {', '.join(given)}")
        super().__init__(model, **options)
        self.controller = controller_of(controller)
        self.progress = math.nan

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
        """The loss of embeddings `[B, H]`, a query's and its candidates', and the teacher's scores `[B, N]`."""
        query, *others = embeddings
        scores = torch.stack([self.similarity_fct(query, other) for other in others], 1)
        return self.controller.kd(scores, labels, progress=self.progress).mean()

    def get_config_dict(self) -> dict[str, Any]:
        """What the host writes on a model's card."""
        return {"controller": self.controller.method.name}


class ProgressCallback(TrainerCallback):  # type: ignore[misc]  # a host, maybe not here
    """Tells a loss how much of its trainer's run is done.

    Args:
        loss: A `QueryDistillationLoss`.
    """

    def __init__(self, loss: QueryDistillationLoss) -> None:
        self.loss = loss

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before every step."""
        self.loss.progress = min(state.global_step / max(state.max_steps, 1), 1.0)
