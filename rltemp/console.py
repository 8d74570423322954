"""What a person sees: lines, tables, and progress bars (on a terminal only, so that logs stay readable)."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
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
    print(line, flush=True)


def show(table: Table) -> None:
    """Print a table, as wide as the terminal."""
    Console(width=None if sys.stdout.isatty() else FILE_WIDTH).print(table)


def show_next(folder: Path, *commands: str) -> None:
    """End a command: where its files are, and what to type next."""
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    say(f"Files: {folder}/ ({', '.join(name for name in names if 'tfevents' not in name)})")
    for command in commands:
        say(f"Next:  {command}")


def rules_table(methods: Mapping[str, Callable[..., Any]], rules: Mapping[str, Callable[..., Any]]) -> Table:
    """One line a rule: its name, its options with their defaults, what it does and where it comes from.

    Args:
        methods: Factories by name; their parameters are the options.
        rules: Factories of the bare rules, whose docstrings name the sources that a method's own leaves out.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("rule", "options and defaults", "what it does", "source"):
        table.add_column(head, overflow="fold")
    for name, factory in methods.items():
        parameters = inspect.signature(factory).parameters.values()
        options = ", ".join(f"{parameter.name}={_number(parameter.default)}" for parameter in parameters)
        texts = [inspect.getdoc(found) or "" for found in (factory, rules.get(name)) if found]
        sources = [url for text in texts for url in re.findall(r"https://[^\s,;)]+", text)]
        row = (name, options, texts[0].partition("\n")[0], sources[0] if sources else "")
        table.add_row(*map(Text, row))
    return table


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
