"""The command line: `rltemp COMMAND --option value`; `COMMANDS` names the commands.

A command is a dataclass of its options with a method `run` (see `rltemp.cli.distill`); tyro reads the options
off it. It is imported when it is asked for, so that help and the rules' table do not wait for
Stable-Baselines3. A mistake ends in one line on stderr and an exit code: 2 for input, 3 for a refused file,
4 for a training that cannot go on, 130 or 143 for one that was asked to stop (SIGINT, SIGTERM).
"""

from __future__ import annotations

import io
import shlex
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, NoReturn

import torch
import tyro

import rltemp
from rltemp.errors import ArtifactRefusedError, BadInputError, InterruptedRunError, TrainingStoppedError, one_line
from rltemp.io.interruption import handled
from rltemp.io.run_folders import read_config
from rltemp.kd.names import import_attribute, lookup
from rltemp.loading import imports_code
from rltemp.training.ddp import started_together
from rltemp.training.options import NOT_CONFIGURATION, arguments, at_least, flat

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("rltemp.cli.policy_commands:Demo", "teacher, policy, student and comparison, once, on a small task"),
    "train-teacher": ("rltemp.cli.train_teacher:TrainTeacher", "train a task's teacher and write its weights"),
    "train-policy": ("rltemp.cli.policy_commands:TrainPolicy", "learn a temperature policy and export it"),
    "distill": ("rltemp.cli.distill:Distill", "train one student under a rule or a policy file"),
    "compare": ("rltemp.cli.compare:Compare", "compare rules over many students, paired by seed"),
    "study": ("rltemp.cli.compare:Study", "tell whether a policy wins, over what, and by which part of it"),
    "explain": ("rltemp.cli.compare:Explain", "show why a policy sets the temperatures it sets"),
    "serve": ("rltemp.cli.serve:Serve", "serve rules and policies over HTTP, for runs in other processes"),
    "policy show": ("rltemp.cli.file_commands:PolicyShow", "check a policy file and print what it says about itself"),
    "policy import": (
        "rltemp.cli.file_commands:PolicyImport",
        "make a policy file of Stable-Baselines3's weights, safely",
    ),
    "policy export": (
        "rltemp.cli.export_command:PolicyExport",
        "write a policy for hosts without rltemp: torch.export, ONNX",
    ),
    "rules": ("rltemp.cli.listings:Rules", "list every temperature rule and every divergence"),
    "methods": ("rltemp.cli.listings:Methods", "list every method: a rule with its paper's loss weights"),
}
"""Where each command is, and what it does in a few words."""

MAX_TEXT = 4096
"""Characters of a value in a configuration file; a path has no more."""


ANEW = ("--fresh", "--no-only-missing")
"""Not repeated by a command that is to go on."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line `argv`, by default the process's own, and exit."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        with handled():
            run(words)
    except (BadInputError, TrainingStoppedError) as error:
        print(f"rltemp: {one_line(' '.join(str(error).splitlines()))}", file=sys.stderr)
        sys.exit(exit_code(error))
    except InterruptedRunError as stopped:
        again = shlex.join(["rltemp", *(word for word in words if word not in ANEW)])
        print(f"rltemp: {stopped}. Go on with: {again}", file=sys.stderr)
        sys.exit(128 + stopped.number)
    sys.exit(0)


def exit_code(error: Exception) -> int:
    """The exit code that stands for an error."""
    if isinstance(error, TrainingStoppedError):
        return 4
    return 3 if isinstance(error, ArtifactRefusedError) else 2


def run(argv: Sequence[str]) -> None:
    """Find the command, read its options, and run it."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage())
        return
    if argv[0] == "--version":
        print(f"rltemp {rltemp.__version__}")
        return
    if started_together() and argv[0] != "distill":
        raise BadInputError(f"torchrun is for `distill`, one large student; start `{argv[0]}` without it")
    words = 2 if " ".join(argv[:2]) in COMMANDS else 1
    options = parse(" ".join(argv[:words]), argv[words:])
    at_least(1, threads=options.threads)
    torch.set_num_threads(options.threads)
    options.run()


def parse(command: str, words: Sequence[str]) -> Any:
    """Read the options of a command; those of a preset and of a `--config` file come first: the line's own win.

    Raises:
        BadInputError: Where the command or an option is not known, or the configuration cannot be used.
    """
    kind = import_attribute(lookup(COMMANDS, command, "command")[0])
    if hasattr(kind, "check_words"):
        kind.check_words(words)  # before anything could repeat them
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            saved = _saved(kind, command, words)
            args = [*_preset(kind, saved), *saved, *_preset(kind, words), *words]
            options = tyro.cli(kind, prog=f"rltemp {command}", args=args)
    except SystemExit as stopped:
        if not stopped.code:
            raise  # --help
        raise BadInputError(f"{_one_line(said.getvalue())}. See `rltemp {command} --help`") from None
    _refuse_code(options, words)
    return options


def _one_line(boxed: str) -> str:
    """The text of tyro's box, without the box, its title and its pointers to the help."""
    lines = [line.strip("│╭╮╰╯─ ") for line in boxed.splitlines()]
    kept = [line for line in lines[1:] if line and "helptext" not in line]
    return " ".join(dict.fromkeys(kept)).rstrip(".")


def _saved(kind: type[Any], command: str, words: Sequence[str]) -> list[str]:
    """What the file given as `--config` says, as words of a command line: it then checks their values."""
    given = _given("--config", words)
    if not given:
        return []
    values = read_config(Path(given[-1]), command)
    known = dict.fromkeys(name for name in flat(kind()) if name not in NOT_CONFIGURATION)
    for name, value in values.items():
        lookup(known, name, f"option in {given[-1]}:")
        for item in value if isinstance(value, list) else [value]:
            # Values become words of a command line, where these would be options of their own.
            if isinstance(item, (dict, list)) or str(item).startswith("--") or len(str(item)) > MAX_TEXT:
                raise BadInputError(f"{given[-1]}: {name} cannot be {str(item)[:80]!r}")
    return arguments(values)


def _refuse_code(options: Any, words: Sequence[str]) -> None:
    """Refuse a rule that runs its user's own code where the user did not type it: it came out of a file."""
    typed = {*words, *(word.partition("=")[2] for word in words)}
    names = ("fallback",) if getattr(options, "controller", None) else ("rule", "rules")
    for name in names:  # a controller's model is a name that nothing is imported by
        given = getattr(options, name, None) or ()
        for spec in (given,) if isinstance(given, str) else given:
            if imports_code(spec) and spec not in typed:
                raise BadInputError(
                    f"the configuration's {name} {spec!r} would import and run a module. Where that is meant, type it: "
                    f"--{name} {spec}"
                )


def _preset(kind: type[Any], words: Sequence[str]) -> list[str]:
    """What the preset that `--preset` names stands for, as words of a command line, where the command has presets."""
    given = _given("--preset", words)
    return arguments(kind.preset_options(given[-1])) if given and hasattr(kind, "preset_options") else []


def _given(option: str, words: Sequence[str]) -> list[str]:
    """Every value that an option is given."""
    given = [words[i + 1] for i, word in enumerate(words[:-1]) if word == option]
    return given + [word.partition("=")[2] for word in words if word.startswith(f"{option}=")]


def _usage() -> str:
    lines = [f"  {name:<14} {text}" for name, (_, text) in COMMANDS.items()]
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
