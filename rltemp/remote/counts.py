"""What a run under a controller has seen of it: counted for its result, its log and its checkpoints."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

MOST_VERSIONS = 256
"""Versions that are counted each by its name; all further ones together."""
FURTHER = "further"


@dataclass
class RemoteCounts:
    """Counts of one run.

    Args:
        steps: That asked for temperatures.
        calls: Questions to the controller in a step.
        failures: Of these, those without a good answer in time.
        slow: Answers that were slow.
        fallback_steps: Steps under the fallback.
        openings: Times that the controller was lost.
        versions: Steps by the version that gave their temperatures.
    """

    steps: int = 0
    calls: int = 0
    failures: int = 0
    slow: int = 0
    fallback_steps: int = 0
    openings: int = 0
    versions: dict[str, int] = field(default_factory=dict)

    def used(self, version: str) -> None:
        """Count a step by its version."""
        name = version if version in self.versions or len(self.versions) < MOST_VERSIONS else FURTHER
        self.versions[name] = self.versions.get(name, 0) + 1

    @property
    def repeatable(self) -> bool:
        """Whether every step so far had its temperatures of one and the same version."""
        return not self.fallback_steps and len(self.versions) <= 1

    def state(self) -> dict[str, Any]:
        """All counts: plain numbers by name."""
        return asdict(self)

    @classmethod
    def restored(cls, state: dict[str, Any]) -> RemoteCounts:
        """The counts that `state` gave."""
        versions = {str(name): int(steps) for name, steps in state["versions"].items()}
        return cls(**{name: int(value) for name, value in state.items() if name != "versions"}, versions=versions)
