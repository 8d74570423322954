"""A policy's answers to features, in NumPy: a few numbers a sample on the wire in place of thousands, and no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from rltemp.kd.names import split_spec
from rltemp.kd.signals import Signals
from rltemp.policy.actions import ActionScale
from rltemp.policy.features import LIMIT
from rltemp.policy.policy_file import PolicyFile
from rltemp.rules.published_methods import reference_method
from rltemp.service.arrays import Array, check_finite, place
from rltemp.service.ports import TEMPERATURES, Inference, chosen
from rltemp.service.refusals import wrong_content
from rltemp.service.signals import check_answer

CONSTANT_REFERENCES = ("fixed", "ttm", "dkd")
"""Methods whose temperatures are the same for all samples and steps; a policy around another needs `reference`."""


class FeaturesModel:
    """What a policy answers to features that its client has computed beside the logits.

    Args:
        file: The policy's.
        scale: Of its actions.
    """

    def __init__(self, file: PolicyFile, scale: ActionScale) -> None:
        self._columns = len(file.manifest.features)
        self._around = file.manifest.reference
        self._network = Network(file)
        self._scale = Scale(scale)
        self._reference = constant_reference(self._around)

    def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None) -> Inference:
        """Temperatures, with the weights before the balance of a balanced policy, and actions where they are asked for.

        Args:
            inputs: `features` and, where it is needed, `reference`.
            outputs: Names; None for `TEMPERATURES`.

        Raises:
            Refusal: Where the inputs cannot be used.
        """
        features = self._features(inputs["features"])
        action, clamped = clipped(self._network(features))
        if outputs is not None and set(outputs) <= {"action"}:
            return Inference({"action": action.T}, clamped)
        with np.errstate(over="ignore"):
            found = self._scale(self._references(inputs, len(features)), action)
        check_answer(found, ("weight",))  # the others lie within bounds
        return Inference(chosen({**found, "action": action.T}, outputs), clamped)

    def _features(self, raw: Array) -> Array:
        if raw.ndim != 2 or raw.shape[1] != self._columns:
            raise wrong_content(f"features have shape {list(raw.shape)}; needed: [samples, {self._columns}]")
        if raw.size and not (raw.max() <= LIMIT and raw.min() >= -LIMIT):
            index = int(np.argmax(~(np.abs(raw) <= LIMIT)))
            value = float(raw.flat[index])
            raise wrong_content(
                f"{place('features', index, raw.shape)} is {value:g}; features are clipped to [-{LIMIT:g}, {LIMIT:g}]"
            )
        return raw.astype(np.float32, copy=False)

    def _references(self, inputs: Mapping[str, Array], samples: int) -> Array:
        """`[3, N]`, or `[3, 1]` for all."""
        if (raw := inputs.get("reference")) is None:
            if self._reference is None:
                raise wrong_content(
                    f"this policy moves around {self._around}, which needs the logits; send reference "
                    "[samples, 3], its student temperature, teacher temperature and weight, or ask for action alone"
                )
            return self._reference
        if raw.shape != (samples, 3):
            raise wrong_content(f"reference has shape {list(raw.shape)}; needed: [{samples}, 3]")
        with np.errstate(over="ignore"):
            reference = raw.astype(np.float32, copy=False)
        check_finite("reference", reference)
        low = (reference <= 0) & (np.arange(3) < 2) | (reference < 0)
        if low.any():
            index = int(np.argmax(low))
            raise wrong_content(
                f"{place('reference', index, raw.shape)} is {float(raw.flat[index]):g}; temperatures are above 0, "
                "weights at least 0"
            )
        rows: Array = reference.T
        return rows


class Network:
    """The network of a policy file in NumPy, on features that are not normalised yet.

    Samples are the last axis within: NumPy takes its steps along rows of hundreds rather than of three.
    """

    def __init__(self, file: PolicyFile) -> None:
        self._mean, self._std = (
            _column([getattr(feature, name) for feature in file.manifest.features]) for name in ("mean", "std")
        )
        self._activate: Callable[[Array], Array] = {"tanh": _tanh, "relu": _relu}[file.manifest.activation]
        self._layers = [
            (file.weights[f"{index}.weight"].numpy().copy(), _column(file.weights[f"{index}.bias"].numpy()))
            for index in range(len(file.manifest.layers))
        ]

    def __call__(self, features: Array) -> Array:
        """The action `[A, N]` before clipping, for features `[N, F]`, float32."""
        hidden: Array = features.T.copy()
        hidden -= self._mean
        hidden /= self._std
        for index, (weight, bias) in enumerate(self._layers):
            hidden = weight @ (self._activate(hidden) if index else hidden)
            hidden += bias
        return hidden


class Scale:
    """`ActionScale.apply` in NumPy, without its balance."""

    def __init__(self, scale: ActionScale) -> None:
        self._logs = _column([math.log(scale.ratio)] * 2 + [math.log(scale.weight_ratio)] * (scale.size - 2))
        self._minimum, self._maximum = np.float32(scale.minimum), np.float32(scale.maximum)

    def __call__(self, reference: Array, action: Array) -> dict[str, Array]:
        """`TEMPERATURES` by name, `[N]` each.

        Args:
            reference: `[3, N]`, or `[3, 1]` for all: student temperature, teacher temperature, weight; float32.
            action: `[A, N]`, within [-1, 1].
        """
        factors = np.exp(action * self._logs)
        before = reference[:2]
        after = before * factors[:2]
        np.maximum(after, np.minimum(before, self._minimum), out=after)
        np.minimum(after, np.maximum(before, self._maximum), out=after)
        student, teacher = after / before
        weight = reference[2] * student * teacher
        if len(factors) == 3:
            weight *= factors[2]
        return dict(zip(TEMPERATURES, (*after, weight), strict=True))


def constant_reference(spec: str) -> Array | None:
    """Student temperature, teacher temperature and weight of a reference that is the same for all samples, `[3, 1]`.

    >>> constant_reference("fixed:2").T, constant_reference("dtkd")
    (array([[2., 2., 4.]], dtype=float32), None)
    """
    rule = reference_method(spec).rule
    if split_spec(spec)[0] not in CONSTANT_REFERENCES:
        return None
    found = rule(Signals(torch.zeros(1, 2), torch.zeros(1, 2)))
    return _column([value.item() for value in (found.student, found.teacher, found.weight)])


def clipped(action: Array) -> tuple[Array, int]:
    """Actions within [-1, 1], and how many of their numbers were not."""
    inside = np.minimum(np.maximum(action, -1.0), 1.0)  # `np.clip` takes three times as long for a small batch
    return inside, int(np.count_nonzero(inside != action))


def _tanh(values: Array) -> Array:
    return np.tanh(values, out=values)


def _relu(values: Array) -> Array:
    return np.maximum(values, 0.0, out=values)


def _column(values: Sequence[float] | Array) -> Array:
    return np.array(values, np.float32)[:, None]
