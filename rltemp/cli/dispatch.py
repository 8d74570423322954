"""From the words of a command line to a command that runs: its options are read and checked."""

from __future__ import annotations

import importlib
import inspect
import io
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stderr
from pathlib import Path
from typing import Any, get_type_hints

import torch
import tyro

from rltemp.cli.commands import COMMANDS, group
from rltemp.cli.console import say
from rltemp.cli.help import HELP, page, refuse_unknown
from rltemp.data.task import is_own_network
from rltemp.errors import BadInputError
from rltemp.io.command_words import arguments, at_least, with_home
from rltemp.io.locks import released_at_end
from rltemp.io.own_code import is_own
from rltemp.io.run_folders import nothing_left_by_a_failed_start, read_config
from rltemp.kd.names import lookup
from rltemp.loading import imports_code
from rltemp.training.ddp import started_together
from rltemp.training.options import CONTENT, TaskOptions, configuration

MAX_TEXT = 4096
"""Characters of a value in a configuration file; a path has no more."""


def dispatch(words: Sequence[str]) -> None:
    """Find the command that the first words name, read its options, and run it."""
    if started_together() and words[0] != "distill":
        raise BadInputError(f"torchrun is for `distill`, one large student; start `{words[0]}` without it")
    named = 2 if group(words[0]) else 1
    name = " ".join(words[:named])
    if set(words[named:]) & set(HELP):
        say(page(name, command_of(name)[0], everything="--help-all" in words))
        return
    options = parse(name, words[named:])
    at_least(1, threads=options.threads)
    torch.set_num_threads(options.threads)
    failed = nothing_left_by_a_failed_start(options.folder()) if isinstance(options, TaskOptions) else nullcontext()
    with released_at_end(), failed:
        command_of(name)[1](options)


def parse(command: str, words: Sequence[str]) -> Any:
    """Read the options of a command; the line's own win over those that a preset, a policy or a file stands for.

    Raises:
        BadInputError: Where the command or an option is not known, or the configuration cannot be used.
    """
    kind, words = command_of(command)[0], with_home(list(words))
    if hasattr(kind, "check_words"):
        kind.check_words(words)  # before anything could repeat them
    refuse_unknown(kind, command, words)
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            saved = _saved(kind, command, words)
            args = [*_implied(kind, saved), *with_home(saved), *_implied(kind, words), *words]
            options = tyro.cli(kind, prog=f"rltemp {command}", args=args)
    except SystemExit:
        raise BadInputError(f"{_plain(_one_line(said.getvalue()))}. See `rltemp {command} --help`") from None
    _refuse_code(options, words)
    return options


def command_of(command: str) -> tuple[type[Any], Callable[[Any], object]]:
    """A command's options, and what takes them."""
    module, attribute = lookup(COMMANDS, command, "command").place.split(":")
    found = getattr(importlib.import_module(f"rltemp.cli.{module}"), attribute)
    return (get_type_hints(found)["options"], found) if inspect.isfunction(found) else (found, found.run)


def _one_line(boxed: str) -> str:
    """What tyro's box says in its first part, without colours, the box and its title. It may be drawn in ASCII."""
    _, *lines = (line.strip("│╭╮╰╯ ") for line in re.sub(r"\x1b\[[0-9;]*m", "", boxed).splitlines())
    first: list[str] = []
    for line in lines:
        if line.strip("─-"):
            first.append(line)
        elif first:
            break
    return " ".join(" ".join(first).replace("{None}|", "").split()).rstrip(".")


def _plain(said: str) -> str:
    """What tyro says, in words for whoever types.

    >>> _plain("Error parsing --seed: invalid literal for int() with base 10: 'one'")
    "--seed must be a whole number; got 'one'"
    """
    if choice := re.match(r"invalid choice (.*?) for argument '(.*?)'\. Expected one of \((.*)\)$", said):
        known = sorted({*re.findall(r"'([^']*)'", choice[3])} - {"None"})  # tyro's order is another every time
        return f"{choice[2]} is one of {', '.join(known)}; got {choice[1]}"
    for pattern, words in _WORDS.items():
        said = re.sub(pattern, words, said)
    return said


_WORDS = {
    r"^Error parsing (--\S+): .*(?:INT|int\(\)).*?\[?('[^']*')\]?$": r"\1 must be a whole number; got \2",
    r"^Error parsing (--\S+): .*(?:FLOAT|to float).*?\[?('[^']*')\]?$": r"\1 must be a number; got \2",
    r"^Error parsing (--\S+): Could not find valid parse for arguments: \[(.*)\]$": r"\1 cannot be \2",
    r"^Error parsing [a-z]\w*: ": "",  # a group of options that refuses its values in words of its own
    r"^Missing value for argument '(.*?)'\. Expected .*$": r"\1 needs a value",
    r"^Unrecognized options: (?=-\w)": "options have two dashes in front; got ",
    r"^Unrecognized options: ": "a word too many, that no option takes: ",
}


def _saved(kind: type[Any], command: str, words: Sequence[str]) -> list[str]:
    """What the file given as `--config` says, as words of a command line: it then checks their values."""
    if not (file := _given("--config", words)):
        return []
    values = read_config(Path(file), command)
    values.pop(CONTENT, None)
    if hasattr(kind, "upgraded"):
        values = kind.upgraded(values)
    for name, value in values.items():
        lookup(configuration(kind()), name, f"option in {file}:")
        for item in value if isinstance(value, list) else [value]:
            # Values become words of a command line, where these would be options of their own.
            if isinstance(item, (dict, list)) or str(item).startswith("--") or len(str(item)) > MAX_TEXT:
                raise BadInputError(f"{file}: {name} cannot be {str(item)[:80]!r}")
    return arguments(values)


def _refuse_code(options: Any, words: Sequence[str]) -> None:
    """Refuse a rule that runs its user's own code where the user did not type it: it came out of a file."""
    typed = {*words, *(word.partition("=")[2] for word in words)}
    names = ("fallback",) if getattr(options, "controller", None) else ("rule", "rules")
    kinds: dict[str, Callable[[str], bool]] = dict.fromkeys(("task", "tasks"), is_own)
    kinds |= dict.fromkeys(("student", "students", "teacher", "teachers"), is_own_network)
    kinds |= dict.fromkeys(names, imports_code)  # a controller's model is a name that nothing is imported by
    for name, runs_code in kinds.items():
        given = getattr(options, name, None) or ()
        for spec in (given,) if isinstance(given, str) else given if isinstance(given, tuple) else ():
            if runs_code(spec) and spec not in typed:
                raise BadInputError(
                    f"the configuration's {name} {spec!r} would import and run a module. Where that is meant, type it: "
                    f"--{name} {spec}"
                )


def _implied(kind: type[Any], words: Sequence[str]) -> list[str]:
    """What a preset stands for, and what a policy to start from says of itself, as words of a command line."""
    if not hasattr(kind, "implied"):
        return []
    given = {option: _given(f"--{option.replace('_', '-')}", words) for option in ("preset", "start_from")}
    return arguments(kind.implied({option: value for option, value in given.items() if value != str(None)}))


def _given(option: str, words: Sequence[str]) -> str:
    """The last value that an option is given, or nothing."""
    given = [words[i + 1] for i, word in enumerate(words[:-1]) if word == option]
    return ["", *given, *(word.partition("=")[2] for word in words if word.startswith(f"{option}="))][-1]
