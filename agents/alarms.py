"""Alarms of a policy's training: it answers a bound for everyone, or its reward rises while its students get worse."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch

from rltemp.agents.callbacks import RunCallback
from rltemp.agents.config import PolicyConfig
from rltemp.agents.selection import SelectionCallback, StatefulCallback
from rltemp.errors import TrainingDivergedError
from rltemp.training.safe_temperatures import AT_BOUND, NEAR_BOUND, at_bounds

log = logging.getLogger(__name__)

EVALUATIONS = 5
"""Evaluations on validation data over which a trend is judged."""

CLEAR_TREND = 8
"""Of the 10 pairs among 5 evaluations, how many more must rise than fall: chance does as much in 4 % of cases, and in
both curves at once, one up and one down, in 2 of 1,000."""


class CollapseCallback(StatefulCallback):
    """Watches for a policy that has collapsed, and does what `on_collapse` says about it.

    - To a bound: in `collapse_updates` updates in a row more than 95 % of the samples have both temperatures within 1 %
      of the lowest or the highest.
    - Reward against potential: over the last five evaluations on validation data the training reward rises and the
      potential of the policy's students falls, each with a clear trend. The reward is then not what is wanted.

    Stop raises; fallback ends the training, and the reference rule is what is exported; warn goes on. The console has
    the line at the first alarm, TensorBoard `warning/at_bounds` and `warning/collapsed` at every update.

    Args:
        run: Keeps temperatures of each run; like `selection` it stands before this one in the list of callbacks.
        selection: Evaluates policies on validation data.
        config: How the policy is trained.

    Attributes:
        collapse: What was found first, in words; empty while there is nothing.
    """

    kept_attributes = "collapse", "at_bounds", "rewards", "looks", "looked"

    def __init__(self, run: RunCallback, selection: SelectionCallback, config: PolicyConfig) -> None:
        super().__init__()
        self.run = run
        self.selection = selection
        self.config = config
        self.collapse = ""
        self.at_bounds: list[float] = []
        self.rewards: list[float] = []
        self.looks: list[tuple[float, float]] = []
        self.looked = 0

    @property
    def ended(self) -> bool:
        """Whether the training was ended for the reference rule to take over."""
        return bool(self.collapse) and self.config.on_collapse == "fallback"

    def _on_step(self) -> bool:
        return not self.ended

    def _on_rollout_end(self) -> None:
        rewards = self.model.rollout_buffer.rewards  # type: ignore[attr-defined]  # of an on-policy algorithm
        self.rewards.append(float(rewards.sum(0).mean()))
        scale = self.run.env.decision.scale
        limits = scale.minimum, scale.maximum
        near = [at_bounds(t.student, limits) & at_bounds(t.teacher, limits) for t in self.run.temperatures]
        share = float(torch.cat([one.flatten() for one in near]).double().mean()) if near else 0.0
        self.at_bounds = [*self.at_bounds, share][-self.config.collapse_updates :]
        self.logger.record("warning/at_bounds", self.at_bounds[-1])
        self.logger.record("warning/collapsed", float(bool(self.collapse)))
        if len(self.at_bounds) == self.config.collapse_updates and min(self.at_bounds) > AT_BOUND:
            self._alarm(
                f"{100 * self.at_bounds[-1]:.1f} % of the samples are within {100 * NEAR_BOUND:g} % of the bounds "
                f"{scale.minimum:g} and {scale.maximum:g}, in {len(self.at_bounds)} updates in a row"
            )

    def _on_rollout_start(self) -> None:
        # The start of a rollout is the first moment after an evaluation.
        if self.selection.looked == self.looked or not self.rewards:
            return
        self.looked = self.selection.looked
        self.looks = [*self.looks, (float(np.mean(self.rewards)), self.selection.potential)][-EVALUATIONS:]
        self.rewards = []
        rewards, potentials = zip(*self.looks, strict=True)
        if len(self.looks) == EVALUATIONS and trend(rewards) >= CLEAR_TREND and trend(potentials) <= -CLEAR_TREND:
            self._alarm(f"over the last {EVALUATIONS} evaluations the reward rises and the validation potential falls")

    def _on_training_end(self) -> None:
        known = self.collapse
        self._on_rollout_start()
        if self.collapse != known:
            self.logger.dump(self.num_timesteps)  # no update comes that would

    def _alarm(self, what: str) -> None:
        if self.collapse:
            return
        self.collapse = f"{what} (update {self.selection.update})"
        self.logger.record("warning/collapsed", 1.0)
        line = f"the policy has collapsed: {self.collapse}. {self._curves()}"
        if self.config.on_collapse == "stop":
            self.logger.dump(self.num_timesteps)
            raise TrainingDivergedError(
                f"{line}. Reward something else, lower --exploration or --policy-learning-rate, or take --on-collapse "
                "fallback, which exports the reference rule"
            )
        ends = "training ends, and the reference rule is exported" if self.ended else "training goes on (--on-collapse)"
        log.warning(f"alarm: {line}; {ends}")

    def _curves(self) -> str:
        rewards = [f"{reward:.4g}" for reward in [*(reward for reward, _ in self.looks), *self.rewards[-EVALUATIONS:]]]
        potentials = [f"{potential:.4f}" for _, potential in self.looks] or ["no look yet"]
        return (
            f"Reward {', '.join(rewards)}; validation potential {', '.join(potentials)}, "
            f"the reference's {self.selection.reference_potential:.4f}"
        )


def trend(values: Sequence[float]) -> int:
    """How many pairs rise, in order, minus how many fall (Mann and Kendall's S).

    >>> trend([1, 2, 3, 5, 4]), trend([3, 2, 1])
    (8, -3)
    """
    return sum((later > earlier) - (later < earlier) for earlier, later in combinations(values, 2))
