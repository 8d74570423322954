"""The served models: named arrays in, named arrays out.

A rule answers logits, through torch, as it does in process. A policy answers logits likewise, or the features that a
client has computed beside its logits, in NumPy: a few numbers a sample on the wire in place of thousands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rltemp.actions import ActionScale
from rltemp.errors import BadInputError
from rltemp.features import LIMIT
from rltemp.loading import reference_method
from rltemp.names import split_spec
from rltemp.policy import KNOWN_FEATURES, Policy
from rltemp.policy_file import PolicyFile, check_policy
from rltemp.service.refusals import Refusal
from rltemp.service.tensors import Array, check_finite, place
from rltemp.types import Signals, TemperatureRule, Temperatures

TEMPERATURES = ("student_temperature", "teacher_temperature", "weight")
"""What is answered where nothing is asked for."""

CONSTANT_REFERENCES = ("fixed", "ttm", "dkd")
"""Methods whose temperatures are the same for all samples and steps; a policy around another needs `reference`."""

FLOATS, INTEGERS = ("FP32", "FP64", "FP16"), ("INT64", "INT32")
_KINDS = {"f": "floating-point numbers", "i": "integers"}


@dataclass(frozen=True)
class Port:
    """An input or output: its name, datatypes (the first is the one in the metadata) and shape, -1 for any size."""

    name: str
    datatypes: tuple[str, ...]
    shape: tuple[int, ...]


LOGITS = (
    Port("student_logits", FLOATS, (-1, -1)),
    Port("teacher_logits", FLOATS, (-1, -1)),
    Port("labels", INTEGERS, (-1,)),
    Port("progress", FLOATS, (1,)),
)
ANSWERS = tuple(Port(name, ("FP32",), (-1,)) for name in TEMPERATURES)


@dataclass(frozen=True)
class Inference:
    """A model's answer.

    Args:
        outputs: Arrays by name, float32.
        clamped: Numbers of the actions that lay outside [-1, 1].
    """

    outputs: dict[str, Array]
    clamped: int = 0


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
        rule = reference_method(spec).rule
        assert rule is not None  # checked by `reference_method`
        self.name = spec
        self.kind = split_spec(spec)[0]
        self.parameters: dict[str, Any] = {"kind": "rule", "spec": spec}
        self._rule = rule

    def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None) -> Inference:
        """Temperatures of the samples whose logits are given.

        Args:
            inputs: As `LOGITS` has them.
            outputs: Names; None for `TEMPERATURES`.

        Raises:
            Refusal: Where inputs or outputs are not the model's.
        """
        check_names(self, inputs, outputs)
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
        self._network = Network(file)
        self._scale = Scale(self._policy.scale)
        self._reference = constant_reference(file.manifest.reference)

    def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None) -> Inference:
        """Temperatures of the samples whose features, or logits, are given, and actions where they are asked for.

        From features the weights are those before the balance of a balanced policy, which needs the logits.

        Args:
            inputs: `features` and, where it is needed, `reference`; or those of `LOGITS`.
            outputs: Names; None for `TEMPERATURES`.

        Raises:
            Refusal: Where inputs or outputs are not the model's.
        """
        check_names(self, inputs, outputs)
        if "features" in inputs:
            if len(inputs) > 1 + ("reference" in inputs):
                raise _content("send features, or logits with labels and progress, not both")
            return self._of_features(inputs, outputs)
        if "reference" in inputs:
            raise _content("reference goes with features; logits need none")
        return self._of_logits(to_signals(inputs), outputs)

    def _of_features(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None) -> Inference:
        features = self._features(inputs["features"])
        action, clamped = clipped(self._network(features))
        if outputs is not None and set(outputs) <= {"action"}:
            return Inference({"action": action}, clamped)
        with np.errstate(over="ignore"):
            found = self._scale(self._references(inputs, len(features)), action)
        check_answer(found, ("weight",))  # the others lie within bounds
        return Inference(chosen({**found, "action": action}, outputs), clamped)

    def _features(self, raw: Array) -> Array:
        columns = len(self.manifest.features)
        if raw.ndim != 2 or raw.shape[1] != columns:
            raise _content(f"features have shape {list(raw.shape)}; needed: [samples, {columns}]")
        if raw.size and not (raw.max() <= LIMIT and raw.min() >= -LIMIT):
            index = int(np.argmax(~(np.abs(raw) <= LIMIT)))
            value = float(raw.flat[index])
            raise _content(
                f"{place('features', index, raw.shape)} is {value:g}; features are clipped to [-{LIMIT:g}, {LIMIT:g}]"
            )
        return raw.astype(np.float32, copy=False)

    def _references(self, inputs: Mapping[str, Array], samples: int) -> Array:
        if (raw := inputs.get("reference")) is None:
            if self._reference is None:
                raise _content(
                    f"this policy moves around {self.manifest.reference}, which needs the logits; send reference "
                    "[samples, 3], its student temperature, teacher temperature and weight, or ask for action alone"
                )
            return self._reference
        if raw.shape != (samples, 3):
            raise _content(f"reference has shape {list(raw.shape)}; needed: [{samples}, 3]")
        with np.errstate(over="ignore"):
            reference = raw.astype(np.float32, copy=False)
        check_finite("reference", reference)
        low = (reference <= 0) & (np.arange(3) < 2) | (reference < 0)
        if low.any():
            index = int(np.argmax(low))
            raise _content(
                f"{place('reference', index, raw.shape)} is {float(raw.flat[index]):g}; temperatures are above 0, "
                "weights at least 0"
            )
        return reference

    def _of_logits(self, signals: Signals, outputs: Sequence[str] | None) -> Inference:
        if not signals.shape.numel():
            none = np.zeros((*signals.shape, self.manifest.action.size), np.float32)
            return Inference(chosen({**to_arrays(nothing(signals)), "action": none}, outputs))
        with torch.inference_mode():
            raw = _refused(self._policy.action, signals)
            action, clamped = clipped(raw.numpy())
            reference = self._policy.reference.rule
            assert reference is not None  # checked by `reference_method`
            found = self._policy.scale.apply(signals, _refused(reference, signals), raw)
        arrays = to_arrays(found)
        check_answer(arrays)
        return Inference(chosen({**arrays, "action": action}, outputs), clamped)


Model = RuleModel | PolicyModel


class Network:
    """The network of a policy file in NumPy, on features that are not normalised yet."""

    def __init__(self, file: PolicyFile) -> None:
        self._mean = np.array([feature.mean for feature in file.manifest.features], np.float32)
        self._std = np.array([feature.std for feature in file.manifest.features], np.float32)
        self._activate: Callable[[Array], Array] = {"tanh": _tanh, "relu": _relu}[file.manifest.activation]
        self._layers = [
            (file.weights[f"{index}.weight"].numpy().T.copy(), file.weights[f"{index}.bias"].numpy())
            for index in range(len(file.manifest.layers))
        ]

    def __call__(self, features: Array) -> Array:
        """The action `[N, A]` before clipping, for features `[N, F]`, float32."""
        hidden = (features - self._mean) / self._std
        for index, (weight, bias) in enumerate(self._layers):
            hidden = (self._activate(hidden) if index else hidden) @ weight + bias
        return hidden


class Scale:
    """`ActionScale.apply` in NumPy, without its balance."""

    def __init__(self, scale: ActionScale) -> None:
        logs = [math.log(scale.ratio)] * 2 + [math.log(scale.weight_ratio)] * (scale.size - 2)
        self._logs = np.array(logs, np.float32)
        self._minimum, self._maximum = np.float32(scale.minimum), np.float32(scale.maximum)

    def __call__(self, reference: Array, action: Array) -> dict[str, Array]:
        """`TEMPERATURES` by name, `[N]` each.

        Args:
            reference: `[N, 3]`, or `[1, 3]` for all: student temperature, teacher temperature, weight; float32.
            action: `[N, A]`, within [-1, 1].
        """
        factors = np.exp(action * self._logs)
        before = reference[:, :2]
        low, high = np.minimum(before, self._minimum), np.maximum(before, self._maximum)
        after = np.minimum(np.maximum(before * factors[:, :2], low), high)
        moved = after / before
        weight = reference[:, 2] * moved[:, 0] * moved[:, 1]
        if factors.shape[1] == 3:
            weight = weight * factors[:, 2]
        return dict(zip(TEMPERATURES, (after[:, 0], after[:, 1], weight), strict=True))


def constant_reference(spec: str) -> Array | None:
    """Student temperature, teacher temperature and weight of a reference that is the same for all samples, `[1, 3]`.

    >>> constant_reference("fixed:2"), constant_reference("dtkd")
    (array([[2., 2., 4.]], dtype=float32), None)
    """
    rule = reference_method(spec).rule
    if rule is None or split_spec(spec)[0] not in CONSTANT_REFERENCES:
        return None
    found = rule(Signals(torch.zeros(1, 2), torch.zeros(1, 2)))
    return np.array([[value.item() for value in (found.student, found.teacher, found.weight)]], np.float32)


def answer(rule: TemperatureRule, signals: Signals) -> Temperatures:
    """A rule's temperatures, checked.

    Raises:
        Refusal: Where it cannot answer these signals.
    """
    if not signals.shape.numel():
        return nothing(signals)
    with torch.inference_mode():
        found: Temperatures = _refused(rule, signals)
    check_answer(to_arrays(found))
    return found


def nothing(signals: Signals) -> Temperatures:
    """The temperatures of no samples: some rules take a largest value, which there is none of."""
    none = signals.full(1.0)
    return Temperatures(none, none, none)


def to_signals(inputs: Mapping[str, Array]) -> Signals:
    """What a rule sees, from a request's arrays.

    Raises:
        Refusal: Where one is missing, or their shapes or values do not go together.
    """
    for name in ("student_logits", "teacher_logits"):
        if name not in inputs:
            raise _content(f"{name} is missing")
    student, teacher = (_tensor(inputs[name]) for name in ("student_logits", "teacher_logits"))
    labels = inputs.get("labels")
    progress = inputs.get("progress", np.zeros(1, np.float32))
    if progress.shape != (1,):
        raise _content(f"progress has shape {list(progress.shape)}; needed: [1]")
    try:
        signals = Signals(student, teacher, None if labels is None else _tensor(labels).long(), float(progress.flat[0]))
    except BadInputError as error:
        raise _content(str(error)) from None
    if labels is not None and labels.size and not (labels.min() >= 0 and labels.max() < signals.num_classes):
        index = int(np.argmax((labels < 0) | (labels >= signals.num_classes)))
        message = f"{place('labels', index, labels.shape)} is {labels.flat[index]}; needed: 0 to"
        raise _content(f"{message} {signals.num_classes - 1}")
    return signals


def to_arrays(found: Temperatures) -> dict[str, Array]:
    """Temperatures by the names of the outputs, float32."""
    values = (found.student, found.teacher, found.weight)
    return dict(zip(TEMPERATURES, (value.float().numpy() for value in values), strict=True))


def check_names(model: Model, inputs: Mapping[str, Array], outputs: Sequence[str] | None) -> None:
    """Refuse inputs and outputs that the model does not have, and inputs of another type.

    Raises:
        Refusal: Naming what it has.
    """
    for name, array in inputs.items():
        if (port := _find(model.inputs, name)) is None:
            raise _content(f"unknown input {name[:80]!r}; this model has {_names(model.inputs)}")
        kind = "i" if port.datatypes is INTEGERS else "f"
        if array.dtype.kind != kind:
            raise _content(f"{name} needs {_KINDS[kind]}; send one of {', '.join(port.datatypes)}")
    for name in outputs or ():
        if _find(model.outputs, name) is None:
            raise _content(f"unknown output {name[:80]!r}; this model has {_names(model.outputs)}")


def _find(ports: Sequence[Port], name: str) -> Port | None:
    return next((port for port in ports if port.name == name), None)


def _names(ports: Sequence[Port]) -> str:
    return ", ".join(port.name for port in ports)


def check_answer(arrays: Mapping[str, Array], names: Sequence[str] = TEMPERATURES) -> None:
    """Refuse a request whose finite inputs have no finite answer: logits near the largest float.

    Raises:
        Refusal: Naming the first sample.
    """
    for name in names:
        values = arrays[name]
        good = np.isfinite(values) & ((values >= 0) if name == "weight" else (values > 0))
        if not good.all():
            index = int(np.argmin(good))
            message = f"{place('sample', index, values.shape)} has no {name} ({values.flat[index]:g})"
            raise _content(f"{message}; send logits, or a reference, of a usual size")


def chosen(arrays: Mapping[str, Array], outputs: Sequence[str] | None) -> dict[str, Array]:
    """The arrays that are asked for, in that order."""
    return {name: arrays[name] for name in (TEMPERATURES if outputs is None else outputs)}


def clipped(action: Array) -> tuple[Array, int]:
    """Actions within [-1, 1], and how many of their numbers were not."""
    inside = np.minimum(np.maximum(action, -1.0), 1.0)  # `np.clip` takes three times as long for a small batch
    return inside, int(np.count_nonzero(inside != action))


def _refused(compute: Callable[[Signals], Any], signals: Signals) -> Any:
    try:
        return compute(signals)
    except BadInputError as error:
        raise _content(str(error)) from None


def _tensor(array: Array) -> torch.Tensor:
    # A copy: the request's bytes are not to be written, and need not lie as torch needs them.
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=True))


def _tanh(values: Array) -> Array:
    return np.tanh(values, out=values)


def _relu(values: Array) -> Array:
    return np.maximum(values, 0.0, out=values)


def _content(message: str) -> Refusal:
    return Refusal(400, message, "content")
