"""Cached results: files that come back bit by bit or not at all, each trained once, by whoever claims it."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.processes import until

from rltemp.errors import BadInputError
from rltemp.experiments.cached_result import MOST_POINTS, MOST_STUDENTS, CachedResult, StoredTrace
from rltemp.experiments.measures import MEASURES
from rltemp.experiments.result_cache import Job, ResultCache, fill
from rltemp.io.run_folders import MAX_JSON_BYTES

KEY = {"rule": ["fixed:4"], "seeds": [3, 4], "data": "ab12"}
CELL = CachedResult(test_accuracy=[0.1, 1 / 3], validation_accuracy=[0.0, 1.0], diverged=1, guarded=2, answered=70)
fractions = st.floats(0, 1)


def key(number: int) -> dict[str, Any]:
    return {**KEY, "seeds": [number, number + 1]}


class Counted:
    """Jobs that count how often they are worked on."""

    def __init__(self, count: int, cell: CachedResult = CELL) -> None:
        self.worked = [0] * count
        self.jobs = [Job(key(number), self._work(number, cell)) for number in range(count)]

    def _work(self, number: int, cell: CachedResult) -> Callable[[], CachedResult]:
        def work() -> CachedResult:
            self.worked[number] += 1
            return cell

        return work


@given(st.lists(st.tuples(fractions, fractions), min_size=1, max_size=9))
def test_a_cell_comes_back_bit_by_bit(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[float, float]]):
    test, validation = map(list, zip(*rows, strict=True))
    measures = {"agreement": validation, "negative_log_likelihood": [1e6 * one for one in test[:-1]] + [None]}
    wanted, cells = {"seeds": list(range(len(rows)))}, ResultCache(tmp_path_factory.mktemp("cells"))
    cells.write(wanted, CachedResult(test_accuracy=test, validation_accuracy=validation, measures=measures))
    found = cells.read(wanted)
    assert found is not None
    assert np.array(found.test_accuracy).tobytes() == np.array(test).tobytes()
    assert np.array(found.validation_accuracy).tobytes() == np.array(validation).tobytes()
    assert found.measures == measures


def test_the_largest_cell_can_be_read_again(tmp_path: Path):
    rows = np.random.default_rng(0).random((4, MOST_POINTS), dtype=np.float32) + 1
    accuracies = np.random.default_rng(1).random(MOST_STUDENTS).tolist()
    wanted, cells = {"seeds": list(range(100_000, 100_000 + MOST_STUDENTS))}, ResultCache(tmp_path)
    trace = StoredTrace.pack(rows, 4.0)
    measures = dict.fromkeys(MEASURES, accuracies)
    cells.write(
        wanted, CachedResult(test_accuracy=accuracies, validation_accuracy=accuracies, measures=measures, trace=trace)
    )
    assert cells.path(wanted).stat().st_size < MAX_JSON_BYTES
    found = cells.read(wanted)
    assert found is not None
    assert found.trace is not None
    assert found.trace.rows().astype(np.float32).tobytes() == rows.tobytes()


def test_only_what_is_missing_is_trained(tmp_path: Path):
    first = Counted(3)
    fill(ResultCache(tmp_path), first.jobs[:2])
    cells, again = ResultCache(tmp_path), Counted(3)
    assert fill(cells, again.jobs) == [CELL] * 3
    assert (again.worked, cells.found, cells.trained) == ([0, 0, 1], 2, 1)


def test_a_job_that_fails_leaves_no_cell_and_no_claim(tmp_path: Path):
    def fails() -> CachedResult:
        raise ZeroDivisionError

    cells = ResultCache(tmp_path)
    with pytest.raises(ZeroDivisionError):
        fill(cells, [Job(KEY, fails)])
    assert list(tmp_path.iterdir()) == []
    assert fill(cells, [Job(KEY, lambda: CELL)]) == [CELL]


def test_the_claim_of_a_cell_that_is_there_is_removed(tmp_path: Path):
    cells = ResultCache(tmp_path)
    cells.write(KEY, CELL)
    cells.path(KEY).with_suffix(".lock").write_text("1\ngone\n")  # killed between the cell and its claim's end
    assert fill(cells, [Job(KEY, lambda: CELL)]) == [CELL]
    assert cells.trained == 0
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


@pytest.fixture
def full_disk() -> Iterator[Callable[[int], None]]:
    """A limit on what a file may hold: writing beyond it fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda most: resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_says_what_and_where_and_leaves_the_finished_cells(
    tmp_path: Path, full_disk: Callable[[int], None]
):
    cells, counted = ResultCache(tmp_path), Counted(2)
    fill(cells, counted.jobs[:1])
    full_disk(100)
    with pytest.raises(BadInputError, match=f"cannot write {cells.path(key(1))}.*free space"):
        fill(cells, counted.jobs)
    full_disk(-1)
    assert [path.name for path in tmp_path.iterdir()] == [cells.path(key(0)).name]
    assert fill(ResultCache(tmp_path), counted.jobs) == [CELL] * 2
    assert counted.worked == [1, 2]


