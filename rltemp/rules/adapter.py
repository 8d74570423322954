"""PESF-KD: a small network on the teacher's logits that learns with the student.

It is a divergence with parameters. A run puts them into its optimizer as it does a rule's (`Distillation.attach`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rltemp.errors import BadInputError
from rltemp.kd.checks import not_negative, positive
from rltemp.kd.divergences import forward_kl, log_softmax
from rltemp.kd.method import Method
from rltemp.rules.curriculum import Learned

HIDDEN = 32
"""Hidden units of the adapter."""


class AdaptedTeacher(Learned):
    """KL from the adapted teacher, plus the adapted teacher's own cross-entropy with the labels.

    The student's gradient is that of the first term; the adapter goes along both. It begins as the teacher itself.

    Args:
        temperature: T > 0, which the logits that it is given were divided by.
        anchor: Coefficient of the cross-entropy, >= 0.
    """

    uses_labels = True  # read by `rltemp.kd.method.needs_labels`
    inner: nn.Parameter
    inner_bias: nn.Parameter
    outer: nn.Parameter
    outer_bias: nn.Parameter

    def __init__(self, temperature: float, anchor: float) -> None:
        super().__init__()
        self.temperature = positive(temperature, "pesf_kd", "temperature")
        self.anchor = not_negative(anchor, "pesf_kd", "anchor")

    def initialise(self, num_classes: int, seeds: int | Sequence[int]) -> None:
        """Make two layers, the second of zeros; each student of a stack has its own, from its own seed."""
        one = isinstance(seeds, int)
        drawn = [self._drawn(num_classes, seed) for seed in ([seeds] if isinstance(seeds, int) else seeds)]
        inner = drawn[0] if one else torch.stack(drawn)
        lead = inner.shape[:-2]
        self.inner, self.inner_bias = nn.Parameter(inner), nn.Parameter(torch.zeros(*lead, HIDDEN))
        self.outer = nn.Parameter(torch.zeros(*lead, HIDDEN, num_classes))
        self.outer_bias = nn.Parameter(torch.zeros(*lead, num_classes))

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        """One value a sample, `[...]`, of softened logits `[..., C]`."""
        if labels is None:
            raise BadInputError("PESF-KD ties its adapter to the labels; these signals carry none")
        adapted = self.adapted(self.temperature * teacher)
        own = -log_softmax(adapted).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        return forward_kl(student, adapted / self.temperature) + self.anchor / self.temperature**2 * own

    def adapted(self, teacher: Tensor) -> Tensor:
        """The teacher's logits `[..., C]` and what the adapter adds to them."""
        if "inner" not in self._parameters:
            self.initialise(teacher.shape[-1], 0)
        if teacher.shape[-1] != self.outer.shape[-1]:
            raise BadInputError(f"pesf_kd was made for {self.outer.shape[-1]} classes; got {teacher.shape[-1]}")
        centred = (teacher - teacher.mean(-1, keepdim=True)).to(self.inner.dtype)
        flat = centred.flatten(1, -2) if self.inner.dim() == 3 else centred.reshape(-1, centred.shape[-1])
        with torch.autocast(flat.device.type, enabled=False):
            hidden = torch.relu(flat @ self.inner + self.inner_bias.unsqueeze(-2))
            added = hidden @ self.outer + self.outer_bias.unsqueeze(-2)
        return teacher + added.reshape(teacher.shape).to(teacher.dtype)

    @staticmethod
    def _drawn(num_classes: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return (2 * torch.rand(num_classes, HIDDEN, generator=generator) - 1) / math.sqrt(num_classes)


def learns(method: Method) -> bool:
    """Whether a part of the method is learned in every run anew."""
    return isinstance(method.rule, Learned) or isinstance(method.divergence, Learned)
