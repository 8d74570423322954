"""What everything around the student costs: ratios of step times, interleaved in one process and thread.

    python scripts/bench.py [--quick] [--only rules|training]

Needs no download: the CIFAR-sized problem is random pixels. A ratio is the median over rounds in which both
sides run one after the other, so that another job on the machine slows both.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from rltemp import Signals, kd_loss
from rltemp.data import Dataset, Part
from rltemp.distill import Distillation
from rltemp.envs.distill import DistillEnv
from rltemp.envs.episode import LOOKS
from rltemp.features import DEFAULT_FEATURES, FEATURES
from rltemp.loading import load_method
from rltemp.manifest import PolicyAction, PolicyFeature
from rltemp.methods import Method
from rltemp.models import seeded_model
from rltemp.policy_file import write_policy
from rltemp.problem import Problem
from rltemp.rules import RULES
from rltemp.runs import processor
from rltemp.tasks import Recipe, Task, load_task
from rltemp.teachers import prepare

STUDENTS = 64
SHAPES, QUICK_SHAPES = ((128, 100), (4096, 32000)), ((128, 100), (32, 8192))
"""Of logits: images with 100 classes; tokens of a language model (half a gigabyte a tensor)."""


def main() -> None:
    """Measure, and print one line a result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few rounds only: shows that it runs")
    parser.add_argument("--only", choices=("rules", "training"), help="one half of the measurements")
    options = parser.parse_args()
    rounds = 3 if options.quick else 15
    torch.set_num_threads(1)
    print(f"{processor()}, 1 thread; Python {platform.python_version()}, torch {torch.__version__}\n")
    if options.only != "training":
        _show_rules(QUICK_SHAPES if options.quick else SHAPES, rounds)
    if options.only != "rules":
        _show_training(rounds)


