"""Runs of a loop of somebody else's, each under its own draw of a policy that learns from them.

`runs_of` makes them for `Controller(learn=...)`: around a learner in a folder, `FolderLearner`, or around one at a
service (`rltemp serve --learn`). Ledger, checks, draws and PPO are those of `rltemp distill --learn`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from rltemp.agents.config import LearningOptions
from rltemp.agents.learner import log_probability
from rltemp.agents.network import mirrored_draws
from rltemp.agents.online import ParameterDistribution
from rltemp.agents.report_client import ReportClient
from rltemp.agents.reports import Record, Report
from rltemp.agents.run_series import END_SECONDS, RUN_SECONDS, START_SECONDS
from rltemp.envs.rewards import BEST, WORST
from rltemp.errors import BadInputError
from rltemp.integrations.folder_learner import FolderLearner, Run, name_of
from rltemp.kd.method import Method
from rltemp.kd.names import lookup
from rltemp.kd.signals import Signals
from rltemp.kd.temperature_rule import TemperatureRule, WrappedRule, per_batch
from rltemp.kd.temperatures import Temperatures
from rltemp.loading import is_policy, load_method, with_teacher
from rltemp.models.random_numbers import random_stream
from rltemp.policy.features import LIMIT, featurize
from rltemp.policy.rule import Policy
from rltemp.remote.http_client import HttpClient

OWN_DEFAULTS = {"potential": "accuracy", "students_per_update": 8, "learning_rate": 0.02, "averaging": 0.5}
"""Of a learner in a folder, where they differ from those of `rltemp serve --learn`: for tens of runs, not hundreds."""


class LearnerOfRuns(Protocol):
    """What learns from runs: in this process, or at a service."""

    @property
    def newest(self) -> ParameterDistribution | None:
        """What the next draw is from; None where a service has not answered yet."""

    def post(self, report: Report) -> None:
        """Take a report, now or later."""

    def settle(self, seconds: float) -> None:
        """Wait until all is taken and the newest version is here: so long at most."""

    def policy(self) -> bytes:
        """The policy that was learned so far, as a file."""


class OwnRuns:
    """The runs of one loop, one after another.

    Args:
        learner: Learns from them.
        fallback: The method of a run that begins while there has never been a version.
        is_done: Tells which runs were reported before, by an earlier process too; by default none.

    Attributes:
        counts: Runs by what became of them: `reported`, `forgotten` (another began before its report), `fallback`.
        between: The method between runs, which answers nothing.
    """

    def __init__(
        self, learner: LearnerOfRuns, fallback: Method, is_done: Callable[[Run], bool] = lambda run: False
    ) -> None:
        self.learner = learner
        self.fallback = fallback
        self.is_done = is_done
        self.counts: Counter[str] = Counter(reported=0, forgotten=0, fallback=0)
        self.between = BETWEEN_RUNS
        self._open: _OpenRun | None = None
        self._begun = False

    def order(self, count: int, per_seed: int, first_seed: int) -> Iterator[Run]:
        """The runs of a loop that are not done, in their order."""
        if count < 1 or per_seed < 2:
            raise BadInputError(
                f"runs() needs 1 run or more, and 2 or more of a seed, since a run is judged against the others of its "
                f"seed; got {count} and {per_seed}"
            )
        for number in range(count):
            run = first_seed + number // per_seed, number % per_seed
            if not self.is_done(run):
                yield run

    def begin(self, run: Run) -> Method:
        """Begin a run: the method that it is to be trained under. One that was not reported is forgotten."""
        if min(run) < 0:
            raise BadInputError(f"a run has a seed and a number of 0 or more; got {run}")
        if self.is_done(run):
            raise BadInputError(f"run {run[1]} of seed {run[0]} was reported before; take another, or loop over runs()")
        self.counts["forgotten"] += self._begun
        self.learner.settle(RUN_SECONDS)
        newest = self.learner.newest
        self._begun, self._open = True, None if newest is None else _OpenRun(newest, run)
        return self.fallback if self._open is None else self._open.method

    def report(self, metric: float) -> None:
        """End the run that was begun with its metric, which the learner gets.

        Raises:
            BadInputError: Where no run was begun, or trained, or the metric cannot be; the run then stays open.
        """
        if not self._begun:
            raise BadInputError("report() ends a run, and none was begun: call begin(), or loop over runs()")
        if self._open is None:
            self.counts["fallback"] += 1
        else:
            self.learner.post(self._open.report(metric))
            self.learner.settle(END_SECONDS)
            self.counts["reported"] += 1
        self._begun, self._open = False, None


class _OpenRun:
    """A run under a draw around a version; it remembers what the policy saw of its first batch."""

    def __init__(self, newest: ParameterDistribution, run: Run) -> None:
        self._newest, self._run = newest, run
        mean = newest.network.weights.detach()
        seed, number = run
        # Numbers 0 and 1 are mirrored, 2 and 3, ...: whichever of them this process trains.
        generator = random_stream(seed, "own runs", number // 2)
        self._drawn = mirrored_draws(mean, newest.exploration, 2, generator)[number % 2]
        self._observation: Tensor | None = None
        policy = Policy(newest.manifest, newest.network.tensors(self._drawn), f"version {newest.version}")
        self.method = replace(policy.method(policy.name), rule=WrappedRule(policy, self._ask))

    def _ask(self, signals: Signals, policy: TemperatureRule) -> Temperatures:
        if self._observation is None and signals.student_logits.numel():
            found = featurize(signals.samples(), self._newest.decision.features).flatten(0, -2)
            if len(found):  # a batch without a sample shows nothing
                self._observation = found.nan_to_num().clamp(-LIMIT, LIMIT).mean(0)
        return policy(signals)

    def report(self, metric: float) -> Report:
        """What the learner is told."""
        newest = self._newest
        worst, best = WORST[newest.potential], BEST[newest.potential]
        if not worst <= metric <= best:
            raise BadInputError(
                f"the metric of a run must be from {worst:g} to {best:g} ({newest.potential}), higher is better; got "
                f"{metric:g}. Report {worst:g} for a run that diverged"
            )
        if self._observation is None:
            raise BadInputError("this run never asked the controller for a loss or temperatures: nothing to learn from")
        mean = newest.network.weights.detach()
        record = Record(
            run=name_of(self._run, newest.version),
            step=0,
            steps=1,
            policy_version=newest.version,
            group=f"own/{self._run[0]}",
            observation=self._observation.tolist(),
            action=self._drawn.tolist(),
            log_probability=float(log_probability(self._drawn, mean, newest.exploration)),
            reward=float(metric) - worst,
        )
        return Report(potential=newest.potential, records=[record])


def runs_of(method: object, learn: str | Path, options: dict[str, Any]) -> OwnRuns:
    """Return the runs of a loop.

    Args:
        method: What learning begins as, a policy or a closed-form method; at a service, the name of what is learned.
        learn: A folder, or the URL of a service.
        options: Of `LearningOptions` for a folder; `fallback`, `token_file` and `strict` for a service.

    Raises:
        BadInputError: Where an option is none, or cannot be; where the folder is in use, or the service has no such
            model.
    """
    if not isinstance(method, str):
        raise BadInputError(f"learning begins as a method by name, such as 'universal' or 'fixed:4'; got {method!r}")
    if "://" in str(learn):
        return _at_service(method, str(learn), **_known(options, "fallback", "token_file", "strict"))
    own = {"start": method, "keep_weights": True} if is_policy(method) else {"reference": method}
    names = {field.name for field in fields(LearningOptions)} - {"start", "keep_weights", "reference"}
    made = LearningOptions(**{**OWN_DEFAULTS, **own, **_known(options, *names)})
    lookup(WORST, made.potential, "potential")
    learner = FolderLearner(Path(learn), made)
    return OwnRuns(learner, BETWEEN_RUNS, learner.is_done)


def _at_service(
    model: str, url: str, fallback: str = "fixed:4", token_file: Path | None = None, strict: bool = False
) -> OwnRuns:
    method = with_teacher(load_method(fallback), "a fallback")
    client = ReportClient(HttpClient(url, token_file), model)
    client.start(START_SECONDS, strict)
    return OwnRuns(client, method)


def _known(options: dict[str, Any], *names: str) -> dict[str, Any]:
    for name in options:
        lookup(dict.fromkeys(names), name, "option of learn=")
    return options


@per_batch
def _no_run(signals: Signals) -> Temperatures:
    raise BadInputError("this controller learns from runs, and none is open: call begin(), or loop over runs()")


BETWEEN_RUNS = Method("between runs", _no_run)
"""The method of a controller that learns, before its first run and after each report."""
