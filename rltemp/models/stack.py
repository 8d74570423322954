"""Many students of one architecture as one module: their weights stacked, one call for all of them.

A small student's step costs a CPU or GPU little more than the launching of its kernels, so S students in one call
cost about as much as one. `torch.func` does the stacking; the optimizer sees ordinary, only larger, parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from rltemp.models.networks import ImageShape, seeded_model


class StackedStudent(nn.Module):
    """S modules of one architecture, called together.

    Args:
        modules: The students; their weights are copied.

    >>> import torch
    >>> stack = StackedStudent([nn.Linear(3, 2), nn.Linear(3, 2)])
    >>> stack(torch.zeros(2, 5, 3)).shape
    torch.Size([2, 5, 2])
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.size = len(modules)
        parameters, buffers = stack_module_state(list(modules))
        self._parameter_names = list(parameters)
        self._buffer_names = list(buffers)
        self.stacked = nn.ParameterList(nn.Parameter(value.detach().clone()) for value in parameters.values())
        for position, value in enumerate(buffers.values()):
            self.register_buffer(f"stacked_buffer_{position}", value.clone())
        # The skeleton gives the forward pass; its own weights are never used. A tuple keeps it out of the module tree.
        self._skeleton = (modules[0],)

    @property
    def skeleton(self) -> nn.Module:
        """One of the students as a module of its own; its weights are no student's."""
        return self._skeleton[0]

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[S, B, ...]` to logits `[S, B, C]`, student s on images s."""
        return vmap(self._call)(self._state(), images)

    def unstack(self, position: int) -> dict[str, Tensor]:
        """The state dict of one student, as the module alone would have it."""
        return {name: value[position].detach().clone() for name, value in self._state().items()}

    def _state(self) -> dict[str, Tensor]:
        state = dict(zip(self._parameter_names, self.stacked, strict=True))
        for position, name in enumerate(self._buffer_names):
            state[name] = getattr(self, f"stacked_buffer_{position}")
        return state

    def _call(self, state: dict[str, Tensor], images: Tensor) -> Tensor:
        self._skeleton[0].train(self.training)
        output: Tensor = functional_call(self._skeleton[0], state, (images,))
        return output


def seeded_students(spec: str, image_shape: ImageShape, num_classes: int, seeds: int | Sequence[int]) -> nn.Module:
    """The network of a seed, or the stack of one network for each seed; weights depend on spec and seed alone."""
    if isinstance(seeds, int):
        return seeded_model(spec, image_shape, num_classes, seeds).to(memory_format=torch.channels_last)
    models = {seed: seeded_model(spec, image_shape, num_classes, seed) for seed in seeds}
    return StackedStudent([models[seed] for seed in seeds])


def normalises_batches(student: nn.Module) -> bool:
    """Whether a network, or one that a stack is made of, has a batch norm."""
    shown = student.skeleton if isinstance(student, StackedStudent) else student
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in shown.modules())
