"""A task: a data set, a teacher, a student and how both are trained. `Task.of` makes one, of a user's own parts too.

A task is only a description; `rltemp.training.preparation.prepare` loads its data and its teacher. A part that no name
stands for is kept as an object (`Own`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from rltemp.data.dataset import Dataset
from rltemp.data.own import own_dataset
from rltemp.data.recipe import Recipe
from rltemp.errors import BadInputError
from rltemp.io.own_code import import_attribute, is_own, own_code
from rltemp.kd.checks import whole
from rltemp.kd.names import lookup, split_spec
from rltemp.models.library_networks import saved_network
from rltemp.models.networks import MODELS
from rltemp.models.seeded_network import SeededNetwork, name_of, wants_seed
from rltemp.models.weight_files import LOGITS_SUFFIXES, read_tensor
from rltemp.pictures.settings import Pictures

_STUDENT = Recipe(epochs=10, batch_size=64, learning_rate=0.05)
_TEACHER = Recipe(epochs=40, batch_size=64, learning_rate=0.05, weight_decay=5e-4)

Metric = Literal["margin", "log_odds", "log_likelihood", "accuracy"]


@dataclass(frozen=True)
class Own:
    """The parts of a task that are a user's own; None where a name stands for the part.

    Args:
        data: Makes the data set, of the seed that draws its splits.
        student: From a seed to a student.
        teacher: From a seed to a network that is trained as a teacher.
        known_teacher: A teacher that is trained, or its logits `[N, ..., C]` for every training sample.
    """

    data: Callable[[int], Dataset] | None = None
    student: Callable[[int], nn.Module] | None = None
    teacher: Callable[[int], nn.Module] | None = None
    known_teacher: nn.Module | Tensor | None = None


@dataclass(frozen=True)
class Task:
    """A distillation problem, described. `Task.of` makes one of a user's own data and networks.

    Args:
        name: As asked for, with the data set's option: `digits`, `synthetic:classes=20`, `imagefolder:PATH`.
        teacher: A network's name.
        student: A network's name.
        recipe: How the student is trained.
        teacher_recipe: How the teacher is trained, where it is not given.
        metric: What rewards measure on probe data: `margin` (a smooth accuracy), its `log_odds`, or `log_likelihood`;
            None: `log_likelihood` of tokens, `margin` of all else.
        split_seed: Draws the four splits of the data.
        teacher_seed: Draws the teacher's initial weights and batches.
        teacher_weights: A file of weights for the teacher (safetensors or a torch file); without one it is trained.
        image_size: Of the pictures in a folder, as `Pictures` has it; so are `resize`, `augment` and `normalise`.
        resize: Likewise.
        augment: Likewise; of any pictures of 8 bits.
        normalise: Likewise.
        own: What no name stands for.

    Raises:
        BadInputError: For a metric that nobody knows, or pictures that cannot be.

    >>> Task.of(student="mlp:6", teacher="mlp:128", train="digits", epochs=10).recipe.epochs
    10
    """

    name: str
    teacher: str
    student: str
    recipe: Recipe
    teacher_recipe: Recipe
    metric: Metric | None = "margin"
    split_seed: int = 0
    teacher_seed: int = 0
    teacher_weights: str | None = None
    image_size: int | None = None
    resize: int | None = None
    augment: str | None = None
    normalise: str | None = None
    own: Own = field(default=Own(), repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.metric is not None:
            lookup(dict.fromkeys(get_args(Metric)), self.metric, "metric")
        _ = self.pictures  # which checks them
        for name in ("split_seed", "teacher_seed"):
            whole(getattr(self, name), 0, "task", name)
        for name, kind in {"name": str, "recipe": Recipe, "teacher_recipe": Recipe}.items():
            if not isinstance(value := getattr(self, name), kind):
                raise BadInputError(f"task: {name} must be a {kind.__name__}; got {value!r:.80}")
        if self.teacher_weights is not None and self.own.known_teacher is not None:
            raise BadInputError(f"task: teacher {self.teacher} is trained; got teacher_weights as well, leave them out")

    @classmethod
    def of(
        cls,
        *,
        student: str | nn.Module | Callable[..., nn.Module],
        teacher: str | nn.Module | Callable[..., nn.Module] | Tensor | np.ndarray[Any, Any] | Path,
        train: Any,
        test: Any = None,
        validation: Any = None,
        probe: Any = None,
        collate: Callable[[list[Any]], Any] | None = None,
        name: str = "own",
        metric: Metric | None = None,
        recipe: Recipe = _STUDENT,
        teacher_recipe: Recipe = _TEACHER,
        **options: Any,
    ) -> Task:
        """Describe a task, of parts with names and of one's own.

            task = Task.of(student=make_student, teacher=teacher, train=train_set, test=test_set,
                           optimizer=partial(torch.optim.AdamW, lr=3e-3), epochs=10, batch_size=64)

        Args:
            student: A network's name; a function that returns a network, of a seed or, with torch's generator seeded,
                of nothing; or a network, of which every student is a copy.
            teacher: A trained network (it is put into eval mode and frozen), or a function that returns one; its logits
                for every training sample, as a tensor, an array or a file of one (.pt, .npy, .safetensors); or a
                network's name, a class, or a function with a parameter `seed`, which is trained by `teacher_recipe`.
            train: The name of a data set; or a torch `Dataset` or `DataLoader`, tensors or arrays `(inputs, labels)`,
                or what yields such items; see `rltemp.data.own`. Labels are optional where the method needs none.
            test: As `train`; what is not given is cut from `train`.
            validation: Likewise.
            probe: Likewise.
            collate: From a list of items to a batch, as a `DataLoader` has it.
            name: Of the task, for folders and results.
            metric: As `Task` has it.
            recipe: How students are trained.
            teacher_recipe: How the teacher is trained, where it is.
            **options: Other fields of `Task`; those of the student's recipe by their names (`epochs=10`), those of the
                teacher's after `teacher_` (`teacher_epochs=40`).

        Raises:
            BadInputError: For an option that nobody knows, or a part that cannot be one.
        """
        for part, given in {"student": student, "teacher": teacher, "train": train}.items():
            if given is None:
                raise BadInputError(f"{part} is None; every task needs one")
        parts = {"train": train, "test": test, "validation": validation, "probe": probe}
        named = isinstance(train, str)
        if named and any(value is not None for part, value in parts.items() if part != "train"):
            raise BadInputError(f"data set {train!r} has its own splits; leave test, validation and probe out")
        data = None if named else _Once(partial(own_dataset, name, parts, collate=collate))
        task = cls(train if named else name, "", "", recipe, teacher_recipe, metric, own=Own(data))
        return with_options(task, {"student": student, "teacher": teacher, **options})

    @property
    def pictures(self) -> Pictures:
        """How pictures reach the networks."""
        return Pictures(**{one.name: getattr(self, one.name) for one in fields(Pictures)})

    def described(self) -> dict[str, Any]:
        """What a result says of the task, as JSON holds it; of pictures only what is not their task's own."""
        recipes = {"recipe": self.recipe.described(), "teacher_recipe": self.teacher_recipe.described()}
        silent = {one.name for one in fields(Pictures) if getattr(self, one.name) is None} | {"own"}
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name not in silent} | recipes


