"""A controller that remembers its last temperatures, for hosts that hand nothing on to a logger."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from rltemp.errors import BadInputError
from rltemp.integrations.contract import Controller, MethodLike, controller_of
from rltemp.kd.method import Method, watch
from rltemp.kd.signals import Temperatures


class RecordingController(Controller):
    """A `Controller` whose `last` holds the temperatures of its last call; `kept` leaves out what the mask does.

    Raises:
        BadInputError: For a rule with parameters to learn: the host's optimizer would not train them.
    """

    def __init__(self, method: MethodLike = "universal") -> None:
        self.last: Temperatures | None = None
        super().__init__(watch(controller_of(method).method, self._keep))

    def _keep(self, temperatures: Temperatures) -> None:
        self.last = temperatures

    def kept(self, mask: Tensor | None) -> Temperatures | None:
        """The last temperatures of the samples that the call's mask kept; waits for the device."""
        if (last := self.last) is None or mask is None or last.student.shape != mask.shape:
            return last  # a rule that compares samples has seen those of the mask alone
        guarded = None if last.guarded is None else last.guarded[mask]
        return Temperatures(last.student[mask], last.teacher[mask], last.weight[mask], guarded)


def soft_part(method: Method) -> tuple[Method, float]:
    """A method's divergences without its cross-entropy, scaled to coefficient 1, and the method's own coefficient.

    For hosts that add a soft loss and a cross-entropy themselves, each with a coefficient of the host.

    Raises:
        BadInputError: For a method with two phases, which a sum of two losses cannot express.
    """
    if method.switch is not None:
        raise BadInputError(f"{method.name!r} has two phases, and this host adds two losses: take another method")
    unit = 1.0 if method.matched else method.kd_weight or 1.0
    kd_weight, plain_kd_weight = method.kd_weight / unit, method.plain_kd_weight / unit
    return replace(method, ce_weight=0.0, kd_weight=kd_weight, plain_kd_weight=plain_kd_weight), unit
