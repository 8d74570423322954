"""timm's logit distillation task, unmodified, with temperatures: in the page's loop and under the launcher."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.hosts import (
    LEARNING_RATE,
    ROOT,
    RULES,
    STEPS,
    Classifier,
    blocks,
    classifiers,
    delicate,
    differs,
    host,
    modes,
    own_loop,
    pictures,
)
from torch import nn
from torch.nn import functional as F

from rltemp import BadInputError
from rltemp.integrations import HostVersionWarning
from rltemp.integrations.timm import distillation_task, main, task_class

task_module = host("timm.task")
(CODE,) = blocks("timm")


class Losses(list[float]):
    """Keeps the loss of every result of a task."""

    def of(self, task: Any) -> Any:
        task.register_forward_hook(lambda module, inputs, result: self.append(result["loss"].item()))
        return task


def page(rule: str) -> tuple[list[float], Any]:
    """Run the page's block: the losses of its steps, and its task."""
    student, teacher = classifiers()
    losses = Losses()
    code = CODE.replace('rule="universal"', f'rule="{rule}"').replace("task.train()", "losses.of(task).train()")
    names = {"student": student, "teacher": teacher, "loader": pictures(), "epochs": 2, "losses": losses}
    exec(compile(code, "timm.md", "exec"), names)
    return list(losses), names["task"]


