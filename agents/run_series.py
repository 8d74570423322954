"""`rltemp distill --learn`: runs one after another, each under the newest version of a policy that learns from them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rltemp.agents.online import ParameterDistribution, Runs
from rltemp.agents.report_client import ReportClient
from rltemp.agents.reports import FATES
from rltemp.kd.method import Objective
from rltemp.training.checkpoints import Checkpoints, State
from rltemp.training.tensorboard import ONLINE_LAYOUT, Tracker

START_SECONDS, RUN_SECONDS, END_SECONDS = 2.0, 0.25, 2.0
"""How long the first run waits for the service, each further one, and the process at its end for what was not carried
yet. Nobody waits for a service that is away."""

Row = dict[str, Any]


class RunSeries:
    """Trains runs of seeds that follow each other, and reports each to a service.

    Args:
        runs: Trains one.
        client: Brings versions and takes reports; started already.
        fallback: What a run is trained by while there has never been a version.
        out: The run folder, for TensorBoard.
        checkpoints: Where it goes on from; one after each run.
        wait: Seconds that a run may wait for the service before it begins, while the service answers.
    """

    def __init__(
        self,
        runs: Runs,
        client: ReportClient,
        fallback: Objective,
        out: Path,
        checkpoints: Checkpoints,
        wait: float = RUN_SECONDS,
    ) -> None:
        self.runs = runs
        self.client = client
        self.fallback = fallback
        self.checkpoints = checkpoints
        self.wait = wait
        saved: State = checkpoints.resume() or {"rows": [], "student": {}, "events": 0}
        self.rows: list[Row] = saved["rows"]
        self.student: dict[str, Tensor] = saved["student"]
        self.tracker = Tracker(out, saved["events"], ONLINE_LAYOUT)
        self._seconds = 0.0

    def train(self, seed: int, count: int, on_run: Callable[[int, int], None]) -> nn.Module:
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
                on_run(done + 1, count)
                self.checkpoints.tick(done + 1, self._state)
        self.client.close(END_SECONDS)
        student = self.runs.problem.students(seed)
        student.load_state_dict(self.student)
        return student

    def result(self) -> dict[str, Any]:
        """What `result.json` says beside the kept student's accuracies."""
        counts = self.client.counts
        versions = [row["version"] for row in self.rows if row["version"] is not None]
        return {
            "runs": self.rows,
            "controller": {
                "versions": sorted(set(versions)),
                "records": {fate: counts[fate] for fate in (*FATES, "refused", "dropped")},
                "failures": self.client.failures,
                "fallback_runs": len(self.rows) - len(versions),
            },
        }

    def _row(self, newest: ParameterDistribution | None, seed: int) -> Row:
        started = time.perf_counter()
        outcome = self.runs.run(newest, seed) if newest else self.runs.without_version(self.fallback, seed)
        if outcome.report is not None:
            self.client.post(outcome.report)
        best = int(outcome.validation_accuracy.argmax())
        self.student = outcome.student.unstack(best)
        self._seconds = time.perf_counter() - started
        return {
            "seed": seed,
            "version": newest.version if newest else None,
            "improvement": None if outcome.improvement is None else float(outcome.improvement.mean()),
            "validation_accuracy": float(outcome.validation_accuracy.mean()),
            "test_accuracy": float(outcome.test_accuracy.mean()),
            "kept_validation_accuracy": float(outcome.validation_accuracy[best]),
            "kept_test_accuracy": float(outcome.test_accuracy[best]),
        }

    def _scalars(self, row: Mapping[str, Any]) -> dict[str, float]:
        found = {f"online/{name}": row[name] for name in ("version", "improvement", "validation_accuracy")}
        waiting = {"online/waiting_records": float(self.client.waiting), "time/run_seconds": self._seconds}
        return {name: float(value) for name, value in {**found, **waiting}.items() if value is not None}

    def _state(self) -> State:
        return {"rows": self.rows, "student": self.student, "events": self.tracker.flush()}
