"""How one network is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from rltemp.errors import BadInputError
from rltemp.kd.checks import positive
from rltemp.kd.names import lookup


@dataclass(frozen=True)
class Recipe:
    """How one network is trained: SGD with momentum and a learning rate that falls over the run.

    Args:
        epochs: Passes over the training split, >= 1.
        batch_size: Samples a step; the last incomplete batch of an epoch is dropped.
        learning_rate: At the first step.
        momentum: Of SGD, 0 <= momentum < 1.
        weight_decay: Of SGD, >= 0.
        schedule: `cosine` to zero, `step` (a tenth at 5/8, 6/8 and 7/8 of the run, as the CIFAR-100 recipes of the
            field do at epochs 150, 180 and 210 of 240), or `constant`.
        precision: `bfloat16` and `float16` run the networks under autocast, float16 with a scaled loss and one student
            at a time; losses and temperatures stay float32.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate"):
            positive(getattr(self, name), "recipe", name)
            if name != "learning_rate" and not isinstance(getattr(self, name), int):
                raise BadInputError(f"recipe: {name} must be a whole number; got {getattr(self, name)}")
        if not 0 <= self.momentum < 1 or not 0 <= self.weight_decay < math.inf:
            raise BadInputError(
                f"recipe: momentum must be in [0, 1) and weight_decay at least 0; "
                f"got {self.momentum} and {self.weight_decay}"
            )
        lookup(dict.fromkeys(("cosine", "step", "constant")), self.schedule, "schedule")
        lookup(dict.fromkeys(("float32", "bfloat16", "float16")), self.precision, "precision")

    def steps(self, size: int) -> int:
        """Optimizer steps of a run on `size` samples.

        >>> Recipe(epochs=10, batch_size=50, learning_rate=0.1).steps(1049)
        200
        """
        return size // self.batch_size * self.epochs

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of step `step` (from 0) of `steps`.

        >>> Recipe(1, 1, 0.1).rate(50, 100), Recipe(1, 1, 0.1, schedule="step").rate(62, 100)
        (0.05, 0.1)
        """
        done = step / steps
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
        if self.schedule == "step":
            return self.learning_rate * 0.1 ** sum(done >= milestone for milestone in (5 / 8, 6 / 8, 7 / 8))
        return self.learning_rate
