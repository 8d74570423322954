"""From a task's description to the problem in memory: `prepare` loads the data and the teacher and checks what fits."""

from __future__ import annotations

import logging
import math
from collections.abc import Container
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from rltemp.data.dataset import Dataset
from rltemp.data.problem import Part, Problem, evaluate
from rltemp.data.sources import load_dataset
from rltemp.data.splits import adjusted
from rltemp.data.task import Task
from rltemp.data.tasks import load_task
from rltemp.errors import BadInputError
from rltemp.kd.checks import whole
from rltemp.models.library_networks import normalisation_beside
from rltemp.models.networks import build_model
from rltemp.models.trial import answered
from rltemp.training.distill import Distillation
from rltemp.training.teachers import OnStep, find_teacher, teacher_network, warn_at_chance

log = logging.getLogger(__name__)

OPTIONS = {"student": "--batch-size", "teacher": "--teacher-batch-size"}
"""What sets the batch size of each network."""
PARTS: tuple[Part, ...] = ("train", "probe", "validation", "test")
MOST_LOGITS = 2**28
"""Numbers of a teacher that are kept for the training split, 1 GiB; beyond it the teacher runs on every batch."""


def prepare(
    task: Task | str,
    *,
    device: str | torch.device = "cpu",
    root: Path | None = None,
    on_step: OnStep | None = None,
    fresh: bool = False,
    inexact: bool = False,
    dataset: Dataset | None = None,
) -> Problem:
    """Load a task's data, and its teacher, which is trained where it has to be.

    Args:
        task: The description, or its name.
        device: Where the data and the networks go.
        root: Where data sets are downloaded to; see `rltemp.data.sources`.
        on_step: Told of the teacher's training steps.
        fresh: Where its training was interrupted, begin it at step 0; otherwise it goes on.
        inexact: As `Checkpoints` has it.
        dataset: The task's data, where they are loaded already.

    Raises:
        BadInputError: Where the data, the student or the teacher cannot be used, or do not go together.
        TrainingDivergedError: Where the teacher's training ends in numbers that are not finite.
    """
    if not isinstance(task, Task):
        task = load_task(task)
    problem = untaught(task, (dataset or load_data(task, root)).to(device))
    if task.own.student is not None and (reason := problem.alone):
        log.info(f"Students {task.student} are trained one by one: {reason}.")
    known = task.own.known_teacher
    if isinstance(known, Tensor):
        return taught_by_logits(problem, known.to(device))
    if known is not None:
        return taught(problem, known)
    teacher, mark = find_teacher(problem.task, problem.dataset, on_step, fresh, inexact)
    return replace(taught(problem, teacher), teacher_mark=mark)


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
    if task.teacher_weights is None and task.teacher != "toy" and task.own.known_teacher is None:
        sizes["teacher"] = task.teacher_recipe.batch_size
    for network, size in sizes.items():
        if size > samples and network in networks:
            raise BadInputError(
                f"batch size {size} of the {network} is above the {samples} training samples: give {OPTIONS[network]} "
                f"{samples} or less, or more data"
            )


def load_data(task: Task, root: Path | None = None, workers: int = 0) -> Dataset:
    """The data of a task, on the CPU; `workers` read its pictures ahead, where they stay in their files.

    Raises:
        BadInputError: Where they cannot be had, or pictures cannot be as the task wants them.
    """
    whole(workers, 0, "pictures", "data_workers")
    pictures = task.pictures
    if pictures.normalise == "teacher":
        pictures = replace(pictures, normalise=normalisation_beside(task.teacher_weights or task.teacher))
    if task.own.data is not None:
        return adjusted(task.own.data(task.split_seed), pictures)
    return load_dataset(task.name, task.split_seed, root, pictures, workers)


