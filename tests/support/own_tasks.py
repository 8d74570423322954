"""Tasks of a user's own for tests: data sets, small networks, and tasks that are made of them."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils.data
from torch import Tensor, nn

from rltemp.data.task import Task

FEATURES, CLASSES = 5, 4


class Rows(torch.utils.data.Dataset[Any]):
    """A map-style data set whose items are always the same."""

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs, self.labels = inputs, labels
        self.reads = 0

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        self.reads += 1
        return self.inputs[place], self.labels[place]


class Noisy(Rows):
    """One whose items are drawn anew whenever they are read."""

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        inputs, label = super().__getitem__(place)
        return inputs + 0.1 * torch.randn(inputs.shape), label


class Double(torch.autograd.Function):
    """A function of a user's own that says nothing of vmap."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return 2 * values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


def clusters(count: int = 200, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows `[N, 5]` around one centre for each of 4 classes, and labels `[N]`, each class as often as the others."""
    centres = 2 * torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(count) % CLASSES
    noise = torch.randn(count, FEATURES, generator=torch.Generator().manual_seed(seed))
    return centres[labels] + noise, labels


def dropout_student(seed: int) -> nn.Module:
    """A small student that draws random numbers in training."""
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, CLASSES))


def normalised_student(seed: int) -> nn.Module:
    """A small student with a batch norm, which can be stacked."""
    # A bias before a batch norm has a gradient of zero but for rounding, which Adam would blow up.
    first = nn.Linear(FEATURES, 8, bias=False)
    return nn.Sequential(first, nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES))


def trained_teacher() -> nn.Module:
    """A teacher with batch norm and dropout, which was trained on the clusters; it is in training mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(FEATURES, 16), nn.BatchNorm1d(16), nn.Dropout(0.1), nn.Linear(16, CLASSES))
        optimizer, (rows, labels) = torch.optim.Adam(network.parameters(), 0.02), clusters(seed=7)
        for _ in range(40):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(rows), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    network.zero_grad()
    return network.train()


def own_task(**options: Any) -> Task:
    """The clusters, a student with dropout, a trained teacher, AdamW."""
    given: dict[str, Any] = {
        "name": "clusters",
        "student": dropout_student,
        "teacher": trained_teacher(),
        "train": clusters(),
        "test": clusters(80, 1),
        "optimizer": "adamw",
        "learning_rate": 0.02,
        "epochs": 2,
        "batch_size": 20,
    }
    return Task.of(**given | options)
