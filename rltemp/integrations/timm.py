"""timm: its logit distillation task with a policy's temperatures, and a launcher for its training script.

    python -m rltemp.integrations.timm --rule universal train.py --kd-model-name ... --kd-distill-type logit ...

runs `train.py` unchanged; its `timm.task.LogitDistillationTask` is replaced by one with a rule's temperatures.
"""

from __future__ import annotations

import argparse
import functools
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rltemp.errors import ArtifactRefusedError, BadInputError
from rltemp.integrations.contract import Controller, MethodLike, RecordingController
from rltemp.integrations.host_versions import tested_with
from rltemp.kd.method import soft_part

TESTED = ">=1.0.28,<1.1"


class TemperatureMixin(nn.Module):
    """A base class to name before timm's `LogitDistillationTask`; see `distillation_task`."""

    # What timm's task brings.
    trainable_module: Any
    teacher: Any
    criterion: Any
    student_mean: Any
    student_std: Any
    task_loss_weight: float
    distill_loss_weight: float

    def __init__(
        self,
        student_model: nn.Module,
        teacher_model: Any,
        criterion: nn.Module | None = None,
        *,
        rule: MethodLike = "universal",
        **options: Any,
    ) -> None:
        super().__init__(student_model, teacher_model, criterion, **options)
        method = Controller(rule).method
        soft, weight = soft_part(method)
        # timm's weights where they are given, else the method's; `kd_loss` itself has weight 1, as timm's has.
        if options.get("distill_loss_weight") is None and options.get("task_loss_weight") is None:
            self.task_loss_weight, self.distill_loss_weight = method.ce_weight, weight
        self.controller = RecordingController(soft)
        self.updates, self.total_updates = 0, 0
        self._hook: RemovableHandle | None = None

    def follow(self, optimizer: torch.optim.Optimizer, total_updates: int) -> None:
        """Count the optimizer's steps; the progress that rules see is their share of `total_updates`."""
        if total_updates < 1:
            raise BadInputError(f"total_updates must be at least 1; got {total_updates}")
        if self._hook is not None:  # of another optimizer, or of this one: no step is counted twice
            self._hook.remove()
        self.total_updates, self._hook = total_updates, optimizer.register_step_post_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.updates += 1

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """As timm's: `loss`, `output`, `task_loss`, `kd_loss`; `controller.last` has the temperatures."""
        if self.total_updates < 1:
            raise BadInputError("the length of the run is unknown: call task.follow(optimizer, total_updates) first")
        student = self.trainable_module(input)
        with torch.no_grad():
            teacher = self.teacher(self.teacher.normalize_input(input, self.student_mean, self.student_std))
        labels = target if target.shape == student.shape[:-1] else None  # mix-up's targets are [B, C]
        seen = student, teacher, labels, min(self.updates / self.total_updates, 1.0)
        task_loss, kd_loss = self.criterion(student, target), self.controller.loss(*seen).mean()
        return {
            "loss": self.task_loss_weight * task_loss + self.distill_loss_weight * kd_loss,
            "output": student,
            "task_loss": task_loss,
            "kd_loss": kd_loss,
        }

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """With the updates so far, so that a resumed run goes on where it was."""
        state: dict[str, Any] = super().get_task_state(module=module, ema=ema)  # type: ignore[misc]
        return {**state, "rltemp_updates": self.updates}

    def load_task_state(self, state: dict[str, Any] | None, **options: Any) -> None:
        """Go on where a checkpoint was written."""
        super().load_task_state(state, **options)  # type: ignore[misc]
        self.updates = int((state or {}).get("rltemp_updates", self.updates))


@functools.cache
def task_class() -> type[TemperatureMixin]:
    """The class: timm's `LogitDistillationTask` with temperatures."""
    from timm.task import LogitDistillationTask

    return type("TemperatureDistillationTask", (TemperatureMixin, LogitDistillationTask), {})


def distillation_task(
    student_model: nn.Module,
    teacher_model: Any,
    criterion: nn.Module | None = None,
    *,
    rule: MethodLike = "universal",
    **options: Any,
) -> Any:
    """Make timm's `LogitDistillationTask` at a rule's temperatures.

    Args:
        student_model: As timm's task has it.
        teacher_model: As timm's task has it: a module or a name.
        criterion: As timm's task has it.
        rule: As `rltemp.integrations.Controller` takes it.
        **options: As timm's task has them. `distill_loss_weight` and `task_loss_weight` are the method's own where
            neither is given; `temperature` has no effect.

    Returns:
        The task. `task.follow(optimizer, total_updates)` must be called before the first step.
    """
    tested_with("timm", TESTED)
    return task_class()(student_model, teacher_model, criterion, rule=rule, **options)


def launch(script: str, arguments: Sequence[str], rule: str) -> None:
    """Run a training script of timm as `__main__`, unchanged, with `rule` in its logit distillation.

    The script's own call of `create_scheduler_v2` tells the length of the run.
    """
    tested_with("timm", TESTED)
    import timm.scheduler
    import timm.task

    base: Any = task_class()
    tasks: list[Any] = []

    class LaunchedTask(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, rule=rule, **options)
            tasks.append(self)

    make_scheduler = timm.scheduler.create_scheduler_v2

    def schedule(optimizer: torch.optim.Optimizer, *args: Any, updates_per_epoch: int = 0, **options: Any) -> Any:
        scheduler, epochs = make_scheduler(optimizer, *args, updates_per_epoch=updates_per_epoch, **options)
        for task in tasks:
            task.follow(optimizer, int(epochs * updates_per_epoch))
        return scheduler, epochs

    timm.task.LogitDistillationTask = LaunchedTask
    timm.scheduler.create_scheduler_v2 = schedule
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).resolve().parent))
    runpy.run_path(script, run_name="__main__")
    if not tasks:
        raise BadInputError(f"{script} made no LogitDistillationTask: give it --kd-model-name, --kd-distill-type logit")


def main() -> None:
    """`python -m rltemp.integrations.timm [--rule RULE] train.py ...`: all that follows the script is the script's."""
    parser = argparse.ArgumentParser(
        prog="python -m rltemp.integrations.timm", description=main.__doc__, allow_abbrev=False
    )
    parser.add_argument("--rule", default="universal", help="a method's name, or the path of a policy file")
    parser.add_argument("script", help="timm's train.py")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its own arguments")
    given = parser.parse_args()
    try:
        if not Path(given.script).is_file():
            raise BadInputError(f"there is no script {given.script}")
        Controller(given.rule)  # before the script reads its data
        launch(given.script, given.arguments, given.rule)
    except BadInputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(3 if isinstance(error, ArtifactRefusedError) else 2) from None


if __name__ == "__main__":
    main()
