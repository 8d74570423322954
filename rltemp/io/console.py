"""What a person sees: lines, tables, and progress bars (on a terminal only, so that logs stay readable)."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

FILE_WIDTH = 160  # of tables where the output is no terminal


class Bar:
    """A progress bar on a terminal, told the steps taken and the steps there are.

    Args:
        label: Stands before the bar.
    """

    def __init__(self, label: str) -> None:
        self._bar: tqdm[Any] = tqdm(desc=label, disable=None, leave=False)

    def __call__(self, step: int, steps: int) -> None:
        """Move the bar."""
        self._bar.total = steps
        self._bar.update(step - self._bar.n)

    def phase(self, line: str) -> None:
        """Print a line, above the bar where there is one."""
        self._bar.write(line)

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


def say(line: str) -> None:
    """Print a line, as it is and at once."""
    _write(line, sys.stdout)


def warn(line: str) -> None:
    """Print a warning, one line, beside what the command says."""
    _write(f"rltemp: warning: {' '.join(line.splitlines())}", sys.stderr)


def _write(line: str, stream: TextIO) -> None:
    try:
        print(line, file=stream, flush=True)
    except BrokenPipeError:
        raise  # nobody listens any more
    except OSError:
        pass  # the output may go to the very disk that is full: no reason to end a run


def show(table: Table) -> None:
    """Print a table, as wide as the terminal."""
    Console(width=None if sys.stdout.isatty() else FILE_WIDTH).print(table)


def show_next(folder: Path, *commands: str) -> None:
    """End a command: where its files are, and what to type next."""
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    say(f"Files: {folder}/ ({', '.join(name for name in names if 'tfevents' not in name)})")
    for command in commands:
        say(f"Next:  {command}")
