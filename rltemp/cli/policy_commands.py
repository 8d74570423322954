"""The commands that learn a policy: `train-policy`, and `demo`, which does everything once."""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import tyro

from rltemp.agents.config import PolicyConfig, preset
from rltemp.agents.train import CHECKPOINTING, POLICY_FILE, train_policy
from rltemp.cli.compare import Compare
from rltemp.cli.distill import Distill
from rltemp.cli.train_teacher import TrainTeacher
from rltemp.envs.variety import Variety
from rltemp.errors import BadInputError
from rltemp.io.console import say, show_next
from rltemp.training.options import OF_THE_TASK, TaskOptions, at_least, flat

VARIETY = "variety"
"""Another task in every run of students (`rltemp.envs.variety`)."""

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
class PolicyOptions(PolicyConfig):
    """The policy's options beside those of the task, which has a learning rate too."""

    learning_rate: Annotated[float, tyro.conf.arg(name="policy-learning-rate")] = PolicyConfig.learning_rate
    """Learning rate of the policy at the first update; it changes linearly to a fraction of this."""


@dataclass(frozen=True)
class TrainPolicy(TaskOptions):
    """Learn a temperature policy by reinforcement learning and export it as a file.

    --task variety draws another small task for every run of students.
    """

    preset: str = "default"
    """Where options that are not given come from: default, universal (the shipped policy, with --task variety), or rlkd
    (the policy of that paper)."""
    policy: tyro.conf.OmitArgPrefixes[PolicyOptions] = field(default_factory=PolicyOptions)

    command = "train-policy"

    @classmethod
    def preset_options(cls, name: str) -> dict[str, Any]:
        """What a preset changes, by option.

        Raises:
            BadInputError: For a preset nobody knows, with the closest match.
        """
        default, named = flat(cls()), flat(cls(policy=PolicyOptions(**preset(name))))
        return {option: value for option, value in named.items() if value != default[option]}

    def run(self) -> dict[str, Any]:
        """Do it and return the result."""
        out, result = self.look()
        if result is None:
            problem = self.variety() if self.task == VARIETY else self.problem()
            self.open()
            started = time.monotonic()
            say(f"Training a policy on {self.task}.")
            checkpoints = self.checkpoints(None if isinstance(problem, Variety) else problem, **CHECKPOINTING)
            found = train_policy(problem, self.policy, out, sys.stdout.isatty(), checkpoints)
            result = self.finish(found, started, resumed_at=checkpoints.resumed_at)
        file = shlex.quote(str(out / POLICY_FILE))
        words = "--task digits" if self.task == VARIETY else self.task_words()
        show_next(
            out,
            f"tensorboard --logdir {out}",
            f"rltemp distill {words} --rule {file}",
            f"rltemp compare {words} --rules fixed:4 dtkd {file}",
        )
        return result

    def variety(self) -> Variety:
        """Tasks drawn at random; their data and teachers are made here.

        Raises:
            BadInputError: Where an option of one task is given.
        """
        for name in OF_THE_TASK:
            if getattr(self, name) is not None:
                raise BadInputError(
                    f"--task {VARIETY} draws every task's own {name}; leave --{name.replace('_', '-')} out"
                )
        say(f"Drawing the data sets of task {VARIETY}, and training their teachers.")
        return Variety(self.policy.seed)


@dataclass(frozen=True)
class Demo(TaskOptions):
    """Train a teacher, learn a policy, distil a student with it, and compare it with every rule."""

    seeds: int = 64
    """Students for each rule of the comparison."""
    updates: int | None = None
    """Updates of the policy; by default those of train-policy."""

    command = "demo"

    def folder(self) -> Path:
        """The folder of the demo's four runs."""
        return self.out or Path("runs") / "demo"

    def run(self) -> None:
        """Do it; every part is a run of its own, and one that is finished is not done again."""
        at_least(1, seeds=self.seeds, updates=self.updates)
        out = self.folder()
        shared = {f.name: getattr(self, f.name) for f in fields(TaskOptions) if f.name not in ("out", "config")}
        policy = PolicyOptions() if self.updates is None else PolicyOptions(updates=self.updates)
        rule = str(out / "policy" / POLICY_FILE)
        say("1 of 4: the teacher.")
        TrainTeacher(**shared, out=out / "teacher").run()
        say("\n2 of 4: a policy, by reinforcement learning.")
        TrainPolicy(**shared, out=out / "policy", policy=policy).run()
        say("\n3 of 4: one student, taught under the policy.")
        Distill(**shared, out=out / "student", rule=rule).run()
        say("\n4 of 4: the comparison.")
        rules, against = (*DEMO_RULES, rule), ("fixed:4", "dtkd:1|2|4|8")
        Compare(**shared, out=out / "compare", rules=rules, seeds=self.seeds, against=against).run()
        say(f"\nThe policy is {rule}; two lines in a training loop use it (README).")
        show_next(
            out,
            f"tensorboard --logdir {out}",
            f"rltemp distill {self.task_words()} --rule {rule} --seed 1000",
            f"rltemp compare {self.task_words()} --rules fixed:4 dtkd:1 {rule} --first-seed 1000 --seeds 128",
        )
