"""The commands that need no reinforcement learning: each is a dataclass of its options with a method `run`.

`rltemp.cli` reads the options and calls `run`. A command first checks what it was given, then opens its run
folder: so a mistake leaves nothing behind. On a finished folder it shows the result again, nothing more.
"""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from torch import nn

from rltemp import catalogue
from rltemp.addresses import Server
from rltemp.console import say, show_entries, show_next, warn
from rltemp.controls import CONTROLS
from rltemp.errors import BadInputError
from rltemp.loading import SHIPPED, load_method
from rltemp.methods import Method
from rltemp.names import shareable
from rltemp.options import RunOptions, TaskOptions, at_least
from rltemp.problem import Problem, evaluate
from rltemp.runs import showing
from rltemp.team import Team, assembled, started_together
from rltemp.tracked import TrackedRun
from rltemp.weights import save_weights

DEFAULT_RULES = ("none", "fixed:1", "fixed:2", "fixed:4", "fixed:8", "dtkd:reference=1|2|4|8")


@dataclass(frozen=True)
class TrainTeacher(TaskOptions):
    """Train a task's teacher, or take it from the cache, and write its weights."""

    command = "train-teacher"

    def run(self) -> dict[str, Any]:
        """Do it and return the result."""
        out, result = self.look()
        if result is None:
            started = time.monotonic()
            problem = self.problem()
            self.open()
            save_weights(problem.teacher, out / "teacher.safetensors", {"task": shareable(self.task), "by": "rltemp"})
            parts = {"train": problem.dataset.train, "validation": problem.dataset.validation}
            found: dict[str, Any] = {
                f"{name}_accuracy": float(evaluate(problem.teacher, problem.dataset, part))
                for name, part in parts.items()
            }
            found |= {"test_accuracy": problem.teacher_accuracy, "teacher": problem.task.teacher}
            result = self.finish({**found, **problem.teacher_mark}, started)
        with showing(out):
            say(f"Teacher {result['teacher']}: {100 * result['test_accuracy']:.2f} % test accuracy.")
        weights = shlex.quote(str(out / "teacher.safetensors"))
        show_next(out, f"rltemp distill {self.task_words()} --teacher-weights {weights}")
        return result


