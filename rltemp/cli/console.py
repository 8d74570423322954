"""What the command line prints: its own lines, and what the library logs meanwhile."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import RenderableType

FILE_WIDTH = 160
"""Columns where the output is no terminal."""


class _Handler(logging.Handler):
    """Shows information as it is on stdout, and warnings on stderr, a line each, at once."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING:
            say(record.getMessage())
        else:
            complain(f"warning: {record.getMessage()}")


@contextmanager
def messages_shown() -> Iterator[None]:
    """Within, what rltemp logs is printed, once: some library may have given the root logger a handler, too."""
    logger = logging.getLogger("rltemp")
    before = logger.handlers, logger.level, logger.propagate
    logger.handlers, logger.propagate = [_Handler(logging.INFO)], False
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.handlers, level, logger.propagate = before
        logger.setLevel(level)


def say(line: str) -> None:
    """Print a line as it is."""
    _write(line, sys.stdout)


def complain(line: str) -> None:
    """Print one line on stderr, after the program's name."""
    _write(f"rltemp: {' '.join(line.splitlines())}", sys.stderr)


def show(table: RenderableType) -> None:
    """Print a table, as wide as the terminal."""
    from rich.console import Console  # `rltemp --help` prints no table

    Console(width=None if sys.stdout.isatty() else FILE_WIDTH).print(table)


def show_next(folder: Path, *commands: str) -> None:
    """End a command: where its files are, and what to type next."""
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    say(f"Files: {folder}/ ({', '.join(name for name in names if 'tfevents' not in name)})")
    for command in commands:
        say(f"Next:  {command}")


def next_command(command: str, task: str, out: Path, *words: object) -> str:
    """A line to type next: a command on the same task, in a folder beside this one's, so that neither is in the way.

    >>> next_command("distill", "--task toy", Path("my runs/p"), "--rule", "my runs/p/policy.safetensors")
    "rltemp distill --task toy --rule 'my runs/p/policy.safetensors' --out 'my runs/p-distill'"
    """
    own = out if out.name not in ("", "..") else out.resolve()
    given = shlex.join(map(str, (*words, "--out", own.with_name(f"{own.name}-{command}"))))
    return f"rltemp {command} {task} {given}"


def logs_of(folder: Path) -> str:
    """The line that opens TensorBoard on a folder."""
    return shlex.join(["tensorboard", "--logdir", str(folder)])


def _write(line: str, stream: TextIO) -> None:
    try:
        print(line, file=stream, flush=True)
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # nobody listens any more
            raise
        # The output may go to the very disk that is full: no reason to end a run.
