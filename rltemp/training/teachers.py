"""A task's teacher: found, loaded or trained.

A trained teacher is kept under the cache folder, named by what determines it: the data, the network, its recipe, its
seed and the version of torch. The folder is `$RLTEMP_CACHE`, or `~/.cache/rltemp`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields, replace
from pathlib import Path

import torch
from filelock import FileLock
from torch import nn

from rltemp.data.dataset import Dataset, Split
from rltemp.data.problem import Problem
from rltemp.data.task import Task
from rltemp.data.toy import toy_teacher
from rltemp.errors import ArtifactRefusedError, BadInputError, TrainingDivergedError
from rltemp.io.files import cache_folder
from rltemp.kd.names import shareable
from rltemp.models.library_networks import NORMALISE
from rltemp.models.networks import build_model
from rltemp.models.weight_files import load_weights, save_weights
from rltemp.pictures.settings import Pictures
from rltemp.rules.published_methods import none
from rltemp.training.checkpoints import INEXACT, Checkpoints
from rltemp.training.distill import Distillation
from rltemp.training.guards import RunGuard
from rltemp.training.identity import network_identity
from rltemp.training.steps import train

log = logging.getLogger(__name__)

OnStep = Callable[[int, int], None]
"""Called with the step just taken and the number of steps: a progress bar."""


def training_of(task: Task, dataset: Dataset) -> Distillation:
    """The run that trains the task's teacher on the labels of the training split, by `task.teacher_recipe`.

    Raises:
        BadInputError: Where the network cannot be trained on these data.
    """
    # A teacher is a student that learns without one: the same loop, and no logits to learn from.
    own = replace(task.own, student=task.own.teacher, teacher=None)
    problem = Problem(replace(task, student=task.teacher, own=own), dataset, None, None, 0.0, role="teacher")
    shape = problem.traits.outputs
    if shape[-1] != dataset.num_classes:
        raise BadInputError(
            f"teacher {task.teacher} answers {shape[-1]} classes; the labels have {dataset.num_classes}"
        )
    nobody = torch.zeros((1,) * (1 + len(shape)), device=problem.device).expand(len(dataset.train), *shape)
    return Distillation(replace(problem, teacher_logits=nobody), task.teacher_seed, recipe=task.teacher_recipe)


def train_teacher(
    run: Distillation, file: Path, on_step: OnStep | None = None, checkpoints: Checkpoints | None = None
) -> nn.Module:
    """Train a task's teacher.

    Args:
        run: Of `training_of`.
        file: The teacher's place; what is wrong with a batch is written beside it.
        on_step: Told of every step.
        checkpoints: Where it goes on from, and what it leaves.

    Raises:
        TrainingDivergedError: Where its weights are not finite at the end.
    """
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
            f"teacher {run.problem.task.student}: its weights are not finite after {run.steps} steps; lower "
            "--teacher-learning-rate"
        )
    return teacher


def teacher_file(task: Task, dataset: Dataset) -> Path:
    """Where the trained teacher of this task and data lies, or would lie."""
    determined_by = {
        "data": task.name,
        "content": dataset.train.sha256(),
        "network": task.teacher if task.own.teacher is None else network_identity(task.own.teacher),
        "recipe": task.teacher_recipe.described(),
        "seed": task.teacher_seed,
        "torch": torch.__version__,
    }
    pictures = {one.name: value for one in fields(Pictures) if (value := getattr(task, one.name)) is not None}
    determined_by |= {"pictures": pictures} if pictures else {}
    key = hashlib.sha256(json.dumps(determined_by, sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / "teachers" / f"{re.sub('[^A-Za-z0-9._]', '-', shareable(task.teacher))}-{key}.safetensors"


def find_teacher(
    task: Task, dataset: Dataset, on_step: OnStep | None = None, fresh: bool = False, inexact: bool = False
) -> tuple[nn.Module, dict[str, str]]:
    """The task's teacher, from the file that it names, from the cache, or by training it; and what is to be said of it.

    Args:
        task: The description.
        dataset: Its data.
        on_step: Told of the teacher's training steps.
        fresh: Where its training was interrupted, begin it at step 0; otherwise it goes on.
        inexact: As `Checkpoints` has it.

    Raises:
        BadInputError: Where its file cannot be used.
        TrainingDivergedError: Where its training ends in numbers that are not finite.
    """
    if task.teacher == "toy":
        return toy_teacher(), {}
    given = Path(task.teacher_weights) if task.teacher_weights else None
    if given is not None and not os.path.isfile(given):
        raise BadInputError(f"teacher weights {given}: no such file")
    file = given or teacher_file(task, dataset)
    if not os.path.isfile(file):
        _train_into(file, task, dataset, on_step, fresh, inexact)
    teacher = teacher_network(task, dataset)
    try:
        said = load_weights(teacher, file)
    except ArtifactRefusedError as error:
        if given is not None:
            raise
        raise ArtifactRefusedError(f"{error}. Delete {file}: the teacher is then trained again") from error
    return teacher, {f"teacher_{INEXACT}": said[INEXACT]} if INEXACT in said else {}


def teacher_network(task: Task, dataset: Dataset) -> nn.Module:
    """The teacher's network with weights that nobody has trained."""
    if task.own.teacher is not None:
        return task.own.teacher(task.teacher_seed)
    return build_model(task.teacher, dataset.image_shape, dataset.num_classes)


