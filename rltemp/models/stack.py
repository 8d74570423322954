"""Many students of one architecture as one module: stacked, so that one call serves all, or one after another.

A small student's step costs a CPU or GPU little more than the launching of its kernels, so S students in one call
cost about as much as one. `torch.func` does the stacking; the optimizer sees ordinary, only larger, parameters.
Students that cannot be stacked (`rltemp.models.trial`), or gain nothing by it (`stack_sizes`), are called in a loop.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from rltemp.errors import BadInputError
from rltemp.models.nested import Inputs, mapped
from rltemp.models.random_numbers import drawing_from


def logits_of(output: object) -> Tensor:
    """The logits among what a network answers: the answer itself, or its `logits`.

    Raises:
        BadInputError: Where it is neither.
    """
    found = getattr(output, "logits", output)
    if isinstance(found, Tensor):
        return found
    raise BadInputError(f"a network must answer with logits [B, ..., C], a tensor; got a {type(output).__name__}")


class Students(nn.Module):
    """S students of one architecture, called together.

    Attributes:
        size: S.
    """

    size: int

    @property
    def skeleton(self) -> nn.Module:
        """One of the students as a module of its own; its weights may be no student's."""
        raise NotImplementedError

    def unstack(self, position: int) -> dict[str, Tensor]:
        """The state dict of one student, as the module alone would have it."""
        raise NotImplementedError

    def alone(self, position: int) -> nn.Module:
        """A copy of one student as a module of its own."""
        state, module = self.unstack(position), copy.deepcopy(self.skeleton)
        module.to(next(iter(state.values())).device).load_state_dict(state)
        return module


class StackedStudents(Students):
    """S students whose weights are stacked, called by `torch.func.vmap`.

    Args:
        modules: The students; their weights are copied.

    >>> import torch
    >>> stack = StackedStudents([nn.Linear(3, 2), nn.Linear(3, 2)])
    >>> stack(torch.zeros(2, 5, 3)).shape
    torch.Size([2, 5, 2])
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.size = len(modules)
        parameters, buffers = stack_module_state(list(modules))
        self._names = [*parameters, *buffers]
        self.stacked = nn.ParameterList(nn.Parameter(value.detach().clone()) for value in parameters.values())
        for position, value in enumerate(buffers.values()):
            self.register_buffer(f"stacked_buffer_{position}", value.clone())
        # The skeleton gives the forward pass; its own weights are never used. A tuple keeps it out of the module tree.
        self._skeleton = (modules[0],)

    @property
    def skeleton(self) -> nn.Module:
        """One of the students as a module of its own; its weights are no student's."""
        return self._skeleton[0]

    def forward(self, inputs: Inputs) -> Tensor:
        """Map inputs `[S, B, ...]` to logits `[S, B, ..., C]`, student s on inputs s."""
        return self.called([*self.parameters(), *self.buffers()], inputs)

    def called(self, state: Sequence[Tensor], inputs: Inputs) -> Tensor:
        """The same from other weights: parameters and buffers, as `parameters` and `buffers` list them."""
        return vmap(self._call)(dict(zip(self._names, state, strict=True)), inputs)

    def unstack(self, position: int) -> dict[str, Tensor]:
        """The state dict of one student, as the module alone would have it."""
        state = zip(self._names, [*self.parameters(), *self.buffers()], strict=True)
        return {name: value[position].detach().clone() for name, value in state}

    def _call(self, state: dict[str, Tensor], inputs: Inputs) -> Tensor:
        self._skeleton[0].train(self.training)
        return logits_of(functional_call(self._skeleton[0], state, (inputs,)))


class LoopedStudents(Students):
    """S students that are called one after another.

    Args:
        modules: The students.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.size = len(modules)
        self.students = nn.ModuleList(modules)

    @property
    def skeleton(self) -> nn.Module:
        """The first student."""
        return self.students[0]

    def forward(self, inputs: Inputs, streams: Sequence[torch.Generator] | None = None) -> Tensor:
        """Map inputs `[S, B, ...]` to logits `[S, B, ..., C]`, student s on inputs s.

        Args:
            inputs: Of every student.
            streams: Each student's random numbers; None: they draw from the global generators.
        """
        found = []
        for place, student in enumerate(self.students):
            own = mapped(lambda tensor, place=place: tensor[place], inputs)
            with drawing_from(streams[place], self.device) if streams else nullcontext():
                found.append(logits_of(student(own)))
        return torch.stack(found)

    def each(self) -> list[list[nn.Parameter]]:
        """The parameters of every student."""
        return [list(student.parameters()) for student in self.students]

    @property
    def device(self) -> torch.device:
        """Where the students are."""
        return next(self.parameters()).device

    def unstack(self, position: int) -> dict[str, Tensor]:
        """The state dict of one student."""
        return {name: value.detach().clone() for name, value in self.students[position].state_dict().items()}


def students_of(make: Callable[[int], nn.Module], seeds: int | Sequence[int], stacked: bool) -> nn.Module:
    """The student of a seed, or those of several as one module.

    Args:
        make: From a seed to a student.
        seeds: One student's, or each student's.
        stacked: Whether several are stacked.
    """
    if isinstance(seeds, int):
        return make(seeds)
    if not stacked:
        return LoopedStudents([make(seed) for seed in seeds])
    models = {seed: make(seed) for seed in seeds}
    return StackedStudents([models[seed] for seed in seeds])


@torch.no_grad()
def put_back(students: nn.Module, fresh: nn.Module, marked: Tensor) -> None:
    """Give the marked of several students, `[S]` bool, the weights and buffers that a fresh copy of all has."""
    if isinstance(students, LoopedStudents) and isinstance(fresh, LoopedStudents):
        for place in marked.nonzero().flatten().tolist():
            students.students[place].load_state_dict(fresh.students[place].state_dict())
        return
    for values in ("parameters", "buffers"):
        for tensor, initial in zip(getattr(students, values)(), getattr(fresh, values)(), strict=True):
            tensor[marked] = initial[marked]


def normalises_batches(student: nn.Module) -> bool:
    """Whether a network, or one that several students share, has a batch norm."""
    shown = student.skeleton if isinstance(student, Students) else student
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in shown.modules())
