"""Runs of a loop of somebody else's, each under its own draw of a policy that learns from them.

`runs_of` makes them for `Controller(learn=...)`: around a learner in a folder, `FolderLearner`, or around one at a
service (`rltemp serve --learn`). Ledger, checks, draws and PPO are those of `rltemp distill --learn`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Protocol
from weakref import WeakValueDictionary

from torch import Tensor

from rltemp.agents.config import LearningOptions
from rltemp.agents.learner import log_probability
from rltemp.agents.network import mirrored_draws
from rltemp.agents.online import ParameterDistribution
from rltemp.agents.report_client import ReportClient
from rltemp.agents.reports import Record, Report
from rltemp.agents.run_series import END_SECONDS, RUN_SECONDS, START_SECONDS
from rltemp.agents.saved_learner import Published, SavedLearner
from rltemp.envs.rewards import BEST, WORST
from rltemp.errors import BadInputError
from rltemp.io.files import atomic_write
from rltemp.kd.method import Method
from rltemp.kd.names import lookup
from rltemp.kd.signals import Signals, Temperatures
from rltemp.kd.temperature_rule import TemperatureRule, WrappedRule, per_batch
from rltemp.loading import is_policy, load_method, with_teacher
from rltemp.models.random_numbers import random_stream
from rltemp.policy.features import LIMIT, featurize
from rltemp.policy.rule import Policy
from rltemp.remote.http_client import HttpClient
from rltemp.training.identity import random_state, set_random_state

POLICY_FILE = "policy.safetensors"
"""In the folder of a learner: the newest policy, for `rltemp.Controller`, `rltemp distill --rule` and the others."""
OWN_DEFAULTS = {"potential": "accuracy", "students_per_update": 8, "learning_rate": 0.02, "averaging": 0.5}
"""Of a learner in a folder, where they differ from those of `rltemp serve --learn`: for tens of runs, not hundreds."""

Run = tuple[int, int]
"""Its seed, and its number among the runs of this seed."""


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

    Attributes:
        counts: Runs by what became of them: `reported`, `forgotten` (another began before its report), `fallback`.
        between: The method between runs, which answers nothing.
    """

    def __init__(self, learner: LearnerOfRuns, fallback: Method) -> None:
        self.learner = learner
        self.fallback = fallback
        self.counts: Counter[str] = Counter(reported=0, forgotten=0, fallback=0)
        self.between = BETWEEN_RUNS
        self._open: _OpenRun | None = None
        self._begun = False

    def is_done(self, run: Run) -> bool:
        """Whether the learner's folder has this run's report already."""
        return isinstance(self.learner, FolderLearner) and self.learner.is_done(run)

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
        newest, (seed, number) = self._newest, self._run
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
            run=f"own/{seed}/{newest.version}/{number}",
            step=0,
            steps=1,
            policy_version=newest.version,
            group=f"own/{seed}",
            observation=self._observation.tolist(),
            action=self._drawn.tolist(),
            log_probability=float(log_probability(self._drawn, mean, newest.exploration)),
            reward=float(metric) - worst,
        )
        return Report(potential=newest.potential, records=[record])


class FolderLearner(SavedLearner):
    """A learner in this process, whose state and newest policy lie in a folder; saved with every run.

    Args:
        folder: One process at a time; of several learners in one process the youngest has it.
        options: How it learns, and from where.
    """

    unit = "run"
    _owners: ClassVar[WeakValueDictionary[Path, FolderLearner]] = WeakValueDictionary()

    def __init__(self, folder: Path, options: LearningOptions) -> None:
        self.folder = folder
        self._newest_version: ParameterDistribution | None = None
        before = random_state()  # a checkpoint would bring its own back
        try:
            super().__init__(
                folder.name, options.layout(), options, folder, options.potential, options.keep_weights, "learn="
            )
        finally:
            set_random_state(before)
        self.notes.setdefault("done", [])
        self._owners[folder.resolve()] = self

    @property
    def newest(self) -> ParameterDistribution:
        """What the next draw is from."""
        if self._newest_version is None or self._newest_version.version != self.version:
            self._newest_version = ParameterDistribution.of(self._newest(1)[0].centre, self.name)
        return self._newest_version

    def is_done(self, run: Run) -> bool:
        """Whether this run was reported, by this process or an earlier one."""
        return list(run) in self.notes["done"]

    def post(self, report: Report) -> None:
        """Take a report, learn where that is due, and save.

        Raises:
            BadInputError: Where another learner of this process has the folder.
        """
        if self._owners.get(self.folder.resolve()) is not self:
            raise BadInputError(f"another controller of this process learns in {self.folder} by now: use that one")
        if self.ledger.take(report).accepted:
            self.notes["done"] += [_run_of(record) for record in report.records]
        if not self.ledger.due() or self.learn() is None:
            self._save(self._newest(3))

    def settle(self, seconds: float) -> None:
        """Nothing is under way."""

    def policy(self) -> bytes:
        """The policy that was learned so far, as a file."""
        return self._newest(1)[0].policy

    def published(self, files: Published) -> None:
        """Have the newest policy as a file."""
        atomic_write(self.folder / POLICY_FILE, files.policy)

    @property
    def _step(self) -> int:
        return len(self.notes.get("done", []))


def _run_of(record: Record) -> list[int]:
    _, seed, _, number = record.run.split("/")
    return [int(seed), int(number)]


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
    names = [
        name for name in LearningOptions.__dataclass_fields__ if name not in ("start", "keep_weights", "reference")
    ]
    made = LearningOptions(**{**OWN_DEFAULTS, **own, **_known(options, *names)})
    lookup(WORST, made.potential, "potential")
    return OwnRuns(FolderLearner(Path(learn), made), BETWEEN_RUNS)


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
