"""What several test files share: two small tasks, the note's two vectors, a problem of one's own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from support.clusters import two_nodes
from torch import Tensor, nn

from rltemp.cli.console import messages_shown
from rltemp.data.dataset import Dataset, Split
from rltemp.data.problem import Problem
from rltemp.data.recipe import Recipe
from rltemp.data.task import Task
from rltemp.data.tasks import load_task
from rltemp.training.preparation import prepare

collect_ignore = ["support/fuzz.py"]  # a program that test_fuzz.py starts, with a library of its own
torch.set_num_threads(1)
# The same examples every time, and no failure because a machine is busy.
settings.register_profile("rltemp", derandomize=True, deadline=None)
settings.load_profile("rltemp")

Vector = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(scope="session", autouse=True)
def teacher_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where trained teachers go: never the user's own folder."""
    with pytest.MonkeyPatch.context() as patch:
        if "RLTEMP_CACHE" not in os.environ:
            base = tmp_path_factory.getbasetemp()
            shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # one for all processes of a run
            patch.setenv("RLTEMP_CACHE", str(shared / "cache"))
        yield Path(os.environ["RLTEMP_CACHE"])


@pytest.fixture(scope="session")
def digits(teacher_cache: Path) -> Problem:
    return prepare(load_task("digits"))


@pytest.fixture(scope="session")
def short(digits: Problem) -> Problem:
    """Digits, one epoch: 20 steps."""
    return replace(digits, task=replace(digits.task, recipe=replace(digits.task.recipe, epochs=1)))


@pytest.fixture(scope="session")
def toy(teacher_cache: Path) -> Problem:
    return prepare(load_task("toy"))


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Ray cluster that can lose a node."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'rltemp[ray]'")
    # Ray's processes find what the tests' own process finds.
    monkeypatch.setenv("PYTHONPATH", ":".join(path for path in sys.path if path))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_DISABLE_DASHBOARD", "1")
    with two_nodes() as cluster:
        yield cluster


@pytest.fixture
def console() -> Iterator[None]:
    """What the library logs is printed, as in a command."""
    with messages_shown():
        yield


# Teacher logits u, student logits v, label y: temperature-methods.md, section (c).
@pytest.fixture
def vector_a() -> Vector:
    return _vector([4.0, 1.0, 0.0, -1.0], [2.0, 1.0, 0.5, -1.0], 0)


@pytest.fixture
def vector_b() -> Vector:
    return _vector([0.5, 3.0, -2.0, 1.5], [1.0, 1.2, -0.3, 0.1], 1)


@pytest.fixture
def make_problem() -> Callable[..., Problem]:
    """A problem of given images `[N, C, H, W]` and labels `[N]`: all four parts are the same samples."""

    def make(
        images: Tensor,
        labels: Tensor,
        *,
        student: str = "linear",
        teacher: nn.Module | None = None,
        augment: bool = False,
        teacher_logits: Tensor | None = None,
        **recipe: Any,
    ) -> Problem:
        part, classes, channels = Split(images, labels), int(labels.max()) + 1, images.shape[1]
        own = Recipe(**{"epochs": 1, "batch_size": 2, "learning_rate": 0.5, "schedule": "constant", **recipe})
        dataset = Dataset("own", part, part, part, part, classes, torch.zeros(channels), torch.ones(channels), augment)
        if teacher is None and teacher_logits is None:
            teacher_logits = torch.zeros(len(part), classes)
        task = Task("own", "linear", student, own, own)
        return Problem(task, dataset, teacher or nn.Identity(), teacher_logits, 0.0)

    return make


def _vector(teacher: list[float], student: list[float], label: int) -> Vector:
    double = torch.float64
    return torch.tensor(teacher, dtype=double), torch.tensor(student, dtype=double), torch.tensor(label)
