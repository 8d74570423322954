"""One distillation run driven by actions: what `DistillEnv` and `DistillVecEnv` share.

It holds no training code: the run is a `rltemp.training.distill.Distillation`, the loss a `Method` whose rule is the
action.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from rltemp.envs.finite import check_observation, check_potential, check_teacher
from rltemp.envs.mixup import mixed_loss
from rltemp.envs.rewards import POTENTIALS, WORST, influence
from rltemp.errors import BadInputError
from rltemp.kd.method import Method
from rltemp.kd.names import lookup
from rltemp.kd.signals import Signals, Temperatures
from rltemp.kd.temperature_rule import per_batch
from rltemp.loading import load_method, with_teacher
from rltemp.policy.actions import ActionScale
from rltemp.policy.features import DEFAULT_FEATURES, FEATURES, featurize
from rltemp.rules.curriculum import LearnedRule
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
        cls,
        method: str | Method,
        features: Sequence[str] = DEFAULT_FEATURES,
        scale: ActionScale | None = None,
    ) -> Decision:
        """Check and build: the method by name, at least one known feature."""
        made = with_teacher(load_method(method), "an environment") if isinstance(method, str) else method
        for name in features:
            lookup(FEATURES, name, "feature")
        if not features:
            raise BadInputError("an environment needs at least one feature")
        return cls(made, tuple(features), scale or ActionScale())

    def loss(
        self, signals: Signals, action: Tensor, on_temperatures: Callable[[Temperatures], None] | None = None
    ) -> Tensor:
        """The objective `[...]` of a step under actions `[..., A]`; who asks is told its temperatures."""

        # Called by the method, where it calls any rule: gradients then add up in the plain loop's order.
        @per_batch
        def rule(signals: Signals) -> Temperatures:
            temperatures = self.temperatures(signals, action)
            if on_temperatures is not None:
                on_temperatures(temperatures)
            return temperatures

        return mixed_loss(replace(self.method, rule=rule).loss, signals)

    def temperatures(self, signals: Signals, action: Tensor) -> Temperatures:
        """Temperatures `[...]` under actions `[..., A]`."""
        return self.scale.apply(signals, self.method.rule(signals), action)


class Episode:
    """One run, from its first observation to its end.

    Args:
        run: Fresh, of one student or a stack.
        decision: What actions mean.
        probe: Samples that rewards are measured on: positions in the run's own part, `[P]` or `[S, P]`.
        reward_interval: Steps from one look at the probe to the next, by default a twentieth of the run; rewards in
            between are zero, their sum the same.
        keep_tape: Keep the weights of every step, for `influence`.
    """

    def __init__(
        self,
        run: Distillation,
        decision: Decision,
        probe: Tensor,
        reward_interval: int | None = None,
        keep_tape: bool = False,
    ) -> None:
        self.run = run
        self.decision = replace(decision, method=run.attach(decision.method))
        if keep_tape and isinstance(decision.method.rule, LearnedRule):
            raise BadInputError(
                f"influence replays a run, and the reference {decision.method.name} has changed since; take one by a "
                "formula, or leave keep_tape out"
            )
        self.probe = probe
        self.reward_interval = reward_interval or max(1, run.steps // LOOKS)
        self.tape: list[list[Tensor]] | None = [] if keep_tape else None
        self.actions: list[Tensor] = []
        self._metric = lookup(POTENTIALS, run.problem.task.metric, "metric")
        self._worst = WORST[run.problem.task.metric]
        self.signals = run.observe()
        check_teacher(self.signals, run.step)
        self.observation = featurize(self.signals, decision.features)
        check_observation(self.observation, self.signals, decision.features, run.step)
        students = self.observation.shape[:-2]
        self.diverged = torch.zeros(students, dtype=torch.bool, device=self.observation.device)
        self.lost = self.diverged.clone()
        self.potential = self._measure()

    def step(self, action: Tensor) -> Tensor:
        """Train on the current batch at the temperatures of `action`, `[B, A]` or `[S, B, A]`.

        Returns:
            The change of each student's potential: a scalar, or `[S]`; zero after an empty batch.

        Raises:
            TrainingDivergedError: Where a feature, a teacher logit or the potential is not finite though the student's
                own numbers are sound, naming it and the sample.
        """
        given: list[Temperatures] = []
        loss = self.decision.loss(self.signals, action, given.append)
        # A step in which no divergence counts, as at the start of a warm-up, asks for none.
        self.temperatures = (given or [self.decision.temperatures(self.signals, action)])[-1].detach()
        if self.tape is not None:
            self.tape.append([parameter.detach().clone() for parameter in self.run.student.parameters()])
            self.actions.append(action)
        self.run.update(loss)
        self.loss = loss.detach()
        self._observe()
        due = self.run.step % self.reward_interval == 0 and bool(loss.numel())
        look = due or self.run.done or bool(self.diverged.any())
        return self._reward() if look else torch.zeros_like(self.potential)

    def recover(self) -> None:
        """Put fresh copies in the place of the students of a stack that diverged, and observe again."""
        fresh = self.diverged
        self.run.restart(fresh)
        self.lost |= fresh
        self._observe()
        self.potential = torch.where(fresh, self._measure(), self.potential)

    def influence(self) -> Tensor:
        """Each action's credit for the potential at the end of a finished run, `[steps, ..., A]`.

        Needs `keep_tape`. Zero for a student that diverged on the way: no derivative reaches back across its
        restart.
        """
        if self.tape is None or not self.run.done:
            raise RuntimeError("influence needs keep_tape=True and a run at its end")
        actions = torch.stack(self.actions)
        outcome = self._metric(*self._probe_logits())
        credits = influence(self.run, self.tape, actions, self.decision.loss, outcome)
        lost = (self.lost | self.diverged).view(*self.lost.shape, *[1] * (credits.dim() - 1 - self.lost.dim()))
        return torch.where(lost | ~credits.isfinite(), 0.0, credits)

    def _observe(self) -> None:
        """Look at the next batch; a student that diverged keeps its last finite observation."""
        run = self.run
        if run.done:
            # A batch after the last, on copies of the buffers: the student stays as its training left it.
            self.signals = run.signals_at(run.step, dict(run.student.named_parameters()))
        else:
            self.signals = run.observe()
        check_teacher(self.signals, run.step)
        observation = featurize(self.signals, self.decision.features)
        check_observation(observation, self.signals, self.decision.features, run.step)
        finite = self.signals.student_logits.isfinite().all(-1) & observation.isfinite().all(-1)
        self.diverged = ~finite.all(-1)
        if bool(self.diverged.any()):
            observation = torch.where(self.diverged[..., None, None], self.observation, observation)
        self.observation = observation

    def _reward(self) -> Tensor:
        before, self.potential = self.potential, self._measure()
        return self.potential - before

    @torch.no_grad()
    def _measure(self) -> Tensor:
        logits, labels = self._probe_logits()
        value = self._metric(logits, labels)
        check_potential(value, logits, self.run.problem.task.metric, self.run.step)
        return torch.where(value.isfinite() & ~self.diverged, value, self._worst)

    def _probe_logits(self) -> tuple[Tensor, Tensor]:
        run = self.run
        run.student.eval()
        images = run.problem.dataset.batch(run.part, self.probe)
        return run.student(images).float(), run.part.labels[self.probe]


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
