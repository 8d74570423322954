"""The plugs for NVIDIA ModelOpt, against ModelOpt itself: its losses are those of a plain loop of ours."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny import llama
from torch import Tensor, nn
from torch.nn import functional as F

import rltemp
from rltemp import BadInputError, Method, Signals, kd_loss
from rltemp.integrations import HostVersionWarning, contract
from rltemp.integrations.modelopt import DistillationLoss, KDTrainerMixin

mtd = pytest.importorskip(
    "modelopt.torch.distill",
    reason="the host is not installed: pip install rltemp[modelopt]",
    exc_type=ImportError,  # its own `requests` among them
)
transformers = pytest.importorskip("transformers")
huggingface = pytest.importorskip("modelopt.torch.distill.plugins.huggingface")

pytestmark = pytest.mark.filterwarnings("ignore:`StaticLossBalancer` weights:UserWarning")  # of the host's own

PAGE = (Path(__file__).parents[2] / "docs/integrations/modelopt.md").read_text("utf-8")
METHODS = ["universal", "dtkd"]
STEPS, RATE, SHARE = 6, 0.1, 0.3
Losses = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class Net(nn.Module):
    def __init__(self, seed: int, width: int, classes: int = 5) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.inner, self.outer = nn.Linear(6, width), nn.Linear(width, classes)
        self.outer.weight.data *= 5  # logits far enough apart for rules to tell samples from each other

    def forward(self, images: Tensor) -> Tensor:
        return self.outer(self.inner(images).relu())


def batches(count: int = STEPS, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    draws = range(count)
    return [
        (torch.randn(size, 6, generator=generator), torch.randint(0, 5, (size,), generator=generator)) for _ in draws
    ]


def converted(criterion: DistillationLoss, share: float | None = SHARE, teacher: nn.Module | None = None) -> Any:
    """The host's own way to distil, with a criterion of ours."""
    balancer = None if share is None else mtd.StaticLossBalancer(kd_loss_weight=share)
    config = {"teacher_model": teacher or Net(1, 16), "criterion": criterion, "loss_balancer": balancer}
    return mtd.convert(Net(0, 8), mode=[("kd_loss", config)])


