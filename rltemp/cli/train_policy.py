"""`rltemp train-policy`: what the command prints."""

from __future__ import annotations

import shlex

from rltemp.agents.train import POLICY_FILE
from rltemp.cli.console import show_next
from rltemp.runs.train_policy import VARIETY, TrainPolicyOptions


def train_policy(options: TrainPolicyOptions) -> None:
    """`rltemp train-policy`."""
    options.run()
    out = options.folder()
    file = shlex.quote(str(out / POLICY_FILE))
    words = "--task digits" if options.task == VARIETY else options.task_words()
    show_next(
        out,
        f"tensorboard --logdir {out}",
        f"rltemp distill {words} --rule {file}",
        f"rltemp compare {words} --rules fixed:4 dtkd {file}",
    )
