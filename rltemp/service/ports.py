"""The inputs and outputs of served models, and requests that name others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rltemp.service.arrays import Array
from rltemp.service.refusals import wrong_content

TEMPERATURES = ("student_temperature", "teacher_temperature", "weight")
"""What is answered where nothing is asked for."""

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

    @property
    def samples(self) -> int:
        """How many samples are answered."""
        name, array = next(iter(self.outputs.items()))
        return math.prod(array.shape[:-1] if name == "action" else array.shape)


def check_inputs(ports: Sequence[Port], inputs: Mapping[str, Array]) -> None:
    """Refuse inputs that a model does not have, or of another type.

    Raises:
        Refusal: Naming what it has.
    """
    for name, array in inputs.items():
        if (port := _find(ports, name)) is None:
            raise wrong_content(f"unknown input {name[:80]!r}; this model has {_names(ports)}")
        kind = "i" if port.datatypes is INTEGERS else "f"
        if array.dtype.kind != kind:
            raise wrong_content(f"{name} needs {_KINDS[kind]}; send one of {', '.join(port.datatypes)}")


def check_outputs(ports: Sequence[Port], outputs: Sequence[str] | None) -> None:
    """Refuse outputs that a model does not have.

    Raises:
        Refusal: Naming what it has.
    """
    for name in outputs or ():
        if _find(ports, name) is None:
            raise wrong_content(f"unknown output {name[:80]!r}; this model has {_names(ports)}")


def _find(ports: Sequence[Port], name: str) -> Port | None:
    return next((port for port in ports if port.name == name), None)


def _names(ports: Sequence[Port]) -> str:
    return ", ".join(port.name for port in ports)


def chosen(arrays: Mapping[str, Array], outputs: Sequence[str] | None) -> dict[str, Array]:
    """The arrays that are asked for, in that order."""
    return {name: arrays[name] for name in (TEMPERATURES if outputs is None else outputs)}
