"""One student's run under a rule, a policy file, or a policy that a service has: `rltemp distill`."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from torch import nn

from rltemp.data.problem import Problem, evaluate, predict
from rltemp.errors import BadInputError
from rltemp.experiments.measures import loss
from rltemp.io.command_words import at_least
from rltemp.io.progress import Bar
from rltemp.io.run_folders import in_a_name
from rltemp.kd.guard_count import warn_of_much
from rltemp.kd.method import Objective
from rltemp.kd.names import shareable
from rltemp.loading import load_method
from rltemp.models.weight_files import save_weights
from rltemp.remote import RemoteRule
from rltemp.remote.http_client import HttpClient, checked_url
from rltemp.training.ddp import Team, assembled, started_together
from rltemp.training.options import TaskOptions
from rltemp.training.tracked_run import TrackedRun

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DistillOptions(TaskOptions):
    """Train one student under a rule or a policy file."""

    out: Path | None = None
    """The run's folder; by default runs/distill-TASK-RULE-SEED."""
    rule: str = "fixed:4"
    """The rule: fixed:4, dtkd:reference=2, a policy file, or module:attribute; `rltemp methods` lists them."""
    seed: int = 0
    """Determines the student's initial weights, batches and augmentation; 0 or more."""
    log_every: int = 10
    """Steps from one entry in the TensorBoard log to the next."""
    strict: bool = False
    """Stop at the first number that is not finite and the first temperature that must not be, rather than pass over a
    few such batches and use T = 4 for such samples, and count them; and where a controller is away at the start."""
    controller: str | None = None
    """URL of a temperature controller (rltemp serve), as in http://127.0.0.1:8000; --rule then names its model."""
    controller_token_file: Path | None = None
    """A file with the token that the controller asks for."""
    controller_mode: Literal["weights", "features"] = "weights"
    """Pull the policy and follow its new versions, so that no step waits for the controller (weights), or send each
    step's features and wait for the answer (features)."""
    controller_deadline: float | None = None
    """Seconds that a run waits for the controller: before it begins (2; with --learn 0.25 before each run), and with
    --controller-mode features in every step (0.25)."""
    fallback: str | None = None
    """The rule of the steps without a controller; by default fixed:4, or the policy's reference once it is known."""
    learn: bool = False
    """Take part in learning the controller's policy (rltemp serve --learn): runs one after another, each under draws
    around its newest version, and report what became of them."""
    runs: int = 1
    """With --learn: runs, of this seed and those that follow; processes side by side need other seeds."""
    replicas: int = 8
    """With --learn: students of a run, which differ by their draws alone; they are judged against each other."""

    command = "distill"

    def folder(self) -> Path:
        """The run's folder; by default every rule and every seed has one of its own."""
        return self.out or Path(f"{super().folder()}-{in_a_name(self.rule)}-{self.seed}")

    def run(self) -> dict[str, Any] | None:
        """Train the student, or find it trained; the result, from the process that writes files.

        Raises:
            BadInputError: Where an option cannot be used.
        """
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
        return result

    def _train(self, team: Team) -> dict[str, Any] | None:
        """Train the student; its result, from the process that writes files."""
        with contextlib.ExitStack() as kept:
            out, method, problem = self.folder(), self._method(team, kept), team.in_turn(self.problem)
            if team.first:
                self.open()
            else:
                out = Path(kept.enter_context(TemporaryDirectory()))
            started = time.monotonic()
            log.info(f"Training {problem.task.student} under {self.rule}{team.each}.")
            together = {} if team.size == 1 else {"processes": str(team.size)}
            file = self.fallback if self.controller else self.rule
            checkpoints = self.checkpoints(problem, file, together, reader=not team.first)
            settings = self.seed, out, self.log_every, checkpoints, self.strict, team
            run = TrackedRun(problem, method, *settings)
            student = run.train()
        if not team.first:
            return None
        found = {**self._saved(problem, student), **run.counts(), **problem.teacher_mark, **run.mark()}
        warn_of_much(self.rule, found["guarded_fraction"])
        return self.finish(found, started, resumed_at=checkpoints.resumed_at, **run.timing())

    def _take_part(self) -> dict[str, Any]:
        """Train runs for the controller's policy."""
        if started_together():
            raise BadInputError("--learn trains many small students; start it without torchrun, in as many processes")
        result = self.look()[1]
        return self._follow() if result is None else result

    def _follow(self) -> dict[str, Any]:
        from rltemp.agents.online import Runs  # SB3 takes a second
        from rltemp.agents.report_client import ReportClient
        from rltemp.agents.run_series import RUN_SECONDS, START_SECONDS, RunSeries

        out, fallback, problem = self.folder(), load_method(self.fallback or "fixed:4"), self.problem()
        runs, wait = Runs(problem, self.replicas), self.controller_deadline
        client = ReportClient(HttpClient(str(self.controller), self.controller_token_file), self.rule)
        client.start(wait or START_SECONDS, self.strict)
        self.open()
        started = time.monotonic()
        log.info(f"Training {self.runs} runs of {self.replicas} {problem.task.student} for {self.rule}.")
        checkpoints = self.checkpoints(problem, self.fallback, unit="run", share=0)
        series = RunSeries(runs, client, fallback, out, checkpoints, wait or RUN_SECONDS)
        with Bar("runs") as bar:
            student = series.train(self.seed, self.runs, bar)
        found = {**self._saved(problem, student), **series.result(), **problem.teacher_mark, **checkpoints.mark()}
        return self.finish(found, started, resumed_at=checkpoints.resumed_at)

    def _check_controller(self) -> None:
        """Refuse options that do not go together before anything is written or trained."""
        if self.controller is not None:
            checked_url(self.controller)
        away = self.controller is None
        given = self.fallback, self.controller_token_file, self.controller_deadline
        asks, logs = self.controller_mode != DistillOptions.controller_mode, self.log_every != DistillOptions.log_every
        for wrong, message in (
            (away and any(value is not None for value in given),
             "--fallback, --controller-token-file and --controller-deadline go with --controller URL"),
            (away and asks, "--controller-mode goes with --controller URL"),
            (away and self.learn, "--learn needs --controller URL, of a service that was started with --learn"),
            (self.learn and asks, "--learn pulls the policy's weights; leave --controller-mode features out"),
            (self.learn and logs, "--learn makes one entry in the log a run; leave --log-every out"),
            (not self.learn and self.runs > 1,
             "--runs goes with --learn; without it, `rltemp compare` trains many students"),
        ):  # fmt: skip
            if wrong:
                raise BadInputError(message)

    def _method(self, team: Team, kept: contextlib.ExitStack) -> Objective:
        """What the run minimises; the thread of a controller's rule ends with `kept`."""
        if self.controller is None:
            return load_method(self.rule)
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
        )
        return kept.enter_context(contextlib.closing(rule)).method(self.rule)

    def _saved(self, problem: Problem, student: nn.Module) -> dict[str, Any]:
        """Save the student; what it is worth."""
        dataset, about = problem.dataset, {"task": shareable(problem.task.name), "rule": shareable(self.rule)}
        save_weights(student, self.folder() / "student.safetensors", about)
        return {
            "test_accuracy": float(evaluate(student, problem, dataset.test)),
            "validation_accuracy": float(evaluate(student, problem, dataset.validation)),
            **(_losses(problem, student) if problem.tokens else {}),
            "teacher_accuracy": problem.teacher_accuracy,
            "student": problem.task.student,
            "task": problem.task.described(),
        }


def _losses(problem: Problem, student: nn.Module) -> dict[str, float]:
    """What a student of tokens loses, in nats a token."""
    splits = {"test_loss": problem.dataset.test, "validation_loss": problem.dataset.validation}
    return {name: float(loss(predict(student, problem, one), one.targets)) for name, one in splits.items()}
