"""How a policy is trained: `PolicyConfig`, `PRESETS`, sets of its options by name, and `LearnerConfig`, online."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from rltemp.envs.advantages import ADVANTAGES
from rltemp.errors import BadInputError
from rltemp.kd.checks import fraction, positive
from rltemp.kd.names import lookup
from rltemp.loading import named_policy
from rltemp.policy.features import DEFAULT_FEATURES, RLKD_FEATURES, UNIVERSAL_FEATURES
from rltemp.policy.policy_file import PolicyFile, read_policy
from rltemp.policy.rule import KNOWN_FEATURES
from rltemp.rules.published_methods import reference_method

ABOVE_ZERO = (
    "students_per_update replicas tasks_per_update updates learning_rate_end looks validate_every validation_students "
    "collapse_updates"
)


@dataclass(frozen=True)
class PolicyShape:
    """What a policy sees and does, however it is found."""

    reference: str = "ttm:ce_weight=0.1,kd_weight=0.9"
    """The method that the policy moves around, with its loss weights: an action of zero is this method exactly."""
    features: tuple[str, ...] = DEFAULT_FEATURES
    """What the policy sees of a sample, in order."""
    normalise: bool = True
    """Centre and scale the features by a run under the reference; otherwise the policy sees them as they are."""
    ratio: float = 5.0
    """How far an action of 1 moves a temperature, as a factor."""
    minimum: float = 0.5
    """Lowest temperature."""
    maximum: float = 20.0
    """Highest temperature."""
    weight_ratio: float = 4.0
    """How far a third number of the action moves a sample's weight, as a factor; at 1 there is none."""
    balanced: bool = True
    """Keep a batch's gradient as long as plain distillation's, whatever the temperatures; weights come on top."""
    shared: bool = False
    """One temperature of a sample for student and teacher, rather than one for each."""
    hidden: tuple[int, ...] = ()
    """Widths of the policy's hidden layers; none for a linear policy."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Between the policy's layers."""


