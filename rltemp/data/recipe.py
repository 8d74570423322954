"""How one network is trained: `Recipe`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from torch import nn
from torch.optim import Optimizer

from rltemp.errors import BadInputError
from rltemp.kd.checks import positive, whole
from rltemp.kd.names import lookup
from rltemp.models.optimizers import FIELDS, OptimizerFactory, default, described, make, name_of, unpacked

Schedule = Literal["cosine", "step", "linear", "constant"]
Precision = Literal["float32", "bfloat16", "float16"]
SGD_MOMENTUM = 0.9
FEWEST_STEPS, SMALLEST_BATCH = 8, 8
"""Of an epoch on data that hold less than one of the recipe's batches."""
_SAID_ALWAYS = ("epochs", "batch_size", "learning_rate", "momentum", "weight_decay", "schedule", "precision")


@dataclass(frozen=True, repr=False)
class Recipe:
    """How one network is trained: by which optimizer, and with which learning rate at which point of the run.

    Args:
        epochs: Passes over the training split, >= 1.
        batch_size: Samples a step; the last incomplete batch of an epoch is dropped.
        learning_rate: The largest, from which the schedule falls.
        momentum: Of an optimizer that takes one, 0 <= momentum < 1; None is 0.9 for `sgd`, else the optimizer's own.
        weight_decay: Of an optimizer that takes one, >= 0; None is the optimizer's own, 0 for `sgd`.
        schedule: What the rate does after the warm-up: `cosine` to zero, `linear` to zero, `step` (a tenth at 5/8, 6/8
            and 7/8, as the CIFAR-100 recipes of the field do at epochs 150, 180 and 210 of 240; or at `milestones`), or
            `constant`.
        precision: `bfloat16` and `float16` run the networks under autocast, float16 with a scaled loss and one student
            at a time; losses and temperatures stay float32.
        optimizer: A name of `torch.optim` in any case (`adamw`), a class or a partial of one, or a function from
            parameters to an optimizer. The learning rate, momentum and weight decay that it brings win over those here.
        warmup: Fraction of the run over which the rate grows linearly from 0, 0 <= warmup < 1.
        clip: Largest norm of a student's gradient, > 0; a longer one is scaled down to it. None: any.
        accumulate: Batches whose mean gradient makes one optimizer step, >= 1; what is left at the end makes the last.
        ema: Decay of a running mean of the weights, 0 <= ema < 1, which is evaluated and saved in their place; 0: none.
        label_smoothing: Share of the label that the cross-entropy spreads over all classes, 0 <= share < 1.
        milestones: Where `step` takes a tenth, as fractions of what follows the warm-up.

    Raises:
        BadInputError: Where a value cannot be, or the optimizer would ignore one.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float | None = None
    weight_decay: float | None = None
    schedule: Schedule = "cosine"
    precision: Precision = "float32"
    optimizer: str | OptimizerFactory = "sgd"
    warmup: float = 0.0
    clip: float | None = None
    accumulate: int = 1
    ema: float = 0.0
    label_smoothing: float = 0.0
    milestones: tuple[float, ...] = (5 / 8, 6 / 8, 7 / 8)

    def __post_init__(self) -> None:
        optimizer, brought = unpacked(self.optimizer)
        for name, value in {"optimizer": optimizer, **brought}.items():
            object.__setattr__(self, name, value)
        self._check_numbers()
        lookup(dict.fromkeys(get_args(Schedule)), self.schedule, "schedule")
        lookup(dict.fromkeys(get_args(Precision)), self.precision, "precision")
        for name in ("momentum", "weight_decay"):
            if getattr(self, name) and name not in brought and default(self.optimizer, name) is None:
                raise BadInputError(f"recipe: optimizer {name_of(self.optimizer)} takes no {name}; leave it out")

    def __repr__(self) -> str:
        return f"Recipe({', '.join(f'{name}={value!r}' for name, value in self.described().items())})"

    def _check_numbers(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate"):
            positive(getattr(self, name), "recipe", name)
            if name != "learning_rate" and not isinstance(getattr(self, name), int):
                raise BadInputError(f"recipe: {name} must be a whole number; got {getattr(self, name)}")
        if not 0 <= (self.momentum or 0.0) < 1 or not 0 <= (self.weight_decay or 0.0) < math.inf:
            raise BadInputError(
                f"recipe: momentum must be in [0, 1) and weight_decay at least 0; "
                f"got {self.momentum} and {self.weight_decay}"
            )
        for name in ("warmup", "ema", "label_smoothing"):
            if not isinstance(value := getattr(self, name), (int, float)) or not 0 <= value < 1:
                raise BadInputError(f"recipe: {name} must be in [0, 1); got {value!r}")
        if self.clip is not None:
            positive(self.clip, "recipe", "clip")
        whole(self.accumulate, 1, "recipe", "accumulate")
        if not all(isinstance(one, float) and 0 < one < 1 for one in self.milestones):
            raise BadInputError(f"recipe: milestones must be fractions, between 0 and 1; got {self.milestones!r}")

    def changed(self, **options: Any) -> Recipe:
        """The recipe with other values.

        Raises:
            BadInputError: Where a name is no field's, or the optimizer's own value would win over a given one.
        """
        for name in options:
            lookup({field.name: None for field in fields(Recipe)}, name, "recipe option")
        new = replace(self, **options)
        for name in options.keys() & FIELDS.values():
            if getattr(new, name) != options[name]:
                raise BadInputError(
                    f"recipe: optimizer {name_of(new.optimizer)} brings {name} {getattr(new, name)} of its own; change "
                    f"it there, or leave out {name} {options[name]}"
                )
        return new

    def described(self) -> dict[str, Any]:
        """The recipe as plain JSON, by field; fields that are newer than version 0.2.0 only where they say something.

        >>> Recipe(10, 50, 0.02, optimizer="adamw").described()["weight_decay"]
        0.01
        """
        said = {field.name: getattr(self, field.name) for field in fields(self)}
        said |= self._settings() | {"optimizer": described(self.optimizer)}
        silent = {field.name: field.default for field in fields(self) if field.name not in _SAID_ALWAYS}
        return {name: value for name, value in said.items() if value is not None and value != silent.get(name)}

    def fitting(self, samples: int) -> Recipe:
        """The recipe with smaller batches, where there are fewer samples than a batch has.

        >>> [Recipe(1, 128, 0.1).fitting(samples).batch_size for samples in (1000, 100, 40, 5)]
        [128, 12, 8, 5]
        """
        if not 0 < samples < self.batch_size:
            return self
        return replace(self, batch_size=min(samples, max(SMALLEST_BATCH, samples // FEWEST_STEPS)))

    def make_optimizer(self, parameters: Sequence[nn.Parameter]) -> Optimizer:
        """The optimizer of some parameters.

        Raises:
            BadInputError: Where it does not take them.
        """
        return make(self.optimizer, parameters, lr=self.learning_rate, **self._settings())

    def steps(self, size: int) -> int:
        """Batches of a run on `size` samples.

        >>> Recipe(epochs=10, batch_size=50, learning_rate=0.1).steps(1049)
        200
        """
        return size // self.batch_size * self.epochs

    def rate(self, step: int, steps: int, largest: float | None = None) -> float:
        """Learning rate of step `step` (from 0) of `steps`, of a parameter group whose largest is another, if given.

        >>> Recipe(1, 1, 0.1).rate(50, 100), Recipe(1, 1, 0.1, schedule="step").rate(62, 100)
        (0.05, 0.1)
        """
        largest = self.learning_rate if largest is None else largest
        done = step / steps
        if done < self.warmup:
            return largest * done / self.warmup
        done = (done - self.warmup) / (1 - self.warmup)
        if self.schedule == "cosine":
            return largest * 0.5 * (1 + math.cos(math.pi * done))
        if self.schedule == "step":
            return largest * 0.1 ** sum(done >= milestone for milestone in self.milestones)
        return largest * (1 - done) if self.schedule == "linear" else largest

    def _settings(self) -> dict[str, float | None]:
        """Momentum and weight decay as the optimizer has them; None where it has none."""
        momentum = SGD_MOMENTUM if self.momentum is None and self.optimizer == "sgd" else self.momentum
        given = {"momentum": momentum, "weight_decay": self.weight_decay}
        return {name: default(self.optimizer, name) if value is None else value for name, value in given.items()}
