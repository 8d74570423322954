"""A policy that is learned while it is served: reports come in at the request handler, a thread beside it learns.

An update is saved before anybody sees it, and then published: a service that was killed goes on from the last version
that it can have served, and serves the same bytes. What was reported since that update is lost with the process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rltemp.agents.config import LearnerConfig
from rltemp.agents.learner import Learner, network_of
from rltemp.agents.reports import Ledger
from rltemp.errors import ArtifactRefusedError, BadInputError
from rltemp.io.locks import hold
from rltemp.io.run_folders import changes
from rltemp.policy.policy_file import PolicyFile, check_policy, encode_policy
from rltemp.service.logs import event
from rltemp.service.repository import Repository
from rltemp.training.checkpoints import Checkpoints

KEPT = 2
"""Versions before the newest whose files a checkpoint has."""


@dataclass(frozen=True)
class Published:
    """A version as files.

    Args:
        version: Its number.
        policy: The running mean, which is served.
        centre: What the next draws are around.
        sha256: Of the centre's policy.
    """

    version: int
    policy: bytes
    centre: bytes
    sha256: str


class Learning:
    """A model that learns; reports go to its `ledger`, and `failure` says why it learns no more.

    Args:
        name: That it is served under.
        layout: A policy file with its features, normalisation, network and action.
        config: How it learns.
        folder: Where its state is, and whence it goes on; one process at a time.
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
        self.name = name
        self.potential = potential
        self.repository = repository
        self.failure = ""
        self.last: Mapping[str, float] = {}
        self.learner = Learner(layout, config, keep_weights)
        features = len(layout.manifest.features)
        self.ledger = Ledger(features, config.exploration, potential, config.max_staleness, config.students_per_update)
        place = folder / name
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInputError(f"cannot make {place}: {error.strerror}. Choose another --state") from error
        hold(place, "--state")
        # A service goes on with what it has: other versions of a library change an update's last digits.
        self._checkpoints = Checkpoints(place, unit="version", share=0, inexact=True)
        self._published: dict[int, Published] = {}
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="rltemp-learner", daemon=True)
        self._begin(self._checkpoints.resume())

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

    def find(self, version: int | None = None) -> Published | None:
        """A version, the newest where none is given; None where it is not kept."""
        published = self._published
        return published.get(max(published) if version is None else version)

    @property
    def version(self) -> int:
        """The newest version."""
        return max(self._published)

    def _begin(self, saved: Mapping[str, Any] | None) -> None:
        if saved is None:
            first = self._files()
            self._save([first])
            self._publish(first, self.learner.mean_parameters)
            return
        if different := changes(saved["settings"], self._settings()):
            raise ArtifactRefusedError(
                f"the state of {self.name} was learned with other settings ({different}). Start with the same ones, or "
                "with another --state"
            )
        self.learner.restore(saved["learner"])
        for number, files in sorted(saved["files"].items()):
            policy, centre = (bytes(files[kind].numpy()) for kind in ("policy", "centre"))
            read = check_policy(centre, Path(f"{self.name} {number}"))
            self._publish(Published(int(number), policy, centre, read.sha256), network_of(read).weights.detach())
        self.ledger.restore(saved["ledger"])  # of versions that it knows by now

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
        found = self.learner.update(self.ledger.finished())
        files = self._files()
        self._save([*sorted(self._published.values(), key=lambda one: one.version)[-KEPT:], files])
        if self._checkpoints.saved != files.version:
            return  # it could be lost, and another with its number follow: nobody is to see it
        self._publish(files, self.learner.mean_parameters)
        self.last = {**found, "seconds": time.perf_counter() - started}
        event("version", model=self.name, version=files.version, runs=self.learner.runs, **self.last)

    def _files(self) -> Published:
        """The learner's version as files."""
        learner = self.learner
        about: dict[str, str | int | float] = {
            "version": learner.version,
            "runs_learned_from": learner.runs,
            "potential": self.potential,
            "exploration": float(learner.config.exploration),
        }
        fields = {name: getattr(learner.layout, name) for name in ("activation", "features", "action", "reference")}
        (policy, _), (centre, sha256) = (
            encode_policy(weights=learner.tensors(weights), provenance={**about, "weights": text}, **fields)
            for weights, text in (
                (learner.served_parameters, "running mean of the centres"),
                (learner.mean_parameters, "centre of exploration"),
            )
        )
        return Published(learner.version, policy, centre, sha256)

    def _settings(self) -> dict[str, Any]:
        """What a state has to have in common with this process."""
        names = {"layers", "activation", "features", "action", "reference"}
        layout = self.learner.layout.model_dump(mode="json", include=names)
        return {**asdict(self.learner.config), **layout, "potential": self.potential}

    def _save(self, versions: list[Published]) -> None:
        """Save the learner's state with the files of the last versions.

        Raises:
            TrainingStoppedError: Where that has failed three times.
        """
        files = {
            one.version: {
                name: torch.frombuffer(bytearray(data), dtype=torch.uint8)
                for name, data in (("policy", one.policy), ("centre", one.centre))
            }
            for one in versions
        }
        state = {"learner": self.learner.state(), "ledger": self.ledger.state(), "files": files}
        self._checkpoints.save(self.learner.version, {**state, "settings": self._settings()})

    def _publish(self, files: Published, centre: Tensor) -> None:
        """Let everybody see a version; draws around it are taken in before anybody can know it."""
        self.ledger.begin(files.version, centre)
        oldest = files.version - max(KEPT, self.learner.config.max_staleness)
        kept = {number: one for number, one in self._published.items() if number >= oldest}
        self._published = {**kept, files.version: files}
        self.repository.publish(self.name, files.policy, str(files.version))
