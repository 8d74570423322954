"""Runs that a service learns a policy from: each trains a few students, every one under a draw of the policy's weights.

A run's students share initial weights, samples and batches and differ by their draws alone, as a group of
`rltemp.agents.train` does. Nothing here knows HTTP: a service gives a `ParameterDistribution` and takes a `Report`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from rltemp.agents.config import PolicyConfig
from rltemp.agents.learner import log_probability, network_of
from rltemp.agents.network import SampleNetwork, mirrored_draws
from rltemp.agents.reports import Record, Report
from rltemp.data.problem import Problem, evaluate
from rltemp.envs.assignments import OneTask
from rltemp.envs.episode import FIRST_TRAINING_SEED, Decision, Episode
from rltemp.envs.rewards import POTENTIALS, Potential
from rltemp.errors import ArtifactRefusedError, BadInputError
from rltemp.kd.method import Objective
from rltemp.models.random_numbers import random_stream
from rltemp.models.stack import Students
from rltemp.policy.actions import ActionScale
from rltemp.policy.manifest import PolicyManifest, canonical_json
from rltemp.policy.policy_file import check_policy
from rltemp.policy.rule import KNOWN_FEATURES
from rltemp.rules.published_methods import reference_method
from rltemp.training.distill import Distillation
from rltemp.training.identity import problem_identity
from rltemp.training.steps import train


@dataclass(frozen=True)
class ParameterDistribution:
    """What a policy's weights are drawn from: one version of a policy that is being learned.

    Args:
        version: Its number.
        exploration: Standard deviation of a draw.
        potential: What the students' progress is measured by.
        network: The policy's network, with the mean parameters.
        decision: The reference, the features and the action's scale.
        manifest: What all numbers of the policy mean.
    """

    version: int
    exploration: float
    potential: Potential
    network: SampleNetwork
    decision: Decision
    manifest: PolicyManifest

    @classmethod
    def of(cls, data: bytes, name: str) -> ParameterDistribution:
        """Read it from a policy file's bytes, which pass every check first; `name` is what to call it.

        Raises:
            ArtifactRefusedError: Where a check fails, or the file holds no mean parameters.
        """
        file = check_policy(data, Path(name), KNOWN_FEATURES)
        manifest, said = file.manifest, file.manifest.provenance
        version, exploration, potential = (said.get(key) for key in ("version", "exploration", "potential"))
        if not (isinstance(version, int) and version >= 1 and isinstance(exploration, float) and 0 < exploration < 100):
            raise ArtifactRefusedError(f"{name} holds no mean parameters: it has no version and no exploration")
        if potential not in POTENTIALS:
            raise ArtifactRefusedError(f"{name} is learned from the potential {potential!r}, which is not known here")
        features = tuple(feature.name for feature in manifest.features)
        scale = ActionScale(**manifest.action.model_dump(exclude={"mapping"}))
        try:
            decision = Decision(reference_method(manifest.reference), features, scale)
        except BadInputError as error:
            raise ArtifactRefusedError(f"{name}: {error}") from None
        return cls(version, exploration, cast(Potential, potential), network_of(file), decision, manifest)


@dataclass(frozen=True)
class RunOutcome:
    """What a run came to.

    Args:
        student: The stack that was trained.
        validation_accuracy: `[S]`.
        test_accuracy: `[S]`.
        report: For the learner; None of a run without a version.
        improvement: Of each student's potential, `[S]`; likewise.
    """

    student: Students
    validation_accuracy: Tensor
    test_accuracy: Tensor
    report: Report | None = None
    improvement: Tensor | None = None

    @classmethod
    def of(cls, run: Distillation, report: Report | None = None, improvement: Tensor | None = None) -> RunOutcome:
        """What the students of a finished run are worth."""
        dataset, student = run.problem.dataset, run.evaluated
        assert isinstance(student, Students)  # the run's seeds are a sequence
        validation, test = (evaluate(student, run.problem, split) for split in (dataset.validation, dataset.test))
        return cls(student, validation, test, report, improvement)


class Runs:
    """Trains runs on one task.

    Args:
        problem: The task, loaded.
        replicas: Students of a run. One alone is judged against the single students of all runs of this task: an
            unbiased baseline, and a noisy one, since starts and batches differ.
    """

    def __init__(self, problem: Problem, replicas: int) -> None:
        self.problem = problem
        self.replicas = replicas
        # The same runs of two processes have the same names, and are learned from once.
        what = canonical_json([problem_identity(problem), replicas, PolicyConfig.looks])
        self.name = hashlib.sha256(what.encode()).hexdigest()[:12]
        self._source = OneTask(problem, redraw=True)

    def run(self, distribution: ParameterDistribution, seed: int) -> RunOutcome:
        """Train the students of one seed under draws from a distribution; the same arguments give the same outcome."""
        episode = self._begin(distribution, seed)
        mean, generator = distribution.network.weights.detach(), random_stream(seed, "draws", distribution.version)
        drawn = mirrored_draws(mean, distribution.exploration, self.replicas, generator).to(self.problem.device)
        observations, rewards = _trained(episode, distribution.network, drawn)
        records = self._records(distribution, seed, drawn, observations, rewards)
        return RunOutcome.of(episode.run, Report(potential=distribution.potential, records=records), rewards.sum(0))

    def without_version(self, method: Objective, seed: int) -> RunOutcome:
        """Train one student of a seed under a method, while there has never been a version."""
        run = Distillation(self.problem, [FIRST_TRAINING_SEED + seed])
        train(run, method)
        return RunOutcome.of(run)

    def _begin(self, distribution: ParameterDistribution, seed: int) -> Episode:
        given = self._source.draw(np.random.default_rng(seed), 1).replicated(self.replicas)
        task = replace(self.problem.task, metric=distribution.potential)
        given = replace(given, problem=replace(self.problem, task=task))
        run = given.run([FIRST_TRAINING_SEED + seed] * self.replicas)
        return Episode(run, distribution.decision, given.probe, max(1, -(-run.steps // PolicyConfig.looks)))

    def _records(
        self, distribution: ParameterDistribution, seed: int, drawn: Tensor, observations: Tensor, rewards: Tensor
    ) -> list[Record]:
        likelihoods = log_probability(
            drawn.cpu(), distribution.network.weights.detach().cpu(), distribution.exploration
        ).tolist()
        group = f"{self.name}/{seed}" if self.replicas > 1 else self.name
        return [
            Record(
                run=f"{self.name}/{seed}/{distribution.version}/{student}",
                step=look,
                steps=len(rewards),
                policy_version=distribution.version,
                group=group,
                observation=observations[look, student].tolist(),
                action=weights,
                log_probability=likelihoods[student],
                reward=float(rewards[look, student]),
            )
            for student, weights in enumerate(drawn.tolist())
            for look in range(len(rewards))
        ]


def _trained(episode: Episode, network: SampleNetwork, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Train to the end: mean observations at the start of each stretch `[L, S, F]`, and its rewards `[L, S]`.

    A student that diverges has lost what it had; the fresh one in its place earns nothing more for the draw.
    """
    observations, rewards, run = [], [], episode.run
    earned, lost = torch.zeros_like(episode.potential), torch.zeros_like(episode.diverged)
    network = network.to(drawn.device)
    with torch.no_grad():
        observations.append(episode.observation.mean(-2))
    while not run.done:
        with torch.no_grad():
            action = network(episode.observation, drawn)
        earned += torch.where(lost, 0.0, episode.step(action))
        if bool(episode.diverged.any()):
            lost |= episode.diverged
            episode.recover()
        if run.done or run.step % episode.reward_interval == 0:
            rewards.append(earned)
            earned = torch.zeros_like(earned)
            if not run.done:
                observations.append(episode.observation.mean(-2))
    return torch.stack(observations).cpu(), torch.stack(rewards).cpu()
