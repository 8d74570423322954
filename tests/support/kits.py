"""Runs of other kits as their pages have them, on the batches of `support.hosts`: two epochs of digits each."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from support.hosts import (
    BATCH,
    LEARNING_RATE,
    STEPS,
    Batches,
    Classifier,
    batches,
    blocks,
    flat,
    host,
    networks,
    run_block,
    scalars,
)

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
Pair = tuple[nn.Module, nn.Module]


def loader() -> DataLoader[Any]:
    """The batches, as a loader of the flat images."""
    return DataLoader(flat(batches()), batch_size=BATCH)


def lightning_module(rule: str, data: Any = None, pair: Pair | None = None, **options: Any) -> Any:
    """The page's module, trained under a Trainer of these options; what its steps saw and returned is kept."""
    kit = host("lightning")  # the page imports it
    student_class = run_block("lightning", until="\ntrainer = ")["Student"]

    class Kept(student_class):  # type: ignore[misc,valid-type]
        def distillation_loss(self, student: Any, teacher: Any, labels: Any) -> Any:
            loss = super().distillation_loss(student, teacher, labels)
            self.seen.append((student.detach(), teacher, labels, self._controller.last))
            self.losses.append(loss.item())
            return loss

    module = Kept(*pair or networks())
    module.method, module.seen, module.losses = rule, [], []
    trainer = kit.Trainer(**{"max_epochs": 2, "accelerator": "cpu", **QUIET, **options})
    trainer.fit(module, loader() if data is None else data)
    return module


def lightning(rule: str, folder: Path, pair: Pair | None = None, accumulate: int = 1) -> list[float]:
    losses: list[float] = lightning_module(rule, pair=pair, accumulate_grad_batches=accumulate).losses
    return losses


class OfBatch(nn.Module):
    """A network as TextBrewer calls it, with a whole batch."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        found: Tensor = self.network(images)
        return found


def textbrewer_page(folder: Path, *changes: tuple[str, str], pair: Pair | None = None) -> list[float]:
    """Run the page's block, changed in places; the losses in TextBrewer's own log."""
    student, teacher = (OfBatch(network) for network in pair or networks())
    names = run_block("textbrewer", *changes, student=student, teacher=teacher, loader=loader())
    names["distiller"].tb_writer.close()  # TextBrewer leaves its log to be written some time
    return [value for _, value in scalars(folder / "textbrewer_logs")["scalar/total_loss"]]


def textbrewer(rule: str, folder: Path, pair: Pair | None = None, accumulate: int = 1) -> list[float]:
    host("textbrewer")
    steps = ("TrainingConfig(", f"TrainingConfig(gradient_accumulation_steps={accumulate}, ")
    return textbrewer_page(folder, ('register("universal")', f'register("{rule}")'), steps, pair=pair)


def classifiers() -> tuple[Classifier, Classifier]:
    """The student and the teacher as timm has them."""
    student, teacher = networks()
    return Classifier(student), Classifier(teacher)


def pictures() -> Batches:
    """The batches as images `[24, 1, 8, 8]`."""
    return [(images.view(-1, 1, 8, 8), labels) for images, labels in batches()]


def kept_losses(task: Any) -> list[float]:
    """A list that gets the loss of every result of a task of timm's."""
    losses: list[float] = []
    task.register_forward_hook(lambda module, inputs, result: losses.append(result["loss"].item()))
    return losses


def timm_loop(task: Any, epochs: int = 1, accumulate: int = 1) -> list[float]:
    """Train any task of timm's as the page does."""
    optimizer = torch.optim.SGD(task.trainable_module.parameters(), LEARNING_RATE)
    if hasattr(task, "follow"):
        task.follow(optimizer, epochs * STEPS // accumulate)
    losses = kept_losses(task)
    for step, (images, labels) in enumerate(epochs * pictures()):
        (task(images, labels)["loss"] / accumulate).backward()
        if (step + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    return losses


def timm_page(rule: str, pair: Pair | None = None) -> tuple[list[float], Any]:
    """Run the page's block: the losses of its steps, and its task."""
    student, teacher = classifiers() if pair is None else (Classifier(pair[0]), Classifier(pair[1]))
    losses: list[list[float]] = []
    changes = ('rule="universal"', f'rule="{rule}"'), ("task.train()", "losses.append(kept(task)); task.train()")
    names: dict[str, Any] = {"student": student, "teacher": teacher, "loader": pictures(), "epochs": 2}
    found = run_block("timm", *changes, **names, losses=losses, kept=kept_losses)
    return losses[0], found["task"]


def timm(rule: str, folder: Path, pair: Pair | None = None, accumulate: int = 1) -> list[float]:
    host("timm.task")
    if accumulate == 1:
        return timm_page(rule, pair)[0]
    from rltemp.integrations.timm import distillation_task

    return timm_loop(distillation_task(*classifiers(), rule=rule, verbose=False), epochs=2, accumulate=accumulate)


def torchdistill_box(folder: Path, *changes: tuple[str, str], stages: int = 0, pair: Pair | None = None) -> Any:
    """What torchdistill's example script makes of the page's YAML, changed in places: its box."""
    main_util, yaml_util = host("torchdistill.common.main_util"), host("torchdistill.common.yaml_util")
    distillation = host("torchdistill.core.distillation")
    (text,) = blocks("torchdistill", "yaml")
    for before, after in changes:
        assert before in text, f"{before!r} is not in the page"
        text = text.replace(before, after)
    (folder / "digits.yaml").write_text(text, "utf-8")
    config = yaml_util.load_yaml_file(str(folder / "digits.yaml"))
    main_util.import_dependencies(config["dependencies"])
    training = config["train"]
    if stages:
        training = {f"stage{stage + 1}": copy.deepcopy(training) for stage in range(stages)}
    student, teacher = pair or networks()
    data, device = {"digits/train": flat(batches())}, torch.device("cpu")
    return distillation.get_distillation_box(teacher, student, data, training, device, None, False, 1)


def torchdistill_loop(box: Any, start_epoch: int = 0) -> list[float]:
    """The loop of torchdistill's example script: the losses of its batches."""
    losses = []
    for epoch in range(start_epoch, box.num_epochs):
        box.pre_epoch_process(epoch=epoch)
        for images, labels, more in box.train_data_loader:
            loss = box.forward_process(images, labels, more)
            losses.append(loss.item())
            box.post_forward_process(loss=loss)
        box.post_epoch_process()
    box.clean_modules()
    return losses


def torchdistill(rule: str, folder: Path, pair: Pair | None = None, accumulate: int = 1) -> list[float]:
    steps = ("key: 'SGD'", f"key: 'SGD'\n    grad_accum_step: {accumulate}")
    return torchdistill_loop(torchdistill_box(folder, ("rule: 'universal'", f"rule: '{rule}'"), steps, pair=pair))


KITS: dict[str, Callable[..., list[float]]] = {
    "lightning": lightning,
    "textbrewer": textbrewer,
    "timm": timm,
    "torchdistill": torchdistill,
}
"""By distribution: the losses of a run under a rule, in a folder, of a pair of networks, at some accumulation."""
