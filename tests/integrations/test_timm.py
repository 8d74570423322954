"""timm's logit distillation task, unmodified, with temperatures: in the page's loop and under the launcher."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.hosts import LEARNING_RATE, ROOT, STEPS, host, own_loop
from support.kits import classifiers, pictures, timm_loop, timm_page
from torch import nn
from torch.nn import functional as F

from rltemp import BadInputError
from rltemp.integrations.timm import distillation_task, main

task_module = host("timm.task")


def test_at_fixed_temperatures_and_timms_weights_the_task_is_timms_own() -> None:
    for weights in ({"task_loss_weight": 0.3}, {"distill_loss_weight": 0.5}, {}):
        own = task_module.LogitDistillationTask(*classifiers(), temperature=4.0, verbose=False, **weights)
        weights = weights or {"task_loss_weight": 1.0, "distill_loss_weight": 1.0}
        ours = distillation_task(*classifiers(), rule="fixed:4", verbose=False, **weights)
        assert timm_loop(ours) == pytest.approx(timm_loop(own), rel=1e-5)
        seen = pictures()[0]
        for name, value in own(*seen).items():
            torch.testing.assert_close(ours(*seen)[name], value, rtol=1e-4, atol=1e-5)


def test_an_optimizer_that_is_followed_twice_counts_once() -> None:
    student, teacher = classifiers()
    task, optimizer = distillation_task(student, teacher, verbose=False), torch.optim.SGD(student.parameters(), 0.1)
    for _ in range(2):
        task.follow(optimizer, 10)
    optimizer.step()
    assert task.updates == 1


def test_a_resumed_task_goes_on_where_the_checkpoint_was() -> None:
    _, task = timm_page("universal")
    assert isinstance(task, task_module.LogitDistillationTask)
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


SCRIPT = f"""
import argparse

import torch
from timm.scheduler import create_scheduler_v2
from timm.task import LogitDistillationTask

from support.kits import classifiers, pictures

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
def test_the_launcher_says_in_one_line_what_is_missing(arguments, said, script, monkeypatch, capsys) -> None:
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
