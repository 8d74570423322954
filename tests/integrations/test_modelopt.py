"""The integrations of NVIDIA ModelOpt, against ModelOpt itself: its losses are those of a plain loop of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.hosts import modes, run_block
from support.tiny import llama
from support.trainers import RATE, STEPS, arguments, assert_own, logged, own_losses, soft_loss, texts
from torch import Tensor, nn
from torch.nn import functional as F

import rltemp
from rltemp import BadInputError, Method, Signals
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

METHODS = ["universal", "dtkd"]
SHARE = 0.3


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
    teacher = Net(1, 16)

    def signals_of(student: nn.Module, batch: tuple[Tensor, Tensor], progress: float) -> Signals:
        images, labels = batch
        return Signals(student(images), teacher(images).detach(), labels, progress)

    def loss(seen: Signals) -> Tensor:
        hard = F.cross_entropy(seen.student_logits, seen.labels, reduction="none")
        return SHARE * soft_loss(method)(seen) + (1 - SHARE) * hard

    return own_losses(Net(0, 8), batches(), signals_of, loss)


@pytest.mark.parametrize("name", METHODS)
def test_a_run_has_the_losses_of_our_own_loop_and_not_of_a_fixed_rule(name: str) -> None:
    found = host_losses(DistillationLoss(name))
    assert host_losses(DistillationLoss(name, "none"), loss_reduction_fn=torch.mean) == pytest.approx(found, abs=1e-5)
    assert_own(found, name, plain_losses)


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


def trainer_of(folder: Path, base: type = Distiller, accumulate: int = 1, **more: Any) -> Any:
    options = {"use_liger_kernel": more.pop("use_liger_kernel", False), "gradient_accumulation_steps": accumulate}
    args = arguments(folder, per_device_train_batch_size=4 // accumulate, **options)
    distill = {"teacher_model": llama(1, 32)}
    return base(model=llama(0), train_dataset=Kept(texts(prompt=0)), args=args, distill_args=distill, **more)


class Kept(list[Any]):
    """A dataset that remembers in which order its samples were taken."""

    def __init__(self, samples: list[Any]) -> None:
        super().__init__(samples)
        self.taken: list[int] = []

    def __getitem__(self, index: Any) -> Any:
        self.taken.append(index)
        return super().__getitem__(index)


def token_signals(student: nn.Module, samples: list[Any], progress: float) -> Signals:
    batch = transformers.default_data_collator(samples)
    labels = batch.pop("labels")[:, 1:]
    logits = student(**batch).logits[:, :-1], llama(1, 32)(**batch).logits[:, :-1].detach()
    return Signals(*logits, labels, progress, labels != -100)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", METHODS)
def test_kd_trainer_has_the_losses_of_our_own_loop_over_accumulated_tokens(name, accumulate, tmp_path) -> None:
    trainer = trainer_of(tmp_path, accumulate=accumulate, controller=name)
    trainer.train()
    order, samples, size = trainer.train_dataset.taken, texts(prompt=0), 4 // accumulate
    taken = [[samples[i] for i in order[start : start + size]] for start in range(0, 4 * STEPS, size)]

    def loop(method: Method) -> list[float]:
        return own_losses(llama(0), taken, token_signals, soft_loss(method), accumulate)

    assert_own(logged(trainer), name, loop)
    assert len(logged(trainer, "temperature/teacher_mean")) == STEPS


def test_kd_trainer_evaluates_on_the_loss_and_on_its_cross_entropy(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, controller="dtkd")
    found = trainer.evaluate(texts(8, prompt=0))
    assert {"eval_loss", "eval_ce_loss"} <= set(found)
    assert not logged(trainer, "temperature/teacher_mean")


def test_kd_trainer_with_ligers_fused_loss_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface.KDTrainer, "_setup_liger_fused_loss", lambda self: None)  # Liger is not installed
    with pytest.raises(BadInputError, match=r"use_liger_kernel=True.*set it to False"):
        trainer_of(tmp_path, use_liger_kernel=True)


def test_a_host_that_computes_its_loss_elsewhere_is_an_error(tmp_path: Path) -> None:
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
    model, before = Net(0, 8), Net(0, 8)
    names = run_block("modelopt", student=model, teacher=Net(1, 16), loader=batches(4))
    assert names["loss"].item() > 0
    assert not torch.equal(names["student"].outer.weight, before.outer.weight)
    assert type(names["student"]) is Net


def test_a_teacher_with_batch_norm_and_dropout_is_in_eval_mode() -> None:
    teacher = Net(1, 16)
    teacher.inner = nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.5), teacher.inner)
    seen = modes(teacher.train())
    run_block("modelopt", student=Net(0, 8), teacher=teacher, loader=batches(4))
    assert set(seen) == {False}
