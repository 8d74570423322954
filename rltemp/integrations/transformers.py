"""Integration of Hugging Face's `transformers.Trainer`: it minimises the whole loss of a method.

    from transformers import Trainer
    from rltemp.integrations.transformers import TrainerMixin

    class Distiller(TrainerMixin, Trainer):
        pass

    Distiller(model=student, teacher_model=teacher, controller="universal", args=..., train_dataset=...).train()

docs/integrations/transformers.md has the details.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rltemp.errors import BadInputError
from rltemp.integrations.trainers import IGNORED, ControlledTrainer
from rltemp.kd.sparse_teacher import SparseTeacher

OF_TEACHER = ("teacher_ids", "teacher_log_probs", "teacher_tail")
"""What a batch has of a teacher of which only the top is known."""


class TrainerMixin(ControlledTrainer):
    """A base class to name before `transformers.Trainer`, or before a trainer derived from it.

    It takes every model whose logits are `[..., C]` and labels `[...]`: classification `[B, C]`, token classification
    and language models `[B, T, V]`. Labels of causal models are shifted by one, as in their own loss; a label of -100
    marks no sample. The model's own loss is not computed: the method's loss has a cross-entropy.

    Args:
        *args: The trainer's own.
        teacher_model: Same classes as the model's, fed with the same inputs; frozen, in eval mode, without a graph.
            None where batches bring what is known of the teacher: `teacher_ids`, `teacher_log_probs` `[..., K]`, and
            `teacher_tail` `[..., 4]` or `[..., 6]`, if there is one (`rltemp.SparseTeacher`).
        controller: What `Controller` takes: `"universal"`, `"dtkd"`, a policy file, a rule, a Method. The default,
            `"fixed:1"`, is for language models.
        **kwargs: The trainer's own.

    Raises:
        BadInputError: Where logits, labels or classes do not fit, a batch has no labels, or the trainer was given a
            loss of its own (`compute_loss_func`, `label_smoothing_factor`).
    """

    _loss_shifts_labels: bool  # the trainer's: whether its model's own loss does

    def __init__(self, *args: Any, teacher_model: nn.Module | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if getattr(self, "compute_loss_func", None) is not None or self.args.label_smoothing_factor:
            raise BadInputError(
                "the controller computes the loss of this trainer: give neither compute_loss_func nor "
                "label_smoothing_factor (the method has a coefficient for the labels, as in 'dtkd:ce_weight=0.5')"
            )
        if teacher_model is not None:
            teacher_model = self.accelerator.prepare_model(teacher_model.requires_grad_(False), evaluation_mode=True)
        self.teacher_model = teacher_model

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss in nats a sample; with `return_outputs`, the pair of it and the student's outputs."""
        if (labels := inputs.get("labels")) is None:
            raise BadInputError(
                "the batch has no `labels`, which say where samples are (any class but -100) and what the "
                f"cross-entropy needs; it has {sorted(inputs)}"
            )
        own = {name: value for name, value in inputs.items() if name not in ("labels", "shift_labels", *OF_TEACHER)}
        if getattr(getattr(self.accelerator.unwrap_model(model), "config", None), "is_encoder_decoder", False):
            own["labels"] = labels  # the model makes the decoder's input of them
        outputs = model(**own)
        student, teacher = logits_of(outputs), self._teacher(inputs, own)
        if self._loss_shifts_labels:
            student, labels = _but_last(student), labels[..., 1:]
            teacher = teacher.each(_but_last) if isinstance(teacher, SparseTeacher) else _but_last(teacher)
        mask = labels != IGNORED
        losses = self.watched(mask).loss(student, teacher, labels, self.progress, mask)
        loss = self.over_items(losses, mask, num_items_in_batch)
        self.loss_is_scaled_for_ga = num_items_in_batch is not None
        return (loss, outputs) if return_outputs else loss

    def _teacher(self, inputs: Mapping[str, Any], own: Mapping[str, Any]) -> Tensor | SparseTeacher:
        if OF_TEACHER[0] in inputs:
            return SparseTeacher(*(inputs.get(name) for name in OF_TEACHER))  # type: ignore[arg-type]  # which it refuses
        return self.teacher_logits(own)

    @torch.no_grad()
    def teacher_logits(self, inputs: Mapping[str, Any]) -> Tensor:
        """The teacher's logits for the student's inputs; override it where the teacher reads others."""
        if self.teacher_model is None:
            raise BadInputError(f"give a teacher_model, or batches with {', '.join(OF_TEACHER[:2])}")
        self.teacher_model.eval()
        return logits_of(self.teacher_model(**inputs))


def _but_last(values: Tensor) -> Tensor:
    return values[..., :-1, :]


def logits_of(outputs: Any) -> Tensor:
    """The logits in the outputs of a Hugging Face model, which are a mapping or a tuple."""
    logits: Tensor = outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
    return logits
