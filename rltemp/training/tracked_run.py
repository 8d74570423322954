"""One student's training as the command `distill` runs it: logged, checkpointed, and stopped where numbers fail."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from rltemp.data.problem import Problem, predict
from rltemp.errors import TrainingDivergedError
from rltemp.io.progress import Bar
from rltemp.kd.method import Method, Objective
from rltemp.kd.signals import Signals
from rltemp.training.checkpoints import INEXACT, Checkpoints, State
from rltemp.training.ddp import ALONE, Team
from rltemp.training.distill import Distillation
from rltemp.training.guards import DEGRADED, RunGuard
from rltemp.training.steps import train
from rltemp.training.tensorboard import STUDENT_LAYOUT, Tracker, step_scalars, validation_scalars


@runtime_checkable
class ReportingRule(Protocol):
    """A rule whose answers come from outside the run, as from a controller, and that has something to say of them."""

    def state(self) -> dict[str, Any]:
        """Its counts, for a checkpoint: plain numbers and text."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on counting from what `state` gave."""

    def counts(self) -> dict[str, Any]:
        """What `result.json` says; `steps` and `fallback_steps` are among it."""

    def scalars(self) -> dict[str, float]:
        """What TensorBoard shows, by tag."""

    def timing(self) -> dict[str, float]:
        """What the clock says."""

    def inexact(self) -> str:
        """Why a run that went on after a stop cannot be what it would have been; empty where it is."""


class TrackedRun:
    """The training of one student.

    Args:
        problem: The task, loaded.
        method: What each step minimises.
        seed: The student's.
        out: The run folder, for TensorBoard.
        log_every: Steps from one entry in the log to the next.
        checkpoints: Where it goes on from, and what it leaves.
        strict: Stop at the first number or temperature that must not be; see `RunGuard`.
        team: The processes that train it together; all but the first have a folder that nobody reads.
    """

    def __init__(
        self,
        problem: Problem,
        method: Objective,
        seed: int,
        out: Path,
        log_every: int,
        checkpoints: Checkpoints,
        strict: bool = False,
        team: Team = ALONE,
    ) -> None:
        self.run = Distillation(problem, seed, team=team)
        self.guard = RunGuard(out, strict=strict)
        rule = method.rule if isinstance(method, Method) else None
        self.controller = rule if isinstance(rule, ReportingRule) else None
        self.method = self.run.attach(method)
        self.log_every = log_every
        self.checkpoints = checkpoints
        saved = checkpoints.resume()
        if saved is not None:
            self.run.restore(saved["run"])
            self.guard.restore(saved["guard"])
            if self.controller is not None:
                self.controller.restore(saved["controller"])
        self.tracker = Tracker(out, saved["events"] if saved and team.first else 0, STUDENT_LAYOUT)
        self._clock = 0.0, 0

    def train(self) -> nn.Module:
        """Train to the end of the run.

        Returns:
            The student.

        Raises:
            TrainingDivergedError: Where its numbers stop being finite.
            InterruptedRunError: Where a signal came; the state is saved.
        """
        run = self.run
        self._clock = time.perf_counter(), run.step
        with self.checkpoints, self.tracker, Bar(self.method.name) as self.bar:
            try:
                student = train(run, self.method, self._after_step, self.guard.step)
            except TrainingDivergedError as error:
                raise TrainingDivergedError(f"{error} ({self.checkpoints.standing(run.step)})") from error
        # Large finite weights may not answer with numbers.
        if not bool(predict(student, run.problem, run.problem.dataset.validation).isfinite().all()):
            raise TrainingDivergedError(
                f"the student's numbers are not finite at step {run.step} of {run.steps}; "
                f"lower --learning-rate (it is {run.recipe.learning_rate:g}) and choose another --out"
            )
        return student

    def state(self) -> State:
        """What a checkpoint holds; the log is on the disk as far as this."""
        found = {"run": self.run.state(), "guard": self.guard.state(), "events": self.tracker.flush()}
        return found if self.controller is None else {**found, "controller": self.controller.state()}

    def counts(self) -> dict[str, Any]:
        """What a result says of guards and faults."""
        found = self.guard.result()
        if self.controller is not None:
            said = self.controller.counts()
            found["fallback_steps"] += said["fallback_steps"]
            found["degraded"] = found["fallback_steps"] > DEGRADED * said["steps"]
            found["controller"] = said
        return found

    def timing(self) -> dict[str, float]:
        """What the clock says of a controller."""
        return {} if self.controller is None else self.controller.timing()

    def mark(self) -> dict[str, str]:
        """What a result says of a continuation that was not exact; nothing where it was.

        Under a controller it is, where all answers came, of one version: others cannot be had again.
        """
        found = self.checkpoints.mark()
        if self.controller is not None and self.checkpoints.resumed_at is not None:
            said = [*found.values(), self.controller.inexact()]
            return {INEXACT: ", ".join(filter(None, said))} if any(said) else {}
        return found

    def _after_step(self, run: Distillation, signals: Signals, loss: Tensor) -> None:
        self.bar(run.step, run.steps)
        # A batch that was passed over has no loss to show.
        logged = run.step % self.log_every == 0 or run.done
        if logged and loss.numel() and math.isfinite(loss.detach().mean().item()):
            self._log(signals, loss)
        if run.step % run.steps_per_epoch == 0:
            self._validate()
        if run.healthy:
            self.checkpoints.tick(run.step, self.state)

    def _log(self, signals: Signals, loss: Tensor) -> None:
        run, (then, step) = self.run, self._clock
        now = time.perf_counter()
        values = step_scalars(signals, loss)
        values["time/step_ms"] = 1000 * (now - then) / (run.step - step)
        values["student/learning_rate"] = run.optimization.learning_rate
        self.tracker.scalars(values, run.step)
        if self.guard.last is not None:  # without those that a mask leaves out
            self.tracker.temperatures(self.guard.last, run.step)
        if self.controller is not None:
            self.tracker.scalars(self.controller.scalars(), run.step)
        self._clock = time.perf_counter(), run.step

    def _validate(self) -> None:
        before, problem = time.perf_counter(), self.run.problem
        validation = problem.dataset.validation
        logits = predict(self.run.evaluated, problem, validation)
        self.tracker.scalars(validation_scalars(logits, validation.targets), self.run.step)
        then, step = self._clock
        self._clock = then + time.perf_counter() - before, step  # no part of a training step
