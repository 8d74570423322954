"""`rltemp rules` and `rltemp methods`: what there is, by name."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass

from rltemp.cli.console import FILE_WIDTH, say
from rltemp.loading import SHIPPED
from rltemp.rules import catalogue
from rltemp.rules.catalogue import Entry
from rltemp.rules.controls import CONTROLS
from rltemp.training.options import RunOptions


@dataclass(frozen=True)
class Rules(RunOptions):
    """List every temperature rule and every divergence: formula, source, options, labels, guards."""

    def run(self) -> None:
        """Print every rule and divergence."""
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


def _show(entries: Iterable[Entry]) -> None:
    """Print entries of a table, one below the other, their lines folded to the width."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else FILE_WIDTH
    folder = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)  # addresses stay whole
    for entry in entries:
        for line in entry.lines():
            folder.initial_indent = folder.subsequent_indent = " " * (len(line) - len(line.lstrip()))
            say(folder.fill(line.strip()))
        say("")
