"""One distillation run driven by actions: what `DistillEnv` and `DistillVecEnv` share, without either's interface.

It holds no training code: the run is a `rltemp.distill.Distillation`, the loss a `Method` whose rule is the action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rltemp.actions import ActionScale
from rltemp.data import Part
from rltemp.distill import Distillation, Problem, predict
from rltemp.envs.rewards import POTENTIALS, WORST, influence
from rltemp.errors import BadInputError
from rltemp.features import DEFAULT_FEATURES, featurize
from rltemp.methods import Method, load_method
from rltemp.names import lookup
from rltemp.types import Signals, TemperatureRule, Temperatures


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
    scale: ActionScale = ActionScale()

    @classmethod
    def make(
        cls, method: str | Method, features: Sequence[str] = DEFAULT_FEATURES, scale: ActionScale | None = None
    ) -> Decision:
        """Check and build: the method by name, at least one known feature."""
        made = load_method(method) if isinstance(method, str) else method
        if made.rule is None or not features:
            raise BadInputError("an environment needs a reference with temperatures and at least one feature")
        return cls(made, tuple(features), scale or ActionScale())

    def loss(self, signals: Signals, action: Tensor) -> Tensor:
        """The objective `[...]` of a step under actions `[..., 2]`."""
        return replace(self.method, rule=lambda s: self.temperatures(s, action)).loss(signals)

    def temperatures(self, signals: Signals, action: Tensor) -> Temperatures:
        """Temperatures `[...]` under actions `[..., 2]`."""
        rule: TemperatureRule | None = self.method.rule
        assert rule is not None  # checked in `make`
        return self.scale.apply(rule(signals), action)


class Episode:
    """One run, from its first observation to its end.

    Args:
        run: Fresh, of one student or a stack.
        decision: What actions mean.
        probe: Samples that rewards are measured on: positions in the run's own part, `[P]` or `[S, P]`.
        reward_interval: Steps from one look at the probe to the next; rewards in between are zero, their sum the same.
        keep_tape: Keep the weights of every step, for `influence`.
    """

    def __init__(
        self,
        run: Distillation,
        decision: Decision,
        probe: Tensor,
        reward_interval: int = 1,
        keep_tape: bool = False,
    ) -> None:
        self.run = run
        self.decision = decision
        self.probe = probe
        self.reward_interval = reward_interval
        self.tape: list[list[Tensor]] | None = [] if keep_tape else None
        self.actions: list[Tensor] = []
        self._metric = lookup(POTENTIALS, run.problem.task.metric, "metric")
        self._worst = WORST[run.problem.task.metric]
        self.signals = run.observe()
        self.observation = featurize(self.signals, decision.features)
        self.potential = self._measure()
        self.diverged = torch.zeros_like(self.potential, dtype=torch.bool)
        self.lost = self.diverged.clone()

    def step(self, action: Tensor) -> Tensor:
        """Train on the current batch at the temperatures of `action`, `[B, 2]` or `[S, B, 2]`.

        Returns:
            The change of each student's potential: a scalar, or `[S]`.
        """
        self.temperatures = self.decision.temperatures(self.signals, action)
        loss = replace(self.decision.method, rule=lambda _: self.temperatures).loss(self.signals)
        if self.tape is not None:
            self.tape.append([parameter.detach().clone() for parameter in self.run.student.parameters()])
            self.actions.append(action)
        self.run.update(loss)
        self.loss = loss.detach()
        self.signals = self.run.observe()
        self.diverged = ~self.signals.student_logits.isfinite().flatten(self.diverged.dim()).all(-1)
        if bool(self.diverged.any()):
            return self._reward()
        self.observation = featurize(self.signals, self.decision.features)
        look = self.run.done or self.run.step % self.reward_interval == 0
        return self._reward() if look else torch.zeros_like(self.potential)

    def recover(self) -> None:
        """Put fresh copies in the place of the students of a stack that diverged, and observe again."""
        self.run.restart(self.diverged)
        self.lost |= self.diverged
        self.signals = self.run.observe()
        self.observation = featurize(self.signals, self.decision.features)
        self.potential = self._measure()

    def influence(self) -> Tensor:
        """Each action's credit for the potential at the end: `[steps, ..., 2]`; needs `keep_tape` and a finished run.

        Zero for a student that diverged on the way: no derivative reaches back across its restart.
        """
        if self.tape is None or not self.run.done:
            raise RuntimeError("influence needs keep_tape=True and a run at its end")
        actions = torch.stack(self.actions)
        outcome = self._metric(*self._probe_logits())
        credits = influence(self.run, self.tape, actions, self.decision.loss, outcome)
        lost = (self.lost | self.diverged).view(*self.lost.shape, *[1] * (credits.dim() - 1 - self.lost.dim()))
        return torch.where(lost | ~credits.isfinite(), 0.0, credits)

    def _reward(self) -> Tensor:
        before, self.potential = self.potential, self._measure()
        return self.potential - before

    @torch.no_grad()
    def _measure(self) -> Tensor:
        value = self._metric(*self._probe_logits())
        return torch.where(value.isfinite(), value, self._worst)

    def _probe_logits(self) -> tuple[Tensor, Tensor]:
        run = self.run
        run.student.eval()
        images = run.problem.dataset.batch(run.part, self.probe)
        return run.student(images).float(), run.part.labels[self.probe]
