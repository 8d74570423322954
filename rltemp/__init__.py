"""A reinforcement-learning temperature controller for knowledge distillation.

    import rltemp

    rule = rltemp.load_rule("runs/p/policy.safetensors")     # or "dtkd", "fixed:4", "my_package.my_file:my_rule"
    signals = rltemp.Signals(student_logits, teacher_logits, labels, progress)
    loss = rltemp.kd_loss(signals, rule(signals)).mean()

This package needs torch alone; `rltemp.envs` adds Gymnasium and `rltemp.agents` Stable-Baselines3.
"""

from rltemp.errors import ArtifactRefusedError, BadInputError, TrainingDivergedError
from rltemp.kd.losses import kd_loss
from rltemp.kd.method import Method
from rltemp.kd.signals import Signals, Temperatures
from rltemp.kd.temperature_rule import TemperatureRule
from rltemp.loading import load_method, load_rule

__version__ = "0.1.0"

__all__ = [
    "ArtifactRefusedError",
    "BadInputError",
    "Method",
    "Signals",
    "TemperatureRule",
    "Temperatures",
    "TrainingDivergedError",
    "kd_loss",
    "load_method",
    "load_rule",
]
