"""What readers of the pages have already: names that a block begins with (`<!-- test: with NAME -->`).

Each function makes them, and any files, in the session's folder.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from shutil import copyfile
from typing import Any

import torch
from torch import Tensor, nn

import rltemp
from rltemp.loading import SHIPPED
from rltemp.models.networks import seeded_model
from support.pictures import write_folder

CLASSES = 5


def logits(_: Path) -> dict[str, Any]:
    """A batch of ten classes in the middle of a run."""
    student, teacher = torch.randn(2, 5, 10, generator=torch.Generator().manual_seed(0))
    batch = {"student_logits": student.requires_grad_(), "teacher_logits": teacher, "labels": torch.arange(5)}
    return {**batch, "step": 50, "steps": 100, "progress": 0.5}


def tokens(_: Path) -> dict[str, Any]:
    """Two sequences of three tokens, three of which are padding: their labels are -100."""
    teacher = torch.randn(2, 3, 10, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, True, False], [True, False, False]])
    batch = {"student_logits": (1.1 * teacher).requires_grad_(), "teacher_logits": teacher, "mask": mask}
    return {**batch, "labels": torch.where(mask, 0, -100), "progress": 0.5, "rltemp": rltemp}


def signals(folder: Path) -> dict[str, Any]:
    """The same batch as `rltemp.Signals`."""
    of = logits(folder)
    return {"signals": rltemp.Signals(of["student_logits"], of["teacher_logits"], of["labels"], of["progress"])}


def policy(folder: Path) -> dict[str, Any]:
    """A policy that was trained before, in runs/p."""
    (folder / "runs/p").mkdir(parents=True)
    copyfile(SHIPPED["universal"], folder / "runs/p/policy.safetensors")
    return {}


def run(folder: Path) -> dict[str, Any]:
    """A run that is finished, in runs/d."""
    rltemp.distill("digits", "fixed:4", out=folder / "runs/d", epochs=1)
    return {}


def loop(_: Path) -> dict[str, Any]:
    """What a loop of one's own is made of."""
    inputs, labels = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)), torch.arange(64) % CLASSES
    torch.manual_seed(0)
    teacher = nn.Linear(8, CLASSES)

    def batches(seed: int) -> list[tuple[Tensor, Tensor]]:
        chosen = torch.randint(64, (3, 16), generator=torch.Generator().manual_seed(seed))
        return [(inputs[index], labels[index]) for index in chosen]

    def accuracy(student: nn.Module) -> float:
        return float((student(inputs).argmax(-1) == teacher(inputs).argmax(-1)).float().mean())

    make_student = partial(nn.Linear, 8, CLASSES)
    return {"make_student": make_student, "teacher": teacher, "batches": batches, "accuracy": accuracy, "STEPS": 3}


def trained(_: Path) -> dict[str, Any]:
    """The training of one student, with its metric as the answer."""

    def metric(controller: rltemp.Controller, seed: int) -> float:
        student, teacher = torch.randn(2, 32, CLASSES, generator=torch.Generator().manual_seed(seed))
        labels = torch.arange(32) % CLASSES
        controller.loss(student.requires_grad_(), teacher, labels, progress=0.5).mean().backward()  # type: ignore[no-untyped-call]
        return 1 / (1 + float(controller.temperatures(student, teacher, labels, progress=0.5).student.mean()))

    return {"rltemp": rltemp, "trained": metric}


def data(_: Path) -> dict[str, Any]:
    """Data and networks of a reader's."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(600, 8, generator=generator)
    labels = (inputs @ torch.randn(8, CLASSES, generator=generator)).argmax(-1)
    torch.manual_seed(0)
    teacher = nn.Linear(8, CLASSES)
    optimizer = torch.optim.Adam(teacher.parameters(), 0.05)
    for _step in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(teacher(inputs[:400]), labels[:400]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    sets = {"train_set": (inputs[:400], labels[:400]), "test_set": (inputs[400:], labels[400:])}
    return {"rltemp": rltemp, "make_student": partial(nn.Linear, 8, CLASSES), "teacher": teacher, **sets}


def pictures(folder: Path) -> dict[str, Any]:
    """A folder of pictures of several sizes, and a teacher's weights as torchvision publishes them."""
    for number, size in enumerate(((40, 30), (36, 50))):
        part = write_folder(
            folder / f"part{number}", {"train": {"rose": 9, "tulip": 9}, "val": {"rose": 4, "tulip": 4}}, size
        )
        for file in part.rglob("*.png"):
            place = folder / "flowers" / file.relative_to(part).with_stem(f"{number}-{file.stem}")
            place.parent.mkdir(parents=True, exist_ok=True)
            file.rename(place)
    torch.save(seeded_model("resnet34", (3, 32, 32), 2, 0).state_dict(), folder / "resnet34-b627a593.pth")
    return {}
