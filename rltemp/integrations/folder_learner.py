"""The learner of a loop of somebody else's: in the loop's own process, with its state and its policy in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar
from weakref import WeakValueDictionary

from rltemp.agents.config import LearningOptions
from rltemp.agents.online import ParameterDistribution
from rltemp.agents.reports import Record, Report
from rltemp.agents.saved_learner import KEPT, Published, SavedLearner
from rltemp.errors import BadInputError
from rltemp.io.files import atomic_write
from rltemp.training.identity import random_state, set_random_state

POLICY_FILE = "policy.safetensors"
"""In the folder of a learner: the newest policy, for `rltemp.Controller`, `rltemp distill --rule` and the others."""

Run = tuple[int, int]
"""Its seed, and its number among the runs of this seed."""


def name_of(run: Run, version: int) -> str:
    """What a report calls a run under a draw around a version."""
    return f"own/{run[0]}/{version}/{run[1]}"


def _run_of(record: Record) -> list[int]:
    _, seed, _, number = record.run.split("/")
    return [int(seed), int(number)]


class FolderLearner(SavedLearner):
    """A learner in this process, whose state and newest policy lie in a folder; saved with every run.

    Args:
        folder: One process at a time; of several learners in one process the youngest has it.
        options: How it learns, and from where.

    Raises:
        ArtifactRefusedError: Where the folder has the state of other options.
        BadInputError: Where another process has the folder, it cannot be written, or holds a policy of somebody else.
    """

    unit = "run"
    _owners: ClassVar[WeakValueDictionary[Path, FolderLearner]] = WeakValueDictionary()

    def __init__(self, folder: Path, options: LearningOptions) -> None:
        if (folder / POLICY_FILE).exists() and not [*folder.glob(f"{self.unit}-*.ckpt")]:
            raise BadInputError(f"{folder} has a {POLICY_FILE} that no learner wrote there. Choose another learn=")
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
            self._save(self._newest(KEPT + 1))

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
