"""The served models: named arrays in, named arrays out; between them a rule or a policy, as in process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rltemp.errors import BadInputError
from rltemp.kd.names import split_spec
from rltemp.kd.signals import Signals
from rltemp.kd.sparse_teacher import SparseTeacher
from rltemp.kd.temperature_rule import TemperatureRule
from rltemp.kd.temperatures import OUTPUTS, Temperatures
from rltemp.policy.features import LIMIT
from rltemp.policy.policy_file import check_policy
from rltemp.policy.rule import KNOWN_FEATURES, Policy
from rltemp.rules.published_methods import reference_method
from rltemp.service.refusals import wrong_content, wrong_schema
from rltemp.service.strict_values import Array, place

"""What is answered where nothing is asked for."""
CONSTANT_REFERENCES = ("fixed", "ttm", "dkd")
"""Methods whose temperatures are the same for all samples and steps; a policy around another needs the logits."""

Port = dict[str, Any]
"""An input or output as the protocol describes it: name, datatype, and shape with -1 for any size.

Other numbers of the same kind are taken too: all of floating point, or all integers.
"""


def _port(name: str, *shape: int, datatype: str = "FP32") -> Port:
    return {"name": name, "datatype": datatype, "shape": list(shape)}


LOGITS = (
    _port("student_logits", -1, -1),
    _port("teacher_logits", -1, -1),
    _port("labels", -1, datatype="INT64"),
    _port("progress", 1),
    _port("teacher_ids", -1, -1, datatype="INT64"),
    _port("teacher_log_probs", -1, -1),
    _port("tail", -1, -1),
)
"""The last three stand in for the teacher's logits where only its top classes are known."""
ANSWERS = tuple(_port(name, -1) for name in OUTPUTS)


@dataclass(frozen=True)
class Inference:
    """A model's answer.

    Args:
        outputs: Arrays by name, float32.
        samples: How many are answered.
        clamped: Numbers of the actions that lay outside [-1, 1].
    """

    outputs: dict[str, Array]
    samples: int
    clamped: int = 0


class RuleModel:
    """A closed-form rule.

    Args:
        spec: As `reference_method` takes it.

    Raises:
        BadInputError: Where nobody knows it.
    """

    inputs = LOGITS
    outputs = ANSWERS
    version = "1"

    def __init__(self, spec: str) -> None:
        self.name = spec
        self.kind = split_spec(spec)[0]
        self.parameters = {"kind": "rule", "spec": spec}
        self._rule = reference_method(spec).rule

    def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None) -> Inference:
        """Answer the temperatures of the samples whose logits are given.

        Args:
            inputs: As `LOGITS` has them.
            outputs: Names; None for `OUTPUTS`.

        Raises:
            Refusal: Where inputs or outputs are not the model's.
        """
        _check_names(self, inputs, outputs)
        signals = _signals(inputs, self._rule, self.name)
        with torch.inference_mode(), _refused():
            # Some rules take a largest value, which no samples have.
            found = self._rule(signals) if signals.shape.numel() else _no_temperatures(signals)
            return _inference(found, outputs)


