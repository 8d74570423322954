"""Tasks by name: `TASKS`, and `load_task`, which finds a task of the table or of a user's own file.

Every field can be overridden, on the command line as in Python: `load_task("digits", student="mlp:16", epochs=20)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rltemp.data.recipe import Recipe
from rltemp.data.task import Metric, Task, with_options
from rltemp.errors import BadInputError
from rltemp.io.own_code import import_attribute, is_own, own_code
from rltemp.kd.names import lookup, split_spec


def load_task(spec: str | Task, **overrides: Any) -> Task:
    """Describe the task that `spec` names, with some of its fields replaced.

    Args:
        spec: `digits`, `wine`, `breast_cancer`, `iris`, `synthetic`, `synthetic:classes=20`, `toy`,
            `characters`, `cifar10`, `cifar100`, `imagefolder:PATH`, or `my_task.py:make_task`, a function that returns
            a task; or a task.
        **overrides: Fields of `Task`, of its `Recipe` (`epochs=20`), or of its teacher's (`teacher_epochs=20`).
            None keeps the task's own value. `recipe="imagenet"` takes all that `RECIPES` has under that name first.

    Raises:
        BadInputError: For a name that nobody knows, or a function that raises or returns something else.

    >>> load_task("digits", epochs=3, student="mlp:16").recipe.epochs
    3
    """
    if isinstance(spec, Task):
        task = spec
    elif split_spec(spec)[0] not in TASKS and is_own(spec):
        make = import_attribute(spec)
        with own_code(spec):
            task = make() if callable(make) else make
        if not isinstance(task, Task):
            raise BadInputError(f"{spec} must return a task, as rltemp.Task.of makes it; got a {type(task).__name__}")
    else:
        task = replace(lookup(TASKS, split_spec(spec)[0], "task"), name=spec)
    given = {key: value for key, value in overrides.items() if value is not None}
    if isinstance(name := given.get("recipe"), str):
        recipe = lookup(RECIPES, name, "recipe")
        task = with_options(replace(task, recipe=recipe.student, teacher_recipe=recipe.teacher), recipe.options)
        del given["recipe"]
    return with_options(task, given)


def _task(
    name: str, teacher: str, student: str, recipe: Recipe, teacher_recipe: Recipe, metric: Metric = "margin"
) -> Task:
    parts: dict[str, Any] = {"student": student, "teacher": teacher, "train": name, "metric": metric}
    return Task.of(**parts, recipe=recipe, teacher_recipe=teacher_recipe)


# CIFAR: the field's recipe for CIFAR-100 (240 epochs, batch 64, SGD 0.05, weight decay 5e-4), as in the official code
# of DKD, DTKD, NormKD and TTM. A folder of images is of unknown size, so it gets fewer epochs; --epochs says otherwise.
_CIFAR = Recipe(epochs=240, batch_size=64, learning_rate=0.05, weight_decay=5e-4, schedule="step")
_FOLDER = Recipe(epochs=30, batch_size=128, learning_rate=0.1, weight_decay=5e-4)
_TABLE_TEACHER = Recipe(epochs=40, batch_size=16, learning_rate=0.02, weight_decay=5e-3)
# The students' learning rate is the one at which `fixed:1` has its least validation loss over 8 students, of 0.01, 0.02
# and 0.04 (docs/experiments.md).
_GPT = Recipe(epochs=3, batch_size=16, learning_rate=0.02, optimizer="adamw", warmup=0.05)
_GPT_TEACHER = replace(_GPT, epochs=10, learning_rate=0.01, weight_decay=0.1)

# Name, teacher, student, the student's recipe (epochs, batch size, learning rate) and the teacher's. Where tables and
# students are small, a student's learning rate is the one at which plain KD (`fixed:4`) has its best validation
# accuracy over 64 students, of 0.01, 0.02, 0.05, 0.1 and 0.2.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _task("digits", "mlp:128", "mlp:6", Recipe(10, 50, 0.02), Recipe(60, 50, 0.1, weight_decay=5e-4)),
        _task("wine", "mlp:64", "mlp:4", Recipe(30, 16, 0.02), _TABLE_TEACHER),
        _task("breast_cancer", "mlp:64", "mlp:4", Recipe(10, 16, 0.05), _TABLE_TEACHER),
        _task("iris", "mlp:64", "mlp:4", Recipe(40, 16, 0.05), _TABLE_TEACHER),
        _task("synthetic", "mlp:128", "mlp:8", Recipe(10, 50, 0.1), Recipe(40, 50, 0.1, weight_decay=5e-3)),
        _task("toy", "toy", "linear", Recipe(6, 50, 0.5), Recipe(1, 50, 0.1), metric="log_likelihood"),
        _task("characters", "gpt:64x2", "gpt:32x1", _GPT, _GPT_TEACHER, metric="log_likelihood"),
        _task("cifar10", "resnet56", "resnet20", _CIFAR, _CIFAR),
        _task("cifar100", "resnet56", "resnet20", _CIFAR, _CIFAR),
        _task("imagefolder", "resnet20", "resnet8", _FOLDER, _FOLDER),
    )
}


@dataclass(frozen=True)
class PublishedRecipe:
    """Networks, pictures and training of a benchmark that is not a task by itself.

    Args:
        student: How the student is trained.
        teacher: How the teacher is trained, where its weights are not given.
        options: Networks and pictures, as `load_task` takes them.
    """

    student: Recipe
    teacher: Recipe
    options: Mapping[str, str | int]


_IMAGENET = Recipe(
    epochs=100, batch_size=256, learning_rate=0.1, weight_decay=1e-4, schedule="step", milestones=(0.3, 0.6, 0.9)
)
_LARGE_BATCHES = replace(_IMAGENET, batch_size=512, learning_rate=0.2)
_PICTURES = {"image_size": 224, "resize": 256, "augment": "crop+mirror", "normalise": "imagenet"}
_RESNETS: dict[str, Any] = {"teacher": "resnet34", "student": "resnet18", **_PICTURES}

RECIPES: dict[str, PublishedRecipe] = {
    "imagenet": PublishedRecipe(_IMAGENET, _IMAGENET, _RESNETS),
    "imagenet-mdistiller": PublishedRecipe(_LARGE_BATCHES, _LARGE_BATCHES, _RESNETS),
}
"""What `--recipe` names, for a folder as ImageNet is: ResNet-34 to ResNet-18, 100 epochs, a tenth of the rate at
epochs 30, 60 and 90. `imagenet` has batches of 256 and rate 0.1, as torchvision's reference has it for these networks;
`imagenet-mdistiller` 512 and 0.2, as configs/imagenet of https://github.com/megvii-research/mdistiller, the code that
DTKD's stands on (its own has settings of CIFAR-100 alone, and so has the code of WTTM). WTTM's constants for ImageNet
are `wttm:pair=imagenet-resnet34-resnet18`."""
