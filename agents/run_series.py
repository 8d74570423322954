"""`rltemp distill --learn`: runs one after another, each under the newest version of a policy that learns from them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rltemp.agents.online import ParameterDistribution, Runs
from rltemp.agents.report_client import ReportClient
from rltemp.data.problem import Problem, evaluate
from rltemp.envs.episode import FIRST_TRAINING_SEED
from rltemp.kd.method import Objective
from rltemp.models.networks import build_model
from rltemp.models.stack import StackedStudent
from rltemp.training.checkpoints import Checkpoints, State
from rltemp.training.distill import Distillation
from rltemp.training.steps import train
from rltemp.training.tensorboard import Tracker

START_SECONDS, RUN_SECONDS, END_SECONDS = 2.0, 0.25, 2.0
"""How long the first run waits for the service, each further one, and the process at its end for what was not carried
yet. Nobody waits for a service that is away."""

Row = dict[str, Any]


class RunSeries:
    """Trains runs of seeds that follow each other, and reports each to a service.

    Args:
        problem: The task, loaded.
        runs: Trains one.
        client: Brings versions and takes reports; started already.
        fallback: What a run is trained by while there has never been a version.
        out: The run folder, for TensorBoard.
        checkpoints: Where it goes on from; one after each run.
        wait: Seconds that a run may wait for the service before it begins, while the service answers; 0.25 by default.
    """

    def __init__(
        self,
        problem: Problem,
        runs: Runs,
        client: ReportClient,
        fallback: Objective,
        out: Path,
        checkpoints: Checkpoints,
        wait: float | None = None,
    ) -> None:
        self.problem = problem
        self.runs = runs
        self.client = client
        self.fallback = fallback
        self.checkpoints = checkpoints
        self.wait = RUN_SECONDS if wait is None else wait
        self.rows: list[Row] = []
        self.student: dict[str, Tensor] = {}
        self._seconds = 0.0
        saved = checkpoints.resume()
        if saved is not None:
            self.rows, self.student = saved["rows"], saved["student"]
        self.tracker = Tracker(out, saved["events"] if saved else 0)

    def train(self, seed: int, count: int, on_run: Callable[[int, int], None] | None = None) -> nn.Module:
        """Train `count` runs, of the seeds from `seed` on; `on_run` is told how many are done, and of how many.

        Returns:
            The student of the last that is best on validation data.

        Raises:
            InterruptedRunError: Where a signal came; what is saved goes on.
        """
        with self.checkpoints, self.tracker:
            while len(self.rows) < count:
                done = len(self.rows)
                self.client.settle(self.wait)
                row = self._row(self.client.newest, seed + done)
                self.rows.append(row)
                self.tracker.scalars(self._scalars(row), done)
                if on_run is not None:
                    on_run(done + 1, count)
                self.checkpoints.tick(done + 1, self._state)
        self.client.close(END_SECONDS)
        dataset = self.problem.dataset
        student = build_model(self.problem.task.student, dataset.image_shape, dataset.num_classes)
        student.load_state_dict(self.student)
        return student.to(self.problem.device)

    def result(self) -> dict[str, Any]:
        """What `result.json` says beside the kept student's accuracies."""
        counts = self.client.counts
        fates = ("accepted", "known", "stale", "refused", "dropped")
        versions = [row["version"] for row in self.rows if row["version"] is not None]
        return {
            "runs": self.rows,
            "controller": {
                "versions": sorted(set(versions)),
                "records": {fate: counts[fate] for fate in fates},
                "failures": self.client.failures,
                "fallback_runs": len(self.rows) - len(versions),
            },
        }

    def _row(self, newest: ParameterDistribution | None, seed: int) -> Row:
        started = time.perf_counter()
        if newest is None:
            student, improvement = self._without(seed), None
            splits = self.problem.dataset.validation, self.problem.dataset.test
            validation, test = (evaluate(student, self.problem.dataset, split) for split in splits)
        else:
            outcome = self.runs.run(newest, seed)
            self.client.post(outcome.report)
            student, improvement = outcome.student, float(outcome.improvement.mean())
            validation, test = outcome.validation_accuracy, outcome.test_accuracy
        best = int(validation.argmax())
        self.student = student.unstack(best)
        self._seconds = time.perf_counter() - started
        return {
            "seed": seed,
            "version": None if newest is None else newest.version,
            "improvement": improvement,
            "validation_accuracy": float(validation.mean()),
            "test_accuracy": float(test.mean()),
            "kept_validation_accuracy": float(validation[best]),
            "kept_test_accuracy": float(test[best]),
        }

    def _without(self, seed: int) -> StackedStudent:
        run = Distillation(self.problem, [FIRST_TRAINING_SEED + seed])
        student = train(run, self.fallback)
        assert isinstance(student, StackedStudent)  # seeds are a sequence
        return student

    def _scalars(self, row: Mapping[str, Any]) -> dict[str, float]:
        found = {f"online/{name}": row[name] for name in ("version", "improvement", "validation_accuracy")}
        waiting = {"online/waiting_records": float(self.client.waiting), "time/run_seconds": self._seconds}
        return {name: float(value) for name, value in {**found, **waiting}.items() if value is not None}

    def _state(self) -> State:
        return {"rows": self.rows, "student": self.student, "events": self.tracker.flush()}
