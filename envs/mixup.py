"""Mix-up in the first runs of a policy's training, so that the policy meets samples that a run would not show it.

RLKD's "efficient exploration", after the code and page (not the text) of Zhang et al. (2024),
https://arxiv.org/abs/2407.00115. Samples are ranked by the student's entropy. Those in the second tenth, of high
entropy, are mixed pairwise into the places of those in the ninth, of low: image = r * high + (1 - r) * low. Here the
labels' losses are mixed as the images are, and the teacher sees the mixed image; the released code keeps the place's
own label. It ranks the data set by means over past epochs; here a batch is ranked by the student as it is now.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, cast

import torch
from torch import Tensor

from rltemp.data.dataset import Batch
from rltemp.errors import BadInputError
from rltemp.kd.divergences import log_softmax
from rltemp.kd.method import AnyObjective, Method, StepLoss
from rltemp.kd.signals import Signals
from rltemp.training.distill import Distillation
from rltemp.training.loss_scaling import autocast

FIRST_SHARE, LAST_SHARE = 1.0, 0.7
"""The high-entropy image's part of a mixed one, in the first run that mixes and in the last."""


@dataclass(frozen=True)
class MixedSignals(Signals):
    """Signals of a batch with mixed samples in it.

    Args:
        second_labels: `[...]`, the label of the smaller part; `labels` has that of the larger.
        share: `[...]`, the larger part, 0..1; 1 where a sample is not mixed.
    """

    second_labels: Tensor | None = None
    share: Tensor | None = None


@dataclass(frozen=True, repr=False)
class MixedMethod(Method):
    """A method under which the loss of a mixed sample is that of both labels in the proportions of the images."""

    def step_loss(self, signals: Signals) -> StepLoss:
        """As the base; what does not depend on labels is the same of both and comes out as it is."""
        if not isinstance(signals, MixedSignals) or signals.share is None:
            return super().step_loss(signals)
        second = super().step_loss(replace(signals, labels=signals.second_labels))
        first = super().step_loss(signals)
        return first._replace(loss=torch.lerp(second.loss, first.loss, signals.share))


def share_of_run(run: int, runs: int) -> float | None:
    """The high-entropy part in run `run` (from 0) of `runs` that mix, falling linearly; None after them.

    >>> [share_of_run(run, 4) for run in (0, 1, 3, 4)]
    [1.0, 0.9, 0.7, None]
    """
    if run >= runs:
        return None
    return FIRST_SHARE - (FIRST_SHARE - LAST_SHARE) * run / max(runs - 1, 1)


def pairs(student_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Which samples of a batch give way to a mixture, and what is mixed into them.

    Args:
        student_logits: `[..., B, C]`.

    Returns:
        Positions `[..., B // 10]` in the batch: the places (80 to 90 % of the samples have a higher entropy), and
        for each its partner (10 to 20 % do).

    Raises:
        BadInputError: Where a batch has no ten samples.
    """
    size = student_logits.shape[-2]
    if size < 10:
        raise BadInputError(f"mix-up pairs tenths of a batch: needed at least 10 samples, got {size}; switch it off")
    log_probs = log_softmax(student_logits.detach().float())
    order = (log_probs.exp() * log_probs).sum(-1).argsort(-1)  # minus the entropy: the highest comes first
    count, low = size // 10, 8 * size // 10
    return order[..., low : low + count], order[..., count : 2 * count]


class MixedDistillation(Distillation):
    """A run that mixes samples of every batch; otherwise as its base.

    Args:
        *args: As the base.
        share: The high-entropy image's part r, 0..1.
        **kwargs: As the base.
    """

    def __init__(self, *args: Any, share: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        inputs = self.split.inputs
        if self.problem.tokens or not isinstance(inputs, Tensor) or not self.problem.labelled:
            raise BadInputError("mix-up blends pictures or rows with labels; this task has none. Give --mixup 0")
        self.share = share
        self._pairs: tuple[Tensor, Tensor] | None = None

    def attach(self, method: AnyObjective) -> AnyObjective:
        """As the base; the method mixes the losses of both labels."""
        attached = super().attach(method)
        if not isinstance(attached, Method):
            return attached
        return cast(AnyObjective, MixedMethod(**vars(attached)))

    def signals_at(self, step: int, parameters: dict[str, Tensor] | None = None) -> MixedSignals:
        """The signals of a step's batch, mixed by what the student says of the samples as they were."""
        # Given parameters run on copies of the buffers: the look at the plain batch leaves no trace in a batch norm.
        own: dict[str, Tensor] = parameters or dict(self.student.named_parameters())
        with torch.no_grad():
            plain = super().signals_at(step, own)
        self._pairs = places, partners = pairs(plain.student_logits)
        try:
            mixed = super().signals_at(step, parameters)
        finally:
            self._pairs = None
        same = {field.name: getattr(mixed, field.name) for field in fields(Signals)}
        labels = same.pop("labels")
        return MixedSignals(
            **same,
            labels=labels.scatter(-1, places, labels.gather(-1, partners)),
            second_labels=labels,
            share=mixed.full(1.0).scatter(-1, places, self.share),
        )

    def _batch(self, step: int, index: Tensor) -> Batch:
        batch = super()._batch(step, index)
        if self._pairs is None:
            return batch
        images, (places, partners) = batch.inputs, self._pairs
        mixed = torch.lerp(_rows(images, places), _rows(images, partners), self.share)
        return batch._replace(inputs=images.scatter(-4, places[..., None, None, None].expand_as(mixed), mixed))

    @torch.no_grad()
    def _teacher_logits(self, step: int, index: Tensor, images: Tensor) -> Tensor:
        logits = super()._teacher_logits(step, index, images)
        if self._pairs is None or self.teacher_logits is None:  # without stored logits the teacher saw the mixtures
            return logits
        places = self._pairs[0]
        with autocast(self.problem.device, self.recipe.precision):
            assert self.problem.teacher is not None  # mix-up needs one that can be asked
            mixed = self.problem.teacher(_rows(images, places).flatten(0, places.dim() - 1)).float()
        mixed = mixed.view(*places.shape, -1)
        return logits.scatter(-2, places[..., None].expand_as(mixed), mixed)


def _rows(images: Tensor, positions: Tensor) -> Tensor:
    """Images `[..., K, C, H, W]` at positions `[..., K]` of `[..., B, C, H, W]`."""
    return torch.take_along_dim(images, positions[..., None, None, None], -4)
