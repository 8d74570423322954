"""A learner whose state lies in a folder: reports come into its ledger, every version is saved before anybody sees it.

A process that was killed goes on from the last version that somebody can have seen, with the same bytes.
"""

from __future__ import annotations

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


class SavedLearner:
    """A policy that learns from what comes into its `ledger`.

    Args:
        name: What messages and policy files call it.
        layout: A policy file with its features, normalisation, network and action.
        config: How it learns.
        folder: Where its state is, and whence it goes on; one process at a time.
        potential: What rewards measure.
        keep_weights: Begin with the layout's weights rather than with its reference rule.
        option: Which names another folder, for messages.

    Attributes:
        notes: Saved with the state, for whoever uses the learner: text, numbers and lists by name.

    Raises:
        ArtifactRefusedError: Where the folder has the state of another policy.
        BadInputError: Where another process has the folder, or it cannot be written.
    """

    unit = "version"
    """What the names of checkpoints count; `_step` is its number."""

    def __init__(
        self,
        name: str,
        layout: PolicyFile,
        config: LearnerConfig,
        folder: Path,
        potential: str = "margin",
        keep_weights: bool = False,
        option: str = "--state",
    ) -> None:
        self.name, self.potential, self.option = name, potential, option
        self.notes: dict[str, Any] = {}
        self.learner = Learner(layout, config, keep_weights)
        features = len(layout.manifest.features)
        self.ledger = Ledger(features, config.exploration, potential, config.max_staleness, config.students_per_update)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInputError(f"cannot make {folder}: {error.strerror}. Choose another {option}") from error
        hold(folder, option)
        # A learner goes on with what it has: other versions of a library change an update's last digits.
        self._checkpoints = Checkpoints(folder, unit=self.unit, share=0, inexact=True)
        self._published: dict[int, Published] = {}
        self._begin(self._checkpoints.resume())

    def learn(self) -> dict[str, float] | None:
        """Make an update of all finished runs, save it, and publish its version.

        Returns:
            What `Learner.update` found; None where the version could not be saved, and nobody is to see it.
        """
        found = self.learner.update(self.ledger.finished())
        files = self._files()
        self._save([*self._newest(KEPT), files])
        if self._checkpoints.saved != self._step:
            return None  # it could be lost, and another with its number follow
        self._publish(files, self.learner.mean_parameters)
        return found

    def find(self, version: int | None = None) -> Published | None:
        """A version, the newest where none is given; None where it is not kept."""
        published = self._published
        return published.get(max(published) if version is None else version)

    @property
    def version(self) -> int:
        """The newest version."""
        return max(self._published)

    @property
    def _step(self) -> int:
        return self.learner.version

    def _newest(self, count: int) -> list[Published]:
        return [self._published[number] for number in sorted(self._published)[-count:]]

    def _begin(self, saved: Mapping[str, Any] | None) -> None:
        if saved is None:
            first = self._files()
            self._save([first])
            self._publish(first, self.learner.mean_parameters)
            return
        if different := changes(saved["settings"], self._settings()):
            raise ArtifactRefusedError(
                f"the state of {self.name} was learned with other settings ({different}). Start with the same ones, or "
                f"with another {self.option}"
            )
        self.learner.restore(saved["learner"])
        for number, files in sorted(saved["files"].items()):
            policy, centre = (bytes(files[kind].numpy()) for kind in ("policy", "centre"))
            read = check_policy(centre, Path(f"{self.name} {number}"))
            self._publish(Published(int(number), policy, centre, read.sha256), network_of(read).weights.detach())
        self.ledger.restore(saved["ledger"])  # of versions that it knows by now
        self.notes = saved.get("notes", {})

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
        state = {"learner": self.learner.state(), "ledger": self.ledger.state(), "files": files, "notes": self.notes}
        self._checkpoints.save(self._step, {**state, "settings": self._settings()})

    def _publish(self, files: Published, centre: Tensor) -> None:
        """Let everybody see a version; draws around it are taken in before anybody can know it."""
        self.ledger.begin(files.version, centre)
        oldest = files.version - max(KEPT, self.learner.config.max_staleness)
        kept = {number: one for number, one in self._published.items() if number >= oldest}
        self._published = {**kept, files.version: files}
        self.published(files)

    def published(self, files: Published) -> None:
        """Called with every version that can be seen from here on, those that were read from the folder included."""
