"""From a task's description to the problem in memory: `prepare` loads the data and finds, loads or trains the teacher.

A trained teacher is kept under the cache folder, named by what determines it: the data, the network, its recipe, its
seed and the version of torch. The folder is `$RLTEMP_CACHE`, or `~/.cache/rltemp`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from filelock import FileLock
from torch import nn

from rltemp.data.dataset import Dataset, Split
from rltemp.data.problem import Problem, evaluate, predict
from rltemp.data.sources import load_dataset
from rltemp.data.tasks import Task
from rltemp.data.toy import toy_teacher
from rltemp.errors import ArtifactRefusedError, BadInputError, TrainingDivergedError
from rltemp.kd.names import shareable
from rltemp.models.networks import build_model
from rltemp.models.weight_files import load_weights, save_weights
from rltemp.rules.published_methods import none
from rltemp.training.checkpoints import INEXACT, Checkpoints
from rltemp.training.distill import Distillation
from rltemp.training.guards import RunGuard
from rltemp.training.optimization import Optimization
from rltemp.training.steps import train

log = logging.getLogger(__name__)

OPTIONS = {"student": "--batch-size", "teacher": "--teacher-batch-size"}
"""What sets the batch size of each network."""

OnStep = Callable[[int, int], None]
"""Called with the step just taken and the number of steps: a progress bar."""


def cache_folder() -> Path:
    """Where teachers are kept: `$RLTEMP_CACHE`, or `~/.cache/rltemp`."""
    return Path(os.environ.get("RLTEMP_CACHE") or Path.home() / ".cache" / "rltemp")


def prepare(
    task: Task,
    *,
    device: str | torch.device = "cpu",
    root: Path | None = None,
    on_step: OnStep | None = None,
    fresh: bool = False,
    inexact: bool = False,
    dataset: Dataset | None = None,
) -> Problem:
    """Load a task's data, and its teacher from the file it names, from the cache, or by training it.

    Args:
        task: The description.
        device: Where the data and the networks go.
        root: Where data sets are downloaded to; see `rltemp.data.dataset`.
        on_step: Told of the teacher's training steps.
        fresh: Where its training was interrupted, begin it at step 0; otherwise it goes on.
        inexact: As `Checkpoints` has it.
        dataset: The task's data, where they are loaded already.

    Raises:
        BadInputError: Where the data or the teacher's file cannot be used.
        TrainingDivergedError: Where the teacher's training ends in numbers that are not finite.
    """
    dataset = (dataset or load_dataset(task.name, task.split_seed, root)).to(device)
    check_batches(task, len(dataset.train), ("teacher",))
    with torch.device("meta"):  # a mistake in the student's name shows before a teacher is trained, and takes no memory
        student = build_model(task.student, dataset.image_shape, dataset.num_classes)
    Optimization(task.recipe, student, steps=1)  # likewise one in its optimizer
    teacher, mark = _teacher(task, dataset, on_step, fresh, inexact)
    teacher = teacher.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
    logits = None if dataset.augment else predict(teacher, dataset, dataset.train)
    accuracy = float(evaluate(teacher, dataset, dataset.test))
    return Problem(task, dataset, teacher, logits, accuracy, mark)


def stand_in(task: Task, dataset: Dataset) -> Problem:
    """The problem with a teacher that nobody has trained, unless its weights are given: to see what goes together.

    Raises:
        BadInputError: Where a network cannot be built for the data, or weights of the teacher's cannot be used.
    """
    device = dataset.train.images.device
    if task.teacher_weights or task.teacher == "toy":
        teacher = _teacher(task, dataset, None, False, False)[0]
    else:
        teacher = build_model(task.teacher, dataset.image_shape, dataset.num_classes)
    return Problem(task, dataset, teacher.to(device).eval().requires_grad_(False), None, teacher_accuracy=0.0)


def fitted(task: Task, samples: int, networks: Container[str] = ("student", "teacher")) -> Task:
    """The task with smaller batches of these networks, where the training split cannot fill their own; it is logged."""
    own = {"student": task.recipe, "teacher": task.teacher_recipe}
    found = {network: one.fitting(samples) if network in networks else one for network, one in own.items()}
    smaller = [
        f"{OPTIONS[network]} {found[network].batch_size} (by default {own[network].batch_size})"
        for network in own
        if found[network] != own[network]
    ]
    if smaller:
        log.info(f"There are {samples} training samples, so batches are smaller: {', '.join(smaller)}.")
    return replace(task, recipe=found["student"], teacher_recipe=found["teacher"])


def check_batches(task: Task, samples: int, networks: Container[str] = ("student", "teacher")) -> None:
    """Refuse batches of these networks, a teacher's where it is trained, that the training split cannot fill.

    Raises:
        BadInputError: With whose it is, and the option that sets it.
    """
    sizes = {"student": task.recipe.batch_size}
    if task.teacher_weights is None and task.teacher != "toy":
        sizes["teacher"] = task.teacher_recipe.batch_size
    for network, size in sizes.items():
        if size > samples and network in networks:
            raise BadInputError(
                f"batch size {size} of the {network} is above the {samples} training samples: give {OPTIONS[network]} "
                f"{samples} or less, or more data"
            )


def train_teacher(
    task: Task, dataset: Dataset, on_step: OnStep | None = None, checkpoints: Checkpoints | None = None
) -> nn.Module:
    """Train the task's teacher on the labels of the training split, by `task.teacher_recipe`.

    Args:
        task: The description.
        dataset: Its data.
        on_step: Told of every step.
        checkpoints: Where it goes on from, and what it leaves.

    Raises:
        TrainingDivergedError: Where its weights are not finite at the end.
    """
    # A teacher is a student that learns without one: the same loop, and no logits to learn from.
    nobody = torch.zeros(1, dataset.num_classes, device=dataset.train.labels.device).expand(len(dataset.train), -1)
    problem = Problem(replace(task, student=task.teacher), dataset, nn.Identity(), nobody, teacher_accuracy=0.0)
    run = Distillation(problem, task.teacher_seed, recipe=task.teacher_recipe)
    file = teacher_file(task, dataset)  # what is wrong with a batch is written beside the teacher's place
    guard = RunGuard(file.parent / f"{file.stem}-faults", network="teacher")
    saved = checkpoints.resume() if checkpoints else None
    if saved is not None:
        run.restore(saved["run"])
        guard.restore(saved["guard"])

    def after_step(run: Distillation, *_: object) -> None:
        if on_step is not None:
            on_step(run.step, run.steps)
        if checkpoints is not None and run.healthy:
            checkpoints.tick(run.step, lambda: {"run": run.state(), "guard": guard.state()})

    with checkpoints or nullcontext():
        teacher = train(run, none(), after_step, guard.step)
    if not all(bool(value.isfinite().all()) for value in teacher.parameters()):
        raise TrainingDivergedError(
            f"teacher {task.teacher}: its weights are not finite after {run.steps} steps; lower --teacher-learning-rate"
        )
    return teacher


def teacher_file(task: Task, dataset: Dataset) -> Path:
    """Where the trained teacher of this task and data lies, or would lie."""
    determined_by = {
        "data": task.name,
        "content": _digest(dataset.train),
        "network": task.teacher,
        "recipe": task.teacher_recipe.described(),
        "seed": task.teacher_seed,
        "torch": torch.__version__,
    }
    key = hashlib.sha256(json.dumps(determined_by, sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / "teachers" / f"{task.teacher.replace(':', '-')}-{key}.safetensors"


def _teacher(
    task: Task, dataset: Dataset, on_step: OnStep | None, fresh: bool, inexact: bool
) -> tuple[nn.Module, dict[str, str]]:
    """The teacher, and what is to be said of it."""
    if task.teacher == "toy":
        return toy_teacher(), {}
    given = Path(task.teacher_weights) if task.teacher_weights else None
    if given is not None and not os.path.isfile(given):
        raise BadInputError(f"teacher weights {given}: no such file")
    file = given or teacher_file(task, dataset)
    if not os.path.isfile(file):
        _train_into(file, task, dataset, on_step, fresh, inexact)
    teacher = build_model(task.teacher, dataset.image_shape, dataset.num_classes)
    try:
        said = load_weights(teacher, file)
    except ArtifactRefusedError as error:
        if given is not None:
            raise
        raise ArtifactRefusedError(f"{error}. Delete {file}: the teacher is then trained again") from error
    return teacher, {f"teacher_{INEXACT}": said[INEXACT]} if INEXACT in said else {}


def _train_into(file: Path, task: Task, dataset: Dataset, on_step: OnStep | None, fresh: bool, inexact: bool) -> None:
    """Train the teacher into its file; of two processes that want the same one, the second waits for it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with _only_one(file.with_suffix(".lock")):
        if file.is_file():
            return
        checkpoints = Checkpoints(file.with_suffix(".checkpoints"), fresh=fresh, inexact=inexact)
        try:
            teacher = train_teacher(task, dataset, on_step, checkpoints)
            said = {"task": shareable(task.name), "network": task.teacher, **checkpoints.mark()}
            save_weights(teacher, file, said)
        except TrainingDivergedError:
            checkpoints.remove()  # it would diverge again from there
            raise
        checkpoints.remove()


@contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    """Within, no other process is; the lock's file is gone afterwards."""
    with FileLock(lock):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _digest(split: Split) -> str:
    digest = hashlib.sha256(split.images.cpu().contiguous().numpy().tobytes())
    digest.update(split.labels.cpu().numpy().tobytes())
    return digest.hexdigest()
