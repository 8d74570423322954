"""One distillation run driven by actions, step by step: what `DistillEnv` and `DistillVecEnv` share.

It holds no training code: the run is a `rltemp.training.distill.Distillation`, the loss a `Method` whose rule is the
action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from rltemp.envs.finite import explain, sound
from rltemp.envs.probe import ProbeEvaluator
from rltemp.errors import BadInputError
from rltemp.kd.checks import check_temperatures, unlawful
from rltemp.kd.method import Method
from rltemp.kd.names import lookup
from rltemp.kd.signals import Signals
from rltemp.kd.temperature_rule import per_sample
from rltemp.kd.temperatures import Temperatures
from rltemp.loading import load_method, with_teacher
from rltemp.policy.actions import ActionScale
from rltemp.policy.features import DEFAULT_FEATURES, FEATURES, featurize
from rltemp.rules.meta import Mkd
from rltemp.training.distill import Distillation

FIRST_TRAINING_SEED = 1_000_000
"""Students of policy training have seeds from here up: no comparison with smaller seeds ever meets them."""

LOOKS = 20
"""How often a run looks at its probe samples unless told otherwise: a look costs as much as some steps."""


@dataclass(frozen=True)
class Decision:
    """What one action means in one run.

    Args:
        method: The reference; an action of zero is this method exactly.
        features: Names of the observation's columns, in order.
        scale: How far an action moves the reference's temperatures.
    """

    method: Method
    features: tuple[str, ...] = DEFAULT_FEATURES
    scale: ActionScale = field(default_factory=ActionScale)

    @classmethod
    def make(
        cls, method: str | Method, features: Sequence[str] = DEFAULT_FEATURES, scale: ActionScale | None = None
    ) -> Decision:
        """Check and build: the method by name, at least one known feature."""
        made = with_teacher(load_method(method), "an environment") if isinstance(method, str) else method
        if isinstance(made.rule, Mkd):
            raise BadInputError("mkd looks a step ahead, which an environment's step does not; take another method")
        for name in features:
            lookup(FEATURES, name, "feature")
        if not features:
            raise BadInputError("an environment needs at least one feature")
        return cls(made, tuple(features), scale or ActionScale())

    def loss(self, signals: Signals, action: Tensor) -> tuple[Tensor, Temperatures]:
        """The objective `[...]` of a step under actions `[..., A]`, and its temperatures, unchecked."""

        # Called by the method, where it calls any rule: gradients then add up in the plain loop's order. An action
        # belongs to a sample, so that samples must stay in their places.
        @per_sample
        def rule(signals: Signals) -> Temperatures:
            return self.temperatures(signals, action)

        loss, temperatures = replace(self.method, rule=rule).step_loss(signals)
        # A step in which no divergence counts, as at the start of a warm-up, asks for none.
        return loss, temperatures or self.temperatures(signals, action)

    def temperatures(self, signals: Signals, action: Tensor) -> Temperatures:
        """Temperatures `[...]` under actions `[..., A]`."""
        return self.scale.apply(signals, self.method.rule(signals), action)


@dataclass(frozen=True)
class Seen:
    """What leaves a step, on the host.

    Args:
        observation: `[..., B, F]`; of a student that diverged, its last finite one.
        diverged: Which students diverged, `[]` or `[S]`.
        sound: Whether all that is no student's fault is finite.
        means: Over the batch of the step before: the student's and the teacher's temperature, and the loss.
        mask: `[..., B]`, where the observation is a sample's; None: everywhere. Elsewhere it is zero.
    """

    observation: NDArray[np.float32]
    diverged: NDArray[np.bool_]
    sound: bool
    means: NDArray[np.float32]
    mask: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Look:
    """The last step of an episode in full, detached: samples as it saw them, its temperatures and its loss `[...]`."""

    signals: Signals
    temperatures: Temperatures
    loss: Tensor


class Episode:
    """One run, from its first observation to its end.

    Args:
        run: Fresh, of one student or a stack.
        decision: What actions mean.
        probe: Samples that rewards are measured on: positions in the run's own split, `[P]` or `[S, P]`.
        reward_interval: Steps from one look at the probe to the next, by default a twentieth of the run; rewards in
            between are zero, their sum the same.

    Attributes:
        seen: What the last step let out, on the host.
        trained_on: What the last step saw of its batch, with its `temperatures` and `loss`.
        potential: Of each student when the probe was evaluated last, `[]` or `[S]`; `seen_potential` on the host.
        reward: The change of the potential in the last step, on the host.
        lost: Which students were replaced because they diverged, on the host.

    A step waits for the device once, to copy what leaves it, and where it evaluates the probe a second time.
    """

    def __init__(
        self, run: Distillation, decision: Decision, probe: Tensor, reward_interval: int | None = None
    ) -> None:
        self.run = run
        self.decision = replace(decision, method=run.attach(decision.method))
        self.probe = probe
        self.reward_interval = reward_interval or max(1, run.steps // LOOKS)
        self.potential: Tensor
        self.seen_potential: NDArray[np.float32]
        self._probe = ProbeEvaluator(run, probe)
        self.observation = torch.zeros((), device=run.problem.device)
        self._observe()
        self.lost = np.zeros_like(self.seen.diverged)
        self._measure()
        self.reward = np.zeros_like(self.seen_potential)

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.run.steps

    @property
    def taken(self) -> int:
        """Steps so far."""
        return self.run.step

    def look(self) -> Look:
        """The last step."""
        signals = replace(self.trained_on, student_logits=self.trained_on.student_logits.detach())
        return Look(signals, self.temperatures, self.loss)

    @torch.enable_grad()  # as in `_observe`
    def step(self, action: Tensor) -> Tensor:
        """Train on the current batch at the temperatures of `action`, `[B, A]` or `[S, B, A]`.

        Returns:
            The change of each student's potential: a scalar, or `[S]`; zero after an empty batch.

        Raises:
            TrainingDivergedError: Where a feature, a teacher logit or the potential is not finite though the student's
                own numbers are sound, naming it and the sample.
        """
        self.trained_on = self.signals
        loss, temperatures = self.decision.loss(self.trained_on, action)
        self.run.update(loss)
        self.temperatures, self.loss = temperatures.detach(), loss.detach()
        self._observe(self.temperatures, self.loss)
        before, self.reward = self.potential, np.zeros_like(self.seen_potential)
        due = self.run.step % self.reward_interval == 0 and bool(loss.numel())
        if due or self.run.done or self.seen.diverged.any():
            known = self.seen_potential
            self._measure()
            self.reward = self.seen_potential - known
        return self.potential - before

    def recover(self) -> None:
        """Put fresh copies in the place of the students of a stack that diverged, and observe again."""
        fresh, before = self.diverged, (self.potential, self.seen_potential)
        self.run.restart(fresh)
        was = self.seen.diverged
        self.lost = self.lost | was
        self._observe()
        self._measure()
        self.potential = torch.where(fresh, self.potential, before[0])
        self.seen_potential = np.where(was, self.seen_potential, before[1])

    @torch.enable_grad()  # sb3-contrib's ARS acts under no_grad; the student learns all the same
    def _observe(self, temperatures: Temperatures | None = None, loss: Tensor | None = None) -> None:
        """See the next batch; a student that diverged keeps its last finite observation.

        Args:
            temperatures: Of the step before, with its `loss`; None where there was none.
            loss: `[...]`.
        """
        run = self.run
        if run.done:
            # A batch after the last, on copies of the buffers: the student stays as its training left it.
            self.signals = run.signals_at(run.step, dict(run.student.named_parameters()))
        else:
            self.signals = run.observe()
        seen = self.signals.made_safe()
        found = featurize(seen, self.decision.features)
        finite = seen.student_logits.isfinite().all(-1) & found.isfinite().all(-1)
        self.diverged = ~finite.all(-1)
        kept = self.observation if self.observation.shape == found.shape else found  # a first one, or an empty batch
        self.observation = torch.where(self.diverged[..., None, None], kept, found)
        good, means = sound(found, seen), list[Tensor]()
        if temperatures is not None and loss is not None:
            good = good & ~unlawful(temperatures, None).any()
            means = [self._mean_of(value) for value in (temperatures.student, temperatures.teacher, loss)]
        self.seen = _read(self.observation, self.diverged, good, means, seen.mask)
        if not self.seen.sound:
            if temperatures is not None:
                check_temperatures(temperatures, self.decision.method.name)
            explain(found, seen, self.decision.features, run.step)

    def _mean_of(self, values: Tensor) -> Tensor:
        """The mean over all samples of the last batch."""
        mask = self.trained_on.mask
        return values.mean() if mask is None else (values * mask).sum() / mask.sum().clamp(min=1)

    def _measure(self) -> None:
        """Evaluate each student on its probe samples."""
        measured = self._probe.measure(self.diverged)
        self.potential, self.seen_potential = measured.potential, measured.seen_potential


def _read(observation: Tensor, diverged: Tensor, good: Tensor, means: Sequence[Tensor], mask: Tensor | None) -> Seen:
    """Copy all of it to the host at once: each copy waits for the device."""
    ends = observation.numel(), observation.numel() + diverged.numel()
    parts = [observation.flatten(), diverged.flatten(), good[None], *(mean[None] for mean in means)]
    host = torch.cat([part.float() for part in parts]).numpy(force=True)
    return Seen(
        host[: ends[0]].reshape(observation.shape),
        host[ends[0] : ends[1]].reshape(diverged.shape).astype(bool),
        bool(host[ends[1]]),
        host[ends[1] + 1 :],
        None if mask is None else mask.numpy(force=True),
    )


def checked_actions(actions: ArrayLike, shape: tuple[int, ...]) -> Tensor:
    """Return actions as a tensor of its own, `[N, A]` float32.

    Raises:
        BadInputError: Where their shape is another, or a number is not finite, naming the first such sample.
    """
    array = np.array(actions, dtype=np.float32)
    if array.shape != shape:
        raise BadInputError(f"actions have shape {array.shape}, needed: {shape}")
    finite = np.isfinite(array)
    if not finite.all():
        sample, column = np.argwhere(~finite)[0]
        raise BadInputError(f"actions must be finite; got {array[sample, column]} for sample {sample}")
    return torch.from_numpy(array)
