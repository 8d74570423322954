"""The distillation of one student or a stack of them, step by step: `observe`, `update`.

The loop (`rltemp.training.steps`), the environment and the comparison all drive the same `Distillation`:

    run = Distillation(problem, seeds=3)
    while not run.done:
        signals = run.observe()            # the student's one forward: it serves the state and the loss
        run.update(method.loss(signals))   # one optimizer step

`seeds=3` trains one student on batches `[B]`, `seeds=[3, 4, 5]` a stack of three on `[S, B]`, each as if alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rltemp.data.batches import Batches, signals_of
from rltemp.data.dataset import Batch, Split
from rltemp.data.problem import Problem
from rltemp.data.recipe import Recipe
from rltemp.errors import BadInputError, of_this_run
from rltemp.kd.losses import batch_mean
from rltemp.kd.method import AnyObjective, Method, needs_labels
from rltemp.kd.signals import Signals
from rltemp.models.nested import Inputs, mapped, taken
from rltemp.models.random_numbers import drawing_as
from rltemp.models.stack import LoopedStudents, StackedStudents, logits_of, normalises_batches, put_back
from rltemp.rules.curriculum import Learned
from rltemp.training.ddp import ALONE, Team
from rltemp.training.loss_scaling import autocast, scaler_of
from rltemp.training.optimization import Optimization, all_finite

Part = TypeVar("Part", bound=Learned)


class Distillation:
    """One run of one student, or of a stack of students side by side.

    Args:
        problem: The task, loaded.
        seeds: One student's seed, or one for each student of a stack. A seed determines a student's initial weights,
            its batches and its augmentation, and nothing else random takes part.
        recipe: How the students are trained; the task's own by default.
        train: The samples to train on, by default the task's training split. A policy is trained on redrawn ones.
        subset: `[N]` or, for a stack, `[S, N]`: positions in `train` that each student may see; all by default.
        teacher_logits: `[len(train), C]`, where `train` is not the task's training split.
        teacher_memory: Where views change: the teacher's logits by step, filled by the first run that is given it and
            used by the next of the same seed and recipe (4 bytes a sample, class and epoch).
        team: The processes that train this one student together; see `rltemp.training.ddp`.

    Attributes:
        scaler: Of the loss, with precision float16; its state belongs into a checkpoint. None otherwise.
        optimization: What changes the weights.
        healthy: Whether the last batch counted; a checkpoint of a run that is not healthy can wait.
        learned: The attached method's rule or divergence, where it has parameters that the run trains.

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
        self.split = problem.dataset.train if train is None else train
        self.teacher_logits = problem.teacher_logits if train is None else teacher_logits
        self.teacher_memory = teacher_memory
        self.seeds = seeds
        self._alone, self._draws = isinstance(seeds, int), problem.traits.draws  # not to be tried under autocast
        self._team, rows = team, team.share(self.recipe.batch_size) if team.size > 1 else slice(None)
        self.student = problem.students(seeds)
        self._forward = team.joined(self.student)
        self.scaler = scaler_of(self.recipe.precision, problem.device, seeds)
        self.healthy = True
        self.batches = Batches(problem.dataset, self.split, seeds, self.recipe.batch_size, subset, rows)
        self.steps_per_epoch = self.batches.an_epoch
        self._check_recipe()
        self.steps = self.recipe.steps(self.batches.size)
        self.step = 0
        stacked = isinstance(self.student, StackedStudents)
        each = self.student.each() if isinstance(self.student, LoopedStudents) else None
        self.optimization = Optimization(self.recipe, self.student, self.steps, stacked=stacked, each=each)
        self._mask: Tensor | None = None
        self.learned: Learned | None = None

    @property
    def evaluated(self) -> nn.Module:
        """The student, or the stack, whose weights are evaluated and saved: the running mean's, where there is one."""
        return self.student if self.optimization.averaged is None else self.optimization.averaged

    @property
    def shared(self) -> bool:
        """Whether several processes train the student."""
        return self._team.size > 1

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
        signals = self.signals_at(self.step)
        self._mask = signals.mask
        return signals

    def signals_at(self, step: int, parameters: dict[str, Tensor] | None = None) -> Signals:
        """The signals of the batch of any step, from the student's own parameters or from given ones."""
        batch, teacher_logits = self.drawn(step)
        own = drawing_as(self.seeds, step, self.problem.device) if self._draws else nullcontext(())
        with autocast(self.problem.device, self.recipe.precision), own as streams:
            if parameters is None:
                student_logits = self._team.gathered(logits_of(self._forward(batch.inputs, *streams)))
            else:
                given = {**parameters, **{name: value.clone() for name, value in self.student.named_buffers()}}
                student_logits = logits_of(functional_call(self.student, given, (batch.inputs, *streams)))
        return self.signals(batch, student_logits, teacher_logits, progress=step / self.steps)

    def drawn(self, step: int) -> tuple[Batch, Tensor]:
        """The batch of any step, and what the teacher answers, `[B, ..., C]` or `[S, B, ..., C]`."""
        index = self.batches.positions(step)
        batch = self._batch(step, index)
        return batch, self._teacher_logits(step, index, batch.inputs)

    def signals(self, batch: Batch, *logits: Tensor, progress: float | Tensor) -> Signals:
        """The signals of a batch, of which the student's and the teacher's logits are known."""
        labelled = batch if self.problem.labelled else batch._replace(labels=None)
        return signals_of(labelled, *logits, progress=progress, stacked=not self._alone)

    def attach(self, method: AnyObjective) -> AnyObjective:
        """Return the method for this run: it smooths labels as the recipe does, and what learns in it gets parameters.

        These are the run's own, in its optimizer.

        Raises:
            BadInputError: Where the method needs labels and the task has none.
        """
        if not self.problem.labelled and needs_labels(method):
            raise BadInputError(
                f"{method.name!r} needs labels, and task {self.problem.task.name} has none: take a method without "
                "cross-entropy, as fixed:temperature=2,ce_weight=0"
            )
        if self.recipe.label_smoothing:
            method = replace(method, label_smoothing=self.recipe.label_smoothing)
        if not isinstance(method, Method):
            return method
        if isinstance(method.rule, Learned) and method.rule is not self.learned:
            return replace(method, rule=self._begun(method.rule))
        if isinstance(method.divergence, Learned) and method.divergence is not self.learned:
            return replace(method, divergence=self._begun(method.divergence))
        return method

    def update(self, loss: Tensor, watched: Sequence[Tensor] | None = None) -> bool:
        """Go along the mean over the batch of a per-sample loss, `[B]` or `[S, B]`.

        That is one optimizer step, or, where the recipe accumulates, a part of one. A batch is passed over where it is
        empty, or, with precision float16, its gradient overflows.

        Args:
            loss: With its graph.
            watched: Tensors that must be finite, as the loss and its gradient must, or the batch is passed over. For
                one student: in a stack it would hold up the others. None: nothing is looked at.

        Returns:
            Whether the batch counted; the run is a step further either way.

        Raises:
            TrainingDivergedError: With precision float16, where step after step overflows.
        """
        self.optimization.begin(self.step)
        # A stack's losses add up: each student's parameters appear in its own term only.
        self.healthy = self._has_samples(loss) and self._descend(batch_mean(loss, self._mask).sum(), watched)
        self.step += 1
        return self.healthy

    def _has_samples(self, loss: Tensor) -> bool:
        """Whether there is anything in the batch; where a mask has to be asked, that reads one number."""
        return bool(loss.numel()) and (self._mask is None or bool(self._mask.any()))

    def advance(self, gradients: Sequence[Tensor | None] | None = None) -> None:
        """Be a step further along known gradients of all parameters; None: the weights have changed already."""
        if gradients is not None:
            self.optimization.begin(self.step)
            for value, gradient in zip(self.optimization.parameters, gradients, strict=True):
                value.grad = gradient
            self.optimization.step()
        self.healthy = True
        self.step += 1

    def retry(self) -> None:
        """Make a step that was passed over the next one again."""
        self.step -= 1

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on beside its arguments: tensors and numbers by name."""
        return {"step": self.step, **{name: part.state_dict() for name, part in self._parts().items()}}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state of a run with the same arguments, whose rule, where it learns, is attached already.

        Raises:
            ArtifactRefusedError: Where it is another run's.
        """
        with of_this_run(f"student than {self.problem.task.student}"):
            for name, part in self._parts().items():
                part.load_state_dict(state[name])
            self.step = int(state["step"])

    def restart(self, students: Tensor) -> None:
        """Give the marked of several students, `[S]` bool, initial weights and a fresh state of the optimizer."""
        parts, fresh = [self.student], [self.problem.students(self.seeds)]
        if self.learned is not None:
            parts, fresh = [*parts, self.learned], [*fresh, self._fresh(self.learned)]
        for part, initial in zip(parts, fresh, strict=True):
            put_back(part, initial, students)
        self.optimization.restart(students)

    def _descend(self, loss: Tensor, watched: Sequence[Tensor] | None) -> bool:
        """Read one number at most: float16's scaler has one of its own to read, whether the gradient overflowed."""
        if self.scaler is not None:
            sound = watched is None or all_finite([loss, *watched])
            return sound and self.scaler.step(loss, self.optimization, self.step + 1)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        sound = watched is None or all_finite([loss, *watched, *self.optimization.gradients()])
        return sound and self.optimization.step()

    def _parts(self) -> dict[str, Any]:
        """What has a state of its own, by name."""
        names = "student", "learned", "scaler", "optimization"
        return {name: part for name in names if (part := getattr(self, name)) is not None}

    def _check_recipe(self) -> None:
        if self.recipe.batch_size == self._team.size and normalises_batches(self.student):
            raise BadInputError(
                f"{self.problem.role} {self.problem.task.student} has BatchNorm, which needs 2 samples or more in a "
                f"batch; got batch size 1{self._team.each}. Give a larger batch size (an incomplete last batch is "
                "dropped anyway, as by drop_last=True) or a network with GroupNorm"
            )

    def _begun(self, part: Part) -> Part:
        """A part of a method for this run, which trains its parameters."""
        self.learned = own = self._fresh(part)
        if parameters := list(own.parameters()):
            self.optimization.add(parameters)
        return own

    def _fresh(self, part: Part) -> Part:
        return part.fresh(self.problem.dataset.num_classes, self.seeds).to(self.problem.device)

    def _batch(self, step: int, index: Tensor) -> Batch:
        """The samples at positions `[B]` or `[S, B]`, as each student sees them; of a team, one's share."""
        batch, fresh = self.batches.at(step, index), self.problem.dataset.augment or self.split.reads
        if not (fresh and self._alone):
            return batch
        return batch._replace(inputs=self.problem.arranged(batch.inputs, self.student))

    @torch.no_grad()
    def _teacher_logits(self, step: int, index: Tensor, inputs: Inputs) -> Tensor:
        if self.teacher_logits is not None:
            return taken(self.teacher_logits, index)
        if self.teacher_memory is not None and step in self.teacher_memory:
            return self.teacher_memory[step]
        assert self.problem.teacher is not None  # where only logits are known, `teacher_logits` holds them
        with autocast(self.problem.device, self.recipe.precision):
            flat = mapped(lambda tensor: tensor.flatten(0, index.dim() - 1), inputs)
            logits = self._team.gathered(logits_of(self.problem.teacher(flat)))
        logits = logits.float().view(*index.shape, *logits.shape[1:])
        if self.teacher_memory is not None:
            self.teacher_memory[step] = logits
        return logits