class PolicyModel:
    """A policy, asked by logits or by features.

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
        self.version, self.data, self.sha256, self.manifest = version, data, file.sha256, file.manifest
        described = {"manifest": file.manifest.to_json(), "sha256": file.sha256, "version": version}
        self.parameters = {"kind": "policy", **described}
        self._columns = len(file.manifest.features)
        self.inputs = (_port("features", -1, self._columns), *LOGITS)
        self.outputs = (*ANSWERS, _port("action", -1, file.manifest.action.size))
        self._policy = Policy.of(file, path.name)

    def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None) -> Inference:
        """Answer as `RuleModel.infer` does, from logits or from `features`.

        From features the weights are those before the balance of a balanced policy, which needs the logits.
        """
        _check_names(self, inputs, outputs)
        with torch.inference_mode(), _refused():
            if "features" not in inputs:
                return self._of_logits(_signals(inputs, self._policy, self.name), outputs)
            if len(inputs) > 1:
                raise wrong_content("send features, or logits with labels and progress, not both")
            return self._of_features(inputs["features"], outputs)

    def _of_logits(self, signals: Signals, outputs: Sequence[str] | None) -> Inference:
        if signals.shape.numel():
            features = self._policy.featurize(signals)
            action = self._policy.action_of(features)
            found = self._policy.moved(signals, self._policy.reference.rule(signals), features, action)
            found = found if signals.buckets is None else signals.buckets.capped(found)
        else:
            action, found = torch.zeros(*signals.shape, self.manifest.action.size), _no_temperatures(signals)
        return _inference(found, outputs, action)

    def _of_features(self, raw: Array, outputs: Sequence[str] | None) -> Inference:
        features = _tensor(self._checked_features(raw)).float()
        action = self._policy.action_of(features)
        if outputs is not None and set(outputs) <= {"action"}:
            inside, clamped = _clamped(action)
            return Inference({"action": inside}, len(features), clamped)
        spec = self.manifest.reference
        if split_spec(spec)[0] not in CONSTANT_REFERENCES:
            raise wrong_content(f"this policy moves around {spec}: send logits, or ask for action alone")
        # Neither a constant reference nor a scale without a balance looks at the logits.
        unseen = Signals(torch.zeros(len(features), 2), torch.zeros(len(features), 2))
        scale = replace(self._policy.scale, balanced=False)
        return _inference(scale.apply(unseen, self._policy.reference.rule(unseen), action), outputs, action)

    def _checked_features(self, raw: Array) -> Array:
        if raw.ndim != 2 or raw.shape[1] != self._columns:
            raise wrong_content(f"features have shape {list(raw.shape)}; needed: [samples, {self._columns}]")
        if (beyond := np.abs(raw) > LIMIT).any():
            index = int(np.argmax(beyond))
            found = f"{place('features', index, raw.shape)} is {float(raw.flat[index]):g}"
            raise wrong_content(f"{found}; features are clipped to [-{LIMIT:g}, {LIMIT:g}]")
        return raw


Model = RuleModel | PolicyModel


def _check_names(model: Model, inputs: Mapping[str, Array], outputs: Sequence[str] | None) -> None:
    """Refuse inputs and outputs that a model does not have, and inputs of another type."""
    known = {port["name"]: port["datatype"] for port in model.inputs}
    for name, array in inputs.items():
        if name not in known:
            raise wrong_content(f"unknown input {name[:80]!r}; this model has {', '.join(known)}")
        if known[name] == "INT64" and array.dtype.kind != "i":
            raise wrong_content(f"{name} needs integers; send INT64 or INT32")
        if known[name] == "FP32" and array.dtype.kind != "f":
            raise wrong_content(f"{name} needs floating-point numbers; send FP32, FP64 or FP16")
    answered = [port["name"] for port in model.outputs]
    for name in outputs or ():
        if name not in answered:
            raise wrong_content(f"unknown output {name[:80]!r}; this model has {', '.join(answered)}")


def _signals(inputs: Mapping[str, Array], rule: TemperatureRule, name: str) -> Signals:
    """What a rule sees, from a request's arrays."""
    sparse = "teacher_ids" in inputs or "teacher_log_probs" in inputs or "tail" in inputs
    teachers = ("teacher_ids", "teacher_log_probs") if sparse else ("teacher_logits",)
    for needed in ("student_logits", *teachers):
        if needed not in inputs:
            raise wrong_content(f"{needed} is missing")
    if sparse and "teacher_logits" in inputs:
        raise wrong_content("send teacher_logits, or teacher_ids and teacher_log_probs, not both")
    if rule.uses_progress and "progress" not in inputs:
        raise wrong_schema(f"{name} uses the progress of the run: send progress [1], 0 to 1")
    student, teacher = _tensor(inputs["student_logits"]), [_tensor(inputs[name]) for name in teachers]
    labels = inputs.get("labels")
    progress = inputs.get("progress", np.full(1, np.nan))
    if progress.shape != (1,):
        raise wrong_content(f"progress has shape {list(progress.shape)}; needed: [1]")
    known, done = None if labels is None else _tensor(labels).long(), float(progress[0])
    with _refused():
        if sparse:
            tail = _tensor(inputs["tail"]) if "tail" in inputs else None
            signals = SparseTeacher(teacher[0], teacher[1], tail).signals(student, known, done)
        else:
            signals = Signals(student, teacher[0], known, done)
    if labels is not None and (wrong := (labels < 0) | (labels >= student.shape[-1])).any():
        index = int(np.argmax(wrong))
        found = f"{place('labels', index, labels.shape)} is {labels.flat[index]}"
        raise wrong_content(f"{found}; needed: 0 to {student.shape[-1] - 1}")
    return signals


@contextmanager
def _refused() -> Iterator[None]:
    """Refuse what a rule or a policy cannot answer."""
    try:
        yield
    except BadInputError as error:
        raise wrong_content(str(error)) from None
    except RuntimeError as error:
        if "overflow" not in str(error):  # as torch says of a number that float32 does not hold
            raise
        raise wrong_content("a temperature or a weight is beyond the largest float32") from None


def _no_temperatures(signals: Signals) -> Temperatures:
    none = signals.full(1.0)
    return Temperatures(none, none, none)


def _inference(found: Temperatures, outputs: Sequence[str] | None, action: Tensor | None = None) -> Inference:
    """The arrays that are asked for, in that order.

    Raises:
        Refusal: Where finite inputs have no finite answer (logits near the largest float), naming the first sample.
    """
    arrays = {name: values.float().numpy() for name, values in found.outputs().items()}
    for name, values in arrays.items():
        good = np.isfinite(values) & ((values >= 0) if "weight" in name else (values > 0))
        if not good.all():
            index = int(np.argmin(good))
            message = f"{place('sample', index, values.shape)} has no {name} ({values.flat[index]:g})"
            raise wrong_content(f"{message}; send logits of a usual size")
    clamped = 0
    if action is not None:
        arrays["action"], clamped = _clamped(action)
    return Inference({name: arrays[name] for name in outputs or OUTPUTS}, found.student.numel(), clamped)


def _clamped(action: Tensor) -> tuple[Array, int]:
    """Actions within [-1, 1], and how many of their numbers were not."""
    inside = action.clamp(-1.0, 1.0)
    return inside.numpy(), int((inside != action).sum())


def _tensor(array: Array) -> Tensor:
    # A copy: the request's bytes are not to be written, and need not lie as torch needs them.
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=True))