def _show_training(rounds: int) -> None:
    print(f"{'':64} ratio   target")
    images = cifar_sized_problem()
    _show("environment's step / plain loop's step", env_to_plain(images, max(1, rounds // 3)), "<= 1.05")
    _show("step under a policy / step at a fixed temperature", policy_to_fixed(images, rounds), "<= 1.10")
    print("(ResNet-20 to ResNet-8, 32 x 32, 100 classes, batch 128)\n")
    ratio, rate = alone_to_stacked(prepare(load_task("digits")), 2 if rounds == 3 else 7)
    _show(f"{STUDENTS} digits students one by one / as one stack", ratio, ">= 10")
    print(f"{'stacked training, steps of one student per second':62} {rate:7,.0f}")


def _show_rules(shapes: tuple[tuple[int, int], ...], rounds: int) -> None:
    print("loss under a rule, forward and backward, float32, over plain distillation at one temperature")
    print(
        "(time: at most 1.30; peak memory beside the logits: at most 1.10; dtkd_exact and ctkd_* are not held to it)\n"
    )
    print(f"{'':20}" + "".join(f"{f'[{samples}, {classes}]':>14} time  memory" for samples, classes in shapes))
    for name in RULES:
        costs = [rule_to_plain(name, shape, rounds) for shape in shapes]
        print(f"{name:20}" + "".join(f"{time:19.2f} {memory:7.2f}" for time, memory in costs), flush=True)
    print()


def rule_to_plain(name: str, shape: tuple[int, int], rounds: int) -> tuple[float, float]:
    """Time and peak memory of one rule's loss and gradient over those of plain distillation in plain PyTorch."""
    generator = torch.Generator().manual_seed(0)
    student = (2 * torch.randn(*shape, generator=generator)).requires_grad_()
    teacher = 3 * torch.randn(*shape, generator=generator)
    labels, rule, scale = torch.zeros(shape[0], dtype=torch.long), RULES[name](), 4.0

    def ours() -> None:
        signals = Signals(student, teacher, labels, progress=0.3)
        kd_loss(signals, rule(signals)).mean().backward()  # type: ignore[no-untyped-call]
        student.grad = None

    def plain() -> None:
        log_q, p = F.log_softmax(student / scale, -1), F.softmax(teacher / scale, -1)
        (F.kl_div(log_q, p, reduction="batchmean") * scale * scale).backward()  # type: ignore[no-untyped-call]
        student.grad = None

    large = student.numel() > 2**17
    time_ratio = _ratio(ours, plain, max(3, rounds // 5) if large else rounds, 1 if large else 40)
    return time_ratio, peak_memory(ours) / peak_memory(plain)


def peak_memory(call: Callable[[], object]) -> int:
    """Most bytes that torch's CPU allocator held at once during a call, beside what it held before."""
    call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    assert profile.profiler is not None
    events: list[Any] = profile.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), int(event.nbytes())) for event in events if event.name() == "[memory]")
    return max(itertools.accumulate(size for _, size in changes))


def cifar_sized_problem() -> Problem:
    """Random images of CIFAR's size, 100 classes, ResNet-20 to ResNet-8, batch 128, augmented."""
    generator = torch.Generator().manual_seed(0)

    def part(size: int) -> Part:
        images = torch.randint(0, 256, (size, 3, 32, 32), generator=generator, dtype=torch.uint8)
        return Part(images, torch.randint(0, 100, (size,), generator=generator))

    recipe = Recipe(epochs=100, batch_size=128, learning_rate=0.05, weight_decay=5e-4)
    mean, std = torch.full((3,), 127.5), torch.full((3,), 74.0)
    data = Dataset("random", part(1280), part(500), part(10), part(10), 100, mean, std, augment=True)
    teacher = seeded_model("resnet20", data.image_shape, 100, 0).eval().requires_grad_(False)
    return Problem(Task("random", "resnet20", "resnet8", recipe, recipe), data, teacher, None, 0.01)


def env_to_plain(problem: Problem, rounds: int) -> float:
    """The environment's step at action zero over the plain loop's, same method and student.

    A round has as many steps as lie between two looks at the probe, so that it pays for exactly one.
    """
    env = DistillEnv(problem)
    env.reset(seed=0)
    steps = problem.task.recipe.steps(len(problem.dataset.train)) // LOOKS
    action = np.zeros((problem.task.recipe.batch_size, 2), np.float32)
    return _ratio(lambda: env.step(action), _stepper(problem, load_method("fixed:4")), rounds, steps)


def policy_to_fixed(problem: Problem, rounds: int) -> float:
    """A step under a policy file's rule over a step at a fixed temperature."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "policy.safetensors"
        generator = torch.Generator().manual_seed(0)
        write_policy(
            file,
            weights={
                "0.weight": 0.1 * torch.randn(2, len(DEFAULT_FEATURES), generator=generator),
                "0.bias": torch.zeros(2),
            },
            activation="tanh",
            features=[
                PolicyFeature(name=name, version=FEATURES[name].version, unit=FEATURES[name].unit, mean=0.0, std=1.0)
                for name in DEFAULT_FEATURES
            ],
            action=PolicyAction(ratio=5.0, minimum=0.5, maximum=20.0),
            reference="fixed:4",
        )
        policy = load_method(str(file))
    return _ratio(_stepper(problem, policy), _stepper(problem, load_method("fixed:4")), rounds)


def alone_to_stacked(problem: Problem, rounds: int, steps: int = 50) -> tuple[float, float]:
    """Time of 64 students one by one over that of one stack, and the stack's student steps per second."""
    method = load_method("fixed:4")
    ratios, rates = [], []
    for _ in range(rounds):
        stacked = _seconds(_stepper(problem, method, list(range(STUDENTS))), steps)
        alone = sum(_seconds(_stepper(problem, method, seed), steps) for seed in range(STUDENTS))
        ratios.append(alone / stacked)
        rates.append(STUDENTS * steps / stacked)
    return statistics.median(ratios), statistics.median(rates)


def _stepper(problem: Problem, method: Method, seeds: int | list[int] = 0) -> Callable[[], object]:
    run = Distillation(problem, seeds)
    return lambda: run.update(method.loss(run.observe()))


def _ratio(one: Callable[[], object], other: Callable[[], object], rounds: int, steps: int = 4) -> float:
    one(), other()  # the first step allocates
    return statistics.median(_seconds(one, steps) / _seconds(other, steps) for _ in range(rounds))


def _seconds(call: Callable[[], object], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        call()
    return time.perf_counter() - start


def _show(name: str, ratio: float, target: str) -> None:
    print(f"{name:62} {ratio:7.3f}   {target}")


if __name__ == "__main__":
    main()
