"""What rltemp adds to the student's own work: ratios of step times and of peak memory, on one thread.

    python scripts/bench.py [--rounds 15] [--only rules|training|plugs]

Nothing is downloaded: the problem of CIFAR's size is random pixels. A ratio of times is the median over rounds in which
both sides run one after the other, so that another job on the machine slows both.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import platform
import statistics
from collections.abc import Callable
from timeit import timeit
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rltemp import Signals, kd_loss
from rltemp.data.dataset import Dataset, Split
from rltemp.data.problem import Problem
from rltemp.data.recipe import Recipe
from rltemp.data.task import Task
from rltemp.envs.distill_env import DistillEnv
from rltemp.envs.episode import LOOKS
from rltemp.integrations import Controller
from rltemp.io.versions import processor
from rltemp.kd.temperature_rule import RuleFunction
from rltemp.loading import load_method, load_rule
from rltemp.models.networks import seeded_model
from rltemp.rules import RULES
from rltemp.training.distill import Distillation
from rltemp.training.steps import plain_step

SHAPES = (128, 100), (4096, 32000)
"""Of logits: images of 100 classes, and the tokens of a language model (half a gigabyte a tensor)."""
HEADING = f"{'':64} ratio   target"
SETTING = "(ResNet-20 to ResNet-8, 32 x 32, 100 classes, batch 128)\n"

Call = Callable[[], object]


def main() -> None:
    """Measure, and print one line a result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="of every ratio; 3 show that it runs")
    parser.add_argument("--only", choices=GROUPS, help="one group of measurements")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{processor()}, 1 thread; Python {platform.python_version()}, torch {torch.__version__}\n")
    for name in [options.only] if options.only else GROUPS:
        GROUPS[name](options.rounds)


def line(name: str, found: float, target: str) -> None:
    """Print a result."""
    print(f"{name:62} {found:7.3f}   {target}", flush=True)


def rules(rounds: int) -> None:
    """A line a rule: time and peak memory of its loss and gradient over those of plain distillation, at each shape."""
    print("loss under a rule, forward and backward, float32, over plain distillation at one temperature")
    print("(targets: time 1.30, peak memory beside the logits 1.10; dtkd_exact and ctkd_* are not held to them)\n")
    print(f"{'':20}" + "".join(f"{list(shape)!s:>14} time  memory" for shape in SHAPES))
    for name, rule in RULES.items():
        costs = [rule_to_plain(rule(), shape, rounds) for shape in SHAPES]
        print(f"{name:20}" + "".join(f"{seconds:19.2f} {memory:7.2f}" for seconds, memory in costs), flush=True)
    print()


