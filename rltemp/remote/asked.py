"""Rules whose arithmetic is elsewhere: what they send is computed here, and what comes back is checked here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rltemp.errors import BadInputError, ExchangeFailedError
from rltemp.kd.signals import Signals, Temperatures
from rltemp.kd.temperature_rule import TemperatureRule, per_batch
from rltemp.policy.features import featurize
from rltemp.policy.manifest import PolicyManifest
from rltemp.policy.rule import Policy

TEMPERATURES = ("student_temperature", "teacher_temperature", "weight")
OVERSHOOT = 1e-6
"""How far an action may lie beyond -1 or 1, for rounding; it is clipped."""

Arrays = dict[str, NDArray[Any]]
Shapes = dict[str, tuple[int, ...]]


class Ask(Protocol):
    """Ask for outputs of these shapes; `check` is called with them and raises ExchangeFailedError where it must."""

    def __call__(self, inputs: Arrays, outputs: Shapes, check: Callable[..., None]) -> Arrays:
        """Do it."""
        ...


class AskedPolicy(Policy):
    """A policy whose network is elsewhere: features go there, actions come back, all else is `Policy`'s.

    Args:
        manifest: What the numbers mean.
        ask: Asks for `action` of `features`.
    """

    def __init__(self, manifest: PolicyManifest, ask: Ask) -> None:
        super().__init__(manifest, {})
        self._ask = ask

    @torch.no_grad()
    def action(self, signals: Signals) -> Tensor:
        """The network's answer `[..., 2]` or `[..., 3]`: student, teacher, weight, clipped."""
        features = featurize(signals, self._names)
        rows = features.reshape(-1, len(self._names)).cpu().numpy()
        if not len(rows):
            return features.new_zeros(*signals.shape, self.scale.size)
        shape = len(rows), self.scale.size
        found = self._ask({"features": rows}, {"action": shape}, check_action)["action"]
        return torch.from_numpy(found).to(features.device).view(*signals.shape, self.scale.size)


def asked_rule(ask: Ask) -> TemperatureRule:
    """A closed-form rule that is elsewhere: logits go there, temperatures come back, as constants.

    Args:
        ask: Asks for `TEMPERATURES` of logits.
    """

    @per_batch
    def rule(signals: Signals) -> Temperatures:
        if signals.stacked:
            raise BadInputError("a rule at a controller takes no stack of students (a policy does); use it in process")
        if not signals.shape.numel():
            return Temperatures(*(signals.full(1.0) for _ in TEMPERATURES))
        found = ask(_logits(signals), dict.fromkeys(TEMPERATURES, tuple(signals.shape)), check_temperatures)
        device = signals.student_logits.device
        return Temperatures(*(torch.from_numpy(found[name]).to(device, signals.dtype) for name in TEMPERATURES))

    return rule


def sample_question(rule: object) -> tuple[Arrays, Shapes]:
    """Inputs and outputs of a question about one sample that a rule of this module might ask."""
    if isinstance(rule, AskedPolicy):
        return {"features": np.zeros((1, len(rule.manifest.features)), np.float32)}, {"action": (1, rule.scale.size)}
    logits = torch.tensor([[1.0, 0.0]])
    signals = Signals(logits, logits, torch.tensor([0]))
    return _logits(signals), dict.fromkeys(TEMPERATURES, (1,))


def check_action(action: NDArray[Any]) -> None:
    """Refuse actions beyond their bounds."""
    if action.min() < -1 - OVERSHOOT or action.max() > 1 + OVERSHOOT:
        raise ExchangeFailedError("its answer holds actions beyond [-1, 1]")


def check_temperatures(
    student_temperature: NDArray[Any], teacher_temperature: NDArray[Any], weight: NDArray[Any]
) -> None:
    """Refuse temperatures that must not be."""
    if min(student_temperature.min(), teacher_temperature.min()) <= 0 or weight.min() < 0:
        raise ExchangeFailedError("its answer holds temperatures that are not above 0, or weights below 0")


def _logits(signals: Signals) -> Arrays:
    kind = np.float64 if signals.dtype == torch.float64 else np.float32
    pairs: Mapping[str, Tensor] = {"student_logits": signals.student_logits, "teacher_logits": signals.teacher_logits}
    found: Arrays = {name: value.detach().to(signals.dtype).cpu().numpy().astype(kind) for name, value in pairs.items()}
    if signals.labels is not None:
        found["labels"] = signals.labels.to(torch.int64).cpu().numpy()
    found["progress"] = np.array([signals.progress], np.float32)
    return found