@dataclass(frozen=True)
class Distill(TaskOptions):
    """Train one student under a rule or a policy file."""

    rule: str = "fixed:4"
    """The rule: fixed:4, dtkd:reference=2, a policy file, or module:attribute; `rltemp methods` lists them."""
    seed: int = 0
    """Determines the student's initial weights, batches and augmentation; 0 or more."""
    log_every: int = 10
    """Steps from one entry in the TensorBoard log to the next."""
    strict: bool = False
    """Stop at the first number that is not finite and the first temperature that must not be, rather than pass over a
    few such batches and use T = 4 for such samples, and count them; and where a controller does not answer."""
    controller: str | None = None
    """URL of a temperature controller (rltemp serve), as in http://127.0.0.1:8000; --rule then names its model."""
    controller_token_file: Path | None = None
    """A file with the token that the controller asks for."""
    controller_mode: Literal["features", "weights"] = "features"
    """Send features in every step, or pull the policy's weights and follow them."""
    controller_deadline: float | None = None
    """Seconds that an answer may take; by default 0.05 from this machine, 0.25 from elsewhere."""
    fallback: str | None = None
    """The rule that stands in while the controller is away; by default the policy's reference."""
    learn: bool = False
    """Take part in learning the controller's policy (rltemp serve --learn): runs one after another, each under draws
    around its newest version, and report what became of them."""
    runs: int = 1
    """With --learn: runs, of this seed and those that follow; processes side by side need other seeds."""
    replicas: int = 8
    """With --learn: students of a run, which differ by their draws alone; they are judged against each other."""

    command = "distill"

    def run(self) -> dict[str, Any]:
        """Do it and return the result."""
        at_least(1, log_every=self.log_every)
        at_least(0, seed=self.seed)
        at_least(1, runs=self.runs, replicas=self.replicas)
        self._check_controller()
        if self.learn:
            return self._take_part()
        with assembled(self.torch_device()) as team:
            result = self.look()[1] if team.first else None
            if team.agreed(result is None):
                result = self._train(team)
        if team.first and result is not None:
            self._show(result)
        return result or {}

    def _train(self, team: Team) -> dict[str, Any] | None:
        """Train the student; its result, from the process that writes files."""
        with contextlib.ExitStack() as kept:
            out, method, problem = self.folder(), self._method(team, kept), team.in_turn(self.problem)
            if team.first:
                self.open()
            else:
                out = Path(kept.enter_context(TemporaryDirectory()))
            started = time.monotonic()
            say(f"Training {problem.task.student} under {self.rule}{team.each}.")
            together = {} if team.size == 1 else {"processes": str(team.size)}
            file = self.fallback if self.controller else self.rule
            checkpoints = self.checkpoints(problem, file, together, reader=not team.first)
            settings = self.seed, out, self.log_every, checkpoints, self.strict, team
            run = TrackedRun(problem, method, *settings)
            student = run.train()
        if not team.first:
            return None
        save_weights(student, out / "student.safetensors", {"task": shareable(self.task), "rule": shareable(self.rule)})
        found = {**self._result(problem, student), **run.counts(), **problem.teacher_mark, **run.mark()}
        return self.finish(found, started, resumed_at=checkpoints.resumed_at, **run.timing())

    def _take_part(self) -> dict[str, Any]:
        """Train runs for the controller's policy, and show what came out."""
        if started_together():
            raise BadInputError("--learn trains many small students; start it without torchrun, in as many processes")
        result = self.look()[1]
        if result is None:
            result = self._follow()
        with showing(self.folder()):
            say(f"{len(result['runs'])} runs; records: {result['controller']['records']}.")
        self._show(result)
        return result

    def _follow(self) -> dict[str, Any]:
        from rltemp.agents.courier import courier  # SB3 takes a second
        from rltemp.agents.followers import PATIENCE, Follower
        from rltemp.agents.online import Runs

        out, fallback, problem = self.folder(), load_method(self.fallback or "fixed:4"), self.problem()
        runs = Runs(problem, self.replicas)
        carrier = courier(str(self.controller), self.rule, self.controller_token_file, warn)
        self.open()
        started = time.monotonic()
        say(f"Training {self.runs} runs of {self.replicas} {problem.task.student} for {self.rule}.")
        checkpoints = self.checkpoints(problem, self.fallback, unit="run", share=0)
        follower = Follower(problem, runs, carrier, fallback, out, checkpoints, self.controller_deadline or PATIENCE)
        student = follower.train(self.seed, self.runs)
        save_weights(student, out / "student.safetensors", {"task": shareable(self.task), "rule": shareable(self.rule)})
        found = {**self._result(problem, student), **follower.result(), **problem.teacher_mark, **checkpoints.mark()}
        return self.finish(found, started, resumed_at=checkpoints.resumed_at)

    def _show(self, result: dict[str, Any]) -> None:
        out = self.folder()
        with showing(out):
            say(
                f"Student {result['student']} under {self.rule}: {100 * result['test_accuracy']:.2f} % test "
                f"accuracy (its teacher {100 * result['teacher_accuracy']:.2f} %)."
            )
        rules = " ".join(dict.fromkeys(["fixed:4", "dtkd", *([] if self.controller else [self.rule])]))
        show_next(out, f"tensorboard --logdir {out}", f"rltemp compare {self.task_words()} --rules {rules}")

    def _check_controller(self) -> None:
        """Refuse what cannot be asked before it is written into a configuration."""
        if self.controller is not None:
            Server.of(self.controller)
        elif any(value is not None for value in (self.fallback, self.controller_token_file, self.controller_deadline)):
            raise BadInputError(
                "--fallback, --controller-token-file and --controller-deadline go with --controller URL"
            )
        if self.learn and self.controller is None:
            raise BadInputError("--learn needs --controller URL, of a service that was started with --learn")
        if not self.learn and self.runs > 1:
            raise BadInputError("--runs goes with --learn; without it, `rltemp compare` trains many students")

    def _method(self, team: Team, kept: contextlib.ExitStack) -> Method:
        """What the run minimises; threads of a controller's rule end with `kept`."""
        if self.controller is None:
            return load_method(self.rule)
        from rltemp.remote import RemoteRule  # with what TLS needs, for those who ask

        if team.size > 1:
            raise BadInputError("--controller answers one process; without torchrun, or with a policy's file")
        rule = RemoteRule(
            self.controller,
            self.rule,
            mode=self.controller_mode,
            token_file=self.controller_token_file,
            fallback=self.fallback,
            deadline=self.controller_deadline,
            strict=self.strict,
            tell=warn,
        )
        return kept.enter_context(rule).method(self.rule)

    def _result(self, problem: Problem, student: nn.Module) -> dict[str, Any]:
        dataset = problem.dataset
        return {
            "test_accuracy": float(evaluate(student, dataset, dataset.test)),
            "validation_accuracy": float(evaluate(student, dataset, dataset.validation)),
            "teacher_accuracy": problem.teacher_accuracy,
            "student": problem.task.student,
            "task": asdict(problem.task),
        }


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
        from rltemp.comparison import run_comparison  # scipy and matplotlib take a second

        return self.work(run_comparison)

    def work(self, run: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Check the numbers, run what is not finished yet, and show it."""
        from rltemp.compare import SELECTION_SEED
        from rltemp.comparison import show_comparison

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
            from rltemp.identities import refuse_other_files  # as above

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
        from rltemp.study import run_study  # as Compare

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
        from rltemp.explain import explain, show_explanation  # as Compare

        at_least(2, seeds=self.seeds)
        at_least(1, stack=self.stack)
        at_least(0, first_seed=self.first_seed, importance_seeds=self.importance_seeds)
        out, result = self.look()
        if result is None:
            result = explain(self)
        with showing(out):
            show_explanation(result, out)
        return result


@dataclass(frozen=True)
class Rules(RunOptions):
    """List every temperature rule and every divergence: formula, source, options, labels, guards."""

    def run(self) -> None:
        """Print them."""
        say("Temperature rules, by name or name:option=value,...\n")
        show_entries(catalogue.rules())
        say("Divergences, by the option divergence=NAME of a method\n")
        show_entries(catalogue.divergences())
        say("A rule is also the path of a policy file (runs/p/policy.safetensors), or module:attribute.")


@dataclass(frozen=True)
class Methods(RunOptions):
    """List every method: a rule with the divergence, the loss weights and the warm-up of its paper."""

    def run(self) -> None:
        """Print them."""
        say("Methods, by name or name:option=value,...; what --rule and --rules take\n")
        show_entries(catalogue.methods())
        say("matched:NAME is the method NAME pulling as hard as plain distillation, with CE at 0.1.")
        say(f"CONTROL:NAME is NAME under a control of rltemp.controls: {', '.join(CONTROLS)}.")
        say(f"Learned, and shipped with the package: {', '.join(SHIPPED)}.")
