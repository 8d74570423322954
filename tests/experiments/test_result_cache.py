"""Cached results: files that come back bit by bit or not at all, each trained once."""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.data import table
from support.processes import full_disk

from rltemp.errors import BadInputError
from rltemp.experiments import result_cache
from rltemp.experiments.compare import Job, results_of
from rltemp.experiments.measures import MEASURES
from rltemp.experiments.recorder import TemperatureTrace
from rltemp.experiments.result_cache import (
    MOST_POINTS,
    MOST_STUDENTS,
    CachedResult,
    ResultCache,
    StoredTrace,
    TrainedStack,
)
from rltemp.io.run_folders import MAX_JSON_BYTES, read_json

KEY = {"rule": ["fixed:4"], "seeds": [3, 4], "data": "ab12"}
RESULT = CachedResult(test_accuracy=[0.1, 1 / 3], validation_accuracy=[0.0, 1.0], diverged=1, guarded=2, answered=70)
fractions = st.floats(0, 1)


def key(number: int) -> dict[str, Any]:
    return {**KEY, "seeds": [number, number + 1]}


class Counted:
    """Work that counts how often it is done."""

    def __init__(self, count: int) -> None:
        self.worked = [0] * count
        self.jobs = [Job(key(number), (number,)) for number in range(count)]

    def __call__(self, number: int) -> TrainedStack:
        self.worked[number] += 1
        return TrainedStack(RESULT)


def again(cache: ResultCache) -> list[CachedResult]:
    """The result of `KEY`, trained where it has to be."""
    return results_of([Job(KEY, ())], lambda: TrainedStack(RESULT), cache)


@given(st.lists(st.tuples(fractions, fractions), min_size=1, max_size=9))
def test_a_result_comes_back_bit_by_bit(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[float, float]]):
    test, validation = map(list, zip(*rows, strict=True))
    measures = {"agreement": validation, "negative_log_likelihood": [1e6 * one for one in test[:-1]] + [None]}
    wanted, cache = {"seeds": list(range(len(rows)))}, ResultCache(tmp_path_factory.mktemp("results"))
    cache.write(
        wanted, TrainedStack(CachedResult(test_accuracy=test, validation_accuracy=validation, measures=measures))
    )
    found = cache.read(wanted)
    assert np.array(found.test_accuracy).tobytes() == np.array(test).tobytes()
    assert np.array(found.validation_accuracy).tobytes() == np.array(validation).tobytes()
    assert found.measures == measures


def test_the_largest_result_can_be_read_again(tmp_path: Path):
    rows = np.random.default_rng(0).random((4, MOST_POINTS), dtype=np.float32).astype(np.float64) + 1
    accuracies = np.random.default_rng(1).random(MOST_STUDENTS).tolist()
    wanted, cache = {"seeds": list(range(100_000, 100_000 + MOST_STUDENTS))}, ResultCache(tmp_path)
    trace = StoredTrace.pack(TemperatureTrace(*rows, reference=4.0))
    measures = dict.fromkeys(MEASURES, accuracies)
    result = CachedResult(test_accuracy=accuracies, validation_accuracy=accuracies, measures=measures, trace=trace)
    cache.write(wanted, TrainedStack(result))
    assert cache.path(wanted).stat().st_size < MAX_JSON_BYTES
    found = cache.read(wanted)
    assert found.trace.unpack().student_temperature.astype("f4").tobytes() == rows[2].astype("f4").tobytes()


def test_only_what_is_missing_is_trained(tmp_path: Path):
    counted, told = Counted(3), list[int]()
    results_of(counted.jobs[:2], counted, ResultCache(tmp_path))
    cache = ResultCache(tmp_path)
    jobs = [replace(job, skipped=lambda place=place: told.append(place)) for place, job in enumerate(counted.jobs)]
    assert results_of(jobs, counted, cache) == [RESULT] * 3
    assert (counted.worked, cache.found, cache.trained, told) == ([1, 1, 1], 2, 1, [0, 1])


