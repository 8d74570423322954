"""A plain PyTorch loop whose runs train a temperature policy: does it get better? Numbers.

    python scripts/own_loop.py --out runs/own-loop

Everything of rltemp here is `rltemp.Controller`; data, networks and loop are this file's own. 64 runs train the policy.
Then fresh students, whom nothing was learned from, are trained under what it began as and under what it became, paired
by seed. Started again, it goes on where it was.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import rltemp

STEPS, BATCH, FRESH_SEED = 60, 32, 10_000
REFERENCE = "fixed:1"
OPTIONS = {"exploration": 0.3, "learning_rate": 0.05, "averaging": 0.5, "students_per_update": 8}


class Data:
    """Digits in three parts: for training, for the metric that the policy learns from, and for the comparison."""

    def __init__(self) -> None:
        images, labels = load_digits(return_X_y=True)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        images, labels = torch.tensor(images / 16).float()[order], torch.tensor(labels)[order]
        self.train, self.probe, self.test = zip(images.split([597, 600, 600]), labels.split([597, 600, 600]))


def network(width: int, seed: int) -> nn.Module:
    """A perceptron whose weights the seed determines."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def teacher_of(data: Data) -> nn.Module:
    """A wide network that was trained on the labels."""
    teacher, (images, labels) = network(256, 0), data.train
    optimizer = torch.optim.Adam(teacher.parameters(), 3e-3)
    for _ in range(200):
        loss = F.cross_entropy(teacher(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return teacher.eval()


def train(controller: rltemp.Controller, teacher: nn.Module, data: Data, seed: int) -> nn.Module:
    """Distil one student; the seed determines its weights and its batches."""
    student, (images, labels) = network(16, seed), data.train
    optimizer = torch.optim.SGD(student.parameters(), 0.1, momentum=0.9)
    batches = torch.randint(len(labels), (STEPS, BATCH), generator=torch.Generator().manual_seed(seed))
    for step, index in enumerate(batches):
        with torch.no_grad():
            teacher_logits = teacher(images[index])
        loss = controller.loss(student(images[index]), teacher_logits, labels[index], progress=step / STEPS).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return student


@torch.no_grad()
def accuracy(student: nn.Module, part: tuple[Tensor, Tensor]) -> float:
    """The share of samples that it predicts right."""
    images, labels = part
    return float((student(images).argmax(-1) == labels).float().mean())


if __name__ == "__main__":
    pass
