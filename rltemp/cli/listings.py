"""`rltemp rules` and `rltemp methods`: what there is, by name."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from rltemp.io.console import FILE_WIDTH, say
from rltemp.loading import SHIPPED
from rltemp.rules import catalogue
from rltemp.rules.catalogue import Entry
from rltemp.rules.controls import CONTROLS
from rltemp.training.options import RunOptions


@dataclass(frozen=True)
class Rules(RunOptions):
    """List every temperature rule and every divergence: formula, source, options, labels, guards."""

    def run(self) -> None:
        """Print them."""
        say("Temperature rules, by name or name:option=value,...\n")
        show_entries(catalogue.rules())
        say("Divergences, by the option divergence=NAME of a method\n")
        show_entries(catalogue.divergences())
        say("A rule is also the path of a policy file (runs/p/policy.safetensors), or module:attribute.")


@dataclass(frozen=True)
class Methods(RunOptions):
    """List every method: a rule with the divergence, the loss weights and the warm-up of its paper."""

    def run(self) -> None:
        """Print them."""
        say("Methods, by name or name:option=value,...; what --rule and --rules take\n")
        show_entries(catalogue.methods())
        say("matched:NAME is the method NAME pulling as hard as plain distillation, with CE at 0.1.")
        say(f"CONTROL:NAME is NAME under a control of rltemp.rules.controls: {', '.join(CONTROLS)}.")
        say(f"Learned, and shipped with the package: {', '.join(SHIPPED)}.")


def show_entries(entries: Iterable[Entry]) -> None:
    """Print entries of a table, one below the other, their lines folded to the width."""
    width = None if sys.stdout.isatty() else FILE_WIDTH
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    for entry in entries:
        for line in entry.lines():
            console.print(Padding(Text(line.strip()), (0, 0, 0, len(line) - len(line.lstrip())), expand=False))
        console.print()
