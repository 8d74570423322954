"""Half precision: autocast, and the scaling of losses for float16, so that no gradient is lost to 16 bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rltemp.data.recipe import Precision
from rltemp.errors import BadInputError, TrainingDivergedError
from rltemp.training.optimization import Optimization

MOST_OVERFLOWS = 20
"""In a row: the scale is then a millionth of what it was, and halving it further will not help."""


class LossScaler:
    """Torch's `GradScaler`, and an end to a storm of overflows.

    A step whose gradient overflows changes no weight and halves the scale; 2,000 good ones double it.

    Args:
        device: Where the student lies.

    Attributes:
        overflows: How many steps in a row have overflowed up to now.
    """

    def __init__(self, device: torch.device) -> None:
        self._scaler = torch.amp.GradScaler(device.type)
        self.overflows = 0

    def step(self, loss: Tensor, optimization: Optimization, number: int) -> bool:
        """Take step number `number` (from 1) along `loss`, a scalar with a graph.

        Returns:
            Whether the batch counted.

        Raises:
            TrainingDivergedError: At the twentieth overflow in a row.
        """
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        # What the scaler wants of an optimizer is parameter groups and `step`, whose answer it passes on.
        taken = self._scaler.step(optimization)  # type: ignore[arg-type]
        self._scaler.update()
        if taken:
            self.overflows = 0
            return True
        self.overflows += 1
        if self.overflows >= MOST_OVERFLOWS:
            raise TrainingDivergedError(
                f"loss scale fell to {self._scaler.get_scale():.2g} after {self.overflows} overflows from step "
                f"{number - self.overflows + 1}: the gradient does not fit float16. Use --precision bfloat16, raise "
                "the minimum temperature, or lower the learning rate"
            )
        return False

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs: torch's own state and the overflows in a row."""
        return {**self._scaler.state_dict(), "overflows": self.overflows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.overflows = int(state["overflows"])
        self._scaler.load_state_dict({name: value for name, value in state.items() if name != "overflows"})


def scaler_of(precision: Precision, device: torch.device, seeds: int | Sequence[int]) -> LossScaler | None:
    """The scaler of a run's loss; None where its precision needs none.

    Raises:
        BadInputError: Where one is needed for several students.
    """
    if precision != "float16":
        return None
    if not isinstance(seeds, int):
        raise BadInputError(
            f"precision float16 trains one student at a time, for each has a loss scale of its own; here {len(seeds)} "
            "train side by side. Use float32 or bfloat16, or, in a comparison, --stack 1"
        )
    return LossScaler(device)


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Within, networks compute in a half precision, where that is asked for."""
    half = torch.float16 if precision == "float16" else torch.bfloat16
    return torch.autocast(device.type, half, enabled=precision != "float32")
