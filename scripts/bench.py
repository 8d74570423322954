"""What everything around the student costs: ratios of step times, interleaved in one process and thread.

    python scripts/bench.py [--quick] [--only rules|training|plugs]

Needs no download: the CIFAR-sized problem is random pixels. A ratio is the median over rounds in which both
sides run one after the other, so that another job on the machine slows both.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rltemp import Signals, kd_loss
from rltemp.data.dataset import Dataset, Split
from rltemp.data.problem import Problem
from rltemp.data.tasks import Recipe, Task, load_task
from rltemp.envs.distill_env import DistillEnv
from rltemp.envs.episode import LOOKS
from rltemp.integrations import Controller
from rltemp.io.run_folders import processor
from rltemp.kd.method import Objective
from rltemp.kd.temperature_rule import RuleFunction
from rltemp.loading import load_method, load_rule
from rltemp.models.networks import seeded_model
from rltemp.policy.features import DEFAULT_FEATURES, FEATURES
from rltemp.policy.manifest import PolicyAction, PolicyFeature
from rltemp.policy.policy_file import write_policy
from rltemp.policy.rule import Policy
from rltemp.rules import RULES
from rltemp.training.distill import Distillation
from rltemp.training.teachers import prepare

STUDENTS = 64
SHAPES, QUICK_SHAPES = ((128, 100), (4096, 32000)), ((128, 100), (32, 8192))
"""Of logits: images with 100 classes; tokens of a language model (half a gigabyte a tensor)."""


def main() -> None:
    """Measure, and print one line a result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few rounds only: shows that it runs")
    parser.add_argument("--only", choices=("rules", "training", "plugs"), help="a part of the measurements")
    options = parser.parse_args()
    rounds = 3 if options.quick else 15
    torch.set_num_threads(1)
    print(f"{processor()}, 1 thread; Python {platform.python_version()}, torch {torch.__version__}\n")
    if options.only in (None, "rules"):
        _show_rules(QUICK_SHAPES if options.quick else SHAPES, rounds)
    if options.only in (None, "training"):
        _show_training(rounds)
    if options.only in (None, "plugs"):
        _show_plugs(options.quick, rounds)


