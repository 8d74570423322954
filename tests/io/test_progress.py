"""Bars on a terminal, with lines above them; elsewhere a line now and then."""

from __future__ import annotations

import io
import re
import time

import pytest

from rltemp.cli.console import messages_shown, say
from rltemp.io.progress import Bar, Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """What stdout is from here on."""
    monkeypatch.setattr("sys.stdout", shown := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    return shown


def test_progress_is_a_line_now_and_then_with_the_time_left(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "rltemp")
    bar = Progress("compare", unit=10, every=0.0)
    bar.found = lambda: 4  # they took no time
    with bar:
        bar(40, 100)
        time.sleep(0.2)
        bar(60, 100)
    first, second = caplog.messages
    assert first == "4 of 10 students."
    assert re.fullmatch(r"6 of 10 students, \d s left\.", second)
    caplog.clear()
    with Progress("compare", unit=10) as bar:
        bar(10, 100)
    assert caplog.messages == [], "not every student has a line"


def test_a_bar_on_a_terminal_shows_where_it_is_and_keeps_lines_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with messages_shown(), Progress("compare", unit=10) as bar:
        bar(40, 100)
        bar.phase("Training under [none].")
        say("A line of a command.")
    shown = terminal.getvalue()
    assert "Training under [none]." in shown
    assert "A line of a command." in shown
    assert "4 of 10 students, 0 s left" in shown


def test_a_bar_of_steps_names_them_and_its_label_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with Bar("dtkd[x]:2") as bar:
        bar(3, 12)
    assert "dtkd[x]:2" in terminal.getvalue()
    assert "3/12" in terminal.getvalue()


def test_where_the_output_is_no_terminal_there_is_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with Bar("teacher") as bar:
        bar(1, 2)
    assert capsys.readouterr() == ("", "")
