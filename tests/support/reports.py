"""Reports of runs that nobody made: draws around a mean, and whatever rewards a test gives them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from rltemp.agents.learner import log_probability
from rltemp.agents.network import mirrored_draws
from rltemp.agents.reports import Record, Report
from rltemp.loading import SHIPPED
from rltemp.policy.policy_file import PolicyFile, read_policy

EXPLORATION = 0.1


def layout() -> PolicyFile:
    """That of the shipped policy: 8 features, a linear network of 27 weights."""
    return read_policy(SHIPPED["universal@1"])


def draws(mean: Tensor, count: int, seed: int, exploration: float = EXPLORATION) -> Tensor:
    """Mirrored draws `[S, P]` around a mean."""
    return mirrored_draws(mean, exploration, count, torch.Generator().manual_seed(seed))


def records(
    mean: Tensor,
    version: int,
    rewards: Sequence[Sequence[float]],
    seed: int = 0,
    group: str = "group",
    drawn: Tensor | None = None,
) -> list[Record]:
    """A group's records: `rewards` has a row for each run and a column for each look."""
    actions = draws(mean, len(rewards), seed) if drawn is None else drawn
    likelihoods = log_probability(actions, mean, EXPLORATION).tolist()
    return [
        Record(
            run=f"{group}/{seed}/{version}/{student}",
            step=look,
            steps=len(row),
            policy_version=version,
            group=f"{group}/{seed}",
            observation=[0.5] * 8,
            action=actions[student].tolist(),
            log_probability=likelihoods[student],
            reward=reward,
        )
        for student, row in enumerate(rewards)
        for look, reward in enumerate(row)
    ]


def report(found: Sequence[Record]) -> Report:
    return Report(potential="margin", records=list(found))


def judged(mean: Tensor, version: int, seed: int, worth: Callable[[Tensor], Tensor], count: int = 8) -> Report:
    """A group whose rewards are what `worth` makes of its draws `[S, P]`, in two looks."""
    drawn = draws(mean, count, seed)
    rows = [[float(value) / 2] * 2 for value in worth(drawn)]
    return report(records(mean, version, rows, seed, drawn=drawn))


def state_of(folder: Path) -> list[str]:
    """Names of what a service has saved."""
    return sorted(path.name for path in folder.rglob("*.ckpt"))
