"""Live progress over all cells of a comparison, with the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress

from rltemp.io.console import say

EVERY = 30.0
"""Seconds from one line to the next where the output is no terminal."""


class Progress:
    """A bar on a terminal; elsewhere a line now and then.

    Args:
        label: Stands before it.
        unit: Steps of a cell.
        every: Seconds between lines.

    Attributes:
        found: How many cells were there, and took no time.
    """

    def __init__(self, label: str, unit: int = 1, every: float = EVERY) -> None:
        self._unit, self._every = max(unit, 1), every
        self.found: Callable[[], int] = lambda: 0
        self._begun = self._said = time.monotonic()
        self._bar: RichProgress | None = None
        if sys.stdout.isatty():
            columns = TextColumn(label), BarColumn(), TextColumn("{task.description}")
            self._bar = RichProgress(*columns, console=Console(), transient=True)
            self._task = self._bar.add_task("", total=None)

    def __call__(self, step: int, steps: int) -> None:
        """Tell how many steps of all cells are done, those that were there among them."""
        now = time.monotonic()
        if self._bar is None and now - self._said < self._every:
            return
        cells = f"{step // self._unit} of {steps // self._unit} cells"
        left = self._left(now, step - self.found() * self._unit, steps - step)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, total=steps, description=f"{cells}{left}")
        else:
            self._said = now
            say(f"{cells}{left}.")

    def phase(self, line: str) -> None:
        """Print a line, above the bar where there is one."""
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            say(line)

    def _left(self, now: float, taken: int, missing: int) -> str:
        """At the pace so far."""
        return f", {duration((now - self._begun) * missing / taken)} left" if taken > 0 else ""

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def duration(seconds: float) -> str:
    """A time as people say it.

    >>> duration(42.4), duration(170), duration(9000)
    ('42 s', '3 min', '2.5 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