def warn_at_chance(teacher: str, part: str, split: Split, accuracy: float) -> None:
    """Warn of a teacher that is no better on a split than its most frequent class, within two standard errors."""
    labels = split.targets
    chance = float(labels.bincount().max()) / len(labels)
    if accuracy < min(1.0, chance + 2 * math.sqrt(chance * (1 - chance) / len(labels))):
        log.warning(
            f"Teacher {teacher} has {100 * accuracy:.2f} % {part} accuracy; its most frequent class alone gives "
            f"{100 * chance:.2f} %. Are its classes (or the rows of its logits) in another order, its pictures "
            "normalised otherwise (--normalise), its weights those of another task, or the labels the wrong ones? If "
            "it was trained here: do random changes make one class of another (--augment none), did it need longer?"
        )


def _train_into(file: Path, task: Task, dataset: Dataset, on_step: OnStep | None, fresh: bool, inexact: bool) -> None:
    """Train the teacher into its file; of two processes that want the same one, the second waits for it."""
    run = training_of(task, dataset)  # what cannot be trained is refused before anything is written
    _make(file.parent)
    with _only_one(file.with_suffix(".lock")):
        if file.is_file():
            return
        checkpoints = Checkpoints(file.with_suffix(".checkpoints"), fresh=fresh, inexact=inexact)
        try:
            teacher = train_teacher(run, file, on_step, checkpoints)
            said = {"task": shareable(task.name), "network": shareable(task.teacher), **checkpoints.mark()}
            said |= _normalised(dataset)
            save_weights(teacher, file, said)
        except TrainingDivergedError:
            checkpoints.remove()  # it would diverge again from there
            raise
        checkpoints.remove()


def _normalised(dataset: Dataset) -> dict[str, str]:
    """How pictures were normalised, for `normalise teacher` to read."""
    if dataset.mean is None or dataset.std is None or not (dataset.augment or dataset.train.reads):
        return {}
    return {
        NORMALISE: "/".join(
            ",".join(f"{value / 255:.9g}" for value in one.tolist()) for one in (dataset.mean, dataset.std)
        )
    }


def _make(folder: Path) -> None:
    """Make the folder of the teachers.

    Raises:
        BadInputError: Where that cannot be, or nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fault = "" if os.access(folder, os.W_OK | os.X_OK) else "it may not be written to"
    except OSError as error:
        fault = error.strerror or str(error)
    if fault:
        raise BadInputError(f"cannot keep a trained teacher in {folder}: {fault}. Set RLTEMP_CACHE to another folder")


@contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    """Within, no other process is; the lock's file is gone afterwards."""
    with FileLock(lock):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
