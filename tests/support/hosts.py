"""What tests of integrations share: digits in batches, two small networks, and the loop that hosts are held against."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn import functional as F

from rltemp import Method, Signals, load_method
from rltemp.loading import with_teacher

ROOT = Path(__file__).parents[2]
RULES = ("universal", "dtkd")
BATCH, STEPS, LEARNING_RATE = 24, 8, 0.05
OF_HOSTS = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning", "default::rltemp.integrations.HostVersionWarning"
)
"""For `pytestmark`: hosts warn of each other, and of what is meant here."""


Batches = list[tuple[Tensor, Tensor]]
Loss = Callable[[Method, Signals], Tensor]


def host(module: str) -> Any:
    """Import a host, or skip the tests that need it: it is not installed, or it cannot be imported.

    A torchvision that does not fit its torch raises a RuntimeError, which ends the import of many hosts.
    """
    try:
        return import_module(module)
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"needs {module}: {error}", allow_module_level=True)


def batches() -> Batches:
    """Eight batches of images `[24, 64]` in 0..1 and labels `[24]`."""
    images, labels = load_digits(return_X_y=True)
    count = BATCH * STEPS
    split = torch.tensor(images[:count] / 16).float().split(BATCH), torch.tensor(labels[:count]).split(BATCH)  # type: ignore[no-untyped-call]
    return list(zip(*split, strict=True))


def flat(batches: Batches) -> torch.utils.data.TensorDataset:
    """The same samples as a data set; unshuffled batches of 24 of it are the same batches."""
    images, labels = zip(*batches, strict=True)
    return torch.utils.data.TensorDataset(torch.cat(images), torch.cat(labels))


def networks(seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """A student as it begins, and a linear teacher of about 90 % on the batches."""
    torch.manual_seed(seed)
    student, teacher = nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10)), nn.Linear(64, 10)
    images, labels = flat(batches()).tensors
    optimizer = torch.optim.Adam(teacher.parameters(), 0.02)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(teacher(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return student, teacher.requires_grad_(False).eval()


def delicate() -> nn.Module:
    """A teacher that must be put into eval mode: BatchNorm and dropout, in training mode."""
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm1d(64), nn.Dropout(0.5), nn.Linear(64, 10)).train()


def modes(teacher: nn.Module) -> list[bool]:
    """A list that gets, for every batch the teacher will see, whether any part of it was in training mode."""
    seen: list[bool] = []
    teacher.register_forward_hook(lambda module, *_: seen.append(any(part.training for part in module.modules())))
    return seen


class Classifier(nn.Module):
    """A network with what timm's tasks ask of one of timm's models."""

    num_classes, in_chans = 10, 1
    pretrained_cfg = {"mean": (0.0,), "std": (1.0,)}  # noqa: RUF012

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.network(images.flatten(1))
        return found


def mean_loss(method: Method, signals: Signals) -> Tensor:
    """What rltemp's own loop minimises."""
    return method.loss(signals).mean()


def own_loop(
    rule: str,
    epochs: int = 1,
    accumulate: int = 1,
    loss: Loss = mean_loss,
    progress: Callable[[float], float] = float,
    start: nn.Module | None = None,
) -> list[float]:
    """Losses, batch by batch, of rltemp's loop: plain SGD; `progress` may be tampered with to see that it matters."""
    student, teacher = networks()
    student, data = student if start is None else start, batches()
    optimizer = torch.optim.SGD(student.parameters(), LEARNING_RATE)
    method, losses = with_teacher(load_method(rule), "the loop"), []
    for batch in range(epochs * len(data)):
        images, labels = data[batch % len(data)]
        done = (batch // accumulate) * accumulate / (epochs * len(data))
        value = loss(method, Signals(student(images), teacher(images), labels, progress(done)))
        losses.append(value.item())
        (value / accumulate).backward()  # type: ignore[no-untyped-call]
        if (batch + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    return losses


def differs(found: list[float], other: list[float]) -> bool:
    """Whether two runs are apart by far more than rounding."""
    return max(abs(a - b) for a, b in zip(found, other, strict=True)) > 1e-3


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every number of a TensorBoard log with its step, by tag."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}, purge_orphaned_data=False)
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def blocks(page: str, language: str = "python") -> list[str]:
    """The blocks to copy of `docs/integrations/PAGE.md`."""
    text = (ROOT / "docs" / "integrations" / f"{page}.md").read_text("utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def run_block(page: str, *changes: tuple[str, str], number: int = 0, until: str = "", **names: Any) -> dict[str, Any]:
    """Run a block of `docs/integrations/PAGE.md`, changed in places, with these names; the names that it leaves."""
    code = blocks(page)[number]
    for before, after in changes:
        assert before in code, f"{before!r} is not in the page"
        code = code.replace(before, after)
    exec(compile(code.split(until)[0] if until else code, f"{page}.md", "exec"), names)
    return names
