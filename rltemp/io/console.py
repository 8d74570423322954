"""What a person is told by the library: lines, tables, and progress bars.

Lines are logged (`logging.getLogger("rltemp")`): whoever calls the library sees its warnings alone, and the command
line (`rltemp.cli.console`) shows everything.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rltemp.io.progress import Bar

__all__ = ["FILE_WIDTH", "Bar", "say", "show", "show_next", "warn"]

FILE_WIDTH = 160  # of tables where the output is no terminal
_log = logging.getLogger("rltemp")


def say(line: str) -> None:
    """Log a line for whoever watches."""
    _log.info(line)


def warn(line: str) -> None:
    """Log a warning."""
    _log.warning(line)


def show(table: Table) -> None:
    """Print a table, as wide as the terminal."""
    Console(width=None if sys.stdout.isatty() else FILE_WIDTH).print(table)


def show_next(folder: Path, *commands: str) -> None:
    """End a command: where its files are, and what to type next."""
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    say(f"Files: {folder}/ ({', '.join(name for name in names if 'tfevents' not in name)})")
    for command in commands:
        say(f"Next:  {command}")