def damaged(tmp_path: Path, data: bytes) -> tuple[CachedResult | None, list[str]]:
    """What is read of a cell's file with these bytes, and what is said of it."""
    said: list[str] = []
    cells = ResultCache(tmp_path, warn=said.append)
    cells.path(KEY).write_bytes(data)
    return cells.read(KEY), said


def test_every_flipped_bit_of_a_cell_is_noticed(tmp_path: Path):
    said: list[str] = []
    cells = ResultCache(tmp_path, warn=said.append)
    cells.write(KEY, CELL)
    whole = cells.path(KEY).read_bytes()
    with cells.path(KEY).open("r+b", buffering=0) as file:
        for place in range(8 * len(whole)):
            os.pwrite(file.fileno(), bytes([whole[place // 8] ^ 1 << place % 8]), place // 8)
            assert cells.read(KEY) is None, place
            os.pwrite(file.fileno(), whole[place // 8 : place // 8 + 1], place // 8)
    assert len(said) == 1, "a cell is named once"
    assert cells.read(KEY) == CELL


def test_a_truncated_cell_is_named_and_trained_again(tmp_path: Path):
    ResultCache(tmp_path).write(KEY, CELL)
    whole = ResultCache(tmp_path).path(KEY).read_bytes()
    for length in range(0, len(whole) - 1, 7):
        cell, said = damaged(tmp_path, whole[:length])
        assert cell is None
        assert len(said) == 1
        assert str(ResultCache(tmp_path).path(KEY)) in said[0]
    assert fill(ResultCache(tmp_path, warn=lambda _: None), [Job(KEY, lambda: CELL)]) == [CELL]
    assert ResultCache(tmp_path).path(KEY).read_bytes() == whole


def test_the_cell_of_another_key_is_refused_and_trained_again(tmp_path: Path):
    said: list[str] = []
    cells = ResultCache(tmp_path, warn=said.append)
    cells.write(key(7), CELL)
    cells.path(key(7)).rename(cells.path(KEY))
    assert fill(cells, [Job(KEY, lambda: CELL)]) == [CELL]
    assert cells.trained == 1
    assert len(said) == 1
    assert "another key" in said[0]
    assert cells.read(KEY) == CELL


def signed(content: dict[str, Any]) -> bytes:
    """A file whose digest is right, as a stranger can write one."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    return json.dumps({**content, "sha256": hashlib.sha256(text).hexdigest()}).encode()


def content(**changes: Any) -> dict[str, Any]:
    cell = {**CELL.model_dump(), **changes}
    return {"format": "rltemp-cell", "format_version": 2, "key": KEY, "cell": cell}


HOSTILE: dict[str, bytes] = {
    "above one": signed(content(test_accuracy=[0.5, 1.5])),
    "below zero": signed(content(validation_accuracy=[0.5, -0.1])),
    "not a number": signed(content(test_accuracy=[0.5, float("nan")])),
    "infinite": signed(content()).replace(b"0.1", b"1e999"),
    "text": signed(content(test_accuracy=["0.5", 0.5])),
    "too few": signed(content(test_accuracy=[0.5], validation_accuracy=[0.5], diverged=0)),
    "uneven": signed(content(test_accuracy=[0.5])),
    "too many": signed(content(test_accuracy=[0.5] * 3000, validation_accuracy=[0.5] * 3000)),
    "more diverged than there are": signed(content(diverged=3)),
    "more guarded than answered": signed(content(guarded=71)),
    "a huge count": signed(content(answered=10**30)),
    "an uneven measure": signed(content(measures={"agreement": [0.5]})),
    "a negative measure": signed(content(measures={"negative_log_likelihood": [0.5, -1.0]})),
    "a measure's name": signed(content(measures={"\x1b[2J": [0.5, 0.5]})),
    "an older format": signed({**content(), "format_version": 1}),
    "unknown key": signed(content(run="rm")),
    "no base64": signed(content(trace={"reference": 4.0, "samples": "\u20ac"})),
    "a ragged trace": signed(content(trace={"reference": 4.0, "samples": "AAAA"})),
    "a trace of zeros": signed(content(trace={"reference": 4.0, "samples": "A" * 64})),
    "an escape": signed(content(versions={"torch": "\x1b[2J"})),
    "another format": signed({**content(), "format": "pickle"}),
    "a list": b"[]",
    "deep": b"[" * 100_000,
    "deep inside": signed(content()).replace(b'"ab12"', b"[" * 5000 + b"]" * 5000),
    "large": b" " * (MAX_JSON_BYTES + 1),
    "a key twice": b'{"format": 1, "format": 1}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_cell_from_a_stranger_is_read_strictly(name: str, tmp_path: Path):
    cell, said = damaged(tmp_path, HOSTILE[name])
    assert cell is None
    assert len(said) == 1
    assert said[0].startswith(f"Cell {ResultCache(tmp_path).path(KEY)} is refused and trained again: ")


def test_what_is_signed_here_is_accepted_where_nothing_is_wrong(tmp_path: Path):
    assert damaged(tmp_path, signed(content())) == (CELL, [])


def test_a_pipe_or_a_folder_in_a_cells_place_is_no_cell(tmp_path: Path):
    cells = ResultCache(tmp_path, warn=lambda _: None)
    os.mkfifo(cells.path(KEY))
    assert cells.read(KEY) is None
    cells.path(key(1)).mkdir()
    assert cells.read(key(1)) is None


def test_a_cell_that_is_finished_twice_has_to_be_the_same(tmp_path: Path):
    cells = ResultCache(tmp_path)
    cells.write(KEY, CELL)
    before = cells.path(KEY).stat().st_ino
    cells.write(KEY, CELL)
    other = CELL.model_copy(update={"test_accuracy": [0.1, 0.25]})
    with pytest.raises(BadInputError, match="trained twice and the two differ") as error:
        cells.write(KEY, other)
    named = [Path(word) for word in str(error.value).replace(". ", " ").split() if word.startswith(str(tmp_path))]
    assert len(named) == 2
    assert sorted(json.loads(path.read_text())["cell"]["test_accuracy"][1] for path in named) == [0.25, 1 / 3]
    assert cells.read(KEY) == CELL, "the first stays"
    assert before


def test_cells_of_other_versions_are_not_mixed_in_unless_asked(tmp_path: Path):
    old = CELL.model_copy(update={"versions": {"rltemp": "0.0.9", "torch": "1.0"}})
    ResultCache(tmp_path).write(key(0), CELL)
    for number in (1, 2):
        ResultCache(tmp_path, allow_mixed=True).write(key(number), old)
    with pytest.raises(BadInputError, match=r"2 of rltemp 0\.0\.9, torch 1\.0; here: rltemp .*--allow-mixed"):
        ResultCache(tmp_path)
    cells, counted = ResultCache(tmp_path, allow_mixed=True), Counted(3)
    assert fill(cells, counted.jobs) == [CELL, old, old]
    assert counted.worked == [0, 0, 0]


WORKER = """
import os, sys, time
from pathlib import Path
from rltemp.experiments.cached_result import CachedResult
from rltemp.experiments.result_cache import ResultCache, Job, fill

folder, log, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])

def job(number):
    def work():
        with log.open("a") as lines:
            lines.write(f"{number}\\n")
        time.sleep(seconds)
        return CachedResult(test_accuracy=[number / 100], validation_accuracy=[0.5])
    return Job({"seeds": number}, work)

cells = ResultCache(folder)
(folder.parent / f"ready-{os.getpid()}").touch()
while len(list(folder.parent.glob("ready-*"))) < int(sys.argv[5]):
    time.sleep(0.01)  # imports take longer than the work
found = fill(cells, [job(number) for number in range(int(sys.argv[4]))])
print(cells.trained, [cell.test_accuracy[0] for cell in found])
"""


def worker(folder: Path, log: Path, seconds: float, count: int, together: int = 1) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", WORKER, str(folder), str(log), str(seconds), str(count), str(together)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def numbers(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def test_two_processes_share_the_cells_and_each_is_trained_once(tmp_path: Path):
    log, both = tmp_path / "log", []
    both = [worker(tmp_path / "cells", log, 0.1, 20, together=2) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    shares = [int(out.split()[0]) for out, _ in said]
    assert sum(shares) == 20
    assert min(shares) >= 3, "neither may wait until the other has done it all"
    assert sorted(numbers(log)) == list(range(20)), "no cell is trained twice"
    assert len({out.partition(" ")[2] for out, _ in said}) == 1, "both see every cell"
    assert {path.suffix for path in (tmp_path / "cells").iterdir()} == {".json"}


def test_the_claim_of_a_killed_process_ends_with_it(tmp_path: Path):
    log = tmp_path / "log"
    killed = worker(tmp_path / "cells", log, 600, 2)
    until(lambda: numbers(log) == [0])
    said: list[str] = []
    cells = ResultCache(tmp_path / "cells", warn=said.append)
    wanted = Job({"seeds": 0}, lambda: CachedResult(test_accuracy=[0.0], validation_accuracy=[0.5]))
    with pytest.raises(BadInputError) as error:
        fill(cells, [wanted], patience=0.3)
    assert str(cells.path(wanted.key)) in str(error.value)
    assert f"of process {killed.pid} on {os.uname().nodename}" in str(error.value)
    assert "0.3 s" in str(error.value)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert fill(cells, [wanted], patience=0.3)[0].test_accuracy == [0.0]
    assert cells.trained == 1


def bookkeeping(folder: Path, count: int) -> tuple[list[float], list[float]]:
    """Milliseconds of processor time, the disk's own aside, for each cell that is written and each that is read."""
    jobs, spent = Counted(count).jobs, []
    for cells in (ResultCache(folder), ResultCache(folder)):
        times = []
        for job in jobs:
            since = time.process_time()
            fill(cells, [job])
            times.append(1000 * (time.process_time() - since))
        spent.append(times)
    return spent[0], spent[1]


def test_a_cell_costs_at_most_two_milliseconds(tmp_path: Path):
    for times in bookkeeping(tmp_path / "cells", 200):
        assert float(np.mean(times)) < 2


@pytest.mark.faults
def test_ten_thousand_cells_cost_at_most_two_milliseconds_each_and_the_last_as_much_as_the_first(tmp_path: Path):
    for times in bookkeeping(tmp_path / "cells", 10_000):
        assert float(np.mean(times)) < 2
        assert float(np.mean(times[-2000:])) < 1.5 * float(np.mean(times[:2000])) + 0.05
    since = time.process_time()
    ResultCache(tmp_path / "cells")
    assert time.process_time() - since < 0.002 * 10_000, "the one look at all versions"
