"""Options that commands share, and how they become a run's configuration.

A command's options are a frozen dataclass: the text under a field is its help on the command line. All but
`NOT_CONFIGURATION` are the run's configuration, flat, by field name.
"""

from __future__ import annotations

import functools
import logging
import re
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
import tyro

from rltemp.data.dataset import Dataset
from rltemp.data.problem import Problem
from rltemp.data.recipe import Recipe, Schedule
from rltemp.data.task import Task
from rltemp.data.tasks import load_task
from rltemp.errors import BadInputError
from rltemp.io.command_words import arguments
from rltemp.io.own_code import is_own
from rltemp.io.progress import Bar
from rltemp.io.run_folders import finish_run, open_run
from rltemp.pictures.settings import Pictures
from rltemp.training.checkpoints import FOLDER as CHECKPOINTS
from rltemp.training.checkpoints import Checkpoints, refuse_other_formats
from rltemp.training.identity import fingerprints, problem_identity, task_content
from rltemp.training.preparation import check_batches, fitted, load_data, prepare

log = logging.getLogger(__name__)

NOT_CONFIGURATION = frozenset(
    {"out", "config", "threads", "fresh", "allow_inexact", "allow_mixed", "workers", "ray", "html", "time"}
    | {"only_missing", "controller_token_file", "data_workers"}
)
CONTENT = "content"
"""In a configuration: what it says of parts that no name stands for. It is no option."""


@dataclass(frozen=True)
class RunOptions:
    """Options of every command."""

    threads: int = 1
    """CPU threads; one is fastest for small networks."""

    command: ClassVar[str] = ""


