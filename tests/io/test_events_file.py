"""One events file to a run: appended to, cut back, and patient with a disk that is full or gone (case 10)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.processes import curves, full_disk

import rltemp.io.events_file
from rltemp.training.tensorboard import Tracker

pytestmark = pytest.mark.usefixtures("console")


def steps(folder: Path, tag: str = "student/loss") -> list[int]:
    return [step for step, _ in curves(folder)[tag]]


def write(tracker: Tracker, *values: int) -> None:
    for step in values:
        tracker.scalars({"student/loss": float(step)}, step)


def test_a_log_goes_on_where_a_checkpoint_was_with_nothing_twice(tmp_path: Path) -> None:
    with Tracker(tmp_path) as first:
        write(first, 1, 2, 3)
        size = first.flush()
        write(first, 4, 5)
    with Tracker(tmp_path, size) as second:
        write(second, 4, 5, 6)
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_run_from_the_beginning_shows_nothing_of_an_earlier_one(tmp_path: Path) -> None:
    for values in ((1, 2, 3), (1, 2)):
        with Tracker(tmp_path) as tracker:
            write(tracker, *values)
    assert steps(tmp_path) == [1, 2]


def test_a_record_that_was_cut_in_half_by_a_kill_is_written_over(tmp_path: Path) -> None:
    with Tracker(tmp_path) as tracker:
        write(tracker, 1)
        size = tracker.flush()
        write(tracker, 2)
    file = next(tmp_path.iterdir())
    file.write_bytes(file.read_bytes()[: size + 7])
    with Tracker(tmp_path, size) as tracker:
        write(tracker, 2, 3)
    assert steps(tmp_path) == [1, 2, 3]


def test_on_a_full_disk_points_wait_and_are_written_when_there_is_room(tmp_path, capsys):
    with Tracker(tmp_path) as tracker:
        write(tracker, 1)
        size = tracker.flush()
        with full_disk(size + 10):
            for step in range(2, 40):
                write(tracker, step)
                assert tracker.flush() == size
        write(tracker, 40)
    assert steps(tmp_path) == list(range(1, 41))
    said = capsys.readouterr()
    assert said.err.count("warning") == 1
    assert "cannot write the TensorBoard log" in said.err
    assert str(tmp_path) in said.err


def test_points_that_found_no_room_are_counted_and_only_so_many_wait(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rltemp.io.events_file, "MAX_WAITING", 5)
    with full_disk(50), Tracker(tmp_path) as tracker:
        write(tracker, *range(12))
    # The layout of the charts is one of them.
    assert "13 points of the TensorBoard log" in capsys.readouterr().err


def test_a_log_folder_that_disappears_costs_what_was_in_it_and_no_more(tmp_path, capsys):
    with Tracker(tmp_path / "log") as tracker:
        write(tracker, 1, 2)
        tracker.flush()
        shutil.rmtree(tmp_path / "log")
        write(tracker, 3, 4)
    assert steps(tmp_path / "log") == [3, 4]
    assert "is gone; a new one begins" in capsys.readouterr().err


def test_a_log_that_is_shorter_than_its_checkpoint_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Tracker(tmp_path) as tracker:
        write(tracker, 1)
    with Tracker(tmp_path, 10_000) as tracker:
        write(tracker, 2)
    assert "has lost its last" in capsys.readouterr().err
    assert steps(tmp_path) == [1, 2]
