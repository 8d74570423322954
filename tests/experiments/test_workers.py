"""Workers: processes that have the cells of a folder, each cell once, whatever happens to one of them."""

from __future__ import annotations

import io
import itertools
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support import crew_work
from support.crew_work import jobs, lines
from support.processes import Process, code, start, until
from support.results import COMPARE, STUDY, STUDY_SIZE, cells_of, contents, shares

from rltemp.data.dataset import Dataset, Split
from rltemp.data.problem import Problem
from rltemp.data.tasks import Recipe, Task
from rltemp.errors import BadInputError, TrainingStoppedError
from rltemp.experiments.cached_result import CachedResult
from rltemp.experiments.crews import RETRIES, share
from rltemp.experiments.parcel import Parcel
from rltemp.experiments.result_cache import Job, ResultCache
from rltemp.experiments.workers import Workers
from rltemp.io.progress import Progress
from rltemp.models.networks import seeded_model
from rltemp.training.identity import problem_identity


@pytest.fixture
def workers() -> Iterator[Workers]:
    with Workers(2) as two:
        yield two


def gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_two_workers_have_every_cell_once_and_only_those_that_are_missing(tmp_path: Path, workers: Workers):
    log, told, cells = tmp_path / "log", [], ResultCache(tmp_path / "cells")
    cells.write({"seeds": 5}, crew_work.cell(5))
    wanted = jobs(log, 40, lambda: told.append(1))
    found = share(workers, cells, wanted, crew_work.write_slowly)
    assert found == [crew_work.cell(number) for number in range(40)]
    assert sorted(number for number, _ in lines(log)) == [number for number in range(40) if number != 5]
    assert len({process for _, process in lines(log)}) == 2
    assert os.getpid() not in {process for _, process in lines(log)}
    assert (cells.found, cells.trained, len(told)) == (1, 39, 40)
    assert {path.suffix for path in cells.folder.iterdir()} == {".json"}

    assert share(workers, ResultCache(tmp_path / "cells"), wanted, crew_work.write_slowly) == found
    assert len(lines(log)) == 39


def test_the_cell_of_a_killed_worker_is_done_by_another(tmp_path: Path, workers: Workers):
    log, cells = tmp_path / "log", ResultCache(tmp_path / "cells")
    found = share(workers, cells, jobs(log, 12), crew_work.die_once)
    assert found == [crew_work.cell(number) for number in range(12)]
    assert Path(f"{log}.died").exists()
    assert sorted(number for number, _ in lines(log)) == list(range(12))
    assert {path.suffix for path in cells.folder.iterdir()} == {".json"}


def test_a_cell_that_always_fails_is_named_with_its_workers_own_traceback(tmp_path: Path, workers: Workers):
    log, cells = tmp_path / "log", ResultCache(tmp_path / "cells")
    (job,) = jobs(log, 1)
    with pytest.raises(TrainingStoppedError) as error:
        share(workers, cells, [job], crew_work.raise_always)
    assert str(cells.path(job.key)) in str(error.value)
    assert f"in {RETRIES + 1} tries: ZeroDivisionError: seven is none of my numbers" in str(error.value)
    assert "in raise_always" in str(error.value)
    assert len(lines(log)) == RETRIES + 1
    assert list(cells.folder.iterdir()) == []
    with pytest.raises(TrainingStoppedError, match="SystemExit"):
        share(workers, cells, [job], crew_work.leave)


def test_what_no_try_can_mend_is_tried_once(tmp_path: Path, workers: Workers):
    log = tmp_path / "log"
    with pytest.raises(BadInputError, match="a number that nobody can use"):
        share(workers, ResultCache(tmp_path / "cells"), jobs(log, 1), crew_work.refuse)
    assert len(lines(log)) == 1


def test_a_full_disk_in_a_worker_ends_it_in_a_line_and_leaves_every_finished_cell(tmp_path: Path, workers: Workers):
    log, cells = tmp_path / "log", ResultCache(tmp_path / "cells")
    wanted = jobs(log, 20)
    with pytest.raises(BadInputError, match=f"^cannot write {cells.path(wanted[6].key)}.*free space"):
        share(workers, cells, wanted, crew_work.fill_the_disk)
    whole = list(cells.folder.glob("*.json"))
    assert len(whole) >= 5
    again = share(workers, ResultCache(tmp_path / "cells"), wanted, crew_work.write)
    assert again == [crew_work.cell(number) for number in range(20)]


