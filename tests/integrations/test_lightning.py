"""Lightning's Trainer and Fabric, unmodified, with temperatures: the pages' own blocks against rltemp's own loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.hosts import (
    OF_HOSTS,
    batches,
    delicate,
    differs,
    flat,
    host,
    modes,
    networks,
    own_loop,
    run_block,
    scalars,
)
from support.kits import QUIET, lightning_module, loader
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from rltemp import BadInputError, Signals, load_method
from rltemp.integrations.lightning import DistillationMixin
from rltemp.training.tensorboard import TAGS

lightning = host("lightning")
pytestmark = OF_HOSTS
LIGHTNING, FABRIC = 0, 1
"""The blocks of the page."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the blocks write what they write."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(number: int, teacher: Any = None) -> None:
    """Run a block of the page with a student, a teacher and batches of the digits."""
    student, linear = networks()
    run_block("lightning", number=number, student=student, teacher=teacher or linear, loader=loader())


def test_under_bfloat16_temperatures_are_those_of_full_precision() -> None:
    module, method = lightning_module("universal", max_epochs=1, precision="bf16-mixed"), load_method("universal")
    for step, (student, teacher, labels, last) in enumerate(module.seen):
        assert student.dtype == teacher.dtype == torch.bfloat16
        signals = Signals(student, teacher, labels, step / 8)
        torch.testing.assert_close(last.student, method.rule(signals).student, rtol=0, atol=0)
        assert module.losses[step] == pytest.approx(method.loss(signals).mean().item(), rel=1e-6)
    assert len(module.seen) == 8


def test_two_processes_end_with_the_mean_of_both_halves_gradients() -> None:
    module = lightning_module("universal", max_epochs=1, strategy="ddp_fork", devices=2)
    student, teacher = networks()
    optimizer, method = torch.optim.SGD(student.parameters(), 0.05), load_method("universal")
    data = flat(batches())
    images, labels = data.tensors
    dealt = [list(DistributedSampler(data, 2, process)) for process in range(2)]  # as Lightning deals samples out
    for step in range(4):
        optimizer.zero_grad()
        for samples in dealt:
            mine = samples[24 * step : 24 * (step + 1)]
            signals = Signals(student(images[mine]), teacher(images[mine]), labels[mine], step / 4)
            (method.loss(signals).mean() / 2).backward()
        optimizer.step()
    for found, wanted in zip(module.student.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_the_page_runs_and_tensorboard_has_the_temperatures(folder: Path) -> None:
    run(LIGHTNING)
    found = scalars(folder / "lightning_logs" / "version_0")
    numbers = {tag for tag in TAGS if tag.startswith("temperature/")} - {"temperature/teacher", "temperature/student"}
    assert numbers <= set(found)
    means = found["temperature/student_mean"]
    assert [step for step, _ in means] == [4, 9, 14]
    seen = lightning_module("universal").seen
    assert [value for _, value in means] == pytest.approx([seen[step][3].student.mean().item() for step, _ in means])


def test_the_page_of_fabric_has_the_same_losses_and_logs_the_temperatures(folder: Path) -> None:
    run(FABRIC)
    found = scalars(next((folder / "fabric_logs").rglob("events.*")).parent)
    wanted = own_loop("universal")
    assert [value for _, value in found["kd/loss"]] == pytest.approx([wanted[0], wanted[5]], rel=1e-5)
    assert found["temperature/teacher_mean"][0] != found["temperature/teacher_mean"][1]
    assert differs(wanted, own_loop("fixed:4"))


@pytest.mark.parametrize("rule", ["universal", "energy"])  # one sees masks, the other is given what they leave
def test_under_a_mask_neither_the_loss_nor_the_log_has_what_is_padding(rule: str, folder: Path) -> None:
    mask = torch.arange(24).view(12, 2) % 5 > 0
    wanted: list[tuple[float, float]] = []

    class Tokens(DistillationMixin, lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.method, (self.student, self.teacher) = rule, networks()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            student, teacher = (network(batch[0]).view(12, 2, 10) for network in (self.student, self.teacher))
            student = student.masked_fill(~mask.unsqueeze(-1), torch.nan)
            loss = self.distillation_loss(student, teacher, batch[1].view(12, 2), mask)
            signals = Signals(student[mask], teacher[mask], batch[1].view(12, 2)[mask], batch_idx / 8)
            method = load_method(rule)
            wanted.append((method.loss(signals).mean().item(), method.rule(signals).student.mean().item()))
            assert loss.item() == pytest.approx(wanted[-1][0], rel=1e-5)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.student.parameters(), 0.05)

    options = {**QUIET, "logger": True, "log_every_n_steps": 1, "max_epochs": 1, "accelerator": "cpu"}
    lightning.Trainer(**options).fit(Tokens(), loader())
    found = scalars(folder / "lightning_logs" / "version_0")["temperature/student_mean"]
    assert [value for _, value in found] == pytest.approx([mean for _, mean in wanted], rel=1e-5)
    assert len(wanted) == 8


def test_a_trainer_without_an_end_says_that_progress_is_unknown() -> None:
    class Stream(IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            return iter(batches())

    endless = DataLoader(Stream(), batch_size=None)
    with pytest.raises(BadInputError, match="no last step, so progress is unknown: give Trainer"):
        lightning_module("universal", endless, max_epochs=1)
    assert len(lightning_module("universal", endless, max_epochs=1, max_steps=4).losses) == 4


def test_lightning_under_its_older_name_needs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    older = host("pytorch_lightning")
    asked: list[str] = []
    monkeypatch.setattr("rltemp.integrations.contract.version", lambda host: asked.append(host) or "2.6.0")
    monkeypatch.setattr(lightning, "LightningModule", older.LightningModule)
    monkeypatch.setattr(lightning, "Trainer", older.Trainer)
    assert lightning_module("universal").losses == pytest.approx(own_loop("universal", epochs=2), rel=1e-5)
    assert asked == ["pytorch-lightning"]


def test_under_fabric_a_teacher_is_in_eval_mode() -> None:
    teacher = delicate()
    seen = modes(teacher)
    run(FABRIC, teacher)
    assert set(seen) == {False}
