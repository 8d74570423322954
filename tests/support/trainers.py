"""What tests of Hugging Face's trainers share: settings, tokens, small models, and a run of `transformers.Trainer`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rltemp.integrations.transformers import TrainerMixin
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