def test_what_fails_leaves_no_file(tmp_path: Path):
    with pytest.raises(ZeroDivisionError):
        results_of([Job(KEY, ())], lambda: 1 // 0, ResultCache(tmp_path))
    assert list(tmp_path.iterdir()) == []
    assert again(ResultCache(tmp_path)) == [RESULT]


def test_files_beside_a_result_are_written_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written: list[str] = []
    monkeypatch.setattr(result_cache, "atomic_write", lambda path, _: written.append(path.suffix))
    ResultCache(tmp_path).write(KEY, TrainedStack(RESULT, {".clock": b"1", ".showcase": b"2"}))
    assert written == [".clock", ".showcase", ".json"]


def test_a_full_disk_says_what_and_where_and_leaves_what_is_finished(tmp_path: Path):
    cache, counted = ResultCache(tmp_path), Counted(2)
    results_of(counted.jobs[:1], counted, cache)
    with full_disk(100), pytest.raises(BadInputError, match=f"cannot write {cache.path(key(1))}.*free space"):
        results_of(counted.jobs, counted, cache)
    assert [path.name for path in tmp_path.iterdir()] == [cache.path(key(0)).name]
    assert results_of(counted.jobs, counted, ResultCache(tmp_path)) == [RESULT] * 2
    assert counted.worked == [1, 2]


def damaged(tmp_path: Path, data: bytes) -> CachedResult | None:
    """What is read of a file with these bytes."""
    cache = ResultCache(tmp_path)
    cache.path(KEY).write_bytes(data)
    return cache.read(KEY)


def test_every_flipped_bit_of_a_result_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    cache = ResultCache(tmp_path)
    cache.write(KEY, TrainedStack(RESULT))
    whole = cache.path(KEY).read_bytes()
    with cache.path(KEY).open("r+b", buffering=0) as file:
        for place in range(8 * len(whole)):
            os.pwrite(file.fileno(), bytes([whole[place // 8] ^ 1 << place % 8]), place // 8)
            assert cache.read(KEY) is None, place
            os.pwrite(file.fileno(), whole[place // 8 : place // 8 + 1], place // 8)
    assert len(caplog.messages) == 1, "a file is named once"
    assert cache.read(KEY) == RESULT


def test_a_truncated_result_is_named_and_trained_again(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    ResultCache(tmp_path).write(KEY, TrainedStack(RESULT))
    path = ResultCache(tmp_path).path(KEY)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 7):
        caplog.clear()
        assert damaged(tmp_path, whole[:length]) is None
        (line,) = caplog.messages
        assert str(path) in line
    assert again(ResultCache(tmp_path)) == [RESULT]
    assert path.read_bytes() == whole


def test_the_result_of_another_key_is_trained_again(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    cache = ResultCache(tmp_path)
    cache.write(key(7), TrainedStack(RESULT))
    cache.path(key(7)).rename(cache.path(KEY))
    assert again(cache) == [RESULT]
    assert cache.trained == 1
    (line,) = caplog.messages
    assert "another key" in line
    assert cache.read(KEY) == RESULT


def signed(content: dict[str, Any]) -> bytes:
    """A file whose digest is right, as a stranger can write one."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    return json.dumps({**content, "sha256": hashlib.sha256(text).hexdigest()}).encode()


def content(**changes: Any) -> dict[str, Any]:
    return {"format": "rltemp-cell", "format_version": 2, "key": KEY, "cell": {**RESULT.model_dump(), **changes}}


HOSTILE: dict[str, bytes] = {
    **{name: signed(content(**changes)) for name, changes in table("experiments/hostile_results").items()},
    "not a number": signed(content(test_accuracy=[0.5, float("nan")])),
    "infinite": signed(content()).replace(b"0.1", b"1e999"),
    "too many": signed(content(test_accuracy=[0.5] * 3000, validation_accuracy=[0.5] * 3000)),
    "an older format": signed({**content(), "format_version": 1}),
    "another format": signed({**content(), "format": "pickle"}),
    "a list": b"[]",
    "deep": b"[" * 100_000,
    "deep inside": signed(content()).replace(b'"ab12"', b"[" * 5000 + b"]" * 5000),
    "large": b" " * (MAX_JSON_BYTES + 1),
    "a key twice": b'{"format": 1, "format": 1}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_result_from_a_stranger_is_read_strictly(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    assert damaged(tmp_path, signed(content())) == RESULT, "what is signed here is read, where nothing is wrong"
    assert damaged(tmp_path, HOSTILE[name]) is None
    (line,) = caplog.messages
    assert line.startswith(f"Cached result {ResultCache(tmp_path).path(KEY)} is refused and trained again: ")


def test_a_pipe_or_a_folder_in_the_place_of_a_result_is_none(tmp_path: Path):
    cache = ResultCache(tmp_path)
    os.mkfifo(cache.path(KEY))
    assert cache.read(KEY) is None
    cache.path(key(1)).mkdir()
    assert cache.read(key(1)) is None


def test_results_of_other_versions_are_not_mixed_in_unless_asked(tmp_path: Path):
    old = RESULT.model_copy(update={"versions": {"rltemp": "0.0.9", "torch": "1.0"}})
    ResultCache(tmp_path).write(key(0), TrainedStack(RESULT))
    for number in (1, 2):
        ResultCache(tmp_path, allow_mixed=True).write(key(number), TrainedStack(old))
    with pytest.raises(BadInputError, match=r"2 of rltemp 0\.0\.9, torch 1\.0; here: rltemp .*--allow-mixed"):
        ResultCache(tmp_path)
    counted = Counted(3)
    assert results_of(counted.jobs, counted, ResultCache(tmp_path, allow_mixed=True)) == [RESULT, old, old]
    assert counted.worked == [0, 0, 0]


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.faults)])
def test_a_result_costs_two_milliseconds_and_one_file(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    counted, opened, since = Counted(count), list[Path](), time.process_time()
    results_of(counted.jobs, counted, ResultCache(tmp_path))
    cache = ResultCache(tmp_path)
    monkeypatch.setattr(result_cache, "read_json", lambda path: opened.append(path) or read_json(path))
    monkeypatch.setattr(Path, "glob", None)
    monkeypatch.setattr(Path, "iterdir", None)
    results_of(counted.jobs, counted, cache)
    assert opened == [cache.path(job.key) for job in counted.jobs], "the last costs as much as the first"
    assert time.process_time() - since < 3 * 0.002 * count, "written, the versions read, and read"
