"""A controller for hosts that keep to themselves: it remembers the temperatures that it gave last, for logging."""

from __future__ import annotations

from rltemp.curriculum import LearnedRule
from rltemp.errors import BadInputError
from rltemp.methods import Method, watch
from rltemp.plugs.contract import Controller
from rltemp.types import TemperatureRule, Temperatures


class RecordingController(Controller):
    """A `Controller` whose `last` are the temperatures of its last call, without the samples that a mask left out.

    Raises:
        BadInputError: For a rule with parameters of its own, which no optimizer of the host would get to see.
    """

    def __init__(self, method: str | Method | TemperatureRule = "universal") -> None:
        self.last: Temperatures | None = None
        method = Controller(method).method
        if isinstance(method.rule, LearnedRule):
            raise BadInputError(
                f"{method.name!r} has parameters to learn, which this host would not train: take another method, or a "
                "plain loop with rltemp.plugs.Controller whose optimizer gets controller.method.rule.parameters()"
            )
        super().__init__(watch(method, self._keep))

    def _keep(self, temperatures: Temperatures) -> None:
        self.last = temperatures
