"""Search a policy by evolution (CMA-ES), as the upper bound of what reinforcement learning can find.

    python scripts/search.py --task digits --out runs/search [--reference NAME --balanced --weight-ratio 4 ...]

A generation draws candidates, whole sets of weights of `SampleNetwork`, and trains fresh students under each of them,
all side by side in one stack. Students are new in every generation and the same for all candidates of one. A
candidate's score is how good its students are at the end. Scored on the test split, the policy is a ceiling on what
the network can do there, and no result. Needs cma: `pip install 'rltemp[search]'`.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from torch import Tensor

from rltemp.agents.config import PolicyConfig, PolicyShape
from rltemp.agents.network import SampleNetwork, observation_statistics, observed
from rltemp.agents.policy_export import export_policy
from rltemp.agents.selection import potentials
from rltemp.agents.train import POLICY_FILE, make_env
from rltemp.cli.console import complain, messages_shown, next_command, say, show_next
from rltemp.data.dataset import Split
from rltemp.data.problem import Problem, predict
from rltemp.envs.episode import FIRST_TRAINING_SEED, Decision
from rltemp.envs.played import NetworkRule
from rltemp.errors import BadInputError, RltempError
from rltemp.io.command_words import at_least
from rltemp.io.locks import released_at_end
from rltemp.kd.checks import positive
from rltemp.kd.names import lookup, shareable
from rltemp.optional_imports import import_library
from rltemp.training.distill import Distillation
from rltemp.training.options import TaskOptions
from rltemp.training.steps import train

SCORED = {"test": "the test part: a ceiling, not a result", "probe": "the probe part"}
"""What a search is scored on, in words."""
EVERY = 10
"""Generations from one line to the next."""


@dataclass(frozen=True)
class SearchConfig(PolicyShape):
    """How a policy is searched for."""

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
    normalise: Annotated[bool, tyro.conf.arg(name="policy-normalise")] = PolicyShape.normalise
    """Centre and scale the features by a run under the reference; otherwise the policy sees them as they are."""
    sigma: float = 0.15
    """Standard deviation of the first candidates, in units of a weight."""
    scored: Literal["test", "probe"] = "probe"
    """The split that students are scored on; scored on test, the policy is a ceiling and not a result."""

    def __post_init__(self) -> None:
        for name in ("generations", "population", "students", "sigma", *["minutes"] * (self.minutes is not None)):
            positive(getattr(self, name), "search", name)
        lookup(SCORED, self.scored, "split to score on:")
        if self.population < 4:
            raise BadInputError(f"search: population must be at least 4; got {self.population}")

    def policy(self) -> PolicyConfig:
        """The configuration of reinforcement learning with the same network, action and seed."""
        return PolicyConfig(seed=self.seed, **{one.name: getattr(self, one.name) for one in fields(PolicyShape)})


@dataclass(frozen=True)
class Search(TaskOptions):
    """Search a policy by evolution, as the upper bound of what reinforcement learning can find."""

    config: tyro.conf.Suppress[Path | None] = None
    search: tyro.conf.OmitArgPrefixes[SearchConfig] = field(default_factory=SearchConfig)

    command = "search"


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, by default the process's own, and do it."""
    try:
        with messages_shown(), released_at_end():
            run(tyro.cli(Search, args=argv))
    except RltempError as error:
        complain(str(error))
        sys.exit(error.exit_code)


def run(options: Search) -> None:
    """Search, where the folder has no result yet, and say what came out."""
    at_least(1, threads=options.threads)
    torch.set_num_threads(options.threads)
    out, result = options.look()
    if result is None:
        problem = options.problem()
        options.open()
        started = time.monotonic()
        result = options.finish(search(problem, options.search, out), started)
    say(f"Scored on {result['scored']}.")
    say(f"Reference {result['reference_potential']:.4f}, policy {result['potential']:.4f}, on students of their own.")
    last = result["students_of_the_last_look"]
    say(f"{result['students_trained']} student runs for the search, {last} for that line.")
    words = "--rules", "fixed:4", out / POLICY_FILE, "--first-seed", 1000, "--seeds", 128
    show_next(out, next_command("compare", options.task_words(), out, *words))


