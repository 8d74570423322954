"""From gradients to weights: optimizer, schedule, clipping, accumulation and running mean of one run's students.

optimization = Optimization(recipe, student, steps=run_steps)
for batch in range(run_steps):
    optimization.begin(batch)
    loss(student).backward()
    optimization.step()  # or leave it out: the batch then counts for nothing
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from rltemp.data.recipe import Recipe
from rltemp.errors import BadInputError
from rltemp.models.optimizer_trials import stacking_fault, usable_fault
from rltemp.models.optimizers import name_of


class Optimization:
    """What changes the weights of one student, of a stack, or of several students that are called in turn.

    Each student gets what it would get alone: gradients are clipped for each, and a stack needs an optimizer that works
    element by element.

    Args:
        recipe: How they are trained.
        student: The module that holds all of the parameters.
        steps: Batches of the run.
        stacked: Whether the first axis of every parameter is the student's.
        each: The parameters of every student, where there are several that are no stack.

    Attributes:
        optimizers: One for all, or, where the optimizer needs that, one for each student.
        averaged: The student with the running mean of its weights, in eval mode; None where the recipe has none.

    Raises:
        BadInputError: Where the optimizer does not take these parameters, or cannot train a stack.
    """

    def __init__(
        self,
        recipe: Recipe,
        student: nn.Module,
        steps: int,
        *,
        stacked: bool = False,
        each: Sequence[Sequence[nn.Parameter]] | None = None,
    ) -> None:
        self.recipe, self.steps, self._student = recipe, steps, student
        self._stacked, self._each = stacked, [list(one) for one in each or [list(student.parameters())]]
        if fault := usable_fault(recipe.optimizer):
            raise BadInputError(f"optimizer {name_of(recipe.optimizer)} cannot train a network: {fault}")
        apart = stacking_fault(recipe.optimizer) if stacked or len(self._each) > 1 else ""
        if stacked and apart:
            raise BadInputError(
                f"optimizer {name_of(recipe.optimizer)} cannot train students side by side in a stack: {apart}. Train "
                "them one by one (in a comparison --stack 1), or choose another optimizer"
            )
        together = [[value for one in self._each for value in one]]
        self.optimizers = [recipe.make_optimizer(one) for one in (self._each if apart else together)]
        self._largest = [group["lr"] for group in self.param_groups]
        self.averaged = copy.deepcopy(student).eval().requires_grad_(False) if recipe.ema else None
        self._mean = get_ema_multi_avg_fn(recipe.ema)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._updates = self._batch = self._count = 0
        self._sums: dict[int, Tensor] = {}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all optimizers."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All parameters, those of a rule that learns among them."""
        return [value for group in self.param_groups for value in group["params"]]

    @property
    def learning_rate(self) -> float:
        """Of the last step that changed weights."""
        return float(self.param_groups[0]["lr"])

    def add(self, parameters: Iterable[nn.Parameter]) -> None:
        """Train further parameters, such as a rule's; they are not the student's, so no clipping counts them.

        Raises:
            BadInputError: Where the optimizer does not take them.
        """
        optimizer, added = self.optimizers[0], list(parameters)
        if len(self.optimizers) > 1:
            name = name_of(self.recipe.optimizer)
            raise BadInputError(f"optimizer {name} does not work element by element: it cannot train a rule beside it")
        self.recipe.make_optimizer(added)  # torch checks what an optimizer is made of, and not what is added later
        optimizer.add_param_group({"params": added})
        self._largest.append(optimizer.param_groups[-1]["lr"])

    def begin(self, batch: int) -> None:
        """Begin with batch number `batch` of the run, from 0: what is left of the last one's gradient is forgotten."""
        self._batch = batch
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def set_rates(self, first: int) -> list[float]:
        """Set, and return, the learning rate of each parameter group for the step that begins with batch `first`."""
        rates = [self.recipe.rate(max(first, 0), self.steps, largest) for largest in self._largest]
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate
        return rates

    def gradients(self) -> list[Tensor]:
        """Those of the batch, as far as there are."""
        return [value.grad for value in self.parameters if value.grad is not None]

    def step(self) -> bool:
        """Count the gradient of the batch, and change the weights where enough of them have counted.

        Returns:
            True: the batch has counted.
        """
        first = self._batch - self._count
        if self.recipe.accumulate > 1 and not self._collect():
            return True
        if self.recipe.clip is not None:
            self._clip(self.recipe.clip)
        self.set_rates(first)
        for optimizer in self.optimizers:
            optimizer.step()
        if self.averaged is not None:
            self._average(self.averaged)
        return True

    @torch.no_grad()
    def restart(self, students: Tensor) -> None:
        """Forget what is kept for the marked students, `[S]` bool, whose weights are the initial ones again.

        A stack's optimizer counts its steps for all students together, and goes on counting.
        """
        if self._stacked:
            self._restart_rows(students)
        else:
            marked = {value for place in students.nonzero().flatten().tolist() for value in self._each[place]}
            self._restart_parameters(marked)
        if self.averaged is not None:
            for kept, value in zip(self.averaged.buffers(), self._student.buffers(), strict=True):
                kept.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "gradients": dict(self._sums),
            "batches": self._count,
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "updates": self._updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        for optimizer, own in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(own)
        parameters = self.parameters
        self._sums = {place: total.to(parameters[place].device) for place, total in state["gradients"].items()}
        self._count, self._updates = int(state["batches"]), int(state["updates"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])

    def _collect(self) -> bool:
        """Add the batch's gradient to the sum; where enough have counted, put their mean in the gradient's place."""
        parameters = self.parameters
        for place, value in enumerate(parameters):
            if value.grad is not None:
                self._sums[place] = value.grad + self._sums[place] if place in self._sums else value.grad.clone()
        self._count += 1
        if self._count < self.recipe.accumulate and self._batch + 1 < self.steps:
            return False
        for place, total in self._sums.items():
            parameters[place].grad = total.div_(self._count)
        self._sums, self._count = {}, 0
        return True

    def _clip(self, longest: float) -> None:
        """Scale a student's gradient down to `longest`, where it is longer; as torch does for one alone."""
        for parameters in self._each:
            if not self._stacked:
                nn.utils.clip_grad_norm_(parameters, longest)
            elif gradients := [value.grad for value in parameters if value.grad is not None]:
                clip_each(gradients, longest)

    @torch.no_grad()
    def _average(self, averaged: nn.Module) -> None:
        """As torch's `AveragedModel` has it: the first weights begin the mean, and buffers are the last ones."""
        if not self._updates:
            averaged.load_state_dict(self._student.state_dict())
        else:
            self._mean(list(averaged.parameters()), list(self._student.parameters()), self._updates)
            for kept, value in zip(averaged.buffers(), self._student.buffers(), strict=True):
                kept.copy_(value)
        self._updates += 1

    def _state(self, value: nn.Parameter) -> dict[str, Any]:
        """What the optimizer keeps for a parameter."""
        for optimizer in self.optimizers:
            if value in optimizer.state:
                return dict(optimizer.state[value])
        return {}

    def _restart_rows(self, students: Tensor) -> None:
        for value, fresh in self._blank_states().items():
            for name, kept in self._state(value).items():
                if isinstance(kept, Tensor) and kept.shape == value.shape:
                    kept[students] = fresh[name][students]
        for total in self._sums.values():
            total[students] = 0.0
        for mean, value in self._averages():
            mean[students] = value[students]

    def _restart_parameters(self, marked: set[nn.Parameter]) -> None:
        for optimizer in self.optimizers:
            for value in marked & optimizer.state.keys():
                del optimizer.state[value]
        places = [place for place, value in enumerate(self.parameters) if value in marked]
        self._sums = {place: total for place, total in self._sums.items() if place not in places}
        for mean, value in self._averages():
            if value in marked:
                mean.copy_(value)

    def _averages(self) -> Iterable[tuple[nn.Parameter, nn.Parameter]]:
        """Each running mean with the parameter that it is of."""
        if self.averaged is None:
            return ()
        return zip(self.averaged.parameters(), self._student.parameters(), strict=True)

    def _blank_states(self) -> dict[nn.Parameter, dict[str, Any]]:
        """What the optimizer keeps for each parameter that has had no gradient yet: after a step of zeros."""
        begun = [value for value in self.parameters if self._state(value)]
        if not begun:
            return {}
        zeros = [nn.Parameter(torch.zeros_like(value)) for value in begun]
        for value in zeros:
            value.grad = torch.zeros_like(value)
        optimizer = self.recipe.make_optimizer(zeros)
        optimizer.step()
        return {value: optimizer.state[zero] for value, zero in zip(begun, zeros, strict=True)}


def clip_each(gradients: Sequence[Tensor], longest: float) -> None:
    """Scale the gradients of a stack's students, `[S, ...]` of each parameter, down to a norm of `longest` each."""
    norms = [torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in map(_rows, gradients)]
    factor = (longest / (torch.linalg.vector_norm(torch.stack(norms), dim=0) + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.view(-1, *[1] * (gradient.dim() - 1)))


def _rows(gradient: Tensor) -> Tensor:
    """A row for each student; a parameter of one number has one element in each."""
    return gradient.reshape(len(gradient), -1)


def all_finite(values: Sequence[Tensor]) -> bool:
    """Whether all numbers are finite, from one that is read: the largest, which is nan where there is a nan."""
    largest = torch.linalg.vector_norm(torch.cat([value.detach().flatten() for value in values]), math.inf)
    return math.isfinite(largest.item())
