"""`rltemp train-teacher`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from rltemp.cli.console import next_command, say, show_next
from rltemp.data.problem import evaluate
from rltemp.errors import BadInputError
from rltemp.io.run_folders import showing
from rltemp.kd.names import shareable
from rltemp.models.weight_files import save_weights
from rltemp.training.options import TaskOptions


@dataclass(frozen=True)
class TrainTeacher(TaskOptions):
    """Train a task's teacher, or take it from the cache, and write its weights."""

    command = "train-teacher"

    def run(self) -> dict[str, Any]:
        """Do it and return the result."""
        out, result = self.look()
        if result is None:
            started = time.monotonic()
            problem = self.problem()
            self.open()
            teacher = problem.teacher
            if teacher is None:
                raise BadInputError(
                    f"task {self.task}: its teacher is known by its logits alone; nothing is to be trained"
                )
            save_weights(teacher, out / "teacher.safetensors", {"task": shareable(problem.task.name), "by": "rltemp"})
            parts = {"train": problem.dataset.train, "validation": problem.dataset.validation}
            found: dict[str, Any] = {
                f"{name}_accuracy": float(evaluate(teacher, problem, part)) for name, part in parts.items()
            }
            found |= {"test_accuracy": problem.teacher_accuracy, "teacher": problem.task.teacher}
            result = self.finish({**found, **problem.teacher_mark}, started)
        with showing(out):
            say(f"Teacher {result['teacher']}: {100 * result['test_accuracy']:.2f} % test accuracy.")
        weights = out / "teacher.safetensors"
        show_next(out, next_command("distill", self.task_words(), out, "--teacher-weights", weights))
        return result
