"""Lightning's Trainer and Fabric, unmodified, with temperatures: the pages' own blocks against rltemp's own loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.hosts import RULES, batches, blocks, delicate, differs, flat, host, modes, networks, own_loop, scalars
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from rltemp import BadInputError, Signals, load_method
from rltemp.integrations import HostVersionWarning
from rltemp.integrations.lightning import DistillationMixin
from rltemp.training.tensorboard import TAGS

lightning = host("lightning")
MODULE, FABRIC = blocks("lightning")
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the blocks write what they write."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(code: str, **more: Any) -> dict[str, Any]:
    """Run a block of the page with a student, a teacher and batches of the digits."""
    student, teacher = networks()
    names = {"student": student, "teacher": teacher, "loader": DataLoader(flat(batches()), batch_size=24), **more}
    exec(compile(code, "lightning.md", "exec"), names)
    return names


def train(rule: str, data: Any = None, **options: Any) -> Any:
    """The page's module, trained under a Trainer of these options; what its steps saw and returned is kept."""
    names: dict[str, Any] = {}
    exec(compile(MODULE.split("\ntrainer = ")[0], "lightning.md", "exec"), names)

    class Kept(names["Student"]):  # type: ignore[misc]
        def distillation_loss(self, student: Any, teacher: Any, labels: Any) -> Any:
            loss = super().distillation_loss(student, teacher, labels)
            self.seen.append((student.detach(), teacher, labels, self._controller.last))
            self.losses.append(loss.item())
            return loss

    module = Kept(*networks())
    module.method, module.seen, module.losses = rule, [], []
    trainer = lightning.Trainer(**{"max_epochs": 1, "accelerator": "cpu", **QUIET, **options})
    trainer.fit(module, DataLoader(flat(batches()), batch_size=24) if data is None else data)
    return module


@pytest.mark.parametrize("rule", RULES)
def test_a_trainer_and_rltemps_own_loop_have_the_same_losses(rule: str) -> None:
    found = train(rule, max_epochs=2).losses
    assert found == pytest.approx(own_loop(rule, epochs=2), rel=1e-5)
    assert differs(found, own_loop("fixed:4", epochs=2))
    assert differs(found, own_loop(rule, epochs=2, progress=lambda _: 0.0))


def test_progress_counts_optimizer_steps_under_accumulation() -> None:
    found = train("universal", max_epochs=2, accumulate_grad_batches=4).losses
    assert found == pytest.approx(own_loop("universal", epochs=2, accumulate=4), rel=1e-5)
    assert differs(found, own_loop("universal", epochs=2, accumulate=4, progress=lambda done: min(1.0, 4 * done)))


def test_under_bfloat16_temperatures_are_those_of_full_precision() -> None:
    module, method = train("universal", precision="bf16-mixed"), load_method("universal")
    for step, (student, teacher, labels, last) in enumerate(module.seen):
        assert student.dtype == teacher.dtype == torch.bfloat16
        signals = Signals(student, teacher, labels, step / 8)
        torch.testing.assert_close(last.student, method.rule(signals).student, rtol=0, atol=0)
        assert module.losses[step] == pytest.approx(method.loss(signals).mean().item(), rel=1e-6)
    assert len(module.seen) == 8


def test_two_processes_end_with_the_mean_of_both_halves_gradients() -> None:
    module = train("universal", strategy="ddp_fork", devices=2)
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
    run(MODULE)
    found = scalars(folder / "lightning_logs" / "version_0")
    numbers = {tag for tag in TAGS if tag.startswith("temperature/")} - {"temperature/teacher", "temperature/student"}
    assert numbers <= set(found)
    means = found["temperature/student_mean"]
    assert [step for step, _ in means] == [4, 9, 14]
    seen = train("universal", max_epochs=2).seen
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
    lightning.Trainer(**options).fit(Tokens(), DataLoader(flat(batches()), batch_size=24))
    found = scalars(folder / "lightning_logs" / "version_0")["temperature/student_mean"]
    assert [value for _, value in found] == pytest.approx([mean for _, mean in wanted], rel=1e-5)
    assert len(wanted) == 8


def test_a_trainer_without_an_end_says_that_progress_is_unknown() -> None:
    class Stream(IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            return iter(batches())

    endless = DataLoader(Stream(), batch_size=None)
    with pytest.raises(BadInputError, match="no last step, so progress is unknown: give Trainer"):
        train("universal", endless)
    assert len(train("universal", endless, max_steps=4).losses) == 4


def test_a_rule_that_has_to_learn_is_refused() -> None:
    with pytest.raises(BadInputError, match="parameters to learn, which this host would not train"):
        train("ctkd")


def test_lightning_under_its_older_name_needs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    older = host("pytorch_lightning")
    asked: list[str] = []
    monkeypatch.setattr("rltemp.integrations.contract.version", lambda host: asked.append(host) or "2.6.0")
    monkeypatch.setattr(lightning, "LightningModule", older.LightningModule)
    monkeypatch.setattr(lightning, "Trainer", older.Trainer)
    assert train("universal").losses == pytest.approx(own_loop("universal"), rel=1e-5)
    assert asked == ["pytorch-lightning"]


def test_a_version_that_was_not_tested_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rltemp.integrations.contract.version", lambda host: "3.0.0")
    with pytest.warns(HostVersionWarning, match=r"lightning 3\.0\.0 is installed"):
        train("dtkd", max_steps=1)


@pytest.mark.parametrize("code", [MODULE, FABRIC], ids=["lightning", "fabric"])
def test_a_teacher_with_batch_norm_and_dropout_is_in_eval_mode(code: str) -> None:
    teacher = delicate()
    seen = modes(teacher)
    run(code, teacher=teacher)
    assert seen
    assert not any(seen)
