"""Tasks drawn at random: what a policy for everyone is trained on.

A policy that saw one task knows that task. Here every run of students has other data, classes, labels, teachers,
widths, optimizers, learning rates, schedules and lengths. A `Variety` draws from families of data sets
(`rltemp.envs.families`). Those of `TRAINING` train policies and those of `SELECTION` choose among them; what is in
neither is left for reports.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rltemp.data.dataset import Split
from rltemp.data.problem import Problem
from rltemp.data.recipe import Recipe
from rltemp.envs.families import Family
from rltemp.training.distill import Distillation

TABLES = [
    "contraceptive",
    "german",
    "heart",
    "led7digit",
    "optdigits",
    "penbased",
    "phoneme",
    "segment",
    "splice",
    "tic-tac-toe",
    "wdbc",
]
TRAINING = (
    *(f"formula:{classes}" for classes in (2, 2, 3, 3, 5, 5, 10, 10, 20, 20)),
    *("digits", "digits:5", "mnist", "glyphs:20", "glyphs:60", "text:60", "text:60", "text:20"),
    *(f"keel:{name}" for name in TABLES),
)
"""Sources of the data that policies are trained on; a name that stands twice is drawn twice as often."""
SELECTION = tuple(
    f"keel:{name}"
    for name in ("ionosphere", "letter", "movement_libras", "pima", "satimage", "spambase", "vehicle", "vowel")
)
"""Sources of the data that chooses among policies."""
SIZES = 64, 128, 250, 500, 1000
"""Training samples of a student, as far as there are."""
STEPS = 60, 600
"""Of a run: between these, evenly on a logarithmic scale."""
SHARPNESS = 3.0
"""A teacher's logits are scaled by a factor between one over this and this."""
STUDENTS = (
    ("mlp:8", 16, "sgd"),
    ("mlp:8", 64, "sgd"),
    ("mlp:32", 16, "sgd"),
    ("mlp:32", 64, "sgd"),
    ("mlp:8x8", 32, "sgd"),
    ("mlp:32", 64, "adamw"),
)
"""Students with a batch size and an optimizer. They are few, because each needs a compiled step for every number of
classes; what compiling does not see varies freely."""
RATES = {"sgd": (0.004, 0.6), "adamw": (4e-4, 6e-2)}
"""Learning rates of each optimizer: from where little is learned to where little survives."""
SCHEDULES = "cosine", "cosine", "step", "constant"


@dataclass(frozen=True)
class Assignment:
    """What the groups of one run are to do.

    Args:
        problem: With the student and the recipe of this run.
        pool: The samples that positions count.
        teacher_logits: `[len(pool), C]`, or None where the teacher runs on every batch.
        train: `[G, N]`, positions in the pool: what each group trains on.
        probe: `[G, P]`, what each is measured on.
    """

    problem: Problem
    pool: Split
    teacher_logits: Tensor | None
    train: Tensor
    probe: Tensor

    def replicated(self, replicas: int) -> Assignment:
        """The same with so many students a group, side by side, on the problem's device."""
        train, probe = (
            positions.repeat_interleave(replicas, 0).to(self.problem.device) for positions in (self.train, self.probe)
        )
        return replace(self, train=train, probe=probe)

    def share(self, rows: slice) -> Assignment:
        """The same with these rows of `train` and `probe` alone."""
        return replace(self, train=self.train[rows], probe=self.probe[rows])

    def run(self, seeds: int | list[int], kind: Callable[..., Distillation] = Distillation) -> Distillation:
        """A fresh run of one student, or of a stack with a student for each row of `train`."""
        return kind(self.problem, seeds, train=self.pool, subset=self.train, teacher_logits=self.teacher_logits)


class Variety:
    """A distribution of tasks.

    Args:
        sources: Of the data, a family each; see `rltemp.envs.small_sources`.
        seed: Determines the data sets and their teachers.
        size: Data sets in each family.

    Raises:
        BadInputError: Where a package that brings data is missing.
    """

    def __init__(self, sources: Sequence[str] = TRAINING, seed: int = 0, size: int = 8) -> None:
        self.seed = seed
        made = {source: Family.make(source, size, seed) for source in dict.fromkeys(sources)}
        self.families = [made[source] for source in sources]
        self.problem = self.families[0].problem
        self.steps = round(math.sqrt(STEPS[0] * STEPS[1]))
        self.alike = False

    @property
    def shapes(self) -> int:
        """How many kinds of tensors its runs are made of: one for each student and number of classes."""
        classes = {family.problem.dataset.num_classes for family in self.families}
        return len(STUDENTS) * len(classes)

    def draw(self, generator: np.random.Generator, groups: int) -> Assignment:
        """Draw a student, a recipe and, for every group, a data set, a subset of it and a sharpness of its teacher."""
        family = self.families[generator.integers(len(self.families))]
        count, classes = family.train.shape[1], family.problem.dataset.num_classes
        sizes = [size for size in SIZES if 2 * classes <= size <= count] or [count]
        size = int(generator.choice(sizes))
        student, batch, optimizer = STUDENTS[generator.integers(len(STUDENTS))]
        recipe = _recipe(size, batch, optimizer, generator)
        task = replace(family.problem.task, student=student, recipe=recipe)
        chosen = generator.integers(len(family.train), size=groups)
        order = generator.permuted(np.tile(np.arange(count), (groups, 1)), axis=1)[:, :size]
        return Assignment(
            replace(family.problem, task=task),
            family.pool,
            _sharpened(family, generator),
            family.train[chosen].gather(1, torch.from_numpy(order)),
            family.probe[chosen],
        )


def _recipe(size: int, batch: int, optimizer: str, generator: np.random.Generator) -> Recipe:
    """How the students of a run are trained on so many samples each."""
    steps = np.exp(generator.uniform(*np.log(STEPS)))
    rate = float(np.exp(generator.uniform(*np.log(RATES[optimizer]))))
    schedule: Any = str(generator.choice(SCHEDULES))
    decay = 5e-4 if optimizer == "sgd" else None
    epochs = max(1, round(steps / (size // batch)))
    return Recipe(epochs, batch, rate, weight_decay=decay, schedule=schedule, optimizer=optimizer)


def _sharpened(family: Family, generator: np.random.Generator) -> Tensor:
    """The teachers' logits, each teacher's times a factor."""
    factor = np.exp(generator.uniform(-np.log(SHARPNESS), np.log(SHARPNESS), len(family.train)))
    rows = torch.from_numpy(factor).float().repeat_interleave(len(family.pool) // len(family.train))
    return family.teacher_logits * rows[:, None]
