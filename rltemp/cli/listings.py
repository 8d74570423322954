"""`rltemp rules` and `rltemp methods`: what there is, by name."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass

import tyro

from rltemp.cli.console import FILE_WIDTH, say
from rltemp.errors import BadInputError
from rltemp.kd.names import lookup, split_spec
from rltemp.loading import SHIPPED
from rltemp.rules import catalogue
from rltemp.rules.catalogue import Entry
from rltemp.rules.controls import CONTROLS
from rltemp.training.options import RunOptions


@dataclass(frozen=True)
class Rules(RunOptions):
    """List every temperature rule and every divergence, or all of one: formula, source, options, bounds, guards."""

    name: tyro.conf.Positional[str | None] = None
    """A rule, a divergence or a method, as in dtkd; without one everything is listed."""

    def run(self) -> None:
        """Print every rule and divergence, or one."""
        if self.name is not None:
            _show_one(split_spec(self.name)[0])
            return
        say("Temperature rules, by name or name:option=value,...\n")
        _show(catalogue.rules())
        say("Divergences, by the option divergence=NAME of a method\n")
        _show(catalogue.divergences())
        say("A rule is also the path of a policy file (runs/p/policy.safetensors), or module:attribute.")


@dataclass(frozen=True)
class Methods(RunOptions):
    """List every method: a rule with the divergence, the loss weights and the warm-up of its paper."""

    def run(self) -> None:
        """Print every method."""
        say("Methods, by name or name:option=value,...; what --rule and --rules take\n")
        _show(catalogue.methods())
        say("matched:NAME is NAME with CE at 0.1 and a gradient as large as plain distillation's.")
        say(f"CONTROL:NAME is NAME under a control of rltemp.rules.controls: {', '.join(CONTROLS)}.")
        say(f"Learned, and shipped with the package: {', '.join(SHIPPED)}.")


def _show_one(name: str) -> None:
    """Print what every table has under a name.

    Raises:
        BadInputError: Where none has it, with the closest.
    """
    if name in SHIPPED:
        raise BadInputError(
            f"{name} is a policy, not a formula: `rltemp policy show {name}` prints what it says of itself"
        )
    tables = {
        "Temperature rule": catalogue.rules(),
        "Divergence, by the option divergence=NAME of a method": catalogue.divergences(),
        "Method, what --rule and --rules take: the rule with its paper's loss weights": catalogue.methods(),
    }
    lookup({entry.name: entry for entries in tables.values() for entry in entries}, name, "rule")
    for title, entries in tables.items():
        if found := [entry for entry in entries if entry.name == name]:
            say(f"{title}\n")
            _show(found)


def _show(entries: Iterable[Entry]) -> None:
    """Print entries of a table, one below the other, their lines folded to the width."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else FILE_WIDTH
    folder = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)  # addresses stay whole
    for entry in entries:
        for line in entry.lines():
            folder.initial_indent = folder.subsequent_indent = " " * (len(line) - len(line.lstrip()))
            say(folder.fill(line.strip()))
        say("")
