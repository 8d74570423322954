"""A policy learned by reinforcement learning: `rltemp train-policy`."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from rltemp.agents.config import PolicyConfig, preset
from rltemp.agents.policy_export import options_of, starting_policy
from rltemp.agents.train import CHECKPOINTING, train_policy
from rltemp.compiling.mode import CompileMode, is_compiled, step_for
from rltemp.data.problem import Problem
from rltemp.envs.variety import Variety
from rltemp.errors import BadInputError
from rltemp.io.pool import check_ray
from rltemp.io.run_folders import reopen_run, stored_but_for
from rltemp.loading import named_policy
from rltemp.policy.policy_file import read_policy
from rltemp.policy.rule import KNOWN_FEATURES
from rltemp.rules.published_methods import reference_method
from rltemp.training.options import OF_THE_TASK, TaskOptions, configuration, flat
from rltemp.training.steps import Step, plain_step

log = logging.getLogger(__name__)

VARIETY = "variety"
"""Another task in every run of students (`rltemp.envs.variety`)."""

FORMERLY = {"clip": "policy_clip", "students": "students_per_update", "tasks": "tasks_per_update"}
"""Options of earlier configuration files under their names of today."""


@dataclass(frozen=True)
class PolicyOptions(PolicyConfig):
    """The policy's options beside those of the task, which has a learning rate, `clip` and `normalise` too."""

    learning_rate: Annotated[float, tyro.conf.arg(name="policy-learning-rate")] = PolicyConfig.learning_rate
    """Learning rate of the policy at the first update; it changes linearly to a fraction of this."""
    clip: Annotated[float, tyro.conf.arg(name="policy-clip")] = PolicyConfig.clip
    """PPO's bound on how far an update moves a decision's probability, as a fraction."""
    normalise: Annotated[bool, tyro.conf.arg(name="policy-normalise")] = PolicyConfig.normalise
    """Centre and scale the features by a run under the reference; otherwise the policy sees them as they are."""


@dataclass(frozen=True)
class TrainPolicyOptions(TaskOptions):
    """Learn a temperature policy by reinforcement learning and export it as a file.

    --task variety draws another small task for every run of students.
    """

    preset: str = "default"
    """Where options that are not given come from: default, universal (the shipped policy, with --task variety), or rlkd
    (the policy of that paper)."""
    workers: int = 1
    """Processes that train the students, each with --threads; as many as there are cores."""
    ray: str | None = None
    """Take the --workers from the Ray cluster at this address: auto, HOST:PORT, or ray://HOST:PORT."""
    compile: CompileMode = "auto"
    """Compile a training step into one graph: always, never, or auto, where the students are many."""
    policy: tyro.conf.OmitArgPrefixes[PolicyOptions] = field(default_factory=PolicyOptions)

    command = "train-policy"

    @classmethod
    def implied(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """What `preset` and `start_from` among the options stand for; what else is given comes before it."""
        preset_options = cls.preset_options(given["preset"]) if given.get("preset") else {}
        return preset_options | (cls.options_of_start(given["start_from"]) if given.get("start_from") else {})

    @classmethod
    def preset_options(cls, name: str) -> dict[str, Any]:
        """What a preset changes, by option.

        Raises:
            BadInputError: For a preset nobody knows, with the closest match.
        """
        default, named = flat(cls()), flat(cls(policy=PolicyOptions(**preset(name))))
        return {option: value for option, value in named.items() if value != default[option]}

    @classmethod
    def options_of_start(cls, name: str) -> dict[str, Any]:
        """What the policy that a training begins as says of itself, by option.

        Raises:
            BadInputError: Where there is no such policy, or its reference is none.
            ArtifactRefusedError: Where its file fails a check.
        """
        path, sha256 = named_policy(name)
        manifest = read_policy(path, KNOWN_FEATURES, sha256).manifest
        reference_method(manifest.reference)  # it becomes a word of the command line
        return options_of(manifest)

    @classmethod
    def upgraded(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The options of a configuration file, some of which had other names in an earlier one."""
        now = {old: name for old, name in FORMERLY.items() if name not in values}
        if isinstance(values.get("normalise"), bool):  # the task's is a text
            now["normalise"] = "policy_normalise"
        return {now.get(name, name): value for name, value in values.items()}

    def goes_on(self) -> bool:
        """Whether the folder holds this training with fewer updates, finished or not."""
        found = stored_but_for(self.folder(), self.command, configuration(self), ["updates"])
        before = found.get("updates")
        return isinstance(before, int) and before < self.policy.updates and not self.fresh

    def look(self) -> tuple[Path, dict[str, Any] | None]:
        """As for every run; nothing is shown of a training that is to go on."""
        return (self.folder(), None) if self.goes_on() else super().look()

    def open(self) -> dict[str, Any] | None:
        """As for every run, or a training goes on to more updates."""
        if self.goes_on():
            log.info(
                f"{self.folder()} holds a part of this training: it goes on to {self.policy.updates} updates, and from "
                "there on the learning rate is that of so many."
            )
            reopen_run(self.folder(), self.command, configuration(self))
        return super().open()

    def run(self) -> dict[str, Any]:
        """Train the policy, or find it trained; the result.

        Raises:
            BadInputError: Where an option cannot be used.
        """
        self.policy.check_workers(self.workers, self.ray)
        if self.policy.agent == "sample" and self.compile == "always":
            raise BadInputError("--compile always: with --agent sample SB3 takes every step; leave one of them out")
        if self.policy.agent == "sample" and self.task == VARIETY:
            raise BadInputError(f"--agent sample takes steps of one shape; with --task {VARIETY} leave it out")
        reference_method(self.policy.reference)  # a teacher may take hours
        starting_policy(self.policy)
        out, result = self.look()
        if result is not None:
            return result
        if self.ray is not None:
            check_ray(self.ray)
        problem = self._variety() if self.task == VARIETY else self.problem()
        self.open()
        started = time.monotonic()
        log.info(f"Training a policy on {self.task_name()}.")
        step = self._step(problem)
        made = {"compiled": "yes"} if is_compiled(step) else {}
        one = None if isinstance(problem, Variety) else problem
        checkpoints = self.checkpoints(one, extra=made, **CHECKPOINTING)
        found = train_policy(problem, self.policy, out, checkpoints, self.workers, ray=self.ray, step=step)
        return self.finish(found, started, resumed_at=checkpoints.resumed_at)

    def _step(self, problem: Problem | Variety) -> Step:
        """How the students take their steps; with agent sample SB3 asks for each."""
        if self.policy.agent == "sample":
            return plain_step
        if isinstance(problem, Variety):
            one, steps = problem.problem, self.policy.updates * problem.steps // problem.shapes
        else:
            one, steps = problem, self.policy.updates * problem.task.recipe.steps(len(problem.dataset.train))
        return step_for(self.compile, one.device, steps * self.policy.students_per_update * one.batch_samples)

    def _variety(self) -> Variety:
        """Tasks drawn at random; their data and teachers are made here.

        Raises:
            BadInputError: Where an option of one task is given.
        """
        for name in OF_THE_TASK:
            if getattr(self, name) is not None:
                raise BadInputError(
                    f"--task {VARIETY} draws every task's own {name}; leave --{name.replace('_', '-')} out"
                )
        log.info(f"Drawing the data sets of task {VARIETY}, and training their teachers.")
        return Variety(seed=self.policy.seed)
