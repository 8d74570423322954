"""An exported policy, read from its file and used as a temperature rule; it needs neither Gymnasium nor SB3."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rltemp.errors import ArtifactRefusedError, BadInputError, one_line
from rltemp.kd.method import Method
from rltemp.kd.signals import TAKES_MASKS, Signals, Temperatures
from rltemp.policy.actions import ActionScale
from rltemp.policy.arrays import NUMPY, arrays_for
from rltemp.policy.features import FEATURES, Statistics, featurize, small_statistics
from rltemp.policy.manifest import PolicyManifest
from rltemp.policy.policy_file import PolicyFile, forward, read_policy
from rltemp.rules.published_methods import reference_method

KNOWN_FEATURES = {name: (feature.version, feature.unit) for name, feature in FEATURES.items()}
"""The (version, unit) of every feature that this code computes."""


class Policy:
    """A learned temperature rule: features of a sample, a small network, an action around the reference rule.

    Args:
        manifest: What the numbers mean; see `rltemp.policy.manifest`.
        weights: Of the network, float32, as in the file.

    The temperatures are constants of the graph but for what the reference rule lets through, as in training.
    """

    def __init__(self, manifest: PolicyManifest, weights: Mapping[str, Tensor]) -> None:
        self.manifest = manifest
        self.scale = ActionScale(**manifest.action.model_dump(exclude={"mapping"}))
        self.reference = reference_method(manifest.reference)
        self.takes_masks = getattr(self.reference.rule, TAKES_MASKS, False)
        self._names = [feature.name for feature in manifest.features]
        self._weights = dict(weights)
        self._mean = torch.tensor([feature.mean for feature in manifest.features])
        self._std = torch.tensor([feature.std for feature in manifest.features])

    @property
    def limits(self) -> tuple[float, float]:
        """Lowest and highest temperature; where the reference lies beyond one, the policy may go as far as that."""
        return self.scale.minimum, self.scale.maximum

    @classmethod
    def load(cls, path: Path, sha256: str | None = None) -> Policy:
        """Read a policy file, the one with this SHA-256 where one is given; nothing in it is executed.

        Raises:
            ArtifactRefusedError: Where it fails a check; the message names the check and the way out.
            BadInputError: Where there is no such file.
        """
        return cls.of(read_policy(path, KNOWN_FEATURES, sha256), path.name)

    @classmethod
    def of(cls, file: PolicyFile, name: str) -> Policy:
        """The policy of a file that passed its checks; `name` is what to call it.

        Raises:
            ArtifactRefusedError: Where its reference is none that this code has.
        """
        try:
            return cls(file.manifest, file.weights)
        except BadInputError as error:
            raise ArtifactRefusedError(one_line(f"policy file {name}: {error}")) from None

    def method(self, name: str) -> Method:
        """What a run under this policy minimises: its reference method, with the policy as the rule."""
        return replace(self.reference, rule=self, name=name)

    def __call__(self, signals: Signals) -> Temperatures:
        """Temperatures `[...]` for signals of any leading shape."""
        rule = self.reference.rule
        assert rule is not None  # checked by `reference_method`
        signals = signals.made_safe()
        small = small_statistics(signals)  # both need them: the features, and the balance of the weights
        return self.scale.apply(signals, rule(signals), self.action(signals, small), small)

    @torch.no_grad()
    def action(self, signals: Signals, small: Statistics | None = None) -> Tensor:
        """The network's answer `[..., 2]` or `[..., 3]`: student, teacher, weight, before clipping.

        Args:
            signals: Logits `[..., C]`.
            small: `small_statistics(signals)`, where somebody else needs them too.
        """
        observation = featurize(signals, self._names, small)
        if self._mean.device != observation.device:
            self._move(observation.device)
        if len(self._weights) == 2 and arrays_for(observation) is NUMPY:  # no hidden layer
            return torch.from_numpy(self._linear(observation.numpy()))
        normalised = (observation - self._mean) / self._std
        kind = observation.device.type
        with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext():
            return forward(self._weights, self.manifest.activation, normalised)

    def _linear(self, observation: Any) -> Any:
        weight, bias, mean, std = (
            each.numpy() for each in (self._weights["0.weight"], self._weights["0.bias"], self._mean, self._std)
        )
        return ((observation - mean) / std) @ weight.T + bias

    def _move(self, device: torch.device) -> None:
        self._weights = {name: value.to(device) for name, value in self._weights.items()}
        self._mean, self._std = self._mean.to(device), self._std.to(device)
