"""Distillation of a torchvision detector: a temperature for every proposal that its box head classifies.

    distillation = DetectorDistillation(student, teacher, "universal")
    losses = student(images, targets)        # torchvision's own dict, with `loss_kd` added to it

Both networks classify the same boxes: the P proposals of a batch that torchvision samples for the student's box head.
The teacher reads the pictures through its own transform and backbone, and pools its features at the student's boxes,
scaled where its pictures have another size. Class logits of both are `[P, C]`; class 0 is the background.

`loss_kd` is the mean of the method's divergences over the proposals, as torchvision's `loss_classifier` is the mean of
their cross-entropies. Background proposals count as much as others; they are three of four or more at torchvision's
defaults. The detector keeps its own losses, so the method's `ce_weight` has no effect here. Its other coefficients,
its warm-up and `matched:` have.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.transform import resize_boxes

from rltemp.errors import BadInputError
from rltemp.integrations.contract import Controller, MethodLike
from rltemp.integrations.host_versions import tested_with
from rltemp.kd.checks import not_negative
from rltemp.kd.method import watch
from rltemp.kd.temperatures import Temperatures

LOSS = "loss_kd"
"""The distillation loss in the detector's dict."""

TESTED = ">=0.29,<0.30"


class DetectorDistillation:
    """Makes `student(images, targets)` return `loss_kd` beside torchvision's own losses, until it is removed.

    It puts five hooks on the student's modules. Torchvision's classes, a detector in eval mode, the weights and the
    state dict are not changed. Call `remove` before you copy or save the whole module: a copy would hold the teacher.

    Args:
        student: A `FasterRCNN` or another detector with box heads of the same kind (`MaskRCNN`, `KeypointRCNN`).
        teacher: A trained detector of such a kind, with the same classes in the same order. Every step puts it into
            eval mode.
        method: What `rltemp.integrations.Controller` takes, or a controller.
        weight: Coefficient of `loss_kd` beside the detector's own losses, 0 or more.

    Attributes:
        progress: How much of the run is done, 0..1; the training loop sets it, for methods that use it.
        temperatures: Those of the last step's proposals, `[P]` each, without a graph; None before the first step.
        counts: Number of proposals of each picture of the last step; they add up to P.

    Raises:
        BadInputError: Where a network has no box head to distil; in the student's forward pass, where the two have
            different numbers of classes.
    """

    def __init__(
        self,
        student: GeneralizedRCNN,
        teacher: GeneralizedRCNN,
        method: MethodLike = "universal",
        weight: float = 1.0,
    ) -> None:
        tested_with("torchvision", TESTED)
        heads = _box_heads(student, "student")
        _box_heads(teacher, "teacher")
        if student is teacher:
            raise BadInputError("student and teacher are one network; the teacher needs weights of its own")
        # Torchvision has the cross-entropy in its dict already.
        self._controller = Controller(watch(replace(Controller(method).method, ce_weight=0.0), self._keep))
        self.teacher, self.weight = teacher, not_negative(weight, "DetectorDistillation", "weight")
        self.progress = 0.0
        self.temperatures: Temperatures | None = None
        self.counts: list[int] = []
        self._images: list[Tensor] = []
        self._targets: list[dict[str, Tensor]] | None = None
        self._boxes: list[Tensor] = []
        self._sizes: list[tuple[int, int]] = []
        self._logits: Tensor | None = None
        self._hooks = [
            student.register_forward_pre_hook(self._before, with_kwargs=True),
            heads.register_forward_pre_hook(self._at_heads),
            heads.box_roi_pool.register_forward_hook(self._pooled),
            heads.box_predictor.register_forward_hook(self._predicted),
            heads.register_forward_hook(self._after),
        ]

    def remove(self) -> None:
        """Take the hooks off the student, and drop what they hold."""
        for hook in self._hooks:
            hook.remove()
        self._forget()

    def _before(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._forget()
        self.temperatures = None
        self._images = args[0] if args else kwargs["images"]

    def _at_heads(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        self._targets = args[3]  # in the pixels of the student's transform, as its proposals are

    def _pooled(self, _: nn.Module, args: tuple[Any, ...], __: Tensor) -> None:
        _, self._boxes, self._sizes = args

    def _predicted(self, _: nn.Module, __: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        self._logits = output[0]

    def _after(self, heads: RoIHeads, _: tuple[Any, ...], output: tuple[Any, dict[str, Tensor]]) -> Any:
        if not heads.training:
            self._forget()
            return output
        detections, losses = output
        if LOSS in losses:
            raise BadInputError(f"the student has a {LOSS} already; remove() its first DetectorDistillation")
        losses = {**losses, LOSS: self.weight * self._loss(heads)}
        if not sum(self.counts):  # torchvision's own are means over nothing, nan
            losses |= dict.fromkeys(("loss_classifier", "loss_box_reg"), losses[LOSS])
        self._forget()
        return detections, losses

    def _loss(self, heads: RoIHeads) -> Tensor:
        assert self._logits is not None
        assert self._targets is not None
        self.counts = [len(boxes) for boxes in self._boxes]
        student, teacher = self._logits, self._teacher_logits()
        if student.shape != teacher.shape:
            raise BadInputError(
                f"the student's box head has {student.shape[-1]} classes and the teacher's {teacher.shape[-1]}, the "
                "background counted; both need the same classes in the same order: build them with one num_classes"
            )
        if not len(student):
            return 0.0 * student.float().sum()  # with a graph, as a step's backward needs
        labels = torch.cat(self._labels(heads))
        return self._controller.loss(student, teacher, labels, self.progress).mean()

    def _labels(self, heads: RoIHeads) -> list[Tensor]:
        """The class of every proposal, 0 for the background; torchvision does not hand them out."""
        assert self._targets is not None
        boxes = [target["boxes"].to(self._boxes[0].dtype) for target in self._targets]
        classes = [target["labels"] for target in self._targets]
        labels: list[Tensor] = heads.assign_targets_to_proposals(self._boxes, boxes, classes)[1]
        return labels

    @torch.no_grad()
    def _teacher_logits(self) -> Tensor:
        """The class logits of the teacher's box head for the student's proposals, `[P, C]`."""
        self.teacher.eval()
        heads: Any = self.teacher.roi_heads
        pictures, _ = self.teacher.transform(self._images)
        features = self.teacher.backbone(pictures.tensors)
        if isinstance(features, Tensor):
            features = {"0": features}
        boxes = [
            found if size == own else resize_boxes(found, list(size), list(own))
            for found, size, own in zip(self._boxes, self._sizes, pictures.image_sizes, strict=True)
        ]
        pooled = heads.box_roi_pool(features, boxes, pictures.image_sizes)
        logits: Tensor = heads.box_predictor(heads.box_head(pooled))[0]
        return logits

    def _keep(self, temperatures: Temperatures) -> None:
        self.temperatures = temperatures

    def _forget(self) -> None:
        self._images, self._boxes, self._sizes = [], [], []
        self._targets = self._logits = None


def _box_heads(network: nn.Module, name: str) -> Any:
    """The module that classifies proposals."""
    heads = getattr(network, "roi_heads", None)
    if not isinstance(network, GeneralizedRCNN) or not isinstance(heads, RoIHeads):
        raise BadInputError(
            f"the {name} is a {type(network).__name__}; needed: a detector whose box head classifies proposals, as "
            "torchvision.models.detection.FasterRCNN does (unwrapped: the module in a DistributedDataParallel)"
        )
    return heads
