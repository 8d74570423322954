"""Options of the commands that train many students; the text under a field is its help on the command line."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rltemp.compiling.mode import CompileMode
from rltemp.data.task import Task
from rltemp.errors import BadInputError
from rltemp.experiments.result_cache import CELLS, ResultCache
from rltemp.io.command_words import at_least
from rltemp.io.run_folders import in_a_name, reopen_run, stored_but_for
from rltemp.training.identity import refuse_other_files
from rltemp.training.options import OF_THE_TASK, TaskOptions, configuration

log = logging.getLogger(__name__)

DEFAULT_RULES = ("none", "fixed:1", "fixed:2", "fixed:4", "fixed:8", "dtkd:reference=1|2|4|8")

SELECTION_SEED = 500_000
"""Students that choose between a rule's alternatives have seeds from here up; reported ones smaller seeds."""


GROWING = ("rules", "seeds", "against")
"""Options in which a comparison may differ from the part of it that its folder holds."""


@dataclass(frozen=True)
class ComparisonOptions(TaskOptions):
    """What `compare` and `study` have in common."""

    rules: tuple[str, ...] = ()
    """What to compare."""
    seeds: int = 32
    """Students for each rule."""
    first_seed: int = 0
    """The seeds are this one and those that follow it."""
    against: tuple[str, ...] | None = None
    """Rules that differences are taken to; by default fixed:4 where it is among the rules, else the first."""
    selection_seeds: int = 32
    """Further students for each alternative of a rule that has some."""
    stack: int | None = None
    """Students that train side by side; by default what suits their size."""
    compile: CompileMode = "auto"
    """Compile a training step into one graph: always, never, or auto, where the students are many."""
    allow_mixed: bool = False
    """Compare although versions mix, n differs or a method is degraded; notes say so."""
    workers: int = 1
    """Processes that train, each with --threads; as many as there are cores."""
    only_missing: bool = True
    """Train only what has no cached result, whoever trained the rest; --no-only-missing trains everything anew."""
    ray: str | None = None
    """Address of a Ray cluster (auto, HOST:PORT) that trains instead."""
    html: bool = True
    """Write report.html, with pictures of temperatures, sharpness and features; takes some seconds."""
    time: bool = False
    """Measure how long a training step of each rule takes; up to ten seconds for each task."""

    def grows(self) -> bool:
        """Whether the folder holds this comparison with fewer rules or seeds, finished or not."""
        found = stored_but_for(self.folder(), self.command, configuration(self), GROWING)
        rules, seeds = found.get("rules"), found.get("seeds")
        if not isinstance(rules, list) or not isinstance(seeds, int):
            return False
        kept = {*rules} <= {*self.rules} and seeds <= self.seeds
        return kept and (len(rules), seeds) != (len(self.rules), self.seeds)

    def look(self) -> tuple[Path, dict[str, Any] | None]:
        """As for every run; nothing is shown of a comparison that is to grow."""
        return (self.folder(), None) if self.grows() else super().look()

    def open(self) -> dict[str, Any] | None:
        """As for every run, or a comparison grows; a result of policies whose files were changed since is refused."""
        if self.grows():
            log.info(f"{self.folder()} holds a part of this comparison: what it has is not trained again.")
            if self.only_missing and not self.fresh:
                ResultCache(
                    self.folder() / CELLS, allow_mixed=self.allow_mixed
                )  # refuses while the result still stands
            reopen_run(self.folder(), self.command, configuration(self))
        result = super().open()
        if result is not None:
            refuse_other_files(result, self.rules, self.folder())
        return result

    def check(self) -> None:
        """Refuse numbers that cannot be.

        Raises:
            BadInputError: With the option.
        """
        at_least(1, seeds=self.seeds, selection_seeds=self.selection_seeds, stack=self.stack, workers=self.workers)
        at_least(0, first_seed=self.first_seed)
        if max(self.first_seed + self.seeds, self.selection_seeds) > SELECTION_SEED:
            raise BadInputError(f"seeds must be below {SELECTION_SEED}; give smaller --first-seed and --seeds")

    def reported_seeds(self) -> range:
        """The seeds of the students that are reported."""
        return range(self.first_seed, self.first_seed + self.seeds)

    def baselines(self) -> Sequence[str]:
        """The rules that differences are taken to, as they were written."""
        if self.against:
            return self.against
        return ["fixed:4" if "fixed:4" in self.rules else self.rules[0]]


