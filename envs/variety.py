"""Tasks drawn at random: what a policy for everyone is trained on.

A policy that saw one task knows that task. Here every run of students has other classes, samples, labels, teachers,
widths, learning rates and schedules. Half of the data sets are subsets of the digits' training and probe samples, the
other half comes from a formula, scikit-learn's `make_classification`. `Family` holds data sets of one kind and number
of classes with a teacher of its own for each, `Variety` draws from several.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rltemp.data.dataset import Dataset, Split
from rltemp.data.problem import Problem
from rltemp.data.recipe import Recipe
from rltemp.data.sources import load_dataset
from rltemp.data.task import Task
from rltemp.optional_imports import import_library
from rltemp.rules.published_methods import none
from rltemp.training.distill import Distillation
from rltemp.training.steps import train

STEPS = 200
"""Of every run; how far a student gets in them is up to its learning rate."""
BATCH = 50
SIZES = 100, 250, 500, 1000
"""Training samples of a student."""
RATES = 0.01, 0.12
"""Learning rates of students are between these, evenly on a logarithmic scale."""
SHARPNESS = 2.0
"""A teacher's logits are scaled by a factor between one over this and this."""
STUDENTS = ("mlp:3", "mlp:4", "mlp:6", "mlp:8", "mlp:12", "mlp:16", "mlp:32", "mlp:8x8")
KINDS = tuple(("digits", classes) for classes in (3, 5, 7, 10, 10)) + tuple(
    ("formula", classes) for classes in (2, 4, 8, 15, 30)
)
"""The families of a variety: where their data come from, and how many classes they have."""
_STUDENT = Recipe(STEPS * BATCH // SIZES[-1], BATCH, 0.05)


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


class Family:
    """Data sets of one kind and number of classes in one pool, each with a teacher; all teachers train as one stack.

    Args:
        kind: `digits` or `formula`.
        classes: C.
        size: How many data sets.
        seed: Determines all of them.
    """

    def __init__(self, kind: str, classes: int, size: int, seed: int) -> None:
        generator = np.random.default_rng((seed, classes))
        sets = (
            _subsets_of_digits(classes, size, generator) if kind == "digits" else _by_formula(classes, size, generator)
        )
        both = [part for pair in sets for part in pair]
        self.pool = Split(torch.cat([part.inputs for part in both]), torch.cat([part.known_labels for part in both]))
        count, probes = (len(part) for part in sets[0])
        starts = (count + probes) * torch.arange(size)[:, None]
        self.train, self.probe = starts + torch.arange(count), starts + count + torch.arange(probes)
        empty = self.pool.take(torch.arange(0))
        channels = self.pool.inputs.shape[1]
        scale = torch.zeros(channels), torch.ones(channels)
        dataset = Dataset("variety", self.pool, empty, empty, empty, classes, *scale, augment=False)
        # As good as teachers are: each trained for long enough, some for longer than that.
        recipe = Recipe(int(generator.choice([20, 40, 80])), BATCH, 0.1, weight_decay=5e-4)
        task = Task("variety", "mlp:128", "mlp:128", _STUDENT, recipe, metric="log_odds")
        self.problem = Problem(task, dataset, nn.Identity(), None, teacher_accuracy=0.0)
        self.teacher_logits = self._teach([seed * 1000 + position for position in range(size)])
        self.pool = _mislabelled(self.pool, self.train, classes, generator)

    def _teach(self, seeds: list[int]) -> Tensor:
        """The logits of every data set's teacher on its own samples, `[len(pool), C]`."""
        problem = self.problem
        nobody = torch.zeros(1, problem.dataset.num_classes).expand(len(self.pool), -1)
        recipe = problem.task.teacher_recipe
        run = Distillation(problem, seeds, recipe=recipe, train=self.pool, subset=self.train, teacher_logits=nobody)
        teachers = train(run, none()).eval()
        own = torch.cat([self.train, self.probe], 1)
        with torch.no_grad():
            logits: Tensor = teachers(problem.dataset.batch(self.pool, own).inputs)
        return logits.flatten(0, 1)


class Variety:
    """A distribution of tasks.

    Args:
        seed: Determines the data sets and their teachers.
        size: Data sets in each family.
    """

    def __init__(self, seed: int = 0, size: int = 12, kinds: tuple[tuple[str, int], ...] = KINDS) -> None:
        self.seed = seed
        self.families = [Family(*kind, size, seed * 100 + position) for position, kind in enumerate(kinds)]
        self.problem = self.families[0].problem

    @property
    def shapes(self) -> int:
        """How many kinds of tensors its runs are made of: one for each student and number of classes."""
        return len(STUDENTS) * len(
            {(family.pool.inputs.shape[1:], family.problem.dataset.num_classes) for family in self.families}
        )

    def other(self) -> Variety:
        """Four data sets of every kind, drawn and taught anew: to select policies on."""
        return Variety(self.seed + 1_000_000, 4, tuple(dict.fromkeys(KINDS)))

    def draw(self, generator: np.random.Generator, groups: int) -> Assignment:
        """Draw a student, a recipe and, for every group, a data set, a subset of it and a sharpness of its teacher."""
        family = self.families[generator.integers(len(self.families))]
        count = family.train.shape[1]
        size = int(generator.choice([size for size in SIZES if size <= count]))
        schedule: Any = str(generator.choice(["cosine", "cosine", "step", "constant"]))
        rate = float(np.exp(generator.uniform(*np.log(RATES))))
        recipe = Recipe(STEPS * BATCH // size, BATCH, rate, schedule=schedule)
        task = replace(family.problem.task, student=str(generator.choice(STUDENTS)), recipe=recipe)
        chosen = generator.integers(len(family.train), size=groups)
        order = generator.permuted(np.tile(np.arange(count), (groups, 1)), axis=1)[:, :size]
        return Assignment(
            replace(family.problem, task=task),
            family.pool,
            _sharpened(family, generator),
            family.train[chosen].gather(1, torch.from_numpy(order)),
            family.probe[chosen],
        )


def _sharpened(family: Family, generator: np.random.Generator) -> Tensor:
    """The teachers' logits, each teacher's times a factor."""
    factor = np.exp(generator.uniform(-np.log(SHARPNESS), np.log(SHARPNESS), len(family.train)))
    rows = torch.from_numpy(factor).float().repeat_interleave(len(family.pool) // len(family.train))
    return family.teacher_logits * rows[:, None]


def _subsets_of_digits(classes: int, size: int, generator: np.random.Generator) -> list[tuple[Split, Split]]:
    """Some classes of the digits each time: 100 samples a class to train on, 18 for the probe."""
    data = load_dataset("digits")
    images = data.normalise(torch.cat([data.train.inputs, data.probe.inputs]))
    labels = torch.cat([data.train.known_labels, data.probe.known_labels])
    found = []
    for _ in range(size):
        chosen = generator.permutation(data.num_classes)[:classes]
        order = torch.from_numpy(generator.permutation(len(labels)))
        order = order[(labels[order, None] == torch.from_numpy(chosen)).any(1)]
        renamed = torch.from_numpy(np.argsort(np.argsort(chosen)))  # 0 to C-1 in the order of the classes chosen
        names = torch.zeros(data.num_classes, dtype=torch.long)
        names[torch.from_numpy(chosen)] = renamed
        samples = Split(images[order], names[labels[order]])
        found.append(_halves(samples, 100 * classes, 15 * classes))
    return found


def _by_formula(classes: int, size: int, generator: np.random.Generator) -> list[tuple[Split, Split]]:
    """Samples of 32 numbers around a few centres for each class: 1,000 to train on, 1,000 for the probe."""
    source = import_library("sklearn.datasets", "task 'variety'").make_classification
    found = []
    for _ in range(size):
        clusters = int(generator.integers(1, 3))
        informative = int(generator.integers(int(np.ceil(np.log2(classes * clusters))) + 2, 24))
        inputs, labels = source(
            n_samples=2000,
            n_features=32,
            n_informative=informative,
            n_redundant=int(generator.integers(0, 33 - informative)),
            n_classes=classes,
            n_clusters_per_class=clusters,
            class_sep=float(generator.uniform(1.5, 3.5)),
            flip_y=0.0,
            random_state=int(generator.integers(2**31)),
        )
        scaled = torch.from_numpy(((inputs - inputs.mean(0)) / inputs.std(0).clip(1e-6)).astype(np.float32))
        found.append(_halves(Split(scaled[:, :, None, None], torch.from_numpy(labels.astype(np.int64))), 1000, 1000))
    return found


def _halves(samples: Split, train: int, probe: int) -> tuple[Split, Split]:
    """The first samples to train on, the next for the probe."""
    end = train + probe
    return samples.take(torch.arange(train)), samples.take(torch.arange(train, end))


def _mislabelled(pool: Split, train: Tensor, classes: int, generator: np.random.Generator) -> Split:
    """The pool with some data sets' training labels wrong: up to a fifth of them. Probe labels stay right."""
    labels = pool.known_labels.clone()
    for rows in train:
        wrong = rows[torch.from_numpy(generator.random(len(rows)) < generator.choice([0.0, 0.0, 0.05, 0.2]))]
        labels[wrong] = torch.from_numpy(generator.integers(classes, size=len(wrong)))
    return Split(pool.inputs, labels)
