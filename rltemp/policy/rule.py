"""An exported policy, read from its file and used as a temperature rule; it needs neither Gymnasium nor SB3."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from rltemp.errors import ArtifactRefusedError, BadInputError, one_line
from rltemp.kd.method import Method
from rltemp.kd.signals import Signals
from rltemp.kd.temperature_rule import TemperatureRule
from rltemp.kd.temperatures import Temperatures
from rltemp.policy.actions import ActionScale
from rltemp.policy.fading import fade
from rltemp.policy.features import FEATURES, LIMIT, featurize
from rltemp.policy.manifest import PolicyManifest
from rltemp.policy.policy_file import PolicyFile, forward, read_policy
from rltemp.rules.published_methods import reference_method

KNOWN_FEATURES = {name: (feature.version, feature.unit) for name, feature in FEATURES.items()}
"""The (version, unit) of every feature that this code computes."""


class Policy(TemperatureRule):
    """A learned temperature rule: features of a sample, a small network, an action around the reference rule.

    Args:
        manifest: What the numbers mean; see `rltemp.policy.manifest`.
        weights: Of the network, float32, as in the file.
        name: For messages.

    The temperatures are constants of the graph but for what the reference rule lets through, as in training.

    A sample whose features lie outside the ranges of the policy file gets less of its action, and far outside the
    reference exactly (`rltemp.policy.fading`). Such samples count as `guarded`.
    """

    name = "policy"

    def __init__(self, manifest: PolicyManifest, weights: Mapping[str, Tensor], name: str = "policy") -> None:
        self.name = name
        self.manifest = manifest
        self.scale = ActionScale(**manifest.action.model_dump(exclude={"mapping"}))
        self.reference = reference_method(manifest.reference)
        self._names = [feature.name for feature in manifest.features]
        self._weights = dict(weights)
        self._mean = torch.tensor([feature.mean for feature in manifest.features])
        self._std = torch.tensor([feature.std for feature in manifest.features])
        self.fades = any(feature.low is not None for feature in manifest.features)
        # No feature leaves the limits, so that one without a range has these.
        self._low = torch.tensor([-LIMIT if one.low is None else one.low for one in manifest.features])
        self._high = torch.tensor([LIMIT if one.high is None else one.high for one in manifest.features])
        # The features look at each sample alone, gradient matching heeds the mask, and the scale keeps to its bounds.
        self.per_sample, self.checked = self.reference.rule.per_sample, self.reference.rule.checked
        self.pure = self.reference.rule.pure
        self.uses_progress = "progress" in self._names or self.reference.rule.uses_progress
        self.uses_labels = self.reference.rule.uses_labels
        # Where the reference lies beyond one of them, the policy may go as far as that.
        self.limits = self.scale.minimum, self.scale.maximum

    @classmethod
    def load(cls, path: str | Path, sha256: str | None = None) -> Policy:
        """Read a policy file, the one with this SHA-256 where one is given; nothing in it is executed.

        Raises:
            ArtifactRefusedError: Where it fails a check; the message names the check and the way out.
            BadInputError: Where there is no such file.
        """
        return cls.of(read_policy(Path(path), KNOWN_FEATURES, sha256), Path(path).name)

    @classmethod
    def of(cls, file: PolicyFile, name: str) -> Policy:
        """The policy of a file that passed its checks; `name` is what to call it.

        Raises:
            ArtifactRefusedError: Where its reference is none that this code has.
        """
        try:
            return cls(file.manifest, file.weights, name)
        except BadInputError as error:
            raise ArtifactRefusedError(one_line(f"policy file {name}: {error}")) from None

    def method(self, name: str) -> Method:
        """What a run under this policy minimises: its reference method, with the policy as the rule."""
        return replace(self.reference, rule=self, name=name)

    def answer(self, signals: Signals) -> Temperatures:
        """Temperatures `[...]` for signals of any leading shape."""
        features = self.featurize(signals)
        return self.moved(signals, self.reference.rule(signals), features, self.action_of(features))

    def featurize(self, signals: Signals) -> Tensor:
        """What the policy sees, `[..., F]`, in the manifest's order."""
        return featurize(signals, self._names)

    def moved(self, signals: Signals, reference: Temperatures, features: Tensor, action: Tensor) -> Temperatures:
        """The reference's answer `[...]`, moved by the `action_of` these features; samples that fade are guarded."""
        found = self.scale.apply(signals, reference, action)
        if not self.fades:
            return found
        kept = self._kept(features)
        outside, weight = kept < 1, found.weight
        if self.scale.balanced:  # which scales the weights of the whole batch: a sample far outside keeps its own
            weight = torch.where(outside, reference.weight + kept * (weight - reference.weight), weight)
        return replace(found, weight=weight, guarded=outside if found.guarded is None else found.guarded | outside)

    @torch.no_grad()
    def action_of(self, features: Tensor) -> Tensor:
        """The network's answer `[..., A]` to `features`: student, teacher and, where there is one, weight.

        It is not clipped yet, but where a sample lies outside the ranges: there it is, and less of it is left.
        """
        self._move(features.device)
        kind = features.device.type
        with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext():
            action = forward(self._weights, self.manifest.activation, (features - self._mean) / self._std)
        if not self.fades:
            return action
        kept = self._kept(features).unsqueeze(-1)
        return torch.where(kept < 1, kept * action.clamp(-1.0, 1.0), action)

    def _kept(self, features: Tensor) -> Tensor:
        self._move(features.device)
        return fade(features, self._low, self._high)

    def _move(self, device: torch.device) -> None:
        if self._mean.device == device:
            return
        self._weights = {name: value.to(device) for name, value in self._weights.items()}
        self._mean, self._std = self._mean.to(device), self._std.to(device)
        self._low, self._high = self._low.to(device), self._high.to(device)