def test_workers_end_with_their_parent_however_it_ends(tmp_path: Path):
    log = tmp_path / "log"

    def work() -> None:
        with Workers(1) as one:
            share(one, ResultCache(tmp_path / "cells"), jobs(log, 1), crew_work.hang)

    parent = Process(work)
    until(lambda: len(lines(log)) == 1)
    ((_, worker),) = lines(log)
    assert not gone(worker)
    parent.send(signal.SIGKILL)
    parent.finish()
    until(lambda: gone(worker), 20)
    # Its files are closed when the last of its threads has ended, a moment after the first.
    until(lambda: share_alone(tmp_path, log) == [crew_work.cell(0)], 20)


def share_alone(tmp_path: Path, log: Path) -> list[CachedResult]:
    (job,) = jobs(log, 1)
    return [cell for cell in [ResultCache(tmp_path / "cells").take(Job(job.key, lambda: crew_work.cell(0)))] if cell]


def pictures(make_teacher: bool = True) -> Problem:
    """A problem of pictures, augmented, with a convolutional teacher in the memory order of convolutions."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8, generator=generator)
    part = Split(images, torch.arange(40) % 4)
    own = Recipe(epochs=1, batch_size=8, learning_rate=0.1)
    dataset = Dataset("own", part, part, part, part, 4, torch.full((3,), 120.0), torch.full((3,), 70.0), True)
    teacher = seeded_model("resnet8", (3, 8, 8), 4, 1).to(memory_format=torch.channels_last)
    teacher = teacher.eval().requires_grad_(False)
    return Problem(Task("own", "resnet8", "resnet8", own, own), dataset, teacher, None, 0.5, {"a": "b"})


def test_a_problem_is_the_same_after_its_journey():
    problem = pictures()
    other = Parcel(problem).opened()
    assert problem_identity(other) == problem_identity(problem)
    assert (other.task, other.teacher_accuracy, other.teacher_mark) == (problem.task, 0.5, {"a": "b"})
    images = problem.dataset.batch(problem.dataset.test, torch.arange(8))
    assert torch.equal(other.teacher(images), problem.teacher(images))
    strides = [[value.stride() for value in one.teacher.parameters()] for one in (problem, other)]
    assert strides[0] == strides[1]
    assert not any(value.requires_grad for value in other.teacher.parameters())
    assert not other.teacher.training


SIZE = ("--epochs", "1", "--seeds", "4", "--selection-seeds", "2", "--stack", "2")
SHORT = ("compare", "--task", "toy", "--epochs", "1", "--rules", "none", "universal", "--seeds", "10", "--stack", "1")


def same_bytes(tmp_path: Path, words: tuple[str, ...]) -> None:
    """With two workers and without."""
    out, whole = tmp_path / "run", tmp_path / "whole"
    assert code(*words, "--out", out) == 0
    out.rename(whole)
    assert code(*words, "--out", out, "--workers", "2") == 0
    assert contents(out) == contents(whole)


def test_a_comparison_by_two_workers_has_the_same_bytes(tmp_path: Path):
    same_bytes(tmp_path, (*COMPARE, *SIZE))


@pytest.mark.faults
def test_a_study_by_two_workers_has_the_same_bytes(tmp_path: Path):
    same_bytes(tmp_path, (*STUDY, *STUDY_SIZE))


LONG = (*COMPARE, "--epochs", "1", "--seeds", "24", "--selection-seeds", "8", "--stack", "1")


def kill_after(process: Process, out: Path, cells: int, by: signal.Signals) -> tuple[int, str, str]:
    until(lambda: len(cells_of(out)) >= cells or process.poll() is not None, 120)
    process.send(by)
    return process.finish(20)


@pytest.mark.parametrize("by", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.faults)])
def test_a_signal_stops_the_workers_in_order_and_the_printed_command_goes_on(
    by: signal.Signals, tmp_path: Path, capsys
):
    out = tmp_path / "run"
    words = (*SHORT, "--out", out, "--workers", "2")
    since = time.monotonic()
    status, _, said = kill_after(start(*words), out, 3, by)
    assert status == 128 + by
    assert time.monotonic() - since < 60
    assert re.fullmatch(rf"rltemp: stopped by {by.name}. Go on with: rltemp compare .* --workers 2\n", said), said
    done = cells_of(out)
    assert len(done) >= 3
    time.sleep(0.5)
    assert cells_of(out) == done, "no worker is left"
    assert not (out / "result.json").exists()
    assert code(*words[:-2]) == 0
    assert done.items() <= cells_of(out).items()
    found, trained = shares(capsys.readouterr().out)
    assert (found, found + trained) == (len(done), len(cells_of(out)))


@pytest.mark.faults
def test_killed_three_times_with_two_workers_it_ends_with_the_same_bytes_and_no_cell_done_twice(tmp_path: Path, capsys):
    out, whole = tmp_path / "run", tmp_path / "whole"
    assert code(*LONG, "--out", out) == 0
    total = len(cells_of(out))
    out.rename(whole)
    done: dict[str, tuple[int, int]] = {}
    for kill in range(3):
        process = start(*LONG, "--out", out, "--workers", "2")
        kill_after(process, out, len(done) + 1 + total // 5 + 7 * kill, signal.SIGKILL)
        time.sleep(0.3)  # the workers notice at once, but are not waited for by anybody
        now = cells_of(out)
        assert done.items() <= now.items(), "a finished cell was written again"
        assert len(done) < len(now) < total
        done = now
    capsys.readouterr()
    assert code(*LONG, "--out", out, "--workers", "2") == 0
    assert shares(capsys.readouterr().out) == (len(done), total - len(done))
    assert done.items() <= cells_of(out).items()
    assert contents(out) == contents(whole)


@pytest.mark.parametrize(
    "options", [("--task", "wine", "--student", "resnet8"), ("--workers", "0"), ("--rules", "none", "nobody")]
)
def test_what_cannot_be_done_is_refused_before_a_worker_is_started(options: tuple[str, ...], tmp_path: Path, capsys):
    words = ("compare", "--task", "toy", "--seeds", "2", "--out", tmp_path / "run", "--workers", "2", *options)
    assert code(*words) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_another_process_on_the_folder_is_told_who_works_there(tmp_path: Path):
    out = tmp_path / "run"
    words = (*SHORT, "--out", out, "--workers", "2")
    first = start(*words)
    until(lambda: (out / "run.lock").exists() and str(first.pid) in (out / "run.lock").read_text())
    status, _, said = start(*words).finish()
    assert status == 2
    assert said.count("\n") == 1
    assert f"{out} is in use by process {first.pid}" in said
    first.send(signal.SIGTERM)
    first.finish()


@pytest.mark.faults
def test_ten_thousand_cells_cost_workers_two_milliseconds_each_and_the_last_as_much_as_the_first(
    tmp_path: Path, workers: Workers
):
    log, ends = tmp_path / "log", [time.process_time()]
    cells = ResultCache(tmp_path / "cells")
    share(workers, cells, jobs(log, 10_000, lambda: ends.append(time.process_time())), crew_work.write)
    costs = [1000 * (after - before) for before, after in itertools.pairwise(ends)]
    assert len(costs) == 10_000
    assert sum(costs) / 10_000 < 2
    assert sum(costs[-2000:]) < 1.5 * sum(costs[2000:4000]) + 100


def test_progress_says_a_line_now_and_then_with_the_time_left_at_the_pace_of_what_was_trained(capsys):
    bar = Progress("compare", unit=10, every=0.0)
    bar.found = lambda: 4
    with bar:
        bar(40, 100)
        time.sleep(0.2)
        bar(60, 100)
    first, second = capsys.readouterr().out.splitlines()
    assert first == "4 of 10 cells."
    assert re.fullmatch(r"6 of 10 cells, \d s left\.", second)
    with Progress("compare", unit=10) as bar:
        bar(10, 100)
    assert capsys.readouterr().out == "", "not every cell has a line"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_progress_is_a_bar_with_lines_above_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdout", terminal := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with Progress("compare", unit=10) as bar:
        bar(40, 100)
        bar.phase("Training under [none].")
    shown = terminal.getvalue()
    assert "Training under [none]." in shown
    assert "4 of 10 cells, 0 s left" in shown