class _Once:
    """A data set that is made when it is first asked for, and again for another split seed."""

    def __init__(self, make: Callable[..., Dataset]) -> None:
        self._make, self._made = make, dict[int, Dataset]()

    def __call__(self, split_seed: int) -> Dataset:
        if split_seed not in self._made:
            self._made = {split_seed: self._make(split_seed=split_seed)}
        return self._made[split_seed]

    def __getstate__(self) -> dict[str, Any]:
        """Of a problem on its way to another process, which has its data already."""
        return {"_make": None, "_made": {}}


def with_options(task: Task, options: Mapping[str, Any]) -> Task:
    """The task with some of its fields, or of its recipes' (the teacher's begin with `teacher_`), replaced.

    Args:
        task: The task.
        options: By name; None keeps what the task has. Student and teacher are anything that `Task.of` takes.

    Raises:
        BadInputError: For an option that nobody knows, with the closest match.
    """
    given = {key: value for key, value in options.items() if value is not None}
    if "student" in given:
        name, make = _network(given.pop("student"), "student")
        task = replace(task, student=name, own=replace(task.own, student=make))
    if "teacher" in given:
        task = _with_teacher(task, given.pop("teacher"))
    own = {one.name for one in fields(Task)}
    student = {key: given[key] for key in given if key not in own and not key.startswith("teacher_")}
    teacher = {key[len("teacher_") :]: given[key] for key in given if key not in own and key not in student}
    return replace(
        task,
        recipe=task.recipe.changed(**student),
        teacher_recipe=task.teacher_recipe.changed(**teacher),
        **{key: given[key] for key in given if key in own},
    )


def _with_teacher(task: Task, teacher: Any) -> Task:
    """The task with another teacher; see `Task.of`."""
    if isinstance(teacher, str) and teacher.startswith("hf:"):
        name, teacher = teacher, saved_network(teacher.removeprefix("hf:")).float()
    elif isinstance(teacher, str) and is_own_network(teacher):
        name, teacher = teacher, import_attribute(teacher)
    else:
        name = teacher if isinstance(teacher, str) else name_of(teacher)
    if str(teacher).endswith(LOGITS_SUFFIXES) and isinstance(teacher, (str, Path)):
        name, teacher = Path(teacher).name, read_tensor(Path(teacher).expanduser(), "teacher logits")
    if isinstance(teacher, np.ndarray):
        with own_code("teacher logits"):
            teacher = torch.from_numpy(np.ascontiguousarray(teacher))
    if isinstance(teacher, Tensor):
        if teacher.dim() < 2 or not teacher.is_floating_point():
            raise BadInputError(
                f"teacher logits must be [N, ..., C], floats; got {tuple(teacher.shape)}, {teacher.dtype}"
            )
        teacher = teacher.detach().float()
    elif callable(teacher) and not isinstance(teacher, (nn.Module, type)) and not wants_seed(teacher):
        teacher = SeededNetwork(teacher, name)(task.teacher_seed)
    if isinstance(teacher, (Tensor, nn.Module)):  # weights are those of the teacher before
        own = replace(task.own, teacher=None, known_teacher=teacher)
        return replace(task, teacher=name, teacher_weights=None, own=own)
    make = _network(teacher, "teacher")[1]
    return replace(task, teacher=name, own=replace(task.own, teacher=make, known_teacher=None))


def is_own_network(network: str) -> bool:
    """Whether this is code of a user's own; `timm:NAME` is a network's name, though there is a module timm."""
    return split_spec(network)[0] not in MODELS and is_own(network)


def _network(given: Any, what: str) -> tuple[str, Callable[[int], nn.Module] | None]:
    """The name of a network, and how a seed makes it where no name stands for it."""
    if isinstance(given, str) and not is_own_network(given):
        return given, None
    network = import_attribute(given) if isinstance(given, str) else given
    if not callable(network):
        raise BadInputError(f"{what}: needed is a network's name, a function or a torch module; got {network!r:.80}")
    name = given if isinstance(given, str) else name_of(given)
    return name, SeededNetwork(network, name)
