"""What tests of Hugging Face's trainers share: settings, tokens, small models, and a run of `transformers.Trainer`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rltemp import Method, Signals, kd_loss, load_method, load_rule
from rltemp.integrations.transformers import TrainerMixin
from rltemp.kd.divergences import DIVERGENCES
from rltemp.loading import with_teacher
from support.hosts import host
from support.tiny import llama

transformers = host("transformers")

STEPS, BATCH, RATE = 6, 4, 0.1


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    """Arguments of a short run by plain SGD on the CPU, which logs every step and saves nothing."""
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": BATCH,
        "max_steps": STEPS,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        **more,
    }


def logged(trainer: Any, name: str = "loss") -> list[float]:
    """Every value that a trainer has logged under a name."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def own_losses(
    student: nn.Module,
    batches: Sequence[Any],
    signals: Callable[[nn.Module, Any, float], Signals],
    loss: Callable[[Signals], Tensor],
    accumulate: int = 1,
) -> list[float]:
    """Losses of our own loop: each step minimises the mean `loss` `[...]` over the samples of its batches.

    A batch may say in `num_items` over how many items its step's mean is.
    """
    optimizer = torch.optim.SGD(student.parameters(), lr=RATE)
    steps, losses = len(batches) // accumulate, []
    for step in range(steps):
        part = batches[accumulate * step : accumulate * (step + 1)]
        seen = [signals(student, batch, step / steps) for batch in part]
        count = sum(each.shape.numel() if each.mask is None else int(each.mask.sum()) for each in seen)
        if isinstance(part[0], dict):
            count = part[0].get("num_items", count)
        value = sum((loss(each).sum() for each in seen), torch.zeros(())) / count
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(value.item())
    return losses


def soft_loss(method: Method, divergence: str = "kl") -> Callable[[Signals], Tensor]:
    """A method's distillation term alone, at a divergence of its name."""
    return lambda seen: method.kd_weight * kd_loss(seen, method.rule(seen).detach(), DIVERGENCES[divergence]())


def assert_own(found: list[float], name: str, loop: Callable[[Method], list[float]], after: int = 0) -> None:
    """A run has the losses of our own loop under a method; those at fixed temperatures lie apart `after` some steps."""
    method = with_teacher(load_method(name), "a loop")
    wanted = loop(method)
    assert found == pytest.approx(wanted, abs=1e-5)
    for temperature in (1, 4):
        other = loop(replace(method, rule=load_rule(f"fixed:{temperature}")))
        assert all(abs(ours - theirs) > 1e-3 for ours, theirs in zip(wanted[after:], other[after:], strict=True))


def assert_trained(trainer: Any) -> None:
    """A trainer has taken all its steps, and has logged temperatures."""
    assert trainer.state.global_step == trainer.state.max_steps > 0
    assert logged(trainer, "temperature/student_mean")


def texts(count: int = 64, length: int = 9, prompt: int = 2) -> list[dict[str, Tensor]]:
    """Of several lengths, so that a mean over tokens is not one over batches; the prompt's labels are -100."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(3, 64, (count, length), generator=generator)
    lengths = torch.randint(4, length + 1, (count, 1), generator=generator)
    there = torch.arange(length) < lengths
    labels = ids.masked_fill(~there | (torch.arange(length) < prompt), -100)
    return [
        {"input_ids": row, "attention_mask": kept.long(), "labels": label}
        for row, kept, label in zip(ids, there, labels, strict=True)
    ]


def classifier(seed: int, width: int = 16, classes: int = 5) -> Any:
    """A vision transformer of one layer."""
    torch.manual_seed(seed)
    config = transformers.ViTConfig(
        image_size=8,
        patch_size=4,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=classes,
        initializer_range=0.5,
    )
    return transformers.ViTForImageClassification(config)


def images(count: int = 64) -> list[dict[str, Any]]:
    """Random images of five classes."""
    generator = torch.Generator().manual_seed(7)
    pixels = torch.randn(count, 3, 8, 8, generator=generator)
    labels = torch.randint(0, 5, (count,), generator=generator)
    return [{"pixel_values": image, "labels": int(label)} for image, label in zip(pixels, labels, strict=True)]


KINDS: dict[str, tuple[Callable[..., Any], Callable[[], list[Any]]]] = {
    "images": (classifier, images),
    "tokens": (llama, texts),
}


class Distiller(TrainerMixin, transformers.Trainer):  # type: ignore[name-defined,misc]  # a host, maybe not here
    """What a user writes."""


class Recorder:
    """The host's own collator, which keeps what it made."""

    def __init__(self) -> None:
        self.batches: list[dict[str, Tensor]] = []

    def __call__(self, samples: list[Any]) -> dict[str, Tensor]:
        batch: dict[str, Tensor] = transformers.default_data_collator(samples)
        self.batches.append({name: value.clone() for name, value in batch.items()})
        return batch


def arguments(folder: Path, **more: Any) -> Any:
    """The settings as `transformers.Trainer` takes them."""
    return transformers.TrainingArguments(**settings(folder, **more))


def trained(
    kind: str, folder: Path, accumulate: int = 1, teacher: Any = None, **options: Any
) -> tuple[Any, list[dict[str, Tensor]]]:
    """A trainer after its run, and the batches that it has seen."""
    model, data = KINDS[kind]
    recorder = Recorder()
    trainer = Distiller(
        model=model(0),
        teacher_model=teacher or model(1, 32),
        train_dataset=data(),
        data_collator=recorder,
        args=arguments(folder, gradient_accumulation_steps=accumulate),
        **options,
    )
    trainer.train()
    return trainer, recorder.batches