def _show_training(rounds: int) -> None:
    print(f"{'':64} ratio   target")
    images = cifar_sized_problem()
    _show("environment's step / plain loop's step", env_to_plain(images, max(1, rounds // 3)), "<= 1.05")
    _show("step under a policy / step at a fixed temperature", policy_to_fixed(images, rounds), "<= 1.10")
    print("(ResNet-20 to ResNet-8, 32 x 32, 100 classes, batch 128)\n")
    ratio, rate = alone_to_stacked(prepare(load_task("digits")), 2 if rounds == 3 else 7)
    _show(f"{STUDENTS} digits students one by one / as one stack", ratio, ">= 10")
    print(f"{'stacked training, steps of one student per second':62} {rate:7,.0f}")


def _show_plugs(quick: bool, rounds: int) -> None:
    print(f"{'':64} ratio   target")
    for name, (in_turn, hot) in policies_to_dtkd(quick).items():
        _show(f"{name} / DTKD's own rule, [128, 100], call by call", in_turn, "<= 3")
        _show(f"{name} / DTKD's own rule, [128, 100], hot loop", hot, "<= 3")
    for kind in ("", "compiled", "bfloat16", "compiled bfloat16"):
        _show(f"step under a policy / at a fixed temperature, {kind or 'plain'}", plug_step(kind, rounds), "<= 1.02")
    print("(ResNet-20 to ResNet-8, 32 x 32, 100 classes, batch 128)\n")
    shape = (2, 256, 8192) if quick else (4, 512, 32000)
    for name, ratio in plug_memory(shape):
        _show(f"peak memory of {name} under a policy / plain, {list(shape)}", ratio, "<= 1.10")


def policies_to_dtkd(quick: bool) -> dict[str, tuple[float, float]]:
    """Time of `rule(signals)` over that of DTKD's own: call by call in turn, and a hundred calls in turn (hot).

    A training loop has other code between two calls, so that neither is hot there.
    """
    generator = torch.Generator().manual_seed(0)
    student = (2 * torch.randn(128, 100, generator=generator)).requires_grad_()
    signals = Signals(student, 3 * torch.randn(128, 100, generator=generator), progress=0.3)
    policy = load_rule("universal")
    assert isinstance(policy, Policy)
    unbalanced = copy.copy(policy)
    unbalanced.scale = replace(policy.scale, balanced=False)
    compiled = torch.compile(policy, fullgraph=True)
    rules: dict[str, RuleFunction] = {
        "universal": policy,
        "universal, not balanced": unbalanced,
        "universal, compiled": compiled,
    }

    def ratio(rule: RuleFunction, rounds: int, calls: int) -> float:
        return _ratio(lambda: rule(signals), lambda: dtkd(signals), rounds, calls)

    dtkd = RULES["dtkd"]()
    rounds = (200, 3) if quick else (2000, 31)
    return {name: (ratio(rule, rounds[0], 1), ratio(rule, rounds[1], 100)) for name, rule in rules.items()}


def plug_step(kind: str, rounds: int) -> float:
    """A whole step in a plain PyTorch loop with a policy plugged in over the same at a fixed temperature."""
    problem = cifar_sized_problem()
    images, labels = torch.randn(128, 3, 32, 32), torch.randint(0, 100, (128,))

    def stepper(name: str) -> Callable[[], object]:
        controller, student = Controller(name), seeded_model("resnet8", (3, 32, 32), 100, 0)
        optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)

        def loss(progress: Tensor) -> Tensor:
            with torch.no_grad():
                teacher_logits = problem.teacher(images)
            return controller.loss(student(images), teacher_logits, labels, progress).mean()

        forward = torch.compile(loss) if "compiled" in kind else loss

        def step() -> None:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled="bfloat16" in kind):
                found = forward(torch.tensor(0.3))
            optimizer.zero_grad()
            found.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        return step

    # Step by step in turn: in blocks of four, which take a second, the machine itself drifts by a few hundredths.
    return _ratio(stepper("universal"), stepper("fixed:4"), 4 * rounds, 1)


def plug_memory(shape: tuple[int, ...]) -> list[tuple[str, float]]:
    """Peak memory of losses under a policy, forward and backward, over that of plain distillation in plain PyTorch."""
    generator = torch.Generator().manual_seed(0)
    student = (2 * torch.randn(shape, generator=generator)).requires_grad_()
    teacher = 3 * torch.randn(shape, generator=generator)
    labels, controller = torch.zeros(shape[:-1], dtype=torch.long), Controller("universal")
    mask = torch.rand(shape[:-1], generator=generator) < 0.7

    def peak(loss: Callable[[], Tensor]) -> int:
        def call() -> None:
            loss().backward()  # type: ignore[no-untyped-call]
            student.grad = None

        return peak_memory(call)

    plain = peak(lambda: plain_kd(student, teacher, 4.0))
    calls = {
        "divergence": lambda: controller.kd(student, teacher, None, 0.3).mean(),
        "objective": lambda: controller.loss(student, teacher, labels, 0.3).mean(),
        "objective with a mask": lambda: controller.loss(student, teacher, labels, 0.3, mask).mean(),
    }
    return [(name, peak(call) / plain) for name, call in calls.items()]


def plain_kd(student: Tensor, teacher: Tensor, scale: float) -> Tensor:
    """Plain distillation in plain PyTorch."""
    log_q, p = F.log_softmax(student / scale, -1), F.softmax(teacher / scale, -1)
    return F.kl_div(log_q, p, reduction="batchmean") * scale * scale


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
        plain_kd(student, teacher, scale).backward()  # type: ignore[no-untyped-call]
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

    def part(size: int) -> Split:
        images = torch.randint(0, 256, (size, 3, 32, 32), generator=generator, dtype=torch.uint8)
        return Split(images, torch.randint(0, 100, (size,), generator=generator))

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


def _stepper(problem: Problem, method: Objective, seeds: int | list[int] = 0) -> Callable[[], object]:
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