def rule_to_plain(rule: RuleFunction, shape: tuple[int, int], rounds: int) -> tuple[float, float]:
    """Time and peak memory of one rule's loss and gradient over those of plain distillation in plain PyTorch."""
    student, teacher = random_logits(*shape)
    labels, large = torch.zeros(shape[0], dtype=torch.long), student.numel() > 2**17

    def under_rule() -> Tensor:
        signals = Signals(student, teacher, labels, progress=0.3)
        return kd_loss(signals, rule(signals)).mean()

    ours, plain = backward(under_rule, student), backward(lambda: plain_kd(student, teacher), student)
    times = ratio(ours, plain, max(3, rounds // 5) if large else rounds, calls=1 if large else 40)
    return times, peak_memory(ours) / peak_memory(plain)


def training(rounds: int) -> None:
    """The steps of the environment and of a policy."""
    images = random_images()
    print(HEADING)
    # The environment's step at action zero, and as many steps as lie between two evaluations on the probe.
    env, recipe = DistillEnv(images), images.task.recipe
    env.reset(seed=0)
    action = np.zeros((recipe.batch_size, 2), np.float32)
    steps = recipe.steps(len(images.dataset.train)) // LOOKS
    found = ratio(lambda: env.step(action), stepper(images, "fixed:4"), max(1, rounds // 3), steps)
    line("environment's step / plain loop's step", found, "<= 1.05")
    policy = ratio(stepper(images, "universal"), stepper(images, "fixed:4"), rounds)
    line("step under a policy / step at a fixed temperature", policy, "<= 1.10")
    print(SETTING)


def plugs(rounds: int) -> None:
    """What a policy costs in a loop of one's own: its answer, the whole step, the loss's memory."""
    print(HEADING)
    student, teacher = random_logits(128, 100)
    signals, policy, dtkd = Signals(student, teacher, progress=0.3), load_rule("universal"), RULES["dtkd"]()
    answers: dict[str, RuleFunction] = {
        "universal": policy,
        "universal, compiled": torch.compile(policy, fullgraph=True),
    }
    for name, rule in answers.items():
        ours, theirs = functools.partial(rule, signals), functools.partial(dtkd, signals)
        # A training loop has other code between two calls, so that neither is hot there.
        line(f"{name} / DTKD's own rule, [128, 100], call by call", ratio(ours, theirs, 130 * rounds, 1), "<= 3")
        line(f"{name} / DTKD's own rule, [128, 100], hot loop", ratio(ours, theirs, 2 * rounds, 100), "<= 3")
    for kind in ("", "compiled", "bfloat16", "compiled bfloat16"):
        # Step by step in turn: in blocks of four, which take a second, the machine itself drifts by some hundredths.
        found = ratio(own_loop("universal", kind), own_loop("fixed:4", kind), 4 * rounds, calls=1)
        line(f"step under a policy / at a fixed temperature, {kind or 'plain'}", found, "<= 1.02")
    print(SETTING)
    for name, found in policy_memory(4, 512, 32000).items():
        line(f"peak memory of {name} under a policy / plain, [4, 512, 32000]", found, "<= 1.10")


GROUPS = {"rules": rules, "training": training, "plugs": plugs}


def own_loop(name: str, kind: str) -> Call:
    """A whole step in a plain PyTorch loop under a `Controller`."""
    teacher, controller = random_images().teacher, Controller(name)
    assert teacher is not None
    student, images = seeded_model("resnet8", (3, 32, 32), 100, 0), torch.randn(128, 3, 32, 32)
    labels, optimizer = torch.randint(0, 100, (128,)), torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)

    def loss(progress: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_logits = teacher(images)
        return controller.loss(student(images), teacher_logits, labels, progress).mean()

    forward = torch.compile(loss) if "compiled" in kind else loss

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled="bfloat16" in kind):
            found = forward(torch.tensor(0.3))
        optimizer.zero_grad()
        torch.autograd.backward(found)
        optimizer.step()

    return step


def policy_memory(*shape: int) -> dict[str, float]:
    """Peak memory of losses under a policy, forward and backward, over that of plain distillation in plain PyTorch."""
    student, teacher = random_logits(*shape)
    labels, controller = torch.zeros(shape[:-1], dtype=torch.long), Controller("universal")
    mask = torch.rand(shape[:-1], generator=torch.Generator().manual_seed(0)) < 0.7
    losses = {
        "divergence": lambda: controller.kd(student, teacher, None, 0.3).mean(),
        "objective": lambda: controller.loss(student, teacher, labels, 0.3).mean(),
        "objective with a mask": lambda: controller.loss(student, teacher, labels, 0.3, mask).mean(),
    }
    plain = peak_memory(backward(lambda: plain_kd(student, teacher), student))
    return {name: peak_memory(backward(loss, student)) / plain for name, loss in losses.items()}


def stepper(problem: Problem, name: str) -> Call:
    """A step of the project's own training loop."""
    run, method = Distillation(problem, 0), load_method(name)
    return lambda: plain_step(run, method)


def random_images() -> Problem:
    """Random images of CIFAR's size, 100 classes, ResNet-20 to ResNet-8, batch 128, augmented."""
    generator = torch.Generator().manual_seed(0)

    def split(size: int) -> Split:
        images = torch.randint(0, 256, (size, 3, 32, 32), generator=generator, dtype=torch.uint8)
        return Split(images, torch.randint(0, 100, (size,), generator=generator))

    recipe = Recipe(epochs=100, batch_size=128, learning_rate=0.05, weight_decay=5e-4)
    mean, std = torch.full((3,), 127.5), torch.full((3,), 74.0)
    data = Dataset("random", split(1280), split(500), split(10), split(10), 100, mean, std, augment=True)
    teacher = seeded_model("resnet20", data.image_shape, 100, 0).eval().requires_grad_(False)
    return Problem(Task("random", "resnet20", "resnet8", recipe, recipe), data, teacher, None, 0.01)


def random_logits(*shape: int) -> tuple[Tensor, Tensor]:
    """A student's logits, which take a gradient, and a teacher's."""
    generator = torch.Generator().manual_seed(0)
    student = (2 * torch.randn(shape, generator=generator)).requires_grad_()
    return student, 3 * torch.randn(shape, generator=generator)


def plain_kd(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """Plain distillation in plain PyTorch."""
    log_q, p = F.log_softmax(student / temperature, -1), F.softmax(teacher / temperature, -1)
    return F.kl_div(log_q, p, reduction="batchmean") * temperature**2


def backward(loss: Callable[[], Tensor], leaf: Tensor) -> Call:
    """A call that computes a loss and its gradient, and keeps neither."""

    def call() -> None:
        torch.autograd.backward(loss())
        leaf.grad = None

    return call


def peak_memory(call: Call) -> int:
    """Most bytes that torch's CPU allocator held at once during a call, beside what it held before."""
    call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    assert profile.profiler is not None
    events: list[Any] = profile.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), int(event.nbytes())) for event in events if event.name() == "[memory]")
    return max(itertools.accumulate(size for _, size in changes))


def ratio(one: Call, other: Call, rounds: int, calls: int = 4) -> float:
    """The median over rounds of the time of one over that of the other."""
    one(), other()  # the first call allocates
    return statistics.median(timeit(one, number=calls) / timeit(other, number=calls) for _ in range(rounds))


if __name__ == "__main__":
    main()
