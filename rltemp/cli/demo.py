"""`rltemp demo`: a teacher, a policy, a student and a comparison, one after the other."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from rltemp.agents.train import POLICY_FILE
from rltemp.cli.compare import compare
from rltemp.cli.console import logs_of, next_command, say, show_next
from rltemp.cli.distill import distill
from rltemp.cli.train_policy import train_policy
from rltemp.cli.train_teacher import TrainTeacher
from rltemp.experiments.options import CompareOptions
from rltemp.io.command_words import at_least
from rltemp.runs.distill import DistillOptions
from rltemp.runs.train_policy import PolicyOptions, TrainPolicyOptions
from rltemp.training.options import TaskOptions

DEMO_RULES = (
    "none",
    "fixed:1",
    "fixed:2",
    "fixed:4",
    "fixed:8",
    "fixed:16",
    "fixed:temperature=1|2|4|8,ce_weight=1,kd_weight=4",  # plain KD at the loss weights of DTKD's objective
    "dtkd:1|2|4|8",  # the whole published objective, and then its rule at plain KD's weights
    "dtkd:reference=1|2|4|8,ce_weight=0.1,kd_weight=0.9,plain_kd_weight=0,warmup=0",
)


@dataclass(frozen=True)
class Demo(TaskOptions):
    """Train a teacher, learn a policy, distil a student with it, and compare it with every rule."""

    seeds: int = 64
    """Students for each rule of the comparison."""
    updates: int | None = None
    """Updates of the policy; by default those of train-policy."""

    command = "demo"

    def run(self) -> None:
        """Do it; each of the four is a run of its own, and one that is finished is not done again."""
        at_least(1, seeds=self.seeds, updates=self.updates)
        out = self.out or Path("runs") / "demo"
        shared = {f.name: getattr(self, f.name) for f in fields(TaskOptions) if f.name not in ("out", "config")}
        policy = PolicyOptions() if self.updates is None else PolicyOptions(updates=self.updates)
        rule = str(out / "policy" / POLICY_FILE)
        say("1 of 4: the teacher.")
        TrainTeacher(**shared, out=out / "teacher").run()
        say("\n2 of 4: a policy, by reinforcement learning.")
        train_policy(TrainPolicyOptions(**shared, out=out / "policy", policy=policy))
        say("\n3 of 4: one student, taught under the policy.")
        distill(DistillOptions(**shared, out=out / "student", rule=rule))
        say("\n4 of 4: the comparison.")
        comparison = CompareOptions(
            **shared,
            out=out / "compare",
            rules=(*DEMO_RULES, rule),
            seeds=self.seeds,
            selection_seeds=min(self.seeds, CompareOptions.selection_seeds),
            against=("fixed:4", "dtkd:1|2|4|8"),
        )
        compare(comparison)
        say(f"\nThe policy is {rule}; three lines in a training loop use it (README).")
        task = self.task_words()
        show_next(
            out,
            logs_of(out),
            next_command("distill", task, out, "--rule", rule, "--seed", 1000),
            next_command(
                "compare", task, out, "--rules", "fixed:4", "dtkd:1", rule, "--first-seed", 1000, "--seeds", 128
            ),
        )
