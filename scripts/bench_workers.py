"""How much faster a policy is trained by two worker processes: student steps a second, on one thread a process.

    python scripts/bench_workers.py [--rounds 5] [--students 32]

The students are small CNNs with batch norm and dropout on random pictures, which are trained one by one. A ratio is
the median over rounds in which both sides play a run, one after the other. Two cores must be free.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from timeit import timeit

import torch
from torch import Tensor, nn

from rltemp.agents.config import PolicyConfig
from rltemp.agents.network import RunPolicy
from rltemp.agents.train import make_env, make_model
from rltemp.data.problem import Problem
from rltemp.data.task import Task
from rltemp.envs.shares import Workers, open_workers
from rltemp.training.preparation import prepare
from rltemp.training.steps import Step, plain_step

WORKERS = 2


def main() -> None:
    """Measure, and print three lines."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="of the ratio; 3 show that it runs")
    parser.add_argument("--students", type=int, default=32, help="of one run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    problem, config = small_pictures(), PolicyConfig(students_per_update=options.students)
    with open_workers(WORKERS) as workers:
        alone, shared = run_of_training(problem, config, None), run_of_training(problem, config, workers)
        shared()  # the workers start
        times = [(timeit(alone, number=1), timeit(shared, number=1)) for _ in range(options.rounds)]
    steps = options.students * problem.task.recipe.steps(len(problem.dataset.train))
    for name, seconds in zip(("one process", f"{WORKERS} workers"), zip(*times, strict=True), strict=True):
        print(f"student steps a second, {name:38} {steps / statistics.median(seconds):7,.0f}")
    found = statistics.median(one / two for one, two in times)
    print(f"{f'{WORKERS} workers / one process':62} {found:7.3f}   >= 1.8")


def run_of_training(
    problem: Problem, config: PolicyConfig, workers: Workers | None, step: Step = plain_step
) -> Callable[[], None]:
    """A run of all students, each under a draw of the policy's weights."""
    env = make_env(problem, config, workers, step)
    policy = make_model(env, config).policy
    assert isinstance(policy, RunPolicy)  # agent run
    drawn, _ = policy.draw(env.students)

    def run() -> None:
        for _ in env.play(policy.network, drawn):
            pass

    return run


def small_pictures() -> Problem:
    """Random pictures `[3, 16, 16]` of 10 classes, batch 64."""
    generator = torch.Generator().manual_seed(0)

    def samples(size: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(0, 10, (size,), generator=generator)
        return torch.randn(size, 3, 16, 16, generator=generator), labels

    train, test, teacher = samples(1600), samples(200), small_cnn(1, width=32)
    return prepare(Task.of(student=small_cnn, teacher=teacher, train=train, test=test, batch_size=64, epochs=2))


def small_cnn(seed: int, width: int = 8) -> nn.Module:
    """Two convolutions with batch norm, and dropout before the last layer."""
    torch.manual_seed(seed)
    first = [nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Dropout(0.2), nn.Linear(2 * width * 16, 10))


if __name__ == "__main__":
    main()