def host_losses(criterion: DistillationLoss, **reduction: Any) -> list[float]:
    model = converted(criterion)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    losses = []
    for step, (images, labels) in enumerate(batches()):
        student_loss = F.cross_entropy(model(images), labels)
        loss = model.compute_kd_loss(student_loss=student_loss, labels=labels, progress=step / STEPS, **reduction)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def plain_losses(method: Method) -> list[float]:
    student, teacher = Net(0, 8), Net(1, 16)
    optimizer = torch.optim.SGD(student.parameters(), lr=RATE)
    losses = []
    for step, (images, labels) in enumerate(batches()):
        signals = Signals(student(images), teacher(images).detach(), labels, step / STEPS)
        soft = method.kd_weight * kd_loss(signals, method.rule(signals).detach()).mean()
        loss = SHARE * soft + (1 - SHARE) * F.cross_entropy(signals.student_logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def differ(ours: list[float], others: list[float]) -> bool:
    return all(abs(own - other) > 1e-3 for own, other in zip(ours, others, strict=True))


def fixed(method: Method, temperature: int) -> Method:
    return replace(method, rule=rltemp.load_rule(f"fixed:{temperature}"))


@pytest.mark.parametrize("name", METHODS)
def test_a_run_has_the_losses_of_our_own_loop_and_not_those_of_a_fixed_temperature(name: str) -> None:
    method = rltemp.load_method(name)
    wanted = plain_losses(method)
    assert host_losses(DistillationLoss(name)) == pytest.approx(wanted, abs=1e-5)
    assert host_losses(DistillationLoss(name, "none"), loss_reduction_fn=torch.mean) == pytest.approx(wanted, abs=1e-5)
    assert differ(wanted, plain_losses(fixed(method, 1)))
    assert differ(wanted, plain_losses(fixed(method, 4)))


@pytest.mark.parametrize("name", METHODS)
def test_reductions_are_over_the_samples_that_a_mask_leaves(name: str) -> None:
    images, labels = batches()[0]
    logits, mask = (Net(0, 8)(images), Net(1, 16)(images)), torch.arange(8) > 2
    none, total, mean = (
        DistillationLoss(name, reduction)(*logits, labels=labels, mask=mask) for reduction in ("none", "sum", "mean")
    )
    assert none.shape == labels.shape
    assert (none[~mask] == 0).all()
    assert total.item() == pytest.approx(none.sum().item(), rel=1e-6)
    assert mean.item() == pytest.approx(none[mask].mean().item(), rel=1e-6)


def test_without_a_balancer_the_criterion_is_the_whole_loss() -> None:
    model = converted(DistillationLoss("dtkd"), share=None)
    images, _ = batches()[0]
    model(images)
    wanted = rltemp.integrations.Controller("dtkd").kd(Net(0, 8)(images), Net(1, 16)(images)).mean()
    assert model.compute_kd_loss().item() == pytest.approx(wanted.item(), abs=1e-5)


def test_classes_masks_and_reductions_that_do_not_fit_are_one_clear_error() -> None:
    images, labels = batches()[0]
    model = converted(DistillationLoss(), teacher=Net(1, 16, classes=7))
    model(images)
    with pytest.raises(BadInputError, match="student has 5 class outputs, teacher 7"):
        model.compute_kd_loss(student_loss=torch.zeros(()))
    model = converted(DistillationLoss())
    model(images)
    with pytest.raises(BadInputError, match=r"mask has shape \(8, 1\).*needed: \(8,\)"):
        model.compute_kd_loss(student_loss=torch.zeros(()), mask=labels.unsqueeze(-1) > 2)
    with pytest.raises(BadInputError, match="batchmean"):
        DistillationLoss(reduction="batchmean")


class Distiller(KDTrainerMixin, huggingface.KDTrainer):
    """What a user writes."""


def texts(count: int = 64, length: int = 9) -> list[dict[str, Tensor]]:
    """Of several lengths, so that a mean over tokens is not one over batches."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(3, 64, (count, length), generator=generator)
    there = torch.arange(length) < torch.randint(4, length + 1, (count, 1), generator=generator)
    rows = zip(ids, there, strict=True)
    return [{"input_ids": row, "attention_mask": kept.long(), "labels": row.where(kept, -100)} for row, kept in rows]


def trainer_of(folder: Path, base: type = Distiller, accumulate: int = 1, **more: Any) -> Any:
    args = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4 // accumulate,
        gradient_accumulation_steps=accumulate,
        max_steps=STEPS,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        use_liger_kernel=more.pop("use_liger_kernel", False),
    )
    distill = {"teacher_model": llama(1, 32)}
    return base(model=llama(0), train_dataset=Kept(texts()), args=args, distill_args=distill, **more)


class Kept(list[Any]):
    """A dataset that remembers in which order its samples were taken."""

    def __init__(self, samples: list[Any]) -> None:
        super().__init__(samples)
        self.taken: list[int] = []

    def __getitem__(self, index: Any) -> Any:
        self.taken.append(index)
        return super().__getitem__(index)


def logged(trainer: Any, name: str = "loss") -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def plain_token_losses(order: list[int], method: Method, accumulate: int) -> list[float]:
    student, teacher, samples, size = llama(0), llama(1, 32), texts(), 4 // accumulate
    optimizer = torch.optim.SGD(student.parameters(), lr=RATE)
    losses = []
    for step in range(STEPS):
        total, count = torch.zeros(()), 0
        for part in range(accumulate):
            first = (step * accumulate + part) * size
            batch = transformers.default_data_collator([samples[i] for i in order[first : first + size]])
            labels = batch.pop("labels")[:, 1:]
            logits = student(**batch).logits[:, :-1], teacher(**batch).logits[:, :-1].detach()
            signals = Signals(*logits, labels, step / STEPS, labels != -100)
            rule = method.rule
            total = total + method.kd_weight * kd_loss(signals, rule(signals).detach()).sum()
            count += int(signals.mask.sum())
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
        losses.append((total / count).item())
    return losses


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", METHODS)
def test_kd_trainer_has_the_losses_of_our_own_loop_over_the_tokens_of_the_accumulated_batch(
    name: str, accumulate: int, tmp_path: Path
) -> None:
    trainer = trainer_of(tmp_path, accumulate=accumulate, controller=name)
    trainer.train()
    method, order = rltemp.load_method(name), trainer.train_dataset.taken
    wanted = plain_token_losses(order, method, accumulate)
    assert logged(trainer) == pytest.approx(wanted, abs=1e-5)
    assert differ(wanted, plain_token_losses(order, fixed(method, 1), accumulate))
    assert differ(wanted, plain_token_losses(order, fixed(method, 4), accumulate))
    assert len(logged(trainer, "temperature/teacher_mean")) == STEPS


def test_kd_trainer_evaluates_on_the_same_loss_and_on_its_own_cross_entropy(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, controller="dtkd")
    found = trainer.evaluate(texts(8))
    assert {"eval_loss", "eval_ce_loss"} <= set(found)
    assert not logged(trainer, "temperature/teacher_mean")


def test_kd_trainer_with_ligers_fused_loss_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface.KDTrainer, "_setup_liger_fused_loss", lambda self: None)  # Liger is not installed
    with pytest.raises(BadInputError, match=r"use_liger_kernel=True.*set it to False"):
        trainer_of(tmp_path, use_liger_kernel=True)


def test_a_host_that_passes_the_plug_by_is_an_error(tmp_path: Path) -> None:
    class Elsewhere(Distiller):
        _standard_kd_loss = huggingface.KDTrainer._standard_kd_loss

    with pytest.raises(BadInputError, match=r"without a temperature.*nvidia-modelopt.*>=0\.47,<0\.48"):
        trainer_of(tmp_path, Elsewhere).train()


def test_a_version_that_was_not_tested_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "version", lambda host: "1.0.0")
    for make in (DistillationLoss, lambda: trainer_of(tmp_path)):
        with pytest.warns(HostVersionWarning, match=r"nvidia-modelopt 1\.0\.0 is installed.*0\.47"):
            make()


def test_the_block_of_the_page_runs_as_it_stands() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    model, before = Net(0, 8), Net(0, 8)
    names = {"student": model, "teacher": Net(1, 16), "loader": batches(4)}
    exec(compile(block, "modelopt.md", "exec"), names)
    assert names["loss"].item() > 0
    assert not torch.equal(names["student"].outer.weight, before.outer.weight)
    assert type(names["student"]) is Net
