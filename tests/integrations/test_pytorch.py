"""The loop of docs/integrations/pytorch.md, as it stands there, has the losses of rltemp's own, however it is run."""

from __future__ import annotations

import copy
import functools
import json
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.hosts import batches, blocks, delicate, modes, networks, run_block
from torch import Tensor, nn

from rltemp import Signals, load_method
from rltemp.data.problem import Problem
from rltemp.training.distill import Distillation

(BLOCK,) = blocks("pytorch")
STEPS = 12
every_method = pytest.mark.parametrize("name", ["universal", "dtkd"])


def distil(*arguments: Any, **options: Any) -> list[float]:
    """The page's loop."""
    losses: list[Tensor] = run_block("pytorch")["distil"](*arguments, **options)
    return [loss.item() for loss in losses]


def own_loop(problem: Problem, name: str, precision: str = "float32") -> tuple[list[float], list[Any], nn.Module]:
    """Losses of rltemp's own loop, its batches, and its student as it was."""
    problem = replace(problem, teacher_logits=None)  # asked for batch by batch, under the same precision
    run = Distillation(problem, 0, recipe=replace(problem.task.recipe, schedule="constant", precision=precision))
    student, method, losses, batches = copy.deepcopy(run.student), load_method(name), [], []
    for step in range(STEPS):
        index = run.batches.positions(step)
        part = problem.dataset.train
        batches.append((problem.dataset.batch(part, index).inputs, part.labels[index]))
        signals = replace(run.observe(), progress=step / STEPS)
        loss = method.loss(signals)
        losses.append(loss.mean().item())
        run.update(loss)
    return losses, batches, student


def optimizer(problem: Problem, student: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(student.parameters(), problem.task.recipe.learning_rate, momentum=0.9)


def close(found: list[float], wanted: list[float]) -> bool:
    return found == pytest.approx(wanted, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@every_method
def test_the_loop_has_the_losses_of_rltemps_own_under_every_precision(name, precision, digits) -> None:
    wanted, batches, student = own_loop(digits, name, precision)
    dtype = None if precision == "float32" else getattr(torch, precision)
    found = distil(student, digits.teacher, batches, optimizer(digits, student), name, dtype=dtype)
    # A gradient that float16 rounds the other way shows in the fifth digit a few steps later.
    assert found == pytest.approx(wanted, rel=1e-3 if precision == "float16" else 1e-5, abs=1e-5)
    assert found[-1] != pytest.approx(found[0], rel=0.02), "nothing was trained"


@every_method
def test_a_loop_that_ignored_the_temperatures_would_be_told_from_it(name: str, digits: Problem) -> None:
    wanted, batches, student = own_loop(digits, name)
    ignoring = replace(load_method(name), rule=load_method("fixed:4").rule)
    found = distil(student, digits.teacher, batches, optimizer(digits, student), ignoring)
    assert found != pytest.approx(wanted, rel=1e-2)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@every_method
def test_a_compiled_loop_has_the_same_losses(name: str, backend: str, digits: Problem, monkeypatch) -> None:
    """Without graph breaks; machine code takes a minute more."""
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, fullgraph=True, backend=backend))
    wanted, batches, student = own_loop(digits, name)
    assert close(distil(student, digits.teacher, batches, optimizer(digits, student), name, compiled=True), wanted)


def accumulating(
    problem: Problem, name: str, batches: list[Any], student: nn.Module, progress: list[float]
) -> list[float]:
    """Losses of micro-batches, two of which make a step, by `Method.loss`, without a controller."""
    method, steps, losses = load_method(name), optimizer(problem, student), []
    for number, (images, labels) in enumerate(batches):
        signals = Signals(student(images), problem.teacher(images), labels, progress[number])
        loss = method.loss(signals).mean()
        losses.append(loss.item())
        (loss / 2).backward()
        if number % 2:
            steps.step()
            steps.zero_grad()
    return losses


@every_method
def test_gradients_are_accumulated_over_micro_batches(name: str, digits: Problem) -> None:
    _, batches, student = own_loop(digits, name)
    wanted = accumulating(digits, name, batches, copy.deepcopy(student), [n / STEPS for n in range(STEPS)])
    found = distil(student, digits.teacher, batches, optimizer(digits, student), name, accumulate=2)
    assert close(found, wanted)


WORKER = """
import json, sys, torch
from torch.nn.parallel import DistributedDataParallel
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
student, teacher, batches, options = torch.load("work.pt", weights_only=False)
student = DistributedDataParallel(student)
optimizer = torch.optim.SGD(student.parameters(), **options)
losses = distil(student, teacher, batches[rank::2], optimizer, sys.argv[1])
open(f"losses{rank}.json", "w").write(json.dumps([loss.item() for loss in losses]))
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize("name", ["universal", pytest.param("dtkd", marks=pytest.mark.slow)])
def test_two_processes_descend_along_the_mean_of_their_batches(name: str, digits: Problem, tmp_path: Path) -> None:
    _, batches, student = own_loop(digits, name)
    progress = [number // 2 / (STEPS // 2) for number in range(STEPS)]  # both processes are equally far
    wanted = accumulating(digits, name, batches, copy.deepcopy(student), progress)
    recipe = digits.task.recipe
    options = {"lr": recipe.learning_rate, "momentum": 0.9}
    torch.save((student, digits.teacher, batches, options), tmp_path / "work.pt")
    (tmp_path / "worker.py").write_text(BLOCK + WORKER)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = ["--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port", str(free.getsockname()[1])]
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *where, "worker.py", name],
        cwd=tmp_path,
        check=True,
        timeout=240,
    )
    for rank in (0, 1):
        assert close(json.loads((tmp_path / f"losses{rank}.json").read_text()), wanted[rank::2])


def test_a_teacher_with_batch_norm_and_dropout_is_in_eval_mode() -> None:
    student, teacher = networks()[0], delicate()
    seen = modes(teacher)
    distil(student, teacher, batches(), torch.optim.SGD(student.parameters(), 0.05))
    assert set(seen) == {False}
