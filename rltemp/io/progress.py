"""Progress bars, on a terminal only, so that logs stay readable. What is printed meanwhile stands above the bar."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress

EVERY = 30.0
"""Seconds from one line to the next where the output is no terminal."""

_log = logging.getLogger("rltemp")


class Bar(ExitStack):
    """A progress bar on a terminal, told the steps taken and the steps there are.

    Args:
        label: Stands before the bar.
    """

    def __init__(self, label: str) -> None:
        super().__init__()
        self._begun = time.monotonic()
        self._bar: RichProgress | None = None
        if sys.stdout.isatty():
            columns = TextColumn("{task.fields[label]}", markup=False), BarColumn(), TextColumn("{task.description}")
            # Where stderr is a file, warnings are for that file and not for the terminal.
            bar = RichProgress(*columns, console=Console(), transient=True, redirect_stderr=sys.stderr.isatty())
            self._bar = self.enter_context(bar)
            self._task = self._bar.add_task("", total=None, label=label)

    def __call__(self, step: int, steps: int) -> None:
        """Move the bar."""
        self._move(step, steps, f"{step}/{steps}{self._left(step, steps - step)}")

    def phase(self, line: str) -> None:
        """Log a line, which stands above the bar where there is one."""
        _log.info(line)

    def _move(self, step: int, steps: int, text: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=step, total=steps, description=text)

    def _left(self, taken: int, missing: int) -> str:
        """The time left at the pace so far."""
        seconds = time.monotonic() - self._begun
        return f", {duration(seconds * missing / taken)} left" if taken > 0 else ""


class Progress(Bar):
    """Live progress over all students of a comparison: a bar on a terminal; elsewhere a line now and then.

    Args:
        label: Stands before the bar.
        unit: Steps of a student.
        every: Seconds between lines.

    Attributes:
        found: How many students had a cached result, and took no time.
    """

    def __init__(self, label: str, unit: int = 1, every: float = EVERY) -> None:
        super().__init__(label)
        self._unit, self._every, self._said = max(unit, 1), every, self._begun
        self.found: Callable[[], int] = lambda: 0

    def __call__(self, step: int, steps: int) -> None:
        """Tell how many steps of all students are done, those with cached results among them."""
        now = time.monotonic()
        if self._bar is None and now - self._said < self._every:
            return
        left = self._left(step - self.found() * self._unit, steps - step)
        text = f"{step // self._unit} of {steps // self._unit} students{left}"
        self._move(step, steps, text)
        if self._bar is None:
            self._said = now
            _log.info(f"{text}.")


def duration(seconds: float) -> str:
    """A time as people say it.

    >>> duration(42.4), duration(170), duration(9000)
    ('42 s', '3 min', '2.5 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
