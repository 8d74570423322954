"""A task in memory, and what a network answers on its splits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from rltemp.data.dataset import Dataset, Split
from rltemp.data.task import Metric, Task
from rltemp.models.nested import Inputs, mapped
from rltemp.models.networks import seeded_model
from rltemp.models.optimizer_trials import stacking_fault
from rltemp.models.stack import Students, logits_of, students_of
from rltemp.models.stack_sizes import stack_size
from rltemp.models.trial import Traits, tried

Part = Literal["train", "probe", "validation", "test"]


@dataclass(frozen=True)
class Problem:
    """A task with its data and its teacher in memory.

    Args:
        task: Its description.
        dataset: Its four splits, on the device where everything runs.
        teacher: In eval mode, without gradients; None where logits are all that is known of it.
        teacher_logits: `[N, ..., C]` of the training split, where its views are fixed or only logits are known; else
            None, and the teacher runs on every batch.
        teacher_accuracy: On the test split, 0..1; where only logits are known, on those of the validation split.
        teacher_mark: What a result that says how good the teacher is has to say of its training, by name.
        cut_logits: Where only logits are known, those of the other splits that were cut from the training data.
        labelled: Whether training samples have labels. Where they have none, the teacher's predictions stand in as the
            labels of the other splits.
        role: What the network that is trained is called in messages.
    """

    task: Task
    dataset: Dataset
    teacher: nn.Module | None
    teacher_logits: Tensor | None
    teacher_accuracy: float
    teacher_mark: dict[str, str] = field(default_factory=dict)
    cut_logits: dict[str, Tensor] = field(default_factory=dict)
    labelled: bool = True
    role: Literal["student", "teacher"] = "student"

    @property
    def device(self) -> torch.device:
        """Where the data lies."""
        return self.dataset.train.device

    @property
    def tokens(self) -> bool:
        """Whether a sample is a token of a sequence."""
        return self.dataset.test.tokens

    @property
    def batch_samples(self) -> int:
        """Samples in a batch: pictures, or tokens of all its sequences."""
        return self.task.recipe.batch_size * math.prod(self.traits.outputs[:-1])

    @property
    def metric(self) -> Metric:
        """What rewards measure on probe data."""
        return self.task.metric or ("log_likelihood" if self.tokens else "margin")

    @property
    def channels_last(self) -> bool:
        """Whether networks take pictures in the memory order that convolutions are fastest in: those with a name do."""
        own = self.task.own
        return own.student is None and own.teacher is None and own.known_teacher is None

    @cached_property
    def traits(self) -> Traits:
        """What a trial shows of the student.

        Raises:
            BadInputError: Where the student cannot be used.
        """
        some = self.dataset.batch(self.dataset.train, torch.arange(min(2, len(self.dataset.train))).repeat(2)[:2])
        return tried(lambda seed: self._student(seed).to(self.device), some.inputs, f"{self.role} {self.task.student}")

    @property
    def stack_size(self) -> int:
        """How many students are best trained side by side; 1 where they are trained one by one."""
        if self.traits.alone or stacking_fault(self.task.recipe.optimizer):
            return 1
        return stack_size(self.traits.work, self.task.recipe.batch_size)

    @property
    def alone(self) -> str:
        """Why students are trained one by one; empty where they are stacked."""
        if self.traits.alone or self.stack_size > 1:
            return self.traits.alone
        fault = stacking_fault(self.task.recipe.optimizer)
        return f"their optimizer cannot train a stack ({fault})" if fault else "they are too large to gain by a stack"

    def students(self, seeds: int | Sequence[int]) -> nn.Module:
        """The student of a seed, or those of several as one module, stacked where they gain by it."""
        stacked = not isinstance(seeds, int) and self.stack_size > 1
        students = students_of(self._student, seeds, stacked)
        ordered = self.channels_last and not stacked
        return (students.to(memory_format=torch.channels_last) if ordered else students).to(self.device)

    def teacher_on(self, part: Part) -> Tensor | None:
        """The teacher's logits `[N, ..., C]` of a split; None where they cannot be had."""
        if self.teacher is not None:
            return outputs(self.teacher, self, getattr(self.dataset, part))
        return self.teacher_logits if part == "train" else self.cut_logits.get(part)

    def arranged(self, inputs: Inputs, network: nn.Module) -> Inputs:
        """Inputs as a network with a name takes them fastest, if it convolves: 0.73 of a ResNet-8 step's time."""
        convolves = self.channels_last and any(value.dim() == 4 for value in network.parameters())
        return mapped(channels_last, inputs) if convolves else inputs

    def _student(self, seed: int) -> nn.Module:
        if self.task.own.student is not None:
            return self.task.own.student(seed)
        return seeded_model(self.task.student, self.dataset.image_shape, self.dataset.num_classes, seed)


@torch.no_grad()
def outputs(network: nn.Module, problem: Problem, split: Split, batch_size: int = 500) -> Tensor:
    """What a network answers on a split in eval mode: `[N, ..., C]`, or `[S, N, ..., C]` of several; float32."""
    network.eval()
    logits = []
    for batch in problem.dataset.in_order(split, batch_size):
        inputs = problem.arranged(batch, network)
        if isinstance(network, Students):
            inputs = mapped(lambda tensor: tensor.expand(network.size, *tensor.shape), inputs)
        logits.append(logits_of(network(inputs)).float())
        del batch, inputs  # before the next ones are there, which take their place
    return torch.cat(logits, 1 if isinstance(network, Students) else 0)


def predict(network: nn.Module, problem: Problem, split: Split) -> Tensor:
    """Logits of a split's samples in eval mode: `[K, C]`, or `[S, K, C]` of several; float32."""
    return split.kept(outputs(network, problem, split), dims=int(isinstance(network, Students)))


def evaluate(network: nn.Module, problem: Problem, split: Split) -> Tensor:
    """Accuracy on a split, 0..1: a scalar, or `[S]` of several students."""
    return (predict(network, problem, split).argmax(-1) == split.targets).float().mean(-1)


def channels_last(images: Tensor) -> Tensor:
    """Images `[B, C, H, W]` in the memory order that convolutions are fastest in; anything else as it is."""
    return images.contiguous(memory_format=torch.channels_last) if images.dim() == 4 else images