@dataclass(frozen=True)
class CompareOptions(ComparisonOptions):
    """Train students under several rules, paired by seed, and report the differences."""

    rules: tuple[str, ...] = DEFAULT_RULES
    """What to compare; `dtkd:reference=1|2|4|8` reports the alternative that is best on validation data."""
    tasks: tuple[str, ...] | None = None
    """Several tasks, in place of --task; with --teachers and --students a grid: a table a point, and one over all."""
    teachers: tuple[str, ...] | None = None
    """Several teacher networks, in place of --teacher."""
    students: tuple[str, ...] | None = None
    """Several student networks, in place of --student."""

    command = "compare"

    def folder(self) -> Path:
        """The run's folder."""
        return replace(self, task="-".join(self.tasks), tasks=None).folder() if self.tasks else super().folder()

    @functools.cached_property
    def content(self) -> str:
        """As of one task; of a grid, that of every point."""
        grid = itertools.product(
            self.tasks or (self.task,), self.students or (self.student,), self.teachers or (self.teacher,)
        )
        points = [TaskOptions(**self._task_options(*point)).content for point in grid]
        return " ".join(filter(None, points))

    def _task_options(self, task: str | Task, student: str | None, teacher: str | None) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in OF_THE_TASK}
        return {**own, "task": task, "student": student, "teacher": teacher}


@dataclass(frozen=True)
class StudyOptions(ComparisonOptions):
    """Compare policies with every method, tuned, and with controls that tell what it is about them that helps."""

    rules: tuple[str, ...] = ()
    """The policies: files, or any rules; options list no alternatives."""
    seeds: int = 128
    """Students for each method."""
    first_seed: int = 1000
    """The seeds are this one and those that follow it."""
    against: tuple[str, ...] | None = None
    """Methods that differences are taken to; by default the policies, and at matched weight where those are there."""
    only: tuple[Literal["closed-form", "matched", "controls"], ...] = ("closed-form", "matched", "controls")
    """Which methods: as published, at matched loss weight, controls made from the policies."""

    command = "study"

    def baselines(self) -> Sequence[str]:
        """The methods that differences are taken to, as they were written."""
        if self.against:
            return self.against
        both = self.only != ("closed-form",)
        return [*self.rules, *(f"matched:{policy}" for policy in self.rules if both)]


LEAST_CHECKED = 8
"""Students for each rule of a check, where no number is given: fewer say next to nothing."""


@dataclass(frozen=True)
class CheckOptions(TaskOptions):
    """Tell whether a policy is worth using on your task: about a minute of students, with it and with what is simple.

    Students are measured on validation data, never on test data. Compared are no teacher, fixed:1, the reference of the
    policy, plain distillation at T = 4 and the policy.
    """

    rule: str = "universal"
    """The policy, or another rule, that is judged."""
    seeds: int | None = None
    """Students for each rule; by default as many as a minute trains, 8 to 128."""
    workers: int = 1
    """Processes that train, each with --threads; as many as there are cores."""

    command = "check"

    def folder(self) -> Path:
        """The run's folder; by default every rule has one of its own."""
        return self.out or Path(f"{super().folder()}-{in_a_name(self.rule)}")

    def check(self) -> None:
        """Refuse numbers that cannot be.

        Raises:
            BadInputError: With the option.
        """
        at_least(2, seeds=self.seeds)
        at_least(1, workers=self.workers)
        if self.seeds is not None and self.seeds > SELECTION_SEED:
            raise BadInputError(f"--seeds must be at most {SELECTION_SEED}; got {self.seeds}")

    def look(self) -> tuple[Path, dict[str, Any] | None]:
        """As for every run; nothing is shown of a check with another number of students."""
        return (self.folder(), None) if self._of_others() else super().look()

    def open(self) -> dict[str, Any] | None:
        """As for every run; a check with another number of students goes on with those that are there."""
        if self._of_others():
            reopen_run(self.folder(), self.command, configuration(self))
        result = super().open()
        if result is not None:
            refuse_other_files(result, [self.rule], self.folder())
        return result

    def _of_others(self) -> bool:
        """Whether the folder holds this check but for the number of students."""
        return bool(stored_but_for(self.folder(), self.command, configuration(self), ["seeds"]))


@dataclass(frozen=True)
class ExplainOptions(TaskOptions):
    """Show why a policy sets the temperatures it sets: what they go with, and which features decide them."""

    rules: tuple[str, ...] = ()
    """One policy file."""
    seeds: int = 16
    """Students whose temperatures are recorded; 2 or more."""
    importance_seeds: int = 64
    """Students for each feature that is shuffled, and as many without; 0 leaves their accuracy out."""
    first_seed: int = 0
    """The seeds are this one and those that follow it."""
    stack: int | None = None
    """Students that train side by side; by default what suits their size."""

    command = "explain"

    def check(self) -> None:
        """Refuse numbers that cannot be.

        Raises:
            BadInputError: With the option.
        """
        at_least(2, seeds=self.seeds)
        at_least(1, stack=self.stack)
        at_least(0, first_seed=self.first_seed, importance_seeds=self.importance_seeds)
