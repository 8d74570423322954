"""A plug for Hugging Face's `transformers.Trainer`: it minimises a method's whole objective under a teacher.

    from transformers import Trainer
    from rltemp.integrations.transformers import TrainerMixin

    class Distiller(TrainerMixin, Trainer):
        pass

    Distiller(model=student, teacher_model=teacher, controller="universal", args=..., train_dataset=...).train()

docs/integrations/transformers.md has it in full.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rltemp.errors import BadInputError
from rltemp.integrations.trainers import IGNORED, ControlledTrainer


class TrainerMixin(ControlledTrainer):
    """Stands before `transformers.Trainer`, or a trainer made from it, among the bases of your own trainer.

    For every model whose logits are `[..., C]` and labels `[...]`: classification `[B, C]`, token classification and
    language models `[B, T, V]`; the labels of causal models are shifted by one, as in their own loss, and a label of
    -100 is no sample. The model's own loss is not computed: the method's cross-entropy is in its objective.

    Args:
        *args: The trainer's own.
        teacher_model: Same classes as the model's, fed with the same inputs; frozen, in eval mode, without a graph.
        controller: A `Controller`, or what one is made from: `"universal"`, `"dtkd"`, a policy file, a rule, a Method.
        **kwargs: The trainer's own.

    Raises:
        BadInputError: Where logits, labels or classes do not fit, a batch has no labels, or the trainer was given a
            loss of its own (`compute_loss_func`, `label_smoothing_factor`).
    """

    _loss_shifts_labels: bool  # the trainer's: whether its model's own loss does

    def __init__(self, *args: Any, teacher_model: nn.Module, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if getattr(self, "compute_loss_func", None) is not None or self.args.label_smoothing_factor:
            raise BadInputError(
                "the controller's objective is the loss of this trainer: give neither compute_loss_func nor "
                "label_smoothing_factor (the weight of the labels is the method's, as in 'dtkd:ce_weight=0.5')"
            )
        self.teacher_model = self.accelerator.prepare_model(teacher_model.requires_grad_(False), evaluation_mode=True)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective, in nats a sample; with the student's outputs behind it where they are asked for."""
        if (labels := inputs.get("labels")) is None:
            raise BadInputError(
                "the batch has no `labels`, which say where samples are (any class but -100) and what the "
                f"cross-entropy needs; it has {sorted(inputs)}"
            )
        own = {name: value for name, value in inputs.items() if name not in ("labels", "shift_labels")}
        if getattr(getattr(self.accelerator.unwrap_model(model), "config", None), "is_encoder_decoder", False):
            own["labels"] = labels  # from which the model makes what its decoder reads
        outputs = model(**own)
        student, teacher = logits_of(outputs), self.teacher_logits(own)
        if self._loss_shifts_labels:
            student, teacher, labels = student[..., :-1, :], teacher[..., :-1, :], labels[..., 1:]
        mask = labels != IGNORED
        losses = self.watched(mask).loss(student, teacher, labels, self.progress, mask)
        loss = self.over_items(losses, mask, num_items_in_batch)
        self.loss_is_scaled_for_ga = num_items_in_batch is not None
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def teacher_logits(self, inputs: Mapping[str, Any]) -> Tensor:
        """The teacher's logits for the student's inputs; override where the teacher reads others."""
        self.teacher_model.eval()
        return logits_of(self.teacher_model(**inputs))


def logits_of(outputs: Any) -> Tensor:
    """The logits of a model of Hugging Face's, which answers a mapping or a tuple."""
    logits: Tensor = outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
    return logits
