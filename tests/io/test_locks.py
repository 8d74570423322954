"""One process at a time works in a folder, and the folder is free again when that work ends, however it ends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rltemp.errors import BadInputError
from rltemp.io.locks import LOCK, hold, owner, release, released_at_end

HOLDER = """
import sys
from pathlib import Path
from rltemp.io.locks import hold
hold(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder."""
    words = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_every_rival_is_told_who_holds_the_folder(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    before = (tmp_path / LOCK).read_bytes()
    for _ in range(2):  # a first rival must not empty the lock's file under a second
        with pytest.raises(BadInputError, match=rf"is in use by process {holder.pid} on .* since \d{{4}}-") as refusal:
            hold(tmp_path)
        assert "\n" not in str(refusal.value)
        assert (tmp_path / LOCK).read_bytes() == before


def test_a_killed_process_holds_nothing(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    hold(tmp_path)
    release(tmp_path)
    assert not (tmp_path / LOCK).exists()


def rival(folder: Path) -> int:
    """Whether another process can take the folder: 0, or 1."""
    words = [sys.executable, "-c", HOLDER, str(folder)]
    return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True).returncode


def test_work_that_raises_leaves_its_folder_to_others(tmp_path: Path) -> None:
    def work() -> None:
        with released_at_end():
            hold(tmp_path)
            assert rival(tmp_path) == 1
            raise RuntimeError("a run that fails in a notebook")

    with pytest.raises(RuntimeError, match="notebook"):
        work()
    assert rival(tmp_path) == 0


def test_a_folder_taken_before_is_kept_at_the_end_of_what_is_inside(tmp_path: Path) -> None:
    outer, inner = tmp_path / "outer", tmp_path / "inner"
    outer.mkdir()
    inner.mkdir()
    hold(outer)
    with released_at_end():
        hold(outer)
        hold(inner)
    assert (outer / LOCK).exists()
    assert not (inner / LOCK).exists()
    release(outer)


def test_a_lock_that_names_nobody_is_told_so(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("")
    assert owner(tmp_path / LOCK) == "a process that left no name"
