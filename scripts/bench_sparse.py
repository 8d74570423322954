"""A teacher of which the top 64 are known, beside all its logits: time and peak memory of the loss with its gradient.

    python scripts/bench_sparse.py [--rounds 7] [--rules fixed:1 fixed:2 universal]

Logits are [4, 512, 32000], float32, on one thread. "All logits" is the same call of rltemp's with the teacher's logits,
"PyTorch" plain distillation in plain PyTorch. A time is the median and the quartiles of the ratio over rounds in which
all three run one after the other; memory is the most that torch's allocator holds at once beside what came in.
"""

from __future__ import annotations

import argparse
import platform
import statistics
from collections.abc import Callable
from functools import partial
from timeit import timeit

import torch
from bench import backward, peak_memory, plain_kd, random_logits
from torch import Tensor

from rltemp import Controller, SparseTeacher
from rltemp.io.versions import processor

SHAPE, TOP = (4, 512, 32_000), 64
RULES = "fixed:1", "fixed:2", "universal"
BYTES = 2**20


def main() -> None:
    """Measure, and print a line a rule."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rules", nargs="+", default=RULES)
    options = parser.parse_args()
    rounds = options.rounds
    torch.set_num_threads(1)
    print(f"{processor()}, 1 thread; Python {platform.python_version()}, torch {torch.__version__}; {rounds} rounds\n")
    student, teacher = random_logits(*SHAPE)
    labels = torch.zeros(SHAPE[:-1], dtype=torch.long)
    sparse = SparseTeacher.of_logits(teacher, TOP)
    known = [value for value in (sparse.ids, sparse.log_probs, sparse.tail) if value is not None]
    sizes = [size(*known), size(teacher), size(teacher)]
    print(f"the teacher itself: {sizes[0]:.1f} MiB, all its logits {sizes[1]:.1f} MiB\n")
    print(f"{'':12}{'time / all logits':>24}{'time / PyTorch':>24}   peak MiB: top 64, all logits, PyTorch")
    for rule in options.rules:
        controller = Controller(rule)

        def loss(of: Tensor | SparseTeacher, controller: Controller = controller) -> Tensor:
            return controller.kd(student, of, labels, 0.3).mean()

        calls = [
            backward(partial(loss, sparse), student),
            backward(partial(loss, teacher), student),
            backward(partial(plain_kd, student, teacher), student),
        ]
        first, second = ratios(calls, rounds)
        peaks = ", ".join(f"{peak_memory(call) / BYTES:.0f}" for call in calls)
        print(f"{rule:12}{first:>24}{second:>24}   {peaks}", flush=True)


def size(*values: Tensor) -> float:
    """MiB of tensors."""
    return sum(value.numel() * value.element_size() for value in values) / BYTES


def ratios(calls: list[Callable[[], object]], rounds: int) -> list[str]:
    """The time of the first call over that of each of the others, as text."""
    times = [[timeit(call, number=1) for call in calls] for _ in range(rounds + 1)][1:]  # the first one allocates
    found = []
    for other in (1, 2):
        low, middle, high = statistics.quantiles([row[0] / row[other] for row in times], n=4)
        found.append(f"{middle:.2f} [{low:.2f}, {high:.2f}]")
    return found


if __name__ == "__main__":
    main()
