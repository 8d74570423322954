"""`rltemp rules`, `methods` and `completion`: what there is, by name, for a reader and for a shell."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass

import tyro

from rltemp.cli.commands import COMMANDS, group
from rltemp.cli.console import FILE_WIDTH, say
from rltemp.cli.dispatch import command_of
from rltemp.cli.help import HELP, Option, options_of
from rltemp.data.tasks import TASKS
from rltemp.errors import BadInputError
from rltemp.kd.names import lookup, split_spec
from rltemp.loading import SHIPPED
from rltemp.models.networks import MODELS
from rltemp.rules import catalogue
from rltemp.rules.catalogue import Entry
from rltemp.rules.controls import CONTROLS
from rltemp.rules.published_methods import METHODS
from rltemp.training.options import RunOptions

SCRIPT = """\
# How bash completes rltemp.
_rltemp() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" command="${{COMP_WORDS[1]}}" place=$((COMP_CWORD - 1)) words=""
  if [ "$COMP_CWORD" -eq 1 ]; then COMPREPLY=($(compgen -W "{} --help --version" -- "$current")); return; fi
  case "$command" in {}) [ "$COMP_CWORD" -gt 2 ] && command="$command ${{COMP_WORDS[2]}}" ;; esac
  while [ "$place" -gt 1 ] && [[ "${{COMP_WORDS[place]}}" != -* ]]; do place=$((place - 1)); done
  if [[ "$current" == -* ]]; then case "$command" in
{}
  esac; else case "$command ${{COMP_WORDS[place]}}" in
{}
  esac; fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _rltemp rltemp"""


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


@dataclass(frozen=True)
class Completion(RunOptions):
    """Print a script by which bash completes commands, options and the names that these take.

    This line in ~/.bashrc uses it: eval "$(rltemp completion)"
    """

    def run(self) -> None:
        """Print the script."""
        firsts = list(dict.fromkeys(name.partition(" ")[0] for name in COMMANDS))
        several = {first: " ".join(name.partition(" ")[2] for name in group(first)) for first in firsts if group(first)}
        values, flags = {f"{first} {first}": seconds for first, seconds in several.items()}, dict[str, str]()
        for name in COMMANDS:
            options = list(options_of(command_of(name)[0]))
            flags[name] = " ".join([flag for one in options for flag in one.flags if flag.startswith("-")] + list(HELP))
            for one in options:
                before = one.flags[0] if one.flags[0].startswith("-") else name.rpartition(" ")[2]
                values[f"{name} {before}"] = " ".join(_names(one))
        cases = (
            "\n".join(f'    "{key}") words="{words}" ;;' for key, words in each.items()) for each in (flags, values)
        )
        say(SCRIPT.format(" ".join(firsts), "|".join(several), *cases))


def _names(option: Option) -> list[str]:
    """What an option can be, as far as there is a list of it; a file's name is the shell's to complete."""
    choices = option.values.removesuffix(" ...").split("|")
    listed = {"rule": [*METHODS, *SHIPPED], "name": [*METHODS], "task": [*TASKS], "student": [*MODELS]}
    listed |= {"teacher": listed["student"], "against": listed["rule"], "reference": listed["rule"]}
    return choices if len(choices) > 1 else listed.get(option.flags[0].lower().strip("-").removesuffix("s"), [])


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
