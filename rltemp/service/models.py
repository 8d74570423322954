"""The served models: named arrays in, named arrays out.

A rule answers logits, through torch, as it does in process. A policy answers logits likewise, or features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rltemp.kd.names import split_spec
from rltemp.kd.signals import Signals
from rltemp.policy.policy_file import check_policy
from rltemp.policy.rule import KNOWN_FEATURES, Policy
from rltemp.rules.published_methods import reference_method
from rltemp.service.arrays import Array
from rltemp.service.features import FeaturesModel, clipped
from rltemp.service.ports import ANSWERS, FLOATS, LOGITS, Inference, Port, check_inputs, check_outputs, chosen
from rltemp.service.refusals import wrong_content
from rltemp.service.signals import answer, asked, check_answer, nothing, to_arrays, to_signals


class RuleModel:
    """A closed-form rule.

    Args:
        spec: As `rltemp.loading.reference_method` takes it.

    Raises:
        BadInputError: Where nobody knows it.
    """

    inputs = LOGITS
    outputs = ANSWERS
    version = "1"

    def __init__(self, spec: str) -> None:
        self.name = spec
        self.kind = split_spec(spec)[0]
        self.parameters: dict[str, Any] = {"kind": "rule", "spec": spec}
        self._rule = reference_method(spec).rule

    def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None) -> Inference:
        """Temperatures of the samples whose logits are given.

        Args:
            inputs: As `LOGITS` has them.
            outputs: Names; None for `TEMPERATURES`.

        Raises:
            Refusal: Where inputs or outputs are not the model's.
        """
        check_inputs(self.inputs, inputs)
        check_outputs(self.outputs, outputs)
        signals = to_signals(inputs)
        return Inference(chosen(to_arrays(answer(self._rule, signals)), outputs))


class PolicyModel:
    """A policy, of logits or of features.

    Args:
        name: That it is served under.
        data: The bytes of its file.
        version: Of those that are served under this name.
        path: What to call the file in a message.
        sha256: That the file must have, where it is pinned.

    Raises:
        ArtifactRefusedError: Where the file fails a check.
    """

    def __init__(
        self, name: str, data: bytes, version: str = "1", path: Path | None = None, sha256: str | None = None
    ) -> None:
        path = path or Path(name)
        file = check_policy(data, path, KNOWN_FEATURES, sha256)
        self.name = self.kind = name
        self.version = version
        self.data = data
        self.sha256 = file.sha256
        self.manifest = file.manifest
        manifest = file.manifest.to_json()
        self.parameters: dict[str, Any] = {
            "kind": "policy",
            "manifest": manifest,
            "sha256": file.sha256,
            "version": version,
        }
        features = Port("features", FLOATS, (-1, len(file.manifest.features)))
        self.inputs = (features, Port("reference", FLOATS, (-1, 3)), *LOGITS)
        self.outputs = (*ANSWERS, Port("action", ("FP32",), (-1, file.manifest.action.size)))
        self._policy = Policy.of(file, path.name)
        self._of_features = FeaturesModel(file, self._policy.scale)

    def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None) -> Inference:
        """Temperatures of the samples whose features, or logits, are given, and actions where they are asked for.

        From features the weights are those before the balance of a balanced policy, which needs the logits.

        Args:
            inputs: `features` and, where it is needed, `reference`; or those of `LOGITS`.
            outputs: Names; None for `TEMPERATURES`.

        Raises:
            Refusal: Where inputs or outputs are not the model's.
        """
        check_inputs(self.inputs, inputs)
        check_outputs(self.outputs, outputs)
        if "features" in inputs:
            if len(inputs) > 1 + ("reference" in inputs):
                raise wrong_content("send features, or logits with labels and progress, not both")
            return self._of_features.infer(inputs, outputs)
        if "reference" in inputs:
            raise wrong_content("reference goes with features; logits need none")
        return self._of_logits(to_signals(inputs), outputs)

    def _of_logits(self, signals: Signals, outputs: Sequence[str] | None) -> Inference:
        if not signals.shape.numel():
            none = np.zeros((*signals.shape, self.manifest.action.size), np.float32)
            return Inference(chosen({**to_arrays(nothing(signals)), "action": none}, outputs))
        with torch.inference_mode():
            raw = asked(self._policy.action, signals)
            action, clamped = clipped(raw.numpy())
            found = self._policy.scale.apply(signals, asked(self._policy.reference.rule, signals), raw)
        arrays = to_arrays(found)
        check_answer(arrays)
        return Inference(chosen({**arrays, "action": action}, outputs), clamped)


Model = RuleModel | PolicyModel
