"""`rltemp train-policy`: what the command prints."""

from __future__ import annotations

from rltemp.agents.train import POLICY_FILE
from rltemp.cli.console import logs_of, next_command, show_next
from rltemp.runs.train_policy import VARIETY, TrainPolicyOptions


def train_policy(options: TrainPolicyOptions) -> None:
    """`rltemp train-policy`."""
    options.run()
    out = options.folder()
    file = out / POLICY_FILE
    task = "--task digits" if options.task == VARIETY else options.task_words()
    show_next(
        out,
        logs_of(out),
        next_command("distill", task, out, "--rule", file),
        next_command("compare", task, out, "--rules", "fixed:4", "dtkd", file),
    )