def stand_in(task: Task, dataset: Dataset) -> Problem:
    """The problem with a teacher that nobody has trained, unless it is given: to see what goes together.

    Raises:
        BadInputError: Where a network cannot be built for the data, or weights of the teacher's cannot be used.
    """
    problem, known = untaught(task, dataset), task.own.known_teacher
    if isinstance(known, Tensor):
        return taught_by_logits(problem, known.to(problem.device))
    if known is None:
        trained = task.teacher_weights or task.teacher == "toy"
        known = find_teacher(task, dataset)[0] if trained else teacher_network(task, problem.dataset)
    return replace(problem, teacher=_ready(known, problem), labelled=dataset.train.labels is not None)


def untaught(task: Task, dataset: Dataset) -> Problem:
    """The problem before there is a teacher; its student is tried, and its labels are checked.

    Raises:
        BadInputError: Where student, data and teacher do not agree on the classes.
    """
    check_batches(task, len(dataset.train), ("teacher",))
    dataset = dataset if dataset.num_classes else replace(dataset, num_classes=_classes(task, dataset))
    if task.own.student is None:
        shape = dataset.image_shape
        with torch.device("meta"):  # a mistake in the student's name takes no memory
            build_model(task.student, shape, dataset.num_classes)
    problem = Problem(task, dataset, None, None, teacher_accuracy=0.0)
    shape = problem.traits.outputs
    student = problem.students(0).eval()
    for part in PARTS:
        _check_part(problem, part, student)
    if shape[-1] != dataset.num_classes:
        raise BadInputError(
            f"student {task.student} answers {shape[-1]} classes; teacher and labels have {dataset.num_classes}"
        )
    for part in PARTS:
        _check_labels(dataset, part, shape[-1])
    # A mistake in the recipe shows before a teacher is trained.
    Distillation(problem, 0, recipe=task.recipe.fitting(len(dataset.train)))
    return problem


def taught(problem: Problem, teacher: nn.Module) -> Problem:
    """The problem with a trained teacher, which is put into eval mode and frozen."""
    problem = replace(problem, teacher=_ready(teacher, problem))
    problem, dataset = _labelled(problem), problem.dataset
    size = len(dataset.train) * math.prod(problem.traits.outputs)
    logits = None if dataset.views_change or size > MOST_LOGITS else problem.teacher_on("train")
    _check_finite(problem, logits)
    assert problem.teacher is not None
    accuracy = float(evaluate(problem.teacher, problem, problem.dataset.test))
    warn_at_chance(problem.task.teacher, "test", problem.dataset.test, accuracy)
    return replace(problem, teacher_logits=logits, teacher_accuracy=accuracy)


def taught_by_logits(problem: Problem, logits: Tensor) -> Problem:
    """The problem with a teacher of which the logits of all training samples are known, in their order.

    Raises:
        BadInputError: Where there are not as many as samples, or of another shape.
    """
    dataset, cut = problem.dataset, problem.dataset.cut_at
    size = sum(len(places) for places in cut.values()) or len(dataset.train)
    if tuple(logits.shape) != (needed := (size, *problem.traits.outputs)):
        raise BadInputError(f"teacher logits have shape {tuple(logits.shape)}; needed: {needed}, one for each sample")
    own = {part: logits[places.to(logits.device)] for part, places in cut.items()}
    problem = replace(problem, teacher_logits=own.pop("train", logits), cut_logits=own)
    _check_finite(problem, problem.teacher_logits)
    problem = _labelled(problem)
    part: Part = "validation" if "validation" in problem.cut_logits else "train"
    split, found = getattr(problem.dataset, part), problem.teacher_on(part)
    if split.labels is None or found is None:
        return problem
    accuracy = float((split.kept(found).argmax(-1) == split.targets).double().mean())
    if problem.labelled:
        warn_at_chance(problem.task.teacher, part, split, accuracy)
    return replace(problem, teacher_accuracy=accuracy)


def _labelled(problem: Problem) -> Problem:
    """The problem; where its data have no labels, the teacher's predictions stand in for those that measure students.

    Raises:
        BadInputError: Where the teacher cannot be asked for them.
    """
    dataset = problem.dataset
    if dataset.train.labels is not None:
        return problem
    splits = {}
    for part in PARTS:
        logits = problem.teacher_on(part)
        if logits is None:
            raise BadInputError(f"{part} has no labels and no teacher logits; give labels, or a teacher as a network")
        splits[part] = replace(getattr(dataset, part), labels=logits.argmax(-1))
    log.info("The data have no labels: the teacher's predictions stand in for them where students are measured.")
    return replace(problem, dataset=replace(dataset, **splits), labelled=False)


