"""The library logs and the command line prints; nothing that happens to the output ends a run, but a closed pipe."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest

from rltemp.cli.console import messages_shown

LIBRARY = """
import logging
log = logging.getLogger("rltemp.somewhere")
log.info("information")
log.warning("a warning")
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_who_calls_the_library_sees_its_warnings_alone() -> None:
    done = python(LIBRARY)
    assert (done.stdout, done.stderr) == ("", "a warning\n")


def test_the_command_line_shows_information_as_it_is_and_marks_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("rltemp.somewhere")
    before = logging.getLogger("rltemp").level
    with messages_shown():
        logger.info("two\nlines, 100 %% of %s", "them")
        logger.warning("one\nline")
        logger.debug("nothing")
    logger.info("after")
    assert capsys.readouterr() == ("two\nlines, 100 % of them\n", "rltemp: warning: one line\n")
    assert (logging.getLogger("rltemp").level, logging.getLogger("rltemp").handlers) == (before, [])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_full_disk_behind_the_output_ends_nothing() -> None:
    code = "from rltemp.cli.console import complain, say; say('a line'); complain('another'); import os; os._exit(7)"
    with open("/dev/full", "w") as full:
        assert subprocess.run([sys.executable, "-c", code], stdout=full, stderr=full).returncode == 7


def test_a_reader_who_has_read_enough_ends_a_command_quietly() -> None:
    words = [sys.executable, "-m", "rltemp", "rules"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith("Temperature rules")
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_no_library(option: str) -> None:
    code = f"""
import sys
before = set(sys.modules)
from rltemp.cli.main import main
try:
    main(["{option}"])
except SystemExit:
    new = set(sys.modules) - before
print({{name.partition(".")[0] for name in new}} - sys.stdlib_module_names, len(new) < 100)
"""
    assert python(code).stdout.splitlines()[-1] == "{'rltemp'} True"
