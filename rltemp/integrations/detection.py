"""Distillation of a torchvision detector: a temperature for every proposal that its box head classifies.

    distillation = DetectorDistillation(student, teacher, "universal")
    losses = student(images, targets)        # torchvision's own dict, with `loss_kd` added to it

Both networks classify the same boxes: the student's proposals that torchvision samples for its box head, P of a batch.
The teacher sees the pictures through its own transform and backbone, and pools its own features at the student's boxes,
scaled where its pictures are of another size. Class logits of both are `[P, C]`, class 0 is the background.

`loss_kd` is the mean over the P proposals of the method's divergences, as torchvision's `loss_classifier` is the mean
of their cross-entropies: background proposals, three of four and more at torchvision's default, count as much as
others. The detector's own losses stay as they are, so a method's weight of the cross-entropy (0.1 in plain
distillation) has no effect here; its other weights, its warm-up and `matched:` have.
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
from rltemp.integrations.contract import Controller, tested_with
from rltemp.kd.checks import not_negative
from rltemp.kd.method import Method, watch
from rltemp.kd.signals import Temperatures
from rltemp.kd.temperature_rule import TemperatureRule

LOSS = "loss_kd"
"""The distillation loss in the detector's dict."""

TESTED = ">=0.29,<0.30"


class DetectorDistillation:
    """Makes `student(images, targets)` return `loss_kd` beside torchvision's own losses, until it is removed.

    It is five hooks on the student's modules; no class of torchvision's is changed, and a detector in eval mode, the
    weights and the state dict stay as they are. `remove` takes the hooks off: do so before a copy of the whole module
    is made or saved, which would have the teacher in it.

    Args:
        student: A `FasterRCNN` or another detector with box heads of the same kind (`MaskRCNN`, `KeypointRCNN`).
        teacher: Likewise, trained, with the same classes in the same order. It is put in eval mode at every step.
        method: What `rltemp.integrations.Controller` takes, or the controller.
        weight: Of `loss_kd` beside the detector's own losses, 0 or more.

    Attributes:
        progress: How much of the run is done, 0..1: for the training loop to set, for methods that look at it.
        temperatures: Of the last step's proposals, `[P]` each, constants; None before the first.
        counts: Proposals of each picture of the last step; they add up to P.

    Raises:
        BadInputError: Where a network has no box head to distil, and, from the student's forward pass, where the two
            have not the same number of classes.
    """

    def __init__(
        self,
        student: GeneralizedRCNN,
        teacher: GeneralizedRCNN,
        method: str | Method | TemperatureRule | Controller = "universal",
        weight: float = 1.0,
    ) -> None:
        tested_with("torchvision", TESTED)
        heads = _box_heads(student, "student")
        _box_heads(teacher, "teacher")
        if student is teacher:
            raise BadInputError("student and teacher are one network; the teacher needs weights of its own")
        given = method if isinstance(method, Controller) else Controller(method)
        # Torchvision has the cross-entropy in its dict already.
        self._controller = Controller(watch(replace(given.method, ce_weight=0.0), self._keep))
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
        """Take the hooks off the student, and let go of what they hold."""
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
        """The class of every proposal, 0 for the background: torchvision keeps them to itself."""
        assert self._targets is not None
        boxes = [target["boxes"].to(self._boxes[0].dtype) for target in self._targets]
        classes = [target["labels"] for target in self._targets]
        labels: list[Tensor] = heads.assign_targets_to_proposals(self._boxes, boxes, classes)[1]
        return labels

    @torch.no_grad()
    def _teacher_logits(self) -> Tensor:
        """What the teacher's box head makes of the student's proposals, `[P, C]`."""
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
    """The part that classifies proposals."""
    heads = getattr(network, "roi_heads", None)
    if not isinstance(network, GeneralizedRCNN) or not isinstance(heads, RoIHeads):
        raise BadInputError(
            f"the {name} is a {type(network).__name__}; needed: a detector whose box head classifies proposals, as "
            "torchvision.models.detection.FasterRCNN does (unwrapped: the module in a DistributedDataParallel)"
        )
    return heads
