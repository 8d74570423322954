"""`rltemp compare`, `study` and `explain`: the commands that train many students."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rltemp.errors import BadInputError
from rltemp.io.run_folders import showing
from rltemp.training.options import TaskOptions, at_least

DEFAULT_RULES = ("none", "fixed:1", "fixed:2", "fixed:4", "fixed:8", "dtkd:reference=1|2|4|8")


@dataclass(frozen=True)
class Compare(TaskOptions):
    """Train students under several rules, paired by seed, and report the differences."""

    rules: tuple[str, ...] = DEFAULT_RULES
    """What to compare; `dtkd:reference=1|2|4|8` reports the alternative that is best on validation data."""
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
    tasks: tuple[str, ...] | None = None
    """Several tasks, in place of --task; with --teachers and --students a grid: a table a point, and one over all."""
    teachers: tuple[str, ...] | None = None
    """Several teacher networks, in place of --teacher."""
    students: tuple[str, ...] | None = None
    """Several student networks, in place of --student."""
    allow_mixed: bool = False
    """Compare although versions mix, n differs or an arm is degraded; notes say so."""
    workers: int = 1
    """Processes that train, each with --threads; as many as there are cores."""
    only_missing: bool = True
    """Train only cells that are missing, whoever trained the others; --no-only-missing trains all of them anew."""
    ray: str | None = None
    """Address of a Ray cluster (auto, HOST:PORT) that trains instead; all its nodes have to reach the folder --out."""
    html: bool = True
    """Write report.html, with pictures of temperatures, sharpness and features; takes some seconds."""

    command = "compare"

    def run(self) -> dict[str, Any]:
        """Do it and return the result."""
        from rltemp.report.comparison import run_comparison  # scipy and matplotlib take a second

        return self.work(run_comparison)

    def work(self, run: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Check the numbers, run what is not finished yet, and show it."""
        from rltemp.experiments.compare import SELECTION_SEED
        from rltemp.report.comparison import show_comparison

        at_least(1, seeds=self.seeds, selection_seeds=self.selection_seeds, stack=self.stack, workers=self.workers)
        at_least(0, first_seed=self.first_seed)
        if max(self.first_seed + self.seeds, self.selection_seeds) > SELECTION_SEED:
            raise BadInputError(f"seeds must be below {SELECTION_SEED}; give smaller --first-seed and --seeds")
        out, result = self.look()
        if result is None:
            result = run(self)
        with showing(out):
            show_comparison(result, out)
        return result

    def folder(self) -> Path:
        """The run's folder."""
        return replace(self, task="-".join(self.tasks), tasks=None).folder() if self.tasks else super().folder()

    def open(self) -> dict[str, Any] | None:
        """As for every run; a result of policies whose files were changed since is refused."""
        result = super().open()
        if result is not None:
            from rltemp.training.identity import refuse_other_files  # as above

            refuse_other_files(result, self.rules, self.folder())
        return result

    def baselines(self) -> Sequence[str]:
        """The rules that differences are taken to, as they were written."""
        if self.against:
            return self.against
        return ["fixed:4" if "fixed:4" in self.rules else self.rules[0]]


@dataclass(frozen=True)
class Study(Compare):
    """Compare policies with every method, tuned, and with controls that tell what it is about them that helps."""

    rules: tuple[str, ...] = ()
    """The policies: files, or any rules; options list no alternatives."""
    seeds: int = 128
    """Students for each arm."""
    first_seed: int = 1000
    """The seeds are this one and those that follow it."""
    against: tuple[str, ...] | None = None
    """Arms that differences are taken to; by default the policies, at matched weight too where there are such arms."""
    only: tuple[Literal["closed-form", "matched", "controls"], ...] = ("closed-form", "matched", "controls")
    """Which arms: methods as published, at matched loss weight, controls made from the policies."""

    command = "study"

    def run(self) -> dict[str, Any]:
        """Do it and return the result."""
        from rltemp.experiments.study import run_study  # as Compare

        return self.work(run_study)

    def baselines(self) -> Sequence[str]:
        """The arms that differences are taken to, as they were written."""
        if self.against:
            return self.against
        both = self.only != ("closed-form",)
        return [*self.rules, *(f"matched:{policy}" for policy in self.rules if both)]


@dataclass(frozen=True)
class Explain(TaskOptions):
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

    def run(self) -> dict[str, Any]:
        """Do it and return the result."""
        from rltemp.experiments.explain import explain, show_explanation  # as Compare

        at_least(2, seeds=self.seeds)
        at_least(1, stack=self.stack)
        at_least(0, first_seed=self.first_seed, importance_seeds=self.importance_seeds)
        out, result = self.look()
        if result is None:
            result = explain(self)
        with showing(out):
            show_explanation(result, out)
        return result
