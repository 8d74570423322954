"""A command's help is one screen of plain text, and what it says of options is what the command takes."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import shlex
import sys

import pytest
import tyro
from support.processes import code

from rltemp.cli.commands import COMMANDS
from rltemp.cli.dispatch import command_of, parse
from rltemp.cli.help import options_of, page

ROWS, COLUMNS = 24, 80
"""Of a terminal that nobody has made larger."""


def on_a_terminal(*words: str) -> tuple[int, str]:
    """The exit code of `rltemp`, and what it writes on a terminal with colours."""
    process, terminal = pty.fork()
    if process == 0:
        os.environ["TERM"] = "xterm-256color"
        os.execv(sys.executable, [sys.executable, "-m", "rltemp", *words])
    said = b""
    with contextlib.suppress(OSError):  # how a terminal of Linux ends
        while data := os.read(terminal, 65536):
            said += data
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), said.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_fits_a_screen(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code(*command.split(), "--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"usage: rltemp {command} [OPTIONS]")
    assert len(lines) <= ROWS
    assert max(map(len, lines)) <= COLUMNS
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_whole_help_names_the_options_that_tyro_takes(command: str) -> None:
    kind, said = command_of(command)[0], io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        tyro.cli(kind, args=["--help"])
    lines = re.findall(r"^(?:│|  ?) (--[a-z].*)", re.sub(r"\x1b\[[0-9;]*m", "", said.getvalue()), re.MULTILINE)
    taken = {flag for line in lines for flag in re.match(r"(--[^\s,]+)(?:, (--\S+))?", line).groups() if flag}
    named = {flag for option in options_of(kind) for flag in option.flags if flag.startswith("--")}
    assert named == taken
    text = page(command, kind, everything=True)
    assert all(re.search(rf"^  (--\S+, )?{re.escape(flag)}\b", text, re.MULTILINE) for flag in named)
    assert all(option.text for option in options_of(kind))


@pytest.mark.parametrize("command", COMMANDS)
def test_common_options_exist_and_examples_can_be_read(command: str) -> None:
    kind, examples, common = command_of(command)[0], COMMANDS[command].examples, COMMANDS[command].common
    assert {*common} <= {option.flags[0].removeprefix("--") for option in options_of(kind)}
    assert examples
    for example in examples:
        words = shlex.split(example)
        assert " ".join(words[: len(command.split())]) == command
        parse(command, words[len(command.split()) :])


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_a_group_of_commands_says_what_is_in_it(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert code("policy", *words) == 0
    assert re.findall(r"^  rltemp (policy \w+) ", capsys.readouterr().out, re.MULTILINE) == [
        name for name in COMMANDS if name.startswith("policy ")
    ]


def test_a_mistake_is_the_same_plain_line_on_a_terminal() -> None:
    said = "rltemp: unknown option --epoch: did you mean --epochs? `rltemp distill --help-all` explains them all\n"
    assert on_a_terminal("distill", "--epoch", "3") == (2, said)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("train-policy", "--students", "8"), "--students-per-update"),
        (("train-policy", "--tasks=8"), "--tasks-per-update"),
        (("distill", "--learning-rte", "1"), "--learning-rate"),
    ],
)
def test_an_unknown_option_is_answered_with_the_one_that_is_meant(
    words: tuple[str, ...], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code(*words) == 2
    assert f": did you mean {meant}? " in capsys.readouterr().err


def test_a_wrong_value_is_a_plain_line_on_a_terminal() -> None:
    number, said = on_a_terminal("distill", "--seed", "one")
    assert (number, said.count("\n"), "\x1b" in said) == (2, 1, False)
    assert said.startswith("rltemp: --seed must be a whole number; ")