@dataclass(frozen=True)
class UpdateConfig:
    """How PPO moves a policy, whoever trains the students."""

    learning_rate: float = 0.01
    """Of the policy; in train-policy that of the first update, from which it changes linearly."""
    passes: int = 4
    """PPO's passes over the runs of one update."""
    clip: float = 0.2
    """PPO's bound on how far an update moves a decision's probability, as a fraction."""
    exploration: float = 0.1
    """Standard deviation of the draw of the policy's weights; with agent sample, of an action's noise at first."""
    averaging: float = 0.9
    """Weight of the past in the running mean of the policy's weights, 0 to below 1."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "passes", "exploration"):
            positive(getattr(self, name), "a policy", name)
        if not 0 <= self.averaging < 1:
            raise BadInputError(f"a policy: averaging must be in [0, 1); got {self.averaging}")
        self._check_fractions("clip")

    def _check_fractions(self, *names: str) -> None:
        for name in names:
            if not 0 < getattr(self, name) <= 1:
                raise BadInputError(f"a policy: {name} must be above 0 and at most 1; got {getattr(self, name)}")


@dataclass(frozen=True)
class PolicyConfig(UpdateConfig, PolicyShape):
    """How a policy is trained; every field is an option of `rltemp train-policy`."""

    agent: Literal["run", "sample"] = "run"
    """What PPO takes for a decision: run (one draw of the policy's weights a run, credited with the run's return less
    its group's mean) or sample (each temperature, its own noise, a critic, and advantages along a student's steps)."""
    students_per_update: int = 64
    """Students trained side by side in one update."""
    replicas: int = 8
    """How many of them share initial weights, samples and batches; divides students_per_update."""
    tasks_per_update: int = 1
    """How many tasks the students of an update have, each as many; replicas x tasks_per_update divide the students."""
    advantage: Literal["difference", "clipped", "rank"] = "difference"
    """How a run is judged within its group: by the difference of its return to the others', by that of at most 1, or by
    its rank alone."""
    start_from: str | None = None
    """Begin as this policy, a file or a shipped one, and not as the reference; features, network, action and reference
    are its own."""
    updates: int = 80
    """PPO updates."""
    learning_rate_end: float = 0.1
    """What is left of it at the last update, as a fraction."""
    max_gradient: float | None = None
    """PPO clips the gradient's norm to this; None does not."""
    discount: float = 1.0
    """Of a reward, for every step that it is away; agent sample."""
    gae_lambda: float = 1.0
    """Of generalised advantage estimation; agent sample."""
    calibration: bool = False
    """Share each reward out to the samples by what a learned model says they contributed; agent sample."""
    mixup: float = 0.0
    """Fraction of the updates, from the first, in which the students' batches hold mixed samples; 0 for none."""
    validate_every: int = 5
    """Updates from one look at validation data to the next."""
    validation_students: int = 64
    """Students trained for one look at validation data."""
    looks: int = 4
    """How often a run looks at its probe samples; its rewards sum to the same however often."""
    on_collapse: Literal["warn", "stop", "fallback"] = "warn"
    """What happens where the policy answers a bound for everyone, or its reward rises while its students get worse:
    warn (go on), stop (an error), fallback (end the training and export the reference rule)."""
    collapse_updates: int = 5
    """Updates in a row, at a bound for more than 95 % of the samples, that count as a collapse."""
    redraw: bool = True
    """Draw training and probe samples afresh for every group, from both parts together."""
    vary: bool = True
    """Draw a learning rate, a schedule and a length of the run around the task's own for every update; agent run."""
    seed: int = 0
    """Determines everything random."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_fractions("discount", "gae_lambda")
        fraction(self.mixup, "train-policy", "mixup")
        for name in ABOVE_ZERO.split():
            positive(getattr(self, name), "train-policy", name)
        if self.max_gradient is not None:
            positive(self.max_gradient, "train-policy", "max_gradient")
        lookup(dict.fromkeys(("run", "sample")), self.agent, "agent")
        lookup(dict.fromkeys(("warn", "stop", "fallback")), self.on_collapse, "on_collapse")
        lookup(ADVANTAGES, self.advantage, "advantage")
        lookup(dict.fromkeys(("tanh", "relu")), self.activation, "activation")
        if not 0 <= self.seed < 2**63:
            raise BadInputError(f"train-policy: seed must be 0 to 2^63 - 1; got {self.seed}")
        if self.students_per_update % (self.replicas * self.tasks_per_update) or (
            self.agent == "run" and self.replicas < 2
        ):
            raise BadInputError(
                "train-policy: replicas must be at least 2, so that runs can be compared (agent sample: 1), and "
                "replicas x tasks_per_update divide students_per_update; "
                f"got {self.replicas} x {self.tasks_per_update} and {self.students_per_update}"
            )
        if self.agent == "sample" and (self.tasks_per_update > 1 or self.advantage != "difference" or self.start_from):
            raise BadInputError("agent sample has no use for tasks_per_update, advantage or start_from: leave them out")
        # With agent run a whole run is one decision: there is nothing in it to discount or to share out.
        for name, idle in (("discount", 1), ("gae_lambda", 1), ("calibration", False)):
            if self.agent == "run" and getattr(self, name) != idle:
                raise BadInputError(
                    f"train-policy: {name} has no effect where a run is one decision; got {getattr(self, name)}. "
                    "Add --agent sample, or leave it out"
                )

    def check_workers(self, workers: int, ray: str | None = None) -> None:
        """Refuse a number of worker processes that these students cannot be shared out over."""
        most = min(self.students_per_update, self.validation_students)
        if not 1 <= workers <= most:
            raise BadInputError(f"every worker trains students: --workers must be 1 to {most}; got {workers}")
        if self.agent == "sample" and (workers > 1 or ray is not None):
            raise BadInputError("agent sample acts step by step in one process: leave --workers and --ray out")


@dataclass(frozen=True)
class LearnerConfig(UpdateConfig):
    """How a policy is learned from runs as they come in; there is no last update, so the learning rate stays."""

    averaging: float = 0.8
    """Weight of the past in the running mean of the policy's weights, 0 to below 1."""
    students_per_update: int = PolicyConfig.students_per_update
    """Finished runs that an update learns from, at least."""
    max_staleness: int = 2
    """How many versions a run's draw may be older than the newest; the versions that are kept."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.max_staleness <= 100 or not 2 <= self.students_per_update <= 2048:
            raise BadInputError(
                "learning: max_staleness must be 0 to 100, students_per_update 2 to 2048; got "
                f"{self.max_staleness} and {self.students_per_update}"
            )


@dataclass(frozen=True)
class LearningOptions(LearnerConfig):
    """How a policy is learned; with --learn."""

    start: str = "universal@1"
    """A policy file, or a shipped policy: the learned one has its features, their normalisation and its network."""
    reference: str = "fixed:4"
    """The method that the learned policy moves around, and its version 1."""
    keep_weights: bool = False
    """Begin as the policy --learning.start, its weights and its reference, rather than as --learning.reference."""
    potential: Literal["margin", "log_odds", "log_likelihood", "accuracy"] = "margin"
    """What the improvement of a student is measured by."""

    def layout(self) -> PolicyFile:
        """A policy file with the features, the network, the action and the reference of all versions.

        Raises:
            BadInputError: Where there is no such file or reference.
            ArtifactRefusedError: Where the file fails a check.
        """
        path, sha256 = named_policy(self.start)
        file = read_policy(path, KNOWN_FEATURES, sha256)
        if self.keep_weights:
            return file
        reference_method(self.reference)
        action = file.manifest.action.model_copy(update={"balanced": False})
        manifest = file.manifest.model_copy(update={"reference": self.reference, "action": action})
        return replace(file, manifest=manifest)


PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    # The shipped policy, with --task variety.
    "universal": {
        "reference": "fixed:temperature=2,teacher=4,ce_weight=1,kd_weight=0.25",
        "features": UNIVERSAL_FEATURES,
        "ratio": 4.0,
        "weight_ratio": 16.0,
        "students_per_update": 256,
        "tasks_per_update": 8,
        "advantage": "rank",
        "updates": 240,
        "learning_rate": 0.01,
        "averaging": 0.95,
        "validate_every": 30,
        "validation_students": 16,
    },
    # RLKD, Zhang et al. (2024), https://arxiv.org/abs/2407.00115, after the authors' code and page; the paper's text
    # was not read. What differs from that code, and why, is in docs/experiments.md.
    "rlkd": {
        "reference": "fixed:5",  # the centre of its 10 * sigmoid; also its weights, CE 0.1 and KD 0.9
        "features": RLKD_FEATURES,
        "normalise": False,
        # 5 * 2^a is 2.5 to 10: its upper bound, and below 5 its 10 * sigmoid(a) within 8 %. The code's own comment
        # says "between 1 and 10"; the bound at 1 stands for whoever raises the ratio, since T -> 0 is singular.
        "weight_ratio": 1.0,
        "balanced": False,
        "ratio": 2.0,
        "minimum": 1.0,
        "maximum": 10.0,
        "shared": True,
        "hidden": (256, 256),
        "activation": "relu",
        "agent": "sample",
        "students_per_update": 8,
        "replicas": 1,
        "updates": 30,
        "learning_rate": 1e-4,
        "learning_rate_end": 1.0,
        "passes": 5,
        "clip": 0.2,
        "max_gradient": 2.0,
        "discount": 0.99,
        "gae_lambda": 0.95,
        "exploration": math.exp(-0.5),
        "calibration": True,
        "mixup": 0.3,
        "averaging": 0.0,
        "looks": 200,  # as its reward comes with every batch; here it is measured after the step that it credits
    },
}
"""Options that differ from the defaults, by the name of the preset."""


def preset(name: str) -> dict[str, Any]:
    """The options of a preset, `PolicyConfig(**preset("rlkd"))`; a wrong name is answered with the closest.

    >>> preset("rlkd")["reference"]
    'fixed:5'
    """
    return dict(lookup(PRESETS, name, "preset"))
