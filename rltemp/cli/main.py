"""The command line: `rltemp COMMAND --option value`; `COMMANDS` names the commands.

A command is a dataclass of its options, which tyro reads, and a function of such options. To add one: write both into
a module of this package and enter them into `COMMANDS`. The module is imported when the command is asked for, so that
`rltemp --help` waits for no library. A mistake ends in one line on stderr and an exit code: 2 for input, 3 for a
refused file, 4 for a training that cannot go on, 130 or 143 for one that was asked to stop (SIGINT, SIGTERM).
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import rltemp
from rltemp.cli.console import complain, messages_shown, say
from rltemp.errors import InterruptedRunError, RltempError, one_line
from rltemp.io.interruption import handled


class Command(NamedTuple):
    """Where a command is: its module in `rltemp.cli`, and by their names there its options and what takes them.

    The function may be a method of the options, as in `Serve.run`. `help` says in a few words what it does.
    """

    module: str
    options: str
    function: str
    help: str


COMMANDS = {
    "demo": Command("demo", "Demo", "demo", "teacher, policy, student and comparison, once, on a small task"),
    "train-teacher": Command(
        "train_teacher", "TrainTeacher", "train_teacher", "train a task's teacher, write its weights"
    ),
    "train-policy": Command("train_policy", "TrainPolicy", "train_policy", "learn a temperature policy and export it"),
    "distill": Command("distill", "Distill", "Distill.run", "train one student under a rule or a policy file"),
    "compare": Command("compare", "CompareOptions", "compare", "compare rules over many students, paired by seed"),
    "study": Command(
        "compare", "StudyOptions", "study", "tell whether a policy wins, over what, and by which part of it"
    ),
    "explain": Command("compare", "ExplainOptions", "explain", "show why a policy sets the temperatures it sets"),
    "serve": Command("serve", "Serve", "Serve.run", "serve rules and policies over HTTP, for runs in other processes"),
    "policy show": Command(
        "policy_files", "PolicyShow", "policy_show", "check a policy file, print what it says of itself"
    ),
    "policy import": Command(
        "policy_files", "PolicyImport", "policy_import", "make a policy file of SB3's weights, safely"
    ),
    "policy export": Command(
        "policy_export", "PolicyExport", "policy_export", "write a policy for hosts without rltemp"
    ),
    "rules": Command("listings", "Rules", "rules", "list every temperature rule and every divergence"),
    "methods": Command("listings", "Methods", "methods", "list every method: a rule with its paper's loss weights"),
}
"""Every command by the words that name it."""

ANEW = ("--fresh", "--no-only-missing")
"""Not repeated by a command that is to go on."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line `argv`, by default the process's own, and exit."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        with handled(), messages_shown():
            run(words)
    except InterruptedRunError as stopped:
        again = shlex.join(["rltemp", *(word for word in words if word not in ANEW)])
        complain(f"{stopped}. Go on with: {again}")
        sys.exit(stopped.exit_code)
    except RltempError as error:
        complain(one_line(" ".join(str(error).splitlines())))
        sys.exit(error.exit_code)
    except BrokenPipeError:  # `rltemp rules | head -1` has read what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes what is left at its end
        sys.exit(1)
    sys.exit(0)


def run(words: Sequence[str]) -> None:
    """Run one command, or print what there is."""
    if not words or words[0] in ("-h", "--help", "help"):
        say(_usage())
    elif words[0] == "--version":
        say(f"rltemp {rltemp.__version__}")
    else:
        from rltemp.cli.dispatch import dispatch  # torch and tyro take two seconds

        dispatch(words)


def _usage() -> str:
    lines = [f"  {name:<14} {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: rltemp COMMAND [--option value ...]",
            "",
            "Reinforcement-learning temperature control for knowledge distillation.",
            "",
            *lines,
            "",
            "rltemp COMMAND --help shows a command's options; rltemp --version shows the version.",
        ]
    )