@dataclass(frozen=True)
class TaskOptions(RunOptions):
    """Options of every command that trains: what, where, and the fields of the task it changes."""

    task: Annotated[str | Task, tyro.conf.arg(constructor=str)] = "digits"
    """digits, wine, breast_cancer, iris, synthetic, toy, characters, cifar10, cifar100, imagefolder:PATH, or a function
    of your own that returns a task, my_task.py:make_task."""
    out: Path | None = None
    """The run's folder; by default runs/COMMAND-TASK."""
    config: Path | None = None
    """Take the options from this config.json, or run folder; options given beside it win."""
    student: str | None = None
    """The student network, as in mlp:8, resnet8 or my_nets.py:make_student; by default the task's own, as for all
    options below."""
    teacher: str | None = None
    """The teacher network; my_nets.py:make_teacher, where it takes no seed, returns a trained one; or a file of its
    logits for every training sample (.npy, .pt, .safetensors)."""
    teacher_weights: str | None = None
    """A file of weights for the teacher (.safetensors, .pth, .ckpt); without one it is trained and cached."""
    recipe: str | None = None
    """Networks, pictures and training of a benchmark: imagenet, imagenet-mdistiller; options beside it win."""
    epochs: int | None = None
    """Passes of the student over the training data."""
    batch_size: int | None = None
    """Samples in a step of the student; by default fewer than the task's own where the data are small."""
    learning_rate: float | None = None
    """Largest learning rate of the student, from which the schedule falls."""
    optimizer: str | None = None
    """The student's optimizer, as in sgd or adamw: any of torch.optim that needs no closure."""
    momentum: float | None = None
    """Of an optimizer that takes one; 0.9 for sgd."""
    weight_decay: float | None = None
    """Of the student's optimizer."""
    schedule: Schedule | None = None
    """What the student's learning rate does after the warm-up."""
    warmup: float | None = None
    """Fraction of the run over which the student's learning rate grows linearly from 0."""
    clip: float | None = None
    """Largest norm of the student's gradient; a longer one is scaled down to it."""
    accumulate: int | None = None
    """Batches whose mean gradient makes one optimizer step of the student."""
    ema: float | None = None
    """Decay of a running mean of the student's weights, which is evaluated and saved in their place; 0 for none."""
    label_smoothing: float | None = None
    """Share of the label that the student's cross-entropy spreads over all classes."""
    precision: Literal["float32", "bfloat16", "float16"] | None = None
    """Number format that the student's networks compute in."""
    teacher_epochs: int | None = None
    """Passes of the teacher over the training data, where it is trained."""
    teacher_batch_size: int | None = None
    """Samples in a step of the teacher; by default fewer than the task's own where the data are small."""
    teacher_learning_rate: float | None = None
    """Largest learning rate of the teacher."""
    teacher_optimizer: str | None = None
    """The teacher's optimizer, as in sgd or adamw."""
    teacher_weight_decay: float | None = None
    """Of the teacher's optimizer."""
    teacher_schedule: Schedule | None = None
    """What the teacher's learning rate does."""
    image_size: int | None = None
    """Side of the square that networks see of a folder's pictures: resized, then cut from the middle."""
    resize: int | None = None
    """Length of a picture's shorter side before that square is cut; by default image_size."""
    augment: str | None = None
    """What training changes in pictures at random: none, or shift, mirror, crop and randaugment joined by +, as in
    crop+mirror. By default shift+mirror for imagefolder, cifar10 and cifar100."""
    normalise: str | None = None
    """What pictures are centred and scaled by: data (the default), imagenet, half, teacher (what stands beside its
    weights), or mean/deviation of pixels in 0..1, as in 0.5,0.5,0.5/0.25,0.25,0.25."""
    data_workers: int = 2
    """Processes that read pictures ahead, where they are read from their files in the course of a run; 0: none."""
    split_seed: int | None = None
    """Draws the splits of the data."""
    data_root: Path | None = None
    """Where data sets are kept; by default $RLTEMP_DATA, else ~/.cache/rltemp/data."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where everything runs; auto is the GPU if there is one."""
    fresh: bool = False
    """Begin an unfinished run at its beginning, and remove what it had saved."""
    allow_inexact: bool = False
    """Go on with a run saved with other threads or versions; its numbers may differ, and its result says so."""

    def folder(self) -> Path:
        """The run's folder."""
        return (
            self.out or Path("runs") / f"{self.command}-{re.sub(r'[^A-Za-z0-9._]+', '-', self.task_name()).strip('-')}"
        )

    def task_name(self) -> str:
        """The task's name."""
        return self.task.name if isinstance(self.task, Task) else self.task

    @functools.cached_property
    def described(self) -> Task:
        """The task that the options describe.

        Raises:
            BadInputError: Where there is no such task.
        """
        return load_task(self.task, **{name: getattr(self, name) for name in OF_THE_TASK})

    @functools.cached_property
    def content(self) -> str:
        """What parts of the user's own determine the run, SHA-256; empty where all parts have names."""
        if isinstance(self.task, str) and not any(map(is_own, (self.task, self.student or "", self.teacher or ""))):
            return ""
        return task_content(self.described)

    def problem(self, task: Task | None = None, dataset: Dataset | None = None) -> Problem:
        """Load the task, its data and its teacher, which is trained where it has to be.

        Args:
            task: By default the one that the options describe.
            dataset: Its data, where they are loaded already.

        Raises:
            BadInputError: Where an option cannot be used.
        """
        device = self.torch_device()
        task = task or self.described
        dataset = dataset or load_data(task, self.data_root, self.data_workers)
        task = self.fitted(task, dataset)
        log.info(f"Preparing task {task.name}: teacher {task.teacher}, student {task.student}, on {device}.")
        with Bar("teacher") as bar:
            settings: dict[str, Any] = {"fresh": self.fresh, "inexact": self.allow_inexact, "dataset": dataset}
            problem = prepare(task, device=device, on_step=bar, **settings)
        log.info(f"The teacher has {100 * problem.teacher_accuracy:.2f} % test accuracy.")
        return problem

    def fitted(self, task: Task, dataset: Dataset) -> Task:
        """The task with batches that its data can fill, where the options give none; given ones are checked."""
        own = {"student": self.batch_size is None, "teacher": self.teacher_batch_size is None}
        task = fitted(task, len(dataset.train), [network for network in own if own[network]])
        check_batches(task, len(dataset.train))
        return task

    def task_words(self) -> str:
        """The options that make another command work on the same task."""
        given = {"task": self.task_name(), **{name: getattr(self, name) for name in (*OF_THE_TASK, "data_root")}}
        return shlex.join(arguments({name: value for name, value in given.items() if value is not None}))

    def look(self) -> tuple[Path, dict[str, Any] | None]:
        """The run's folder, and its result where this run is finished already. Nothing is written.

        Raises:
            BadInputError: Where the folder is another's.
        """
        folder = self.folder()
        used = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
        result = self.open() if used else None
        if result is not None:
            log.info(f"{folder} holds this run, finished before; nothing was trained or changed.")
        return folder, result

    def open(self) -> dict[str, Any] | None:
        """Make the folder this run's; see `open_run`."""
        if not self.fresh:
            refuse_other_formats(self.folder() / CHECKPOINTS)
        return open_run(self.folder(), self.command, configuration(self))

    def checkpoints(
        self,
        problem: Problem | None = None,
        rule: str | None = None,
        extra: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> Checkpoints:
        """The checkpoints in the run's folder, which are those of one problem and one rule's file.

        Args:
            problem: What is trained on.
            rule: What is trained by.
            extra: What else they depend on, by name.
            **settings: As `Checkpoints` has them.
        """
        found = {"device": self.torch_device()}
        if problem is not None:
            content = problem_identity(problem)
            found |= {name: str(content[name]) for name in ("data", "teacher")}
        found |= {} if rule is None else fingerprints([rule])
        settings |= {"fresh": self.fresh, "inexact": self.allow_inexact}
        return Checkpoints(self.folder() / CHECKPOINTS, extra={**found, **(extra or {})}, **settings)

    def torch_device(self) -> str:
        """Where everything runs, cpu or cuda.

        Raises:
            BadInputError: Where there is no such device.
        """
        if self.device == "cuda" and not torch.cuda.is_available():
            raise BadInputError("--device cuda: torch sees no GPU here; use --device cpu or auto")
        return "cpu" if self.device == "cpu" or not torch.cuda.is_available() else "cuda"

    def finish(self, result: dict[str, Any], started: float, **timing: Any) -> dict[str, Any]:
        """Write the run's result, and what the clock says since `started` by `time.monotonic`; see `finish_run`."""
        return finish_run(self.folder(), result, time.monotonic() - started, **timing)


_NEWER = ("recipe", *(field.name for field in fields(Pictures)))
_RECIPE = {field.name for field in fields(Recipe)}
_TASK = {field.name for field in fields(Task)} | _RECIPE | {f"teacher_{name}" for name in _RECIPE}
OF_THE_TASK = tuple(field.name for field in fields(TaskOptions) if field.name in _TASK)
"""The options that are fields of the task, or of its recipes."""


def flat(options: Any) -> dict[str, Any]:
    """Every option by name, those of a dataclass inside among them.

    Where an inner name is taken, its owner's stands before it: `policy_learning_rate` beside `learning_rate`.
    """
    found: dict[str, Any] = {}
    for field in fields(options):
        value = getattr(options, field.name)
        inner = flat(value) if is_dataclass(value) and not isinstance(value, Task) else {field.name: value}
        found |= {f"{field.name}_{name}" if name in found else name: item for name, item in inner.items()}
    return found


def configuration(options: Any) -> dict[str, Any]:
    """What `config.json` holds of a command's options."""
    found = {name: value for name, value in flat(options).items() if name not in NOT_CONFIGURATION}
    if found.get("compile") == "auto":  # as every run before version 0.3 was configured, which goes on
        del found["compile"]
    for name in _NEWER:  # as every run before them was configured, which goes on
        if found.get(name, ...) is None:
            del found[name]
    if isinstance(options, TaskOptions):
        found["task"] = options.task_name()
        found |= {CONTENT: content} if (content := options.content) else {}
    return found


def command_line(options: TaskOptions) -> str:
    """The command that gives this run again: task, folder and every option that is not at its default."""
    if isinstance(options.task, Task):
        return f"rltemp.{options.command.replace('-', '_')}(...) in Python, on task {options.task.name}"
    default, shown = flat(type(options)()), "tasks" if getattr(options, "tasks", None) else "task"
    changed = {
        name: value
        for name, value in flat(options).items()
        if (name == "threads" or name not in NOT_CONFIGURATION) and (name == shown or value != default[name])
    }
    return shlex.join(["rltemp", options.command, *arguments({**changed, "out": options.folder()})])
