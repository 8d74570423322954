"""Tasks: a data set, a teacher, a student and how both are trained; `TASKS` at the foot names them.

A task is only a description; `prepare` (in `rltemp.training.teachers`) loads its data and its teacher. Every field can
be overridden, on the command line as in Python: `load_task("digits", student="mlp:16", epochs=20)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from rltemp.errors import BadInputError
from rltemp.kd.checks import positive
from rltemp.kd.names import lookup, split_spec


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


@dataclass(frozen=True)
class Task:
    """A distillation problem, described.

    Args:
        name: As asked for, with the data set's option: `digits`, `synthetic:classes=20`, `imagefolder:PATH`.
        teacher: A model name.
        student: A model name.
        recipe: How the student is trained.
        teacher_recipe: How the teacher is trained, where it is not given.
        metric: What rewards measure on probe data: `margin` (a smooth accuracy), its `log_odds`, or `log_likelihood`.
        split_seed: Draws the four splits of the data.
        teacher_seed: Draws the teacher's initial weights and batches.
        teacher_weights: A file of weights for the teacher (safetensors or a torch file); without one it is trained.
    """

    name: str
    teacher: str
    student: str
    recipe: Recipe
    teacher_recipe: Recipe
    metric: Literal["margin", "log_odds", "log_likelihood", "accuracy"] = "margin"
    split_seed: int = 0
    teacher_seed: int = 0
    teacher_weights: str | None = None


def load_task(spec: str, **overrides: Any) -> Task:
    """Describe the task that `spec` names, with some of its fields replaced.

    Args:
        spec: `digits`, `wine`, `breast_cancer`, `iris`, `synthetic`, `synthetic:classes=20`, `toy`, `cifar10`,
            `cifar100` or `imagefolder:PATH`.
        **overrides: Fields of `Task`, of its `Recipe` (`epochs=20`), or of its teacher's (`teacher_epochs=20`).
            None keeps the task's own value.

    >>> load_task("digits", epochs=3, student="mlp:16").recipe.epochs
    3
    """
    task = replace(lookup(TASKS, split_spec(spec)[0], "task"), name=spec)
    given = {key: value for key, value in overrides.items() if value is not None}
    own = {field.name for field in fields(Task)}
    student = {key: given[key] for key in given if key not in own and not key.startswith("teacher_")}
    teacher = {key[len("teacher_") :]: given[key] for key in given if key not in own and key not in student}
    known = {field.name: None for field in fields(Recipe)}
    for key in (*student, *teacher):
        lookup(known, key, "recipe option")
    return replace(
        task,
        recipe=replace(task.recipe, **student),
        teacher_recipe=replace(task.teacher_recipe, **teacher),
        **{key: given[key] for key in given if key in own},
    )


# CIFAR: the field's recipe for CIFAR-100 (240 epochs, batch 64, SGD 0.05, weight decay 5e-4), as in the official code
# of DKD, DTKD, NormKD and TTM. A folder of images is of unknown size, so it gets fewer epochs; --epochs says otherwise.
_CIFAR = Recipe(epochs=240, batch_size=64, learning_rate=0.05, weight_decay=5e-4, schedule="step")
_FOLDER = Recipe(epochs=30, batch_size=128, learning_rate=0.1, weight_decay=5e-4)
_TABLE_TEACHER = Recipe(epochs=40, batch_size=16, learning_rate=0.02, weight_decay=5e-3)

# Name, teacher, student, the student's recipe (epochs, batch size, learning rate) and the teacher's. Where tables and
# students are small, a student's learning rate is the one at which plain KD (`fixed:4`) has its best validation
# accuracy over 64 students, of 0.01, 0.02, 0.05, 0.1 and 0.2.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("digits", "mlp:128", "mlp:6", Recipe(10, 50, 0.02), Recipe(60, 50, 0.1, weight_decay=5e-4)),
        Task("wine", "mlp:64", "mlp:4", Recipe(30, 16, 0.02), _TABLE_TEACHER),
        Task("breast_cancer", "mlp:64", "mlp:4", Recipe(10, 16, 0.05), _TABLE_TEACHER),
        Task("iris", "mlp:64", "mlp:4", Recipe(40, 16, 0.05), _TABLE_TEACHER),
        Task("synthetic", "mlp:128", "mlp:8", Recipe(10, 50, 0.1), Recipe(40, 50, 0.1, weight_decay=5e-3)),
        Task("toy", "toy", "linear", Recipe(6, 50, 0.5), Recipe(1, 50, 0.1), metric="log_likelihood"),
        Task("cifar10", "resnet56", "resnet20", _CIFAR, _CIFAR),
        Task("cifar100", "resnet56", "resnet20", _CIFAR, _CIFAR),
        Task("imagefolder", "resnet20", "resnet8", _FOLDER, _FOLDER),
    )
}