def loop(task: Any, epochs: int = 1, accumulate: int = 1) -> list[float]:
    """Train any task of timm's as the page does."""
    optimizer = torch.optim.SGD(task.trainable_module.parameters(), LEARNING_RATE)
    if hasattr(task, "follow"):
        task.follow(optimizer, epochs * STEPS // accumulate)
    losses = Losses()
    losses.of(task)
    for step, (images, labels) in enumerate(epochs * pictures()):
        (task(images, labels)["loss"] / accumulate).backward()
        if (step + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    return list(losses)


@pytest.mark.parametrize("rule", RULES)
def test_the_page_and_rltemps_own_loop_have_the_same_losses(rule: str) -> None:
    found, task = page(rule)
    assert isinstance(task, task_module.LogitDistillationTask)
    assert found == pytest.approx(own_loop(rule, epochs=2), rel=1e-5)
    assert differs(found, own_loop("fixed:4", epochs=2))
    assert differs(found, own_loop(rule, epochs=2, progress=lambda _: 0.0))


def test_at_fixed_temperatures_and_timms_weights_the_task_is_timms_own() -> None:
    for weights in ({"task_loss_weight": 0.3}, {"distill_loss_weight": 0.5}, {}):
        own = task_module.LogitDistillationTask(*classifiers(), temperature=4.0, verbose=False, **weights)
        weights = weights or {"task_loss_weight": 1.0, "distill_loss_weight": 1.0}
        ours = distillation_task(*classifiers(), rule="fixed:4", verbose=False, **weights)
        assert loop(ours) == pytest.approx(loop(own), rel=1e-5)
        seen = pictures()[0]
        for name, value in own(*seen).items():
            torch.testing.assert_close(ours(*seen)[name], value, rtol=1e-4, atol=1e-5)


def test_progress_counts_optimizer_steps_under_accumulation() -> None:
    found = loop(distillation_task(*classifiers(), verbose=False), epochs=2, accumulate=4)
    assert found == pytest.approx(own_loop("universal", epochs=2, accumulate=4), rel=1e-5)


def test_an_optimizer_that_is_followed_twice_counts_once() -> None:
    student, teacher = classifiers()
    task, optimizer = distillation_task(student, teacher, verbose=False), torch.optim.SGD(student.parameters(), 0.1)
    for _ in range(2):
        task.follow(optimizer, 10)
    optimizer.step()
    assert task.updates == 1


def test_a_resumed_task_goes_on_where_the_checkpoint_was() -> None:
    _, task = page("universal")
    state = task.get_checkpoint_state()
    resumed = distillation_task(*classifiers(), verbose=False)
    resumed.load_checkpoint_state(state["state_dict"], state["task_state"])
    assert resumed.updates == task.updates == 2 * STEPS


def test_mix_up_keeps_its_criterion_and_a_rule_needs_no_labels() -> None:
    images, labels = pictures()[0]
    soft = 0.9 * F.one_hot(labels, 10) + 0.01
    task = distillation_task(*classifiers(), verbose=False, criterion=nn.CrossEntropyLoss())
    task.follow(torch.optim.SGD(task.trainable_module.parameters(), 0.1), 10)
    result = task(images, soft)
    assert result["task_loss"].item() == pytest.approx(F.cross_entropy(result["output"], soft).item())
    assert result["kd_loss"].item() == pytest.approx(task(images, labels)["kd_loss"].item())


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(BadInputError, match=r"call task\.follow\(optimizer, total_updates\) first"):
        distillation_task(*classifiers(), verbose=False)(*pictures()[0])
    with pytest.raises(BadInputError, match="two phases, and this host adds two losses"):
        distillation_task(*classifiers(), rule="annealing", verbose=False)
    with pytest.raises(BadInputError, match="parameters to learn"):
        distillation_task(*classifiers(), rule="ctkd", verbose=False)


def test_a_version_that_was_not_tested_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rltemp.integrations.contract.version", lambda host: "0.9.16")
    task_class.cache_clear()
    with pytest.warns(HostVersionWarning, match=r"timm 0\.9\.16 is installed"):
        task_class()
    task_class.cache_clear()


SCRIPT = f"""
import argparse

import torch
from timm.scheduler import create_scheduler_v2
from timm.task import LogitDistillationTask

from support.hosts import classifiers, pictures

parser = argparse.ArgumentParser()
parser.add_argument("--kd-model-name")
parser.add_argument("--epochs", type=int)
args = parser.parse_args()
student, teacher = classifiers()
optimizer = torch.optim.SGD(student.parameters(), {LEARNING_RATE})
if args.kd_model_name:
    task = LogitDistillationTask(student, teacher, task_loss_weight=None, distill_loss_weight=None, temperature=4.0)
    assert isinstance(task, LogitDistillationTask)
    scheduler, epochs = create_scheduler_v2(
        optimizer, sched="step", num_epochs=args.epochs, decay_epochs=100, updates_per_epoch={STEPS}
    )
    for images, labels in epochs * pictures():
        loss = task(images, labels)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print("loss", loss.item())
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script that takes timm's names as `train.py` does."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "train.py"
    path.write_text(SCRIPT, "utf-8")
    return path


def test_a_script_like_timms_runs_unmodified_under_the_launcher(script: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, "-m", "rltemp.integrations.timm", "--rule", "universal", script.name]
    command += ["--kd-model-name", "own", "--epochs", "2"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    found = [float(line.split()[1]) for line in ran.stdout.splitlines() if line.startswith("loss ")]
    assert found == pytest.approx(own_loop("universal", epochs=2), rel=1e-5), ran.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train.py", "--epochs", "1"], "error: train.py made no LogitDistillationTask: give it --kd-model-name"),
        (["--rule", "dkdt", "train.py"], "error: unknown rule 'dkdt': did you mean"),
        (["trian.py"], "error: there is no script trian.py"),
    ],
)
def test_the_launcher_says_in_one_line_what_is_missing(
    arguments: list[str],
    said: str,
    script: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import timm.scheduler
    import timm.task

    # What the launcher puts into timm is taken out after the test.
    for module, name in ((timm.task, "LogitDistillationTask"), (timm.scheduler, "create_scheduler_v2")):
        monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["rltemp.integrations.timm", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said)


def test_a_teacher_with_batch_norm_and_dropout_is_in_eval_mode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    student, _ = classifiers()
    teacher = Classifier(delicate())
    seen = modes(teacher)
    monkeypatch.setitem(globals(), "classifiers", lambda: (student, teacher))
    page("universal")
    assert seen
    assert not any(seen)