def search(problem: Problem, config: SearchConfig, out: Path) -> dict[str, Any]:
    """Search a policy, leave its file in a folder, and return what came out.

    The policy is the mean of the last generation's distribution. It and the reference are scored on students that no
    candidate met.
    """
    network, decision = first_network(problem, config)
    generator, split = np.random.default_rng(config.seed), getattr(problem.dataset, config.scored)

    def worth(candidates: Tensor, students: int) -> Tensor:
        seeds = [int(seed) for seed in generator.integers(FIRST_TRAINING_SEED, 2**31, students)]
        return scores(problem, network, decision, candidates, seeds, split)

    start = network.weights.detach()
    found, curve = evolve(worth, start, config, generator)
    last = config.population * config.students // 2
    reference, kept = worth(torch.stack([start, found]), last).tolist()
    result = {"scored": SCORED[config.scored], "reference_potential": reference, "potential": kept}
    result |= {"generations": len(curve), "students_trained": len(curve) * config.population * config.students}
    task = {"task": shareable(problem.task.name), "teacher": problem.task.teacher, "student": problem.task.student}
    asked = {name: str(value) for name, value in asdict(config).items()}
    about = {"found_by": "CMA-ES", **task, **asked, **result}
    sha256 = export_policy(out / POLICY_FILE, network, found, decision, about)
    ends = {"students_of_the_last_look": 2 * last, "mean_potentials": curve}
    return {"policy": POLICY_FILE, "sha256": sha256, **result, **ends}


def scores(
    problem: Problem, network: SampleNetwork, decision: Decision, candidates: Tensor, seeds: Sequence[int], split: Split
) -> Tensor:
    """The mean potential `[K]` of candidates `[K, P]`, on a split, of students of the same seeds each."""
    weights = candidates.repeat_interleave(len(seeds), 0)
    method = replace(decision.method, rule=NetworkRule(network, weights, decision))
    students = train(Distillation(problem, [*seeds] * len(candidates)), method)
    values = potentials(problem, predict(students, problem, split), split.targets)
    return values.view(len(candidates), -1).double().mean(1).cpu()


def first_network(problem: Problem, config: SearchConfig) -> tuple[SampleNetwork, Decision]:
    """The network whose actions are zero, and what an action means."""
    env = make_env(problem, config.policy())
    mean, std = torch.zeros(len(config.features)), torch.ones(len(config.features))
    if config.normalise:
        mean, std = observation_statistics(observed(env))
    actions = env.decision.scale.size
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        network = SampleNetwork(mean, std, config.hidden, config.activation, config.shared, actions)
    return network.to(problem.device), env.decision


def evolve(
    worth: Callable[[Tensor, int], Tensor], start: Tensor, config: SearchConfig, generator: np.random.Generator
) -> tuple[Tensor, list[float]]:
    """CMA-ES around `start`, `[P]`: the mean of its last distribution, and every generation's mean score."""
    options = {
        "popsize": config.population,
        "seed": math.nan,  # a seed would be that of numpy's global generator; nan leaves that one alone
        "randn": lambda *shape: generator.standard_normal(shape),
        "verbose": -9,
    }
    cma = import_library("cma", "the search", "search")
    strategy = cma.CMAEvolutionStrategy(start.cpu().double().numpy(), config.sigma, options)
    started, curve = time.monotonic(), list[float]()
    while len(curve) < config.generations:
        asked = strategy.ask()
        found = worth(torch.from_numpy(np.stack(asked)).to(start), config.students)
        strategy.tell(asked, (-found).tolist())  # it minimises
        curve.append(float(found.mean()))
        seconds = time.monotonic() - started
        if len(curve) % EVERY == 0:
            mean = np.mean(curve[-EVERY:])
            say(f"generation {len(curve):4}: mean score of the last {EVERY} {mean:.4f}, {seconds:.0f} s")
        if config.minutes is not None and seconds > 60 * config.minutes:
            break
    return torch.from_numpy(strategy.mean).to(start), curve


if __name__ == "__main__":
    main()
