"""The distillation step and its loop, for one student or a stack of them: `observe`, `update`, `evaluate`, `train`.

The plain loop, the environment and the comparison all drive the same `Distillation`:

    run = Distillation(problem, seeds=3)
    while not run.done:
        signals = run.observe()            # the student's one forward: it serves the state and the loss
        run.update(method.loss(signals))   # one optimizer step

`seeds=3` trains one student on batches `[B]`; `seeds=[3, 4, 5]` trains three as one stack on batches `[S, B]`, each
with the weights, batches and augmentation that it would have alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rltemp.data.dataset import Split, augmentation_generator, epoch_order
from rltemp.data.problem import Problem, channels_last
from rltemp.data.tasks import Recipe
from rltemp.errors import BadInputError, of_this_run
from rltemp.kd.method import AnyObjective, Method, Objective
from rltemp.kd.signals import Signals
from rltemp.models.networks import seeded_model
from rltemp.models.stack import StackedStudent
from rltemp.rules.curriculum import LearnedRule
from rltemp.training.ddp import ALONE, Team
from rltemp.training.loss_scaling import LossScaler


class Distillation:
    """One run of one student, or of a stack of students side by side.

    Args:
        problem: The task, loaded.
        seeds: One student's seed, or one for each student of a stack. A seed determines a student's initial weights,
            its batches and its augmentation, and nothing else random takes part.
        recipe: How the students are trained; the task's own by default.
        train: The samples to train on, by default the task's training part. A policy is trained on redrawn ones.
        subset: `[N]` or, for a stack, `[S, N]`: positions in `train` that each student may see; all by default.
        teacher_logits: `[len(train), C]`, where `train` is not the task's training part.
        teacher_memory: Where views change: the teacher's logits by step, filled by the first run that is given it and
            used by the next of the same seed and recipe (4 bytes a sample, class and epoch).
        team: The processes that train this one student together; see `rltemp.training.ddp`.

    Attributes:
        scaler: Of the loss, with precision float16; its state belongs into a checkpoint. None otherwise.
        healthy: Whether the last step changed the weights; a checkpoint of a run that is not healthy can wait.

    Raises:
        BadInputError: Where the recipe and the student do not go together.
    """

    def __init__(
        self,
        problem: Problem,
        seeds: int | Sequence[int],
        *,
        recipe: Recipe | None = None,
        train: Split | None = None,
        subset: Tensor | None = None,
        teacher_logits: Tensor | None = None,
        teacher_memory: dict[int, Tensor] | None = None,
        team: Team = ALONE,
    ) -> None:
        self.problem = problem
        self.recipe = recipe or problem.task.recipe
        self.part = problem.dataset.train if train is None else train
        self.teacher_logits = problem.teacher_logits if train is None else teacher_logits
        self.teacher_memory = teacher_memory
        self.subset = subset
        self.seeds = seeds
        self._team, self._rows = team, team.share(self.recipe.batch_size)
        self.student = _new_student(problem, seeds)
        self._forward = team.joined(self.student)
        self._check_batch()
        self.scaler = self._new_scaler()
        self.healthy = True
        self.optimizer = torch.optim.SGD(
            self.student.parameters(),
            lr=self.recipe.learning_rate,
            momentum=self.recipe.momentum,
            weight_decay=self.recipe.weight_decay,
            foreach=True,
        )
        size = len(self.part) if subset is None else subset.shape[-1]
        self.steps_per_epoch = size // self.recipe.batch_size
        if self.steps_per_epoch < 1:  # such a run would be done before its first step
            raise BadInputError(
                f"batch size {self.recipe.batch_size} is above the {size} training samples: "
                "give a smaller batch size or more data"
            )
        self.steps = self.recipe.steps(size)
        self.step = 0
        self._learned: LearnedRule | None = None
        self._size = size
        self._order: tuple[int, Tensor] | None = None

    @property
    def done(self) -> bool:
        """Whether the last step has been taken."""
        return self.step >= self.steps

    @property
    def progress(self) -> float:
        """How much of the run is done, 0..1."""
        return self.step / self.steps

    def observe(self) -> Signals:
        """Run the student (and, where views change, the teacher) on the next batch.

        Returns:
            Signals of `[B]` or `[S, B]` samples; the student's logits carry the graph that `update` uses.
        """
        self.student.train()
        return self.signals_at(self.step)

    def signals_at(self, step: int, parameters: dict[str, Tensor] | None = None) -> Signals:
        """The signals of the batch of any step, from the student's own parameters or from given ones."""
        index = self._index(step)
        images = self._images(step, index)
        with self._autocast():
            if parameters is None:
                student_logits = self._team.gathered(self._forward(images))
            else:
                buffers = {name: value.clone() for name, value in self.student.named_buffers()}
                student_logits = functional_call(self.student, {**parameters, **buffers}, (images,))
        teacher_logits = self._teacher_logits(step, index, images)
        if student_logits.shape[-1] != teacher_logits.shape[-1]:
            raise BadInputError(
                f"student has {student_logits.shape[-1]} class outputs, teacher {teacher_logits.shape[-1]} "
                f"(shapes {tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}): "
                "give a teacher that was trained on this task's classes"
            )
        stacked = not isinstance(self.seeds, int)
        return Signals(student_logits, teacher_logits, self.part.labels[index], step / self.steps, stacked=stacked)

    def attach(self, method: AnyObjective) -> AnyObjective:
        """Return the method for this run: a rule that learns gets parameters of its own, in this run's optimizer."""
        if not isinstance(method, Method) or not isinstance(method.rule, LearnedRule):
            return method
        self._learned = self._new_rule(method.rule)
        self.optimizer.add_param_group({"params": list(self._learned.parameters())})
        return replace(method, rule=self._learned)

    def update(self, loss: Tensor, guarded: bool = False) -> bool:
        """Take one optimizer step along the mean over the batch of a per-sample loss, `[B]` or `[S, B]`.

        An empty batch is passed over, and so is, with precision float16, one whose gradient overflows.

        Args:
            loss: With its graph.
            guarded: Pass a batch over whose loss or gradient is not finite. For one student: in a stack it would
                hold up the others.

        Returns:
            Whether weights were changed; the run is a step further either way.

        Raises:
            TrainingDivergedError: With precision float16, where step after step overflows.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(self.step, self.steps)
        self.optimizer.zero_grad()
        # A stack's losses add up: each student's parameters appear in its own term only.
        self.healthy = bool(loss.numel()) and self._descend(loss.mean(-1).sum(), guarded)
        self.step += 1
        return self.healthy

    def skip(self) -> None:
        """Pass over the batch of this step; no weight changes."""
        self.healthy = False
        self.step += 1

    def positions(self, step: int) -> Tensor:
        """Which samples of `part` the batch of a step holds, `[B]` or `[S, B]`."""
        return self._index(step)

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on beside its arguments: tensors and numbers by name."""
        found = {"step": self.step, "student": self.student.state_dict(), "optimizer": self.optimizer.state_dict()}
        for name, part in (("learned", self._learned), ("scaler", self.scaler)):
            if part is not None:
                found[name] = part.state_dict()
        return found

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state of a run with the same arguments, whose rule, where it learns, is attached already.

        Raises:
            ArtifactRefusedError: Where it is another run's.
        """
        with of_this_run(f"student than {self.problem.task.student}"):
            self.student.load_state_dict(state["student"])
            if self._learned is not None:
                self._learned.load_state_dict(state["learned"])
            if self.scaler is not None:
                self.scaler.load_state_dict(state["scaler"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = int(state["step"])

    def restart(self, students: Tensor) -> None:
        """Give the marked students of a stack, `[S]` bool, their initial weights again and no momentum."""
        old, fresh = _tensors(self.student), _tensors(_new_student(self.problem, self.seeds))
        if self._learned is not None:
            old, fresh = old + _tensors(self._learned), fresh + _tensors(self._new_rule(self._learned))
        with torch.no_grad():
            for tensor, initial in zip(old, fresh, strict=True):
                tensor[students] = initial[students]
                momentum = self.optimizer.state.get(tensor, {}).get("momentum_buffer")
                if momentum is not None:
                    momentum[students] = 0.0

    def _descend(self, loss: Tensor, guarded: bool) -> bool:
        if guarded and not math.isfinite(loss.item()):
            return False
        if self.scaler is not None:
            return self.scaler.step(loss, self.optimizer, self.step + 1)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if guarded and not self._finite_gradient():
            return False
        self.optimizer.step()
        return True

    def _finite_gradient(self) -> bool:
        values = [v.grad for group in self.optimizer.param_groups for v in group["params"] if v.grad is not None]
        # One number for all; only where that is not finite, which a sum of finite ones can be too, a closer look.
        total = torch.cat([value.flatten() for value in values]).sum()
        return math.isfinite(total.item()) or all(bool(value.isfinite().all()) for value in values)

    def _check_batch(self) -> None:
        if self.recipe.batch_size == self._team.size and _normalises_batches(self.student):
            raise BadInputError(
                f"student {self.problem.task.student} has BatchNorm, which needs 2 samples or more in a batch; got "
                f"batch size 1{self._team.each}. Give a larger batch size (an incomplete last batch is dropped anyway, "
                "as by drop_last=True) or a student with GroupNorm"
            )

    def _new_scaler(self) -> LossScaler | None:
        if self.recipe.precision != "float16":
            return None
        if not isinstance(self.seeds, int):
            raise BadInputError(
                f"precision float16 trains one student at a time, for each has a loss scale of its own; here "
                f"{len(self.seeds)} train side by side. Use float32 or bfloat16, or, in a comparison, --stack 1"
            )
        return LossScaler(self.problem.device)

    def _new_rule(self, rule: LearnedRule) -> LearnedRule:
        return rule.fresh(self.problem.dataset.num_classes, self.seeds).to(self.problem.device)

    def _index(self, step: int) -> Tensor:
        epoch, within = divmod(step, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, self._epoch_order(epoch)
        return self._order[1][within]

    def _epoch_order(self, epoch: int) -> Tensor:
        """Batches of one epoch as positions in the part: `[steps, B]` or `[steps, S, B]`."""
        if isinstance(self.seeds, int):
            order = epoch_order(self.seeds, epoch, self._size, self.recipe.batch_size)
        else:
            orders = {seed: epoch_order(seed, epoch, self._size, self.recipe.batch_size) for seed in self.seeds}
            order = torch.stack([orders[seed] for seed in self.seeds], 1)
        order = order.to(self.part.labels.device)
        if self.subset is None:
            return order
        if self.subset.dim() == 1:
            return self.subset[order]
        return self.subset.expand(len(order), -1, -1).gather(-1, order)

    def _images(self, step: int, index: Tensor) -> Tensor:
        dataset = self.problem.dataset
        if isinstance(self.seeds, int):
            # Whole, and then one's share of it: what one image draws depends on those before it.
            generator = augmentation_generator(self.seeds, step) if dataset.augment else None
            images = dataset.batch(self.part, index, generator)[self._rows]
            return channels_last(images) if dataset.augment else images
        if not dataset.augment:
            return dataset.batch(self.part, index)
        views = [
            dataset.batch(self.part, rows, augmentation_generator(seed, step))
            for seed, rows in zip(self.seeds, index, strict=True)
        ]
        return torch.stack(views)

    @torch.no_grad()
    def _teacher_logits(self, step: int, index: Tensor, images: Tensor) -> Tensor:
        if self.teacher_logits is not None:
            return self.teacher_logits[index]
        if self.teacher_memory is not None and step in self.teacher_memory:
            return self.teacher_memory[step]
        with self._autocast():
            flat = images.flatten(0, index.dim() - 1)
            logits = self._team.gathered(self.problem.teacher(flat))
        logits = logits.float().view(*index.shape, -1)
        if self.teacher_memory is not None:
            self.teacher_memory[step] = logits
        return logits

    def _autocast(self) -> torch.autocast:
        half = torch.float16 if self.recipe.precision == "float16" else torch.bfloat16
        return torch.autocast(self.problem.device.type, half, enabled=self.recipe.precision != "float32")


class Step(Protocol):
    """One step of a run by a method: what `train` repeats."""

    def __call__(self, run: Distillation, method: Objective) -> tuple[Signals, Tensor]:
        """Take it, and return what it saw and the per-sample losses."""
        ...


def plain_step(run: Distillation, method: Objective) -> tuple[Signals, Tensor]:
    """Take a step as it comes; `rltemp.training.guards` has one that looks at the numbers first."""
    signals = run.observe()
    loss = method.loss(signals)
    run.update(loss)
    return signals, loss


def train(
    run: Distillation,
    method: Objective,
    on_step: Callable[[Distillation, Signals, Tensor], None] | None = None,
    step: Step = plain_step,
) -> nn.Module:
    """Train to the end of the run by `method`.

    Args:
        run: A run, fresh or under way.
        method: What each step minimises.
        on_step: Called after each update with the run, the signals and the per-sample losses of that step.
        step: How a step is taken.

    Returns:
        The trained student, or the stack of them.
    """
    method = run.attach(method)
    while not run.done:
        signals, loss = step(run, method)
        if on_step is not None:
            on_step(run, signals, loss)
    return run.student


def _normalises_batches(student: nn.Module) -> bool:
    shown = student.modules() if not isinstance(student, StackedStudent) else student.skeleton.modules()
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in shown)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _new_student(problem: Problem, seeds: int | Sequence[int]) -> nn.Module:
    shape, classes = problem.dataset.image_shape, problem.dataset.num_classes
    if isinstance(seeds, int):
        student = seeded_model(problem.task.student, shape, classes, seeds)
        return student.to(problem.device).to(memory_format=torch.channels_last)
    models = {seed: seeded_model(problem.task.student, shape, classes, seed) for seed in seeds}
    return StackedStudent([models[seed] for seed in seeds]).to(problem.device)
