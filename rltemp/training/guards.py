"""What watches over the numbers of one student's run: all of a step is judged before it may change a weight.

One number is read from the device in a step, right before the optimizer's update: whether logits, temperatures, loss
and gradient are all sound. Only where they are not does anybody look at which is not. To read it later, or every few
steps, would spare a wait for work that the next step needs anyway, and weights and momentum would have to be kept.

A sound run is the same to the last bit with a guard and without.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rltemp.errors import BadInputError, TrainingDivergedError
from rltemp.io.files import atomic_write
from rltemp.kd.method import Method, Objective, StepLoss
from rltemp.kd.signals import Signals
from rltemp.kd.temperatures import Temperatures
from rltemp.training.distill import Distillation
from rltemp.training.safe_temperatures import BoundWatch, doubts, mended
from rltemp.training.steps import Taken

log = logging.getLogger(__name__)

MOST_SKIPPED = 5
"""Steps of a run that are passed over before it is stopped."""

MOST_LISTED = 4096
"""Samples that the file about a step names."""

DEGRADED = 0.01
"""A run with a larger fraction of its steps under the fallback is marked."""


@dataclass
class Counts:
    """What became of a run's steps and samples.

    Attributes:
        answered_steps: Steps that had temperatures.
        samples: Temperatures of these.
        guarded: How many of them a rule's own guard gave, in place of its formula, or a policy gave that fades.
        skipped_steps: Passed over because of numbers that are not finite.
        overflowed_steps: Passed over because a float16 gradient overflowed, which lowers the loss scale: no fault.
        empty_steps: Passed over because there was no sample in the batch.
        clamped_samples: Temperatures that lay beyond a bound by rounding, and were put onto it.
        fallback_samples: Temperatures that plain distillation's replaced.
        fallback_steps: Steps with such samples.
    """

    answered_steps: int = 0
    samples: int = 0
    guarded: int | Tensor = 0  # on its device: no step waits for it
    skipped_steps: int = 0
    overflowed_steps: int = 0
    empty_steps: int = 0
    clamped_samples: int = 0
    fallback_samples: int = 0
    fallback_steps: int = 0


class RunGuard:
    """Keeps numbers that are not finite, and temperatures that must not be, away from a student's weights.

    `step` takes a step as `rltemp.training.steps.plain_step` does, but passes a batch over whose logits, loss or
    gradient are not finite: it logs a line, writes down which samples were in it, and stops the run at the sixth.
    A step whose temperatures alone are at fault is taken once more with mended ones.

    Args:
        folder: Where files about passed-over steps go, `nonfinite-step-1204.json`; None writes none.
        strict: Stop at the first fault instead.
        network: What is trained, for the messages: student or teacher.

    Attributes:
        counts: What became of the steps so far.
        bounds: Whether a policy is at its bounds for a whole epoch.
        last: The temperatures of the last step that had some, as they reached the loss.
    """

    def __init__(self, folder: Path | None = None, *, strict: bool = False, network: str = "student") -> None:
        self.folder = folder
        self.strict = strict
        self.network = network
        self.counts = Counts()
        self.bounds = BoundWatch()
        self.last: Temperatures | None = None
        self._run: Distillation | None = None
        self._buffers: list[Tensor] = []
        self._sound_teacher = False

    def step(self, run: Distillation, method: Objective) -> Taken:
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
            if fault is None and (safe := self._mended(method, temperatures)) is not None:
                run.retry()
                signals, (loss, temperatures) = self._try(run, safe)
            if fault is not None:
                loss, temperatures = signals.full(math.nan), None
            elif not run.healthy:
                self._put_back(kept)
                fault = self._passed_over(run, loss)
        if temperatures is not None:
            self._add(temperatures.detach().of_samples(signals.mask))
        if fault is not None:
            self._skip(run, *fault)
        if run.step % run.steps_per_epoch == 0:
            self.bounds.end_epoch(run.step // run.steps_per_epoch)
        return Taken(signals, loss, temperatures)

    def result(self) -> dict[str, Any]:
        """What `result.json` says of the run's faults; `degraded` where more than 1 % of the steps had one."""
        found = {**vars(self.counts), **self.bounds.counts()}
        answered, samples, guarded = (found.pop(name) for name in ("answered_steps", "samples", "guarded"))
        return {
            "guarded_fraction": int(guarded) / max(samples, 1),
            **found,
            "degraded": self.counts.fallback_steps > DEGRADED * answered,
        }

    def state(self) -> dict[str, Any]:
        """All counts, for a checkpoint."""
        return {"counts": dict(vars(self.counts)), "bounds": dict(vars(self.bounds))}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.counts, self.bounds = Counts(**state["counts"]), BoundWatch(**state["bounds"])

    def _begin(self, run: Distillation, method: Objective) -> None:
        """Find out about a run, once, what would be too slow in every step."""
        self._run, self._buffers = run, list(run.student.buffers())
        stored = run.teacher_logits
        self._sound_teacher = stored is not None and bool(stored.isfinite().all())
        self.bounds.limits = method.rule.limits if isinstance(method, Method) else None

    def _try(self, run: Distillation, method: Objective) -> tuple[Signals, StepLoss]:
        """Take the step, unless one of its numbers is not what it must be."""
        signals = run.observe().made_safe()
        found = method.step_loss(signals)
        watched = [signals.student_logits, *doubts(method, found.temperatures)]
        run.update(found.loss, watched if self._sound_teacher else [*watched, signals.teacher_logits])
        return signals, found

    def _mended(self, method: Objective, temperatures: Temperatures | None) -> Method | None:
        """The method with lawful temperatures, which are counted; None where they are lawful already."""
        if (found := mended(method, temperatures)) is None:
            return None
        if self.strict:
            raise BadInputError(found.fault)
        counts, bad = self.counts, found.fallback_samples
        if not counts.fallback_steps and (bad or not counts.clamped_samples):
            what = f"T = {found.plain:g} stands in (fallback)" if bad else "it is put onto the bound (clamped)"
            log.warning(f"alarm: {found.fault}: {what}; result.json counts how often")
        counts.clamped_samples += found.clamped_samples
        counts.fallback_samples += bad
        counts.fallback_steps += bad > 0
        return found.method

    def _add(self, temperatures: Temperatures) -> None:
        self.last = temperatures
        self.counts.answered_steps += 1
        self.counts.samples += temperatures.weight.numel()
        if temperatures.guarded is not None:
            self.counts.guarded = self.counts.guarded + temperatures.guarded.sum()
        self.bounds.add(temperatures.student)

    def _put_back(self, kept: list[Tensor]) -> None:
        for buffer, value in zip(self._buffers, kept, strict=True):
            buffer.copy_(value)

    def _logits(self, signals: Signals) -> tuple[str, Tensor] | None:
        """Which network's logits are not finite, and for which samples of the batch, bool `[B]`."""
        for name, logits in ((self.network, signals.student_logits.detach()), ("teacher", signals.teacher_logits)):
            if bool((bad := ~logits.isfinite().all(-1)).any()):
                return f"{name} logits", bad
        return None

    def _passed_over(self, run: Distillation, loss: Tensor) -> tuple[str, Tensor] | None:
        """Why an update changed no weight: counts what is no fault, and names what is one."""
        if not loss.numel():
            self.counts.empty_steps += 1
            return None
        bad = ~loss.detach().isfinite()
        if bool(bad.any()) or not math.isfinite(loss.detach().mean().item()):
            return "loss", bad
        if run.scaler is not None:
            self.counts.overflowed_steps += 1
            return None
        named = run.student.named_parameters()
        names = [name for name, value in named if value.grad is not None and not bool(value.grad.isfinite().all())]
        return f"gradient of {names[0] if names else 'the rule'}", bad

    def _skip(self, run: Distillation, what: str, bad: Tensor) -> None:
        self.counts.skipped_steps += 1
        skipped, allowed = self.counts.skipped_steps, 0 if self.strict else MOST_SKIPPED
        samples = run.batches.positions(run.step - 1).tolist()
        # Of tokens, the sequences that they are in.
        positions = bad.view(len(samples), -1).any(-1).nonzero().flatten().tolist()
        first = f" (first index {positions[0]}, training sample {samples[positions[0]]})" if positions else ""
        line = (
            f"non-finite {what}: {len(positions) or len(samples)} of {len(samples)} samples{first} at step {run.step}"
        )
        line += self._listed({"step": run.step, "what": what, "positions": positions, "batch": samples})
        if skipped > allowed:
            raise TrainingDivergedError(
                f"{line}: stopped after {skipped} such steps of {run.step}. {self._advice(what, run)}"
            )
        log.warning(f"{line}: no weight was changed ({skipped} of at most {allowed} such steps)")

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
        option = "--learning-rate" if self.network == "student" else "--teacher-learning-rate"
        return f"Lower {option} (it is {run.recipe.learning_rate:g}) or check these samples"
