"""A step that kills its own worker, in a module that workers can import."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from rltemp.kd.method import Objective
from rltemp.training.distill import Distillation
from rltemp.training.steps import Taken, plain_step


class KillingStep:
    """A plain step that kills the worker of the first share that comes to the middle of a run, so many times."""

    def __init__(self, folder: Path, often: int) -> None:
        self.folder, self.often, self.parent = folder, often, os.getpid()

    def __call__(self, run: Distillation, method: Objective) -> Taken:
        killed = len([*self.folder.glob("killed-*")])
        if run.step == 10 and os.getpid() != self.parent and killed < self.often:
            (self.folder / f"killed-{os.getpid()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return plain_step(run, method)
