"""A rule as one file for hosts without `rltemp`: a program of `torch.export` (`.pt2`), or ONNX.

The program takes `student_logits` and `teacher_logits` `[B, C]`, `progress` `[]` and, for a policy that sees them,
`labels` `[B]`, and gives `student_temperature`, `teacher_temperature` and `weight`, `[B]` each, without a gradient. B
and C are any. With `top`, `teacher_ids`, `teacher_log_probs` `[B, K]` and `tail` `[B, 6]` stand in for the teacher's
logits (`rltemp.SparseTeacher`). Flatten tokens `[B, T, C]`: a policy matches gradients over the whole batch either way.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rltemp.errors import BadInputError
from rltemp.integrations.contract import Controller, MethodLike
from rltemp.io.files import atomic_write
from rltemp.kd.sparse_teacher import SparseTeacher
from rltemp.kd.temperatures import OUTPUTS

Format = Literal["torch", "onnx"]
SUFFIXES: dict[Format, str] = {"torch": ".pt2", "onnx": ".onnx"}
TOLERANCE = 1e-5
_TRACED, _TRIED = (6, 20), ((1, 20), (33, 7))
"""Shapes of the logits that a program is traced with, and those that it is compared with the rule on."""


class TemperatureModule(nn.Module):
    """A rule as a module that takes and gives tensors alone.

    Args:
        method: What `Controller` takes.
    """

    names: tuple[str, ...] = ("student_logits", "teacher_logits", "progress", "labels")
    """Of its inputs, for ONNX."""

    def __init__(self, method: MethodLike) -> None:
        super().__init__()
        self.controller = Controller(method)

    def forward(
        self, student_logits: Tensor, teacher_logits: Tensor, progress: Tensor, labels: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """The two temperatures and the two weights, `[B]` each, of logits `[B, C]`, `progress` `[]`, labels `[B]`."""
        return self.answer(student_logits, teacher_logits, progress, labels)

    def answer(
        self, student_logits: Tensor, teacher: Tensor | SparseTeacher, progress: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, ...]:
        """What the controller answers, one tensor an output."""
        found = self.controller.temperatures(student_logits, teacher, labels, progress)
        return tuple(one.clone() for one in found.outputs().values())

    def of_teacher(self, logits: Tensor) -> tuple[Tensor, ...]:
        """The inputs that stand for a teacher's logits."""
        return (logits,)

    def shapes(self, batch: Any, classes: Any) -> tuple[dict[int, Any] | None, ...]:
        """Which sizes of its inputs are any."""
        return {0: batch, 1: classes}, {0: batch, 1: classes}, None, {0: batch}

    def inputs(self, shape: tuple[int, int], progress: float) -> tuple[Tensor, ...]:
        """Random inputs, with labels where the rule needs them."""
        generator = torch.Generator().manual_seed(shape[0])
        student, teacher = 3 * torch.randn(2, *shape, generator=generator)
        inputs = student, *self.of_teacher(teacher), torch.tensor(progress)
        try:
            self(*inputs)
        except BadInputError:
            return *inputs, torch.arange(shape[0]) % shape[1]
        return inputs


class SparseTemperatureModule(TemperatureModule):
    """The same for a teacher of which only the top is known."""

    names = ("student_logits", "teacher_ids", "teacher_log_probs", "tail", "progress", "labels")

    def forward(  # type: ignore[override]
        self,
        student_logits: Tensor,
        teacher_ids: Tensor,
        teacher_log_probs: Tensor,
        tail: Tensor,
        progress: Tensor,
        labels: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """The answer for logits `[B, C]`, ids and log-probabilities `[B, K]`, a tail `[B, 6]`."""
        return self.answer(student_logits, SparseTeacher(teacher_ids, teacher_log_probs, tail), progress, labels)

    def of_teacher(self, logits: Tensor) -> tuple[Tensor, ...]:
        """Its top and its tail."""
        top = SparseTeacher.of_logits(logits, 2 + len(logits) % 3)
        assert top.tail is not None
        return top.ids, top.log_probs, top.tail

    def shapes(self, batch: Any, classes: Any) -> tuple[dict[int, Any] | None, ...]:
        """K is any, too."""
        top = {0: batch, 1: classes}
        return {0: batch, 1: classes}, top, top, {0: batch}, None, {0: batch}


def exported(method: MethodLike, top: bool = False) -> torch.export.ExportedProgram:
    """Return a rule as a program of torch's operations, for any batch and any number of classes.

    Args:
        method: What `Controller` takes.
        top: Of a teacher of which only the top is known.

    Raises:
        BadInputError: Where the rule cannot be exported, or the program answers other numbers than the rule.
    """
    module = (SparseTemperatureModule if top else TemperatureModule)(method).eval()
    inputs = module.inputs(_TRACED, 0.3)
    batch, classes = torch.export.Dim.DYNAMIC, torch.export.Dim.DYNAMIC
    name = module.controller.method.name
    try:
        with torch.no_grad(), _quiet():
            shapes = module.shapes(batch, classes)[: len(inputs)]
            program = torch.export.export(module, inputs, dynamic_shapes=shapes)
            _compare(program, module)
    except Exception as error:  # of whatever the rule does
        reason = str(error).strip().partition("\n")[0]
        raise BadInputError(f"{name!r} cannot be exported: {reason}. A policy or a closed-form rule can") from error
    return program


def write(method: MethodLike, path: Path, form: Format, top: bool = False) -> None:
    """Write a rule's program to a new file; `top` as in `exported`.

    Raises:
        BadInputError: As `exported`, and where the file exists or what `form` needs is not installed.
    """
    if path.exists():
        raise BadInputError(f"{path} exists and is not overwritten; choose another --out")
    if form == "onnx":
        _need_onnx()
    program = exported(method, top)
    if form == "torch":
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        atomic_write(path, buffer.getvalue())
        return
    inputs = (SparseTemperatureModule if top else TemperatureModule).names
    with _quiet():
        model = torch.onnx.export(program, dynamo=True, input_names=inputs, output_names=OUTPUTS, verbose=False)
    assert model is not None  # it is with dynamo
    atomic_write(path, model.model_proto.SerializeToString())


def _compare(program: torch.export.ExportedProgram, module: TemperatureModule) -> None:
    """Run the program on other sizes than it was traced with; raises where it cannot, or answers other numbers."""
    run = program.module()
    for shape, progress in zip(_TRIED, (0.0, 0.9), strict=True):
        inputs = module.inputs(shape, progress)
        for output, found, wanted in zip(OUTPUTS, run(*inputs), module(*inputs), strict=True):
            if not torch.allclose(found, wanted, rtol=TOLERANCE, atol=TOLERANCE):
                numbers = f"{found[0].item():g}, the rule's {wanted[0].item():g}"
                raise ValueError(f"at progress {progress} the program's {output} is {numbers}")


def _need_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise BadInputError(f"--format onnx needs {error.name}: pip install 'rltemp[export]'") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's remarks on its own progress."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
