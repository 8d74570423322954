"""A controller for hosts that keep to themselves: it remembers the temperatures that it gave last, for logging."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from rltemp.errors import BadInputError
from rltemp.integrations.contract import Controller, without_parameters
from rltemp.kd.method import Method, watch
from rltemp.kd.signals import Temperatures
from rltemp.kd.temperature_rule import TemperatureRule


class RecordingController(Controller):
    """A `Controller` whose `last` are the temperatures of its last call; see `kept` for one with a mask.

    Raises:
        BadInputError: For a rule with parameters of its own, which no optimizer of the host would get to see.
    """

    def __init__(self, method: str | Method | TemperatureRule = "universal") -> None:
        self.last: Temperatures | None = None
        super().__init__(watch(without_parameters(Controller(method)).method, self._keep))

    def _keep(self, temperatures: Temperatures) -> None:
        self.last = temperatures

    def kept(self, mask: Tensor | None) -> Temperatures | None:
        """The last temperatures without those of places that the call's mask left out; waits for the device."""
        if (last := self.last) is None or mask is None or last.student.shape != mask.shape:
            return last  # a rule that compares samples has not seen those places at all
        guarded = None if last.guarded is None else last.guarded[mask]
        return Temperatures(last.student[mask], last.teacher[mask], last.weight[mask], guarded)


def soft_part(method: Method) -> tuple[Method, float]:
    """A method's divergences without its cross-entropy, at weight 1, and the weight that the method gives them.

    For hosts that add a soft loss and a hard one of their own, each at a weight of theirs.

    Raises:
        BadInputError: For a method whose phases such a sum cannot express.
    """
    if method.switch is not None:
        raise BadInputError(f"{method.name!r} has two phases, and this host adds two losses: take another method")
    unit = 1.0 if method.matched else method.kd_weight or 1.0
    kd_weight, plain_kd_weight = method.kd_weight / unit, method.plain_kd_weight / unit
    return replace(method, ce_weight=0.0, kd_weight=kd_weight, plain_kd_weight=plain_kd_weight), unit
