"""Logits of a request as the signals that rules see, and the temperatures of rules as arrays, through torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch

from rltemp.errors import BadInputError
from rltemp.kd.signals import Signals, Temperatures
from rltemp.kd.temperature_rule import TemperatureRule
from rltemp.service.arrays import Array, place
from rltemp.service.ports import TEMPERATURES
from rltemp.service.refusals import wrong_content

Found = TypeVar("Found")


def to_signals(inputs: Mapping[str, Array]) -> Signals:
    """What a rule sees, from a request's arrays.

    Raises:
        Refusal: Where one is missing, or their shapes or values do not go together.
    """
    for name in ("student_logits", "teacher_logits"):
        if name not in inputs:
            raise wrong_content(f"{name} is missing")
    student, teacher = (_tensor(inputs[name]) for name in ("student_logits", "teacher_logits"))
    labels = inputs.get("labels")
    progress = inputs.get("progress", np.zeros(1, np.float32))
    if progress.shape != (1,):
        raise wrong_content(f"progress has shape {list(progress.shape)}; needed: [1]")
    try:
        signals = Signals(student, teacher, None if labels is None else _tensor(labels).long(), float(progress.flat[0]))
    except BadInputError as error:
        raise wrong_content(str(error)) from None
    if labels is not None and labels.size and not (labels.min() >= 0 and labels.max() < signals.num_classes):
        index = int(np.argmax((labels < 0) | (labels >= signals.num_classes)))
        message = f"{place('labels', index, labels.shape)} is {labels.flat[index]}; needed: 0 to"
        raise wrong_content(f"{message} {signals.num_classes - 1}")
    return signals


def answer(rule: TemperatureRule, signals: Signals) -> Temperatures:
    """A rule's temperatures, checked.

    Raises:
        Refusal: Where it cannot answer these signals.
    """
    if not signals.shape.numel():
        return nothing(signals)
    with torch.inference_mode():
        found = asked(rule, signals)
    check_answer(to_arrays(found))
    return found


def nothing(signals: Signals) -> Temperatures:
    """The temperatures of no samples: some rules take a largest value, which there is none of."""
    none = signals.full(1.0)
    return Temperatures(none, none, none)


def to_arrays(found: Temperatures) -> dict[str, Array]:
    """Temperatures by the names of the outputs, float32."""
    values = (found.student, found.teacher, found.weight)
    return dict(zip(TEMPERATURES, (value.float().numpy() for value in values), strict=True))


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
            raise wrong_content(f"{message}; send logits, or a reference, of a usual size")


def asked(compute: Callable[[Signals], Found], signals: Signals) -> Found:
    """What a rule, or a policy, says of signals.

    Raises:
        Refusal: Where it cannot answer these.
    """
    try:
        return compute(signals)
    except BadInputError as error:
        raise wrong_content(str(error)) from None


def _tensor(array: Array) -> torch.Tensor:
    # A copy: the request's bytes are not to be written, and need not lie as torch needs them.
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=True))
