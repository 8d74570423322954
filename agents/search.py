"""Search a policy by evolution (CMA-ES): what reinforcement learning on the same network is measured against.

A generation draws candidates, whole sets of weights of `SampleNetwork`, and trains fresh students under each of them,
all side by side in one stack. Students are new in every generation and the same for all candidates of one, so that
candidates differ by their weights alone. What counts is how good the students are at the end of their runs. No reward
is shared out to steps or samples and nothing is learned between: it costs more runs, and its score on the test part
is a ceiling on what the network can do there, not a result.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rltemp.agents.config import PolicyConfig, PolicyShape
from rltemp.agents.network import SampleNetwork
from rltemp.agents.policy_export import export_policy
from rltemp.agents.selection import network_rule, potentials
from rltemp.agents.train import POLICY_FILE, make_env, observation_statistics
from rltemp.data.dataset import Split
from rltemp.data.problem import Problem, predict
from rltemp.envs.episode import FIRST_TRAINING_SEED, Decision
from rltemp.errors import BadInputError
from rltemp.kd.checks import positive
from rltemp.kd.names import lookup, shareable
from rltemp.optional_imports import import_library
from rltemp.training.distill import Distillation
from rltemp.training.steps import train

SCORED = {"test": "the test part: a ceiling, not a result", "probe": "the probe part"}
"""What a search is scored on, in words."""


@dataclass(frozen=True)
class SearchConfig(PolicyShape):
    """How a policy is searched for; what `PolicyConfig` has too is the same here."""

    seed: int = PolicyConfig.seed
    """Determines everything random."""
    generations: int = 150
    """How often candidates are drawn."""
    population: int = 16
    """Candidates of a generation."""
    minutes: float | None = None
    """End the search after the generation in which so many minutes are over; it then depends on the machine."""
    students: int = 8
    """Students of a candidate."""
    sigma: float = 0.15
    """Standard deviation of the first candidates, in units of a weight."""
    scored: Literal["test", "probe"] = "probe"
    """The part that students are scored on; scored on test, the policy is a ceiling and not a result."""

    def __post_init__(self) -> None:
        for name in ("generations", "population", "students", "sigma"):
            positive(getattr(self, name), "search", name)
        lookup(SCORED, self.scored, "part to score on:")
        if self.minutes is not None:
            positive(self.minutes, "search", "minutes")
        if self.population < 4:
            raise BadInputError(f"search: population must be at least 4; got {self.population}")

    def policy(self) -> PolicyConfig:
        """The configuration of reinforcement learning with the same network, action and seed."""
        same = {field.name for field in fields(PolicyConfig)} - {"students"}
        return PolicyConfig(**{name: value for name, value in asdict(self).items() if name in same})


def search(
    problem: Problem, config: SearchConfig, out: Path, on_generation: Callable[[int, float], None] | None = None
) -> dict[str, Any]:
    """Search a policy for a problem and leave its file in a folder.

    Args:
        problem: The task, loaded.
        config: How.
        out: The folder; gets `policy.safetensors`, the mean of the last generation's distribution.
        on_generation: Told each generation's number, from 1, and its candidates' mean score.

    Returns:
        What came out: the policy's file and SHA-256, what it was scored on, the score of the reference and the policy
        on students that no candidate met, the student runs, and every generation's mean score.
    """
    network, decision = _start(problem, config)
    generator, part = np.random.default_rng(config.seed), getattr(problem.dataset, config.scored)

    def worth(candidates: Tensor, students: int) -> Tensor:
        seeds = [int(seed) for seed in generator.integers(FIRST_TRAINING_SEED, 2**31, students)]
        return scores(problem, network, decision, candidates, seeds, part)

    start = network.weights.detach()
    found, curve = _evolve(worth, start, config, generator, on_generation or (lambda generation, score: None))
    last = config.population * config.students // 2
    reference, kept = worth(torch.stack([start, found]), last).tolist()
    result = {"scored": SCORED[config.scored], "reference_potential": reference, "potential": kept}
    runs = {"generations": len(curve), "students_trained": len(curve) * config.population * config.students}
    task = {name: getattr(problem.task, name) for name in ("teacher", "student")} | {
        "task": shareable(problem.task.name)
    }
    asked = {name: str(value) for name, value in asdict(config).items()}
    about = {"found_by": "CMA-ES", **task, **asked, **runs, **result}
    sha256 = export_policy(out / POLICY_FILE, network, found, decision, about)
    return {
        "policy": POLICY_FILE,
        "sha256": sha256,
        **result,
        **runs,
        "students_of_the_last_look": 2 * last,
        "mean_potentials": curve,
    }


def scores(
    problem: Problem, network: SampleNetwork, decision: Decision, candidates: Tensor, seeds: Sequence[int], part: Split
) -> Tensor:
    """What candidates `[K, P]` are worth: the mean potential `[K]`, on a part, of students of the same seeds each."""
    weights = candidates.repeat_interleave(len(seeds), 0)
    method = replace(decision.method, rule=network_rule(network, weights, decision))
    run = Distillation(problem, [*seeds] * len(candidates))
    values = potentials(problem, predict(train(run, method), problem.dataset, part), part.labels)
    return values.view(len(candidates), -1).double().mean(1).cpu()


def _start(problem: Problem, config: SearchConfig) -> tuple[SampleNetwork, Decision]:
    """The network whose actions are zero, and what an action means."""
    env = make_env(problem, config.policy())
    mean, std = torch.zeros(len(config.features)), torch.ones(len(config.features))
    if config.normalise:
        mean, std = observation_statistics(env)
    actions = env.decision.scale.size
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        network = SampleNetwork(mean, std, config.hidden, config.activation, config.shared, actions)
    return network.to(problem.device), env.decision


def _evolve(
    worth: Callable[[Tensor, int], Tensor],
    start: Tensor,
    config: SearchConfig,
    generator: np.random.Generator,
    on_generation: Callable[[int, float], None],
) -> tuple[Tensor, list[float]]:
    """CMA-ES around `start`, `[P]`: the mean of its last distribution, and every generation's mean score."""
    started, curve = time.monotonic(), []
    options = {
        "popsize": config.population,
        # A seed would be that of numpy's global generator; nan leaves that one alone.
        "seed": math.nan,
        "randn": lambda *shape: generator.standard_normal(shape),
        "verbose": -9,
    }
    cma = import_library("cma", "the search", "search")
    strategy = cma.CMAEvolutionStrategy(start.cpu().double().numpy(), config.sigma, options)
    for generation in range(1, config.generations + 1):
        asked = strategy.ask()
        found = worth(torch.from_numpy(np.stack(asked)).to(start), config.students)
        strategy.tell(asked, (-found).tolist())  # it minimises
        curve.append(float(found.mean()))
        on_generation(generation, curve[-1])
        if config.minutes is not None and time.monotonic() - started > 60 * config.minutes:
            break
    return torch.from_numpy(strategy.mean).to(start), curve
