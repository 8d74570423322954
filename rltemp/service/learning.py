"""A policy that is learned while it is served: reports come in at the request handler, a thread beside it learns.

What was reported since the last update is lost where the process is killed; `SavedLearner` keeps all else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path

from rltemp.agents.config import LearnerConfig
from rltemp.agents.saved_learner import Published, SavedLearner
from rltemp.policy.policy_file import PolicyFile
from rltemp.service.logs import event
from rltemp.service.repository import Repository


class Learning(SavedLearner):
    """A model that learns; reports go to its `ledger`, and `failure` says why it learns no more.

    Args:
        name: That it is served under, and that its folder in `folder` has.
        layout: As `SavedLearner` has it, like all that follow.
        config: Likewise.
        folder: That of all states.
        repository: Where versions are published.
        potential: What rewards measure.
        keep_weights: Begin with the layout's weights rather than with its reference rule.

    Raises:
        ArtifactRefusedError: Where the folder has the state of another policy.
        BadInputError: Where another process has the folder, or it cannot be written.
    """

    def __init__(
        self,
        name: str,
        layout: PolicyFile,
        config: LearnerConfig,
        folder: Path,
        repository: Repository,
        potential: str = "margin",
        keep_weights: bool = False,
    ) -> None:
        self.repository = repository
        self.failure = ""
        self.last: Mapping[str, float] = {}
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="rltemp-learner", daemon=True)
        super().__init__(name, layout, config, folder / name, potential, keep_weights)

    def start(self) -> None:
        """Begin to learn."""
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        """Learn no more; an update that is under way is finished."""
        with self.ledger.changed:
            self._stopping = True
            self.ledger.changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def published(self, files: Published) -> None:
        """Serve the version."""
        self.repository.publish(self.name, files.policy, str(files.version))

    def _work(self) -> None:
        changed = self.ledger.changed
        while True:
            with changed:
                changed.wait_for(lambda: self._stopping or self.ledger.due())
                if self._stopping:
                    return
            try:
                self._update()
            except Exception as error:  # whatever it is: the service goes on, and says that nothing is learned
                self.failure = f"{type(error).__name__}: {error}"
                event("learning stopped", model=self.name, error=self.failure[:300])
                return

    def _update(self) -> None:
        started = time.perf_counter()
        if (found := self.learn()) is None:
            return
        self.last = {**found, "seconds": time.perf_counter() - started}
        event("version", model=self.name, version=self.version, runs=self.learner.runs, **self.last)