def _ready(teacher: nn.Module, problem: Problem) -> nn.Module:
    """The teacher in eval mode and frozen; it answers as the student does.

    Raises:
        BadInputError: Where it cannot take the data, or answers with another shape.
    """
    teacher = teacher.to(problem.device).eval().requires_grad_(False)
    teacher = teacher.to(memory_format=torch.channels_last) if problem.channels_last else teacher
    shape = tuple(_tried_teacher(teacher, problem.task, problem.dataset).shape[1:])
    if shape != problem.traits.outputs:
        raise BadInputError(
            f"teacher {problem.task.teacher} answers {shape} for a sample, student {problem.task.student} "
            f"{problem.traits.outputs}: both need the same classes"
        )
    return teacher


def _classes(task: Task, dataset: Dataset) -> int:
    """How many classes there are, as the teacher has it, or else the labels."""
    known = task.own.known_teacher
    if isinstance(known, Tensor):
        return known.shape[-1]
    if known is not None:
        return _tried_teacher(known.to(dataset.train.device).eval(), task, dataset).shape[-1]
    if dataset.train.labels is None:
        raise BadInputError(f"task {task.name}: a teacher cannot be trained without labels; give one that is trained")
    return max(int(getattr(dataset, part).targets.max()) for part in PARTS) + 1


def _check_finite(problem: Problem, logits: Tensor | None) -> None:
    """Refuse a teacher's logits of the training split, where they are known, that are no numbers."""
    split = problem.dataset.train
    if logits is not None and not bool((kept := split.kept(logits).isfinite().all(-1)).all()):
        wrong = (~kept).nonzero().flatten()
        raise BadInputError(
            f"teacher {problem.task.teacher}: its logits of {len(wrong)} of {len(kept)} training samples are not "
            f"finite, first of sample {int(wrong[0])}; look for NaN in its weights and its inputs"
        )


@torch.no_grad()
def _tried_teacher(teacher: nn.Module, task: Task, dataset: Dataset) -> Tensor:
    """What a teacher answers on two samples."""
    some = dataset.batch(dataset.train, torch.arange(2) % len(dataset.train))
    return answered(teacher, some.inputs, f"teacher {task.teacher}")


def _check_part(problem: Problem, part: Part, student: nn.Module) -> None:
    """Refuse a split whose inputs the student answers otherwise than those it learns from, or whose labels do not fit.

    Raises:
        BadInputError: With the split.
    """
    split, shape = getattr(problem.dataset, part), problem.traits.outputs
    some = problem.dataset.batch(split, torch.arange(2) % len(split)).inputs
    found = answered(student, some, f"{part}: student {problem.task.student}").shape[1:]
    if found != shape:
        raise BadInputError(f"{part}: the student answers {tuple(found)} for a sample, and {shape} for one of train")
    if split.labels is not None and tuple(split.labels.shape[1:]) != shape[:-1]:
        answers = ", ".join(map(str, ("N", *shape)))
        needed = ", ".join(map(str, ("N", *shape[:-1])))
        raise BadInputError(
            f"{part}: labels have shape {tuple(split.labels.shape)}; needed: [{needed}], for the student answers "
            f"[{answers}]"
        )


def _check_labels(dataset: Dataset, part: Part, classes: int) -> None:
    split = getattr(dataset, part)
    if split.labels is None:
        return
    wrong = split.labels >= classes if split.mask is None else (split.labels >= classes) & split.mask
    if bool(wrong.any()):
        place = wrong.nonzero()[0].tolist()
        label = int(split.labels[tuple(place)])
        if part in dataset.cut_at:  # where its user finds it
            part, place[0] = "train", int(dataset.cut_at[part][place[0]])
        raise BadInputError(f"{part}: label {label} at {place} is no class; needed: 0 to {classes - 1}")
