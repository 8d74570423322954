"""A reinforcement-learning temperature controller for knowledge distillation.

    import rltemp

    controller = rltemp.Controller("universal")   # or "dtkd", "runs/p/policy.safetensors", "my_package.my_file:my_rule"
    loss = controller.loss(student_logits, teacher_logits, labels, progress=step / steps).mean()

A name is imported where it is first used, so that `import rltemp` takes no time. These names need torch, numpy,
safetensors and pydantic alone; `rltemp.envs` adds Gymnasium and `rltemp.agents` Stable-Baselines3.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from rltemp.moved import Moved

if TYPE_CHECKING:
    from rltemp.data.task import Task
    from rltemp.errors import (
        ArtifactRefusedError,
        BadInputError,
        InterruptedRunError,
        RltempError,
        TrainingDivergedError,
        TrainingStoppedError,
    )
    from rltemp.integrations import Controller
    from rltemp.kd.losses import kd_loss
    from rltemp.kd.method import Method
    from rltemp.kd.signals import Signals
    from rltemp.kd.sparse_teacher import SparseTeacher
    from rltemp.kd.temperature_rule import TemperatureRule
    from rltemp.kd.temperatures import Temperatures
    from rltemp.loading import load_method, load_rule
    from rltemp.runs.functions import check, compare, distill, explain, study, train_policy

__version__ = "0.2.0"

__all__ = [
    "ArtifactRefusedError",
    "BadInputError",
    "Controller",
    "InterruptedRunError",
    "Method",
    "RltempError",
    "Signals",
    "SparseTeacher",
    "Task",
    "TemperatureRule",
    "Temperatures",
    "TrainingDivergedError",
    "TrainingStoppedError",
    "check",
    "compare",
    "distill",
    "explain",
    "kd_loss",
    "load_method",
    "load_rule",
    "study",
    "train_policy",
]

_HOMES = {
    "Controller": "integrations",
    "Method": "kd.method",
    "Signals": "kd.signals",
    "SparseTeacher": "kd.sparse_teacher",
    "Task": "data.task",
    "TemperatureRule": "kd.temperature_rule",
    "Temperatures": "kd.temperatures",
    "kd_loss": "kd.losses",
    "load_method": "loading",
    "load_rule": "loading",
    **dict.fromkeys(("check", "compare", "distill", "explain", "study", "train_policy"), "runs.functions"),
}
"""The module of each public name that is no error."""

sys.meta_path.insert(0, Moved())  # before Python's own finders, which would load a submodule a second time


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'rltemp' has no attribute {name!r}")
    globals()[name] = found = getattr(importlib.import_module(f"rltemp.{_HOMES.get(name, 'errors')}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
