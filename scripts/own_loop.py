"""A plain PyTorch loop whose runs train a temperature policy: does it get better? Numbers.

    python scripts/own_loop.py --out runs/own-loop

Everything of rltemp here is `rltemp.Controller`; data, networks and loop are this file's own. 64 runs train the policy.
Then fresh students, whom nothing was learned from, are trained under what it began as and under what it became, paired
by seed. Started again, it goes on where it was.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import rltemp

STEPS, BATCH, FRESH_SEED = 100, 32, 10_000


class Data:
    """Digits in three parts: for training, for the metric that the policy learns from, and for the comparison."""

    def __init__(self) -> None:
        images, labels = load_digits(return_X_y=True)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        images, labels = torch.tensor(images / 16).float()[order], torch.tensor(labels)[order]
        sizes = [597, 600, 600]
        self.train, self.probe, self.test = zip(*(torch.split(each, sizes) for each in (images, labels)), strict=True)


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
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
    return teacher.eval()


def train(controller: rltemp.Controller, teacher: nn.Module, data: Data, seed: int) -> nn.Module:
    """Distil one student; the seed determines its weights and its batches."""
    student, (images, labels) = network(32, seed), data.train
    optimizer = torch.optim.SGD(student.parameters(), 0.02, momentum=0.9)
    batches = torch.randint(len(labels), (STEPS, BATCH), generator=torch.Generator().manual_seed(seed))
    for step, index in enumerate(batches):
        with torch.no_grad():
            teacher_logits = teacher(images[index])
        loss = controller.loss(student(images[index]), teacher_logits, labels[index], progress=step / STEPS).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
    return student


@torch.no_grad()
def accuracy(student: nn.Module, part: tuple[Tensor, Tensor]) -> float:
    """The share of samples that it predicts right."""
    images, labels = part
    return float((student(images).argmax(-1) == labels).float().mean())


def learn(controller: rltemp.Controller, teacher: nn.Module, data: Data, seeds: Iterator[int], sign: int) -> None:
    """Train the policy by the runs of a loop."""
    for seed in seeds:
        metric = accuracy(train(controller, teacher, data, seed), data.probe)
        controller.report(metric if sign > 0 else 1 - metric)


def compared(before: str, after: str, teacher: nn.Module, data: Data, count: int) -> str:
    """The test accuracy of fresh students under two methods, and the paired difference with its 95 % interval."""
    seeds = range(FRESH_SEED, FRESH_SEED + count)
    found = [
        torch.tensor(
            [100 * accuracy(train(rltemp.Controller(method), teacher, data, seed), data.test) for seed in seeds]
        )
        for method in (before, after)
    ]
    gain = found[1] - found[0]
    half = 1.96 * float(gain.std()) / count**0.5
    means = f"{found[0].mean():.2f} % under {before}, {found[1].mean():.2f} % under the policy"
    return f"{means}: {gain.mean():+.2f} [{gain.mean() - half:+.2f}, {gain.mean() + half:+.2f}] points"


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, by default the process's own, and do it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the learner")
    parser.add_argument("--reference", default="fixed:1", help="method that learning begins as")
    parser.add_argument("--runs", type=int, default=64, help="that train the policy")
    parser.add_argument("--first-seed", type=int, default=0, help="of the runs that train the policy")
    parser.add_argument("--students", type=int, default=64, help="fresh ones under each of the two methods")
    parser.add_argument("--negate", action="store_true", help="report the opposite of what became of each run")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    data = Data()
    teacher = teacher_of(data)
    started = time.monotonic()
    controller = rltemp.Controller(options.reference, learn=options.out)
    seeds = controller.runs(options.runs, first_seed=options.first_seed)
    learn(controller, teacher, data, seeds, -1 if options.negate else 1)
    print(f"{options.runs} runs in {time.monotonic() - started:.0f} s", flush=True)
    policy = str(options.out / "policy.safetensors")
    print(f"{options.students} fresh students: {compared(options.reference, policy, teacher, data, options.students)}")


if __name__ == "__main__":
    main()
