"""The command line: `rltemp COMMAND --option value`.

A mistake ends in one line on stderr and an exit code: 2 for input, 3 for a refused file, 4 for a training that cannot
go on, 130 or 143 for one that was asked to stop (SIGINT, SIGTERM).
"""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import rltemp
from rltemp.cli.commands import COMMANDS, group
from rltemp.cli.console import complain, messages_shown, say
from rltemp.errors import BadInputError, InterruptedRunError, RltempError, one_line
from rltemp.io.interruption import handled
from rltemp.io.own_code import raised_by_own_code

DEBUG = "--debug"

USAGE = f"""\
usage: rltemp COMMAND [--option value ...]

Reinforcement-learning temperature control for knowledge distillation.

{chr(10).join(f"  {name:<14} {command.purpose}" for name, command in COMMANDS.items())}

`rltemp COMMAND --help` shows a command's examples and common options, and
--help-all every option; `rltemp --version` shows the version; {DEBUG} shows
where an error came from."""

ANEW = ("--fresh", "--no-only-missing")
"""Not repeated by a command that is to go on."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line `argv`, by default the process's own, and exit."""
    given = sys.argv[1:] if argv is None else list(argv)
    words = [word for word in given if word != DEBUG]
    try:
        with handled(), messages_shown():
            run(words)
    except InterruptedRunError as stopped:
        again = shlex.join(["rltemp", *(word for word in words if word not in ANEW)])
        complain(f"{stopped}. Go on with: {again}")
        sys.exit(stopped.exit_code)
    except RltempError as error:
        if DEBUG in given:
            traceback.print_exception(error)
        complain(one_line(" ".join(str(error).splitlines())))
        sys.exit(error.exit_code)
    except BrokenPipeError:  # `rltemp rules | head -1` has read what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes what is left at its end
        sys.exit(1)
    except (Exception, SystemExit) as error:
        if DEBUG in given or not raised_by_own_code(error):
            raise
        said = " ".join(str(error).split())
        complain(one_line(f"your code raised {type(error).__name__}: {said}. {DEBUG} shows where"))
        sys.exit(BadInputError.exit_code)
    sys.exit(0)


def run(words: Sequence[str]) -> None:
    """Run one command, or print what there is."""
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    if not words or words[0] in ("-h", "--help"):
        say(USAGE)
    elif words[0] == "--version":
        say(f"rltemp {rltemp.__version__}")
    elif (several := group(words[0])) and (words[1:] or ["--help"])[0].startswith("-"):
        for name in several:
            say(f"  rltemp {name:<14} {COMMANDS[name].purpose}")
    elif words[0].startswith("-"):
        raise BadInputError(f"a command comes first; got {words[0]}. `rltemp --help` lists them")
    else:
        from rltemp.cli.dispatch import dispatch  # torch and tyro take two seconds

        dispatch(words)
