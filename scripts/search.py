"""Search a policy by evolution, as the upper bound of what reinforcement learning can find.

    python scripts/search.py --task digits --out runs/search [--reference NAME --balanced --weight-ratio 4 ...]

Needs cma: `pip install 'rltemp[search]'`.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro

from rltemp.agents.search import SearchConfig, search
from rltemp.agents.train import POLICY_FILE
from rltemp.cli.console import complain, messages_shown, say, show_next
from rltemp.errors import RltempError
from rltemp.io.locks import released_at_end
from rltemp.training.options import TaskOptions, at_least

EVERY = 10
"""Generations from one line to the next."""


@dataclass(frozen=True)
class Search(TaskOptions):
    """Search a policy by evolution, as the upper bound of what reinforcement learning can find."""

    config: tyro.conf.Suppress[Path | None] = None
    search: tyro.conf.OmitArgPrefixes[SearchConfig] = field(default_factory=SearchConfig)

    command = "search"

    def run(self) -> dict[str, Any]:
        """Do it and return the result."""
        at_least(1, threads=self.threads)
        torch.set_num_threads(self.threads)
        out, result = self.look()
        if result is None:
            problem = self.problem()
            self.open()
            started = time.monotonic()
            found = search(problem, self.search, out, Lines(self.search.generations))
            result = self.finish(found, started)
        show_search(result)
        rules = f"--rules fixed:4 {shlex.quote(str(out / POLICY_FILE))}"
        show_next(out, f"rltemp compare {self.task_words()} {rules} --first-seed 1000 --seeds 128")
        return result


class Lines:
    """Prints the mean score of every ten generations, and of what is left at the end."""

    def __init__(self, generations: int) -> None:
        self.generations = generations
        self.started = time.monotonic()
        self._scores: list[float] = []

    def __call__(self, generation: int, score: float) -> None:
        """Take a generation's mean score."""
        self._scores.append(score)
        if generation % EVERY == 0 or generation == self.generations:
            mean = sum(self._scores) / len(self._scores)
            seconds = time.monotonic() - self.started
            say(f"generation {generation:4}: mean score of the last {len(self._scores)} {mean:.4f}, {seconds:.0f} s")
            self._scores.clear()


def show_search(result: dict[str, Any]) -> None:
    """Print what came out."""
    say(f"Scored on {result['scored']}.")
    say(f"Reference {result['reference_potential']:.4f}, policy {result['potential']:.4f}, on students of their own.")
    last = result["students_of_the_last_look"]
    say(f"{result['students_trained']} student runs for the search, {last} for that line.")


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, by default the process's own, and do it."""
    try:
        with messages_shown(), released_at_end():
            tyro.cli(Search, args=argv).run()
    except RltempError as error:
        complain(str(error))
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
