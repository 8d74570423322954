"""What watches over the numbers of one student's run: all of a step is judged before it may change a weight.

`RunGuard.step` takes a step as `rltemp.training.steps.plain_step` does, but passes a batch over whose logits, loss or
gradient are not finite: it says so in a line, writes down which samples were in it, and after five such batches stops
the run. Temperatures that a rule must not answer are `rltemp.training.safe_temperatures`'s task.

One number is read from the device in a step, right before the optimizer's update: whether logits, temperatures, loss
and gradient are all sound. Only where they are not does anybody look at which is not. Reading it later, or every few
steps, would save no more than a wait for work that the next step needs anyway, and weights and momentum of the steps
in between would have to be kept to be put back.

A sound run is the same to the last bit with a guard and without.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from rltemp.errors import BadInputError, TrainingDivergedError
from rltemp.io.files import atomic_write
from rltemp.kd.method import Objective, StepLoss
from rltemp.kd.signals import Signals, Temperatures
from rltemp.training.distill import Distillation
from rltemp.training.safe_temperatures import BoundWatch, TemperatureGuard

MOST_SKIPPED = 5
"""Steps of a run that are passed over before it is stopped."""

MOST_LISTED = 4096
"""Samples that the file about a step names."""

Tell = Callable[[str], None]


class RunGuard:
    """Keeps numbers that are not finite away from a student's weights.

    Args:
        folder: Where files about passed-over steps go, `nonfinite-step-1204.json`; None writes none.
        tell: Told a line about each such step, and about temperatures, once.
        strict: Stop at the first fault instead.
        network: What is trained, for the messages: student or teacher.
        option: What sets its learning rate, likewise.
        watchers: Told the temperatures of every step whose logits are sound.

    Attributes:
        skipped: How many steps were passed over because of numbers that are not finite.
        overflowed: How many because a float16 gradient overflowed, which lowers the loss scale and is no fault.
        empty: How many because there was no sample in the batch.
        temperatures: What the rule's answers were replaced by.
        bounds: Whether a policy is at its bounds for a whole epoch.
    """

    def __init__(
        self,
        folder: Path | None = None,
        tell: Tell = lambda _: None,
        *,
        strict: bool = False,
        network: str = "student",
        option: str = "--learning-rate",
        watchers: Sequence[Callable[[Temperatures], None]] = (),
    ) -> None:
        self.folder = folder
        self.tell = tell
        self.allowed = 0 if strict else MOST_SKIPPED
        self.network = network
        self.option = option
        self.skipped = self.overflowed = self.empty = 0
        self.temperatures = TemperatureGuard(tell, strict)
        self.bounds = BoundWatch(tell)
        self._watchers: list[Callable[[Temperatures], None]] = [*watchers, self.bounds]
        self._run: Distillation | None = None
        self._buffers: list[Tensor] = []
        self._sound_teacher = False

    def step(self, run: Distillation, method: Objective) -> tuple[Signals, Tensor]:
        """Take a step, or pass the batch over; returns what it saw and the per-sample losses, nan where there are none.

        Raises:
            BadInputError: Where a temperature is one that a rule must not answer, and the guard is strict.
            TrainingDivergedError: At the sixth step that is passed over because of its numbers.
        """
        if self._run is not run:
            self._begin(run, method)
        kept = [buffer.clone() for buffer in self._buffers]
        fault = None
        signals, (loss, temperatures) = self._try(run, method)
        if not run.healthy:
            self._put_back(kept)  # a batch norm has taken in what this forward saw
            fault = self._logits(signals)
            if fault is None and (mended := self.temperatures.mended(method, temperatures)) is not None:
                run.retry()
                signals, (loss, temperatures) = self._try(run, mended)
            if fault is not None:
                loss, temperatures = signals.full(math.nan), None
            elif not run.healthy:
                self._put_back(kept)
                fault = self._passed_over(run, loss)
        if temperatures is not None:
            self._tell_watchers(temperatures.detach())
        if fault is not None:
            self._count(run, *fault)
        if run.step % run.steps_per_epoch == 0:
            self.bounds.end_epoch(run.step // run.steps_per_epoch)
        return signals, loss

    def counts(self) -> dict[str, Any]:
        """What `result.json` says of the run's faults; `degraded` where more than 1 % of the steps had one."""
        return {
            "skipped_steps": self.skipped,
            "overflowed_steps": self.overflowed,
            "empty_steps": self.empty,
            **self.temperatures.counts(),
            **self.bounds.counts(),
        }

    def state(self) -> dict[str, Any]:
        """All counts, for a checkpoint: plain numbers."""
        own = {"skipped": self.skipped, "overflowed": self.overflowed, "empty": self.empty}
        return {**own, "temperatures": self.temperatures.state(), "bounds": self.bounds.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.skipped, self.overflowed, self.empty = (int(state[n]) for n in ("skipped", "overflowed", "empty"))
        self.temperatures.restore(state["temperatures"])
        self.bounds.restore(state["bounds"])

    def _begin(self, run: Distillation, method: Objective) -> None:
        """Find out about a run, once, what would be too slow in every step."""
        self._run, self._buffers = run, list(run.student.buffers())
        stored = run.teacher_logits
        self._sound_teacher = stored is not None and bool(stored.isfinite().all())
        self.bounds.begin(method)

    def _try(self, run: Distillation, method: Objective) -> tuple[Signals, StepLoss]:
        """Take the step, unless one of its numbers is not what it must be."""
        signals = run.observe()
        found = method.step_loss(signals)
        watched = [signals.student_logits, *self.temperatures.doubts(method, found.temperatures)]
        run.update(found.loss, watched if self._sound_teacher else [*watched, signals.teacher_logits])
        return signals, found

    def _put_back(self, kept: list[Tensor]) -> None:
        for buffer, value in zip(self._buffers, kept, strict=True):
            buffer.copy_(value)

    def _tell_watchers(self, temperatures: Temperatures) -> None:
        self.temperatures.steps += 1
        for watcher in self._watchers:
            watcher(temperatures)

    def _logits(self, signals: Signals) -> tuple[str, Tensor] | None:
        """Which network's logits are not finite, and for which samples of the batch, bool `[B]`."""
        for name, logits in ((self.network, signals.student_logits.detach()), ("teacher", signals.teacher_logits)):
            if bool((bad := ~logits.isfinite().all(-1)).any()):
                return f"{name} logits", bad
        return None

    def _passed_over(self, run: Distillation, loss: Tensor) -> tuple[str, Tensor] | None:
        """Why an update changed no weight: counts what is no fault, and names what is one."""
        if not loss.numel():
            self.empty += 1
            return None
        bad = ~loss.detach().isfinite()
        if bool(bad.any()) or not math.isfinite(loss.detach().mean().item()):
            return "loss", bad
        if run.scaler is not None:
            self.overflowed += 1
            return None
        named = run.student.named_parameters()
        names = [name for name, value in named if value.grad is not None and not bool(value.grad.isfinite().all())]
        return f"gradient of {names[0] if names else 'the rule'}", bad

    def _count(self, run: Distillation, what: str, bad: Tensor) -> None:
        self.skipped += 1
        positions, samples = bad.nonzero().flatten().tolist(), run.positions(run.step - 1).tolist()
        first = f" (first index {positions[0]}, training sample {samples[positions[0]]})" if positions else ""
        line = (
            f"non-finite {what}: {len(positions) or len(samples)} of {len(samples)} samples{first} at step {run.step}"
        )
        line += self._listed({"step": run.step, "what": what, "positions": positions, "batch": samples})
        if self.skipped > self.allowed:
            raise TrainingDivergedError(
                f"{line}: stopped after {self.skipped} such steps of {run.step}. {self._advice(what, run)}"
            )
        self.tell(f"{line}: no weight was changed ({self.skipped} of at most {self.allowed} such steps)")

    def _listed(self, found: dict[str, Any]) -> str:
        """Write down which samples were in the batch; a full disk is no reason to stop."""
        if self.folder is None:
            return ""
        file = self.folder / f"nonfinite-step-{found['step']}.json"
        cut = {name: value[:MOST_LISTED] if isinstance(value, list) else value for name, value in found.items()}
        try:
            atomic_write(file, (json.dumps(cut) + "\n").encode())
        except BadInputError as error:
            return f" (not listed: {error})"
        return f", listed in {file.name}"

    def _advice(self, what: str, run: Distillation) -> str:
        if what.startswith("teacher") and self.network != "teacher":
            return "Check the teacher's weights (--teacher-weights) and these samples"
        return f"Lower {self.option} (it is {run.recipe.learning_rate:g}) or check these samples"
