"""Families of data sets in one pool, each data set with a teacher of its own: what a variety draws its tasks from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rltemp.data.dataset import Dataset, Split
from rltemp.data.problem import Problem
from rltemp.data.recipe import Recipe
from rltemp.data.task import Metric, Task
from rltemp.envs.small_sources import WIDTH, load_source
from rltemp.rules.published_methods import none
from rltemp.training.distill import Distillation
from rltemp.training.steps import train

TRAIN, PROBE = 1000, 500
"""Samples of a data set, at most. All pools are of one size, so that one compiled step serves all families of C."""
TEACHER_EPOCHS = 3, 10, 20, 40, 60
"""Of a family's teachers: some stop early, others go on for longer than is good for them."""
MISLABELLED = 0.0, 0.0, 0.0, 0.1, 0.3
"""Shares of wrong training labels, of which a data set draws one."""
CONFUSED = 0.1
"""How many of the teachers confuse a third of the classes."""
BATCH = 50


@dataclass(frozen=True)
class Family:
    """Data sets of one source.

    Args:
        problem: What their tasks have in common.
        pool: The samples that positions count; probe labels are right, some data sets' training labels are not.
        train: `[D, N]`, positions in the pool: what each data set has to train on.
        probe: `[D, P]`, what students are measured on.
        teacher_logits: `[len(pool), C]`, each row of the teacher of its data set.
    """

    problem: Problem
    pool: Split
    train: Tensor
    probe: Tensor
    teacher_logits: Tensor

    @classmethod
    def make(cls, source: str, size: int, seed: int) -> Family:
        """Draw the data sets, and train their teachers as one stack.

        Args:
            source: A name that `rltemp.envs.small_sources.load_source` knows.
            size: D, how many data sets.
            seed: Determines all of them.

        Raises:
            BadInputError: Where nobody knows the source, or the package that has it is missing.
        """
        generator = np.random.default_rng((seed, *source.encode()))
        sets = [_cut(*load_source(source, generator), generator) for _ in range(size)]
        classes = 1 + max(int(labels.max()) for _, labels in sets)
        rows = TRAIN + PROBE
        inputs, labels = torch.zeros(size, rows, WIDTH), torch.zeros(size, rows, dtype=torch.long)
        for place, (values, known) in enumerate(sets):
            inputs[place, : len(values)], labels[place, : len(known)] = (
                torch.from_numpy(values),
                torch.from_numpy(known),
            )
        pool = Split(inputs.view(-1, WIDTH, 1, 1), labels.flatten())
        count = len(sets[0][0])
        probes = min(PROBE, count * 2 // 5)
        starts = rows * torch.arange(size)[:, None]
        own, probe = starts + torch.arange(count - probes), starts + torch.arange(count - probes, count)
        problem = _problem(source, pool, classes, int(generator.choice(TEACHER_EPOCHS)), count - probes)
        logits = _taught(problem, pool, own, [seed * 1000 + place for place in range(size)]).view(size, rows, -1)
        for place in range(size):
            if generator.random() < CONFUSED:
                logits[place] = logits[place][:, _confusion(classes, generator)]
        return cls(problem, _mislabelled(pool, own, classes, generator), own, probe, logits.flatten(0, 1))


def _cut(inputs: np.ndarray, labels: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """So many samples as a data set may have, in a random order."""
    order = generator.permutation(len(labels))[: TRAIN + PROBE]
    return inputs[order], labels[order]


def _problem(source: str, pool: Split, classes: int, epochs: int, count: int) -> Problem:
    empty = pool.take(torch.arange(0))
    scale = torch.zeros(WIDTH), torch.ones(WIDTH)
    dataset = Dataset("variety", pool, empty, empty, empty, classes, *scale, augment=False)
    recipe = Recipe(max(epochs, epochs * 250 // count), BATCH, 0.1, weight_decay=5e-4)
    # Next to labels that nobody can predict for certain, it is the loss that tells students apart.
    metric: Metric = "log_likelihood" if source.startswith("text") else "log_odds"
    task = Task("variety", "mlp:128", "mlp:128", recipe, recipe, metric=metric)
    return Problem(task, dataset, nn.Identity(), None, teacher_accuracy=0.0)


@torch.no_grad()
def _answers(teachers: nn.Module, pool: Split, size: int) -> Tensor:
    assert isinstance(pool.inputs, Tensor)
    logits: Tensor = teachers(pool.inputs.view(size, -1, *pool.inputs.shape[1:]))
    return logits.flatten(0, 1)


def _taught(problem: Problem, pool: Split, own: Tensor, seeds: list[int]) -> Tensor:
    """The logits of every data set's teacher on its own samples, `[len(pool), C]`."""
    nobody = torch.zeros(1, problem.dataset.num_classes).expand(len(pool), -1)
    recipe = problem.task.teacher_recipe
    run = Distillation(problem, seeds, recipe=recipe, train=pool, subset=own, teacher_logits=nobody)
    return _answers(train(run, none()).eval(), pool, len(own))


def _confusion(classes: int, generator: np.random.Generator) -> Tensor:
    """An order of the classes in which a third of them, two or more, have changed places."""
    order = torch.arange(classes)
    moved = torch.from_numpy(generator.permutation(classes)[: max(2, classes // 3)])
    order[moved] = moved.roll(1)
    return order


def _mislabelled(pool: Split, train: Tensor, classes: int, generator: np.random.Generator) -> Split:
    """The pool with some data sets' training labels wrong."""
    labels = pool.known_labels.clone()
    for rows in train:
        wrong = rows[torch.from_numpy(generator.random(len(rows)) < generator.choice(MISLABELLED))]
        labels[wrong] = torch.from_numpy(generator.integers(classes, size=len(wrong)))
    return Split(pool.inputs, labels)
