"""Worker pools: every order is carried out once, whatever happens to a worker, and a comparison has the same bytes."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from support import pool_work
from support.clusters import lose
from support.pool_work import jobs, lines, orders, result
from support.processes import Process, code, gone, start, until
from support.results import COMPARE, STUDY, STUDY_SIZE, cells_of, contents, shares

from rltemp.data.dataset import Dataset, Split
from rltemp.data.problem import Problem
from rltemp.data.recipe import Recipe
from rltemp.data.task import Task
from rltemp.errors import BadInputError, TrainingStoppedError
from rltemp.experiments.compare import results_of
from rltemp.experiments.result_cache import ResultCache, TrainedStack
from rltemp.io.pool import RETRIES, ProcessPool, RayPool, WorkerPool
from rltemp.io.workers import packed, unpacked
from rltemp.models.networks import seeded_model
from rltemp.training.identity import problem_identity


@pytest.fixture(params=["processes", pytest.param("ray", marks=pytest.mark.faults)])
def pool(request: pytest.FixtureRequest) -> Iterator[WorkerPool]:
    kind = request.param
    with closing(ProcessPool(2) if kind == "processes" else RayPool(request.getfixturevalue("nodes").address)) as two:
        yield two


def test_workers_train_every_result_once_and_only_those_that_are_missing(tmp_path: Path, pool: WorkerPool):
    log, cache = tmp_path / "log", ResultCache(tmp_path / "cells")
    cache.write({"seeds": 5}, TrainedStack(result(5)))
    found = results_of(jobs(log, 40), pool_work.write_slowly, cache, pool)
    assert found == [result(number) for number in range(40)]
    assert sorted(number for number, _ in lines(log)) == [number for number in range(40) if number != 5]
    assert len({process for _, process in lines(log)}) == 2
    assert os.getpid() not in {process for _, process in lines(log)}
    assert (cache.found, cache.trained) == (1, 39)
    assert results_of(jobs(log, 40), pool_work.write_slowly, ResultCache(tmp_path / "cells"), pool) == found
    assert len(lines(log)) == 39


def test_what_a_killed_worker_had_is_done_by_another(tmp_path: Path, pool: WorkerPool):
    log = tmp_path / "log"
    found = dict(pool.run(pool_work.die_once, orders(log, 12)))
    assert found == {number: TrainedStack(result(number)) for number in range(12)}
    assert Path(f"{log}.died").exists()


@pytest.mark.faults
def test_an_order_that_kills_every_worker_is_named_when_others_are_done(tmp_path: Path):
    log, cache = tmp_path / "log", ResultCache(tmp_path / "cells")
    lost = rf"log 3 could not be trained in {RETRIES + 1} tries: each time its worker was lost"
    with closing(ProcessPool(2)) as pool, pytest.raises(TrainingStoppedError, match=lost):
        results_of(jobs(log, 6), pool_work.die_always, cache, pool)
    assert cache.trained == 5


def test_an_error_of_a_worker_is_named_with_its_own_traceback(tmp_path: Path, pool: WorkerPool):
    log = tmp_path / "log"
    with pytest.raises(TrainingStoppedError) as error:
        dict(pool.run(pool_work.raise_always, orders(log, 1)))
    assert f"{log} 0 could not be trained: " in str(error.value)
    assert "seven is none of my numbers" in str(error.value)
    assert "in raise_always" in str(error.value)
    with pytest.raises(BadInputError, match=r"^a number that nobody can use$"):
        dict(pool.run(pool_work.refuse, orders(log, 1)))
    assert len(lines(log)) == 2, "neither is tried again"
    with closing(ProcessPool(1)) as one, pytest.raises(TrainingStoppedError, match="SystemExit"):
        dict(one.run(pool_work.leave, orders(log, 1)))


def test_workers_end_with_their_parent_however_it_ends(tmp_path: Path):
    log = tmp_path / "log"

    def work() -> None:
        with closing(ProcessPool(1)) as one:
            dict(one.run(pool_work.hang, orders(log, 1)))

    parent = Process(work)
    until(lambda: len(lines(log)) == 1)
    ((_, worker),) = lines(log)
    assert not gone(worker)
    parent.send(signal.SIGKILL)
    parent.finish()
    until(lambda: gone(worker), 20)


@pytest.mark.faults
def test_what_a_lost_node_had_is_done_by_another(nodes: Any, tmp_path: Path):
    log, cache = tmp_path / "log", ResultCache(tmp_path / "cells")
    with closing(RayPool(nodes.address)) as pool:
        Thread(target=lambda: (until(lambda: len(lines(log)) >= 40), lose(nodes))).start()
        found = results_of(jobs(log, 200), pool_work.write_slowly, cache, pool)
    assert found == [result(number) for number in range(200)]
    assert len({process for _, process in lines(log)}) >= 2
    assert len(lines(log)) <= 202, "only what was lost is done again"
    assert cache.trained == 200


@pytest.mark.faults
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999", "nowhere"])
def test_where_no_cluster_is_a_line_says_so(address: str, tmp_path: Path, capsys):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'rltemp[ray]'")
    assert code(*SHORT, "--out", tmp_path / "c", "--ray", address) == 2
    error = capsys.readouterr().err
    assert f"--ray {address}: no Ray cluster can be reached there" in error.splitlines()[-1]


@pytest.mark.parametrize("left", ["the environment", "ray start"])
def test_auto_is_refused_at_once_where_the_cluster_is_gone(left: str, tmp_path: Path, monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'rltemp[ray]'")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    if left == "the environment":
        monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    else:
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1\n")
    # Ray itself would try for minutes, and then end the process.
    with pytest.raises(BadInputError, match=r"--ray auto: no Ray cluster can be reached there \(127\.0\.0\.1:1: "):
        RayPool("auto")


def pictures() -> Problem:
    """A problem of pictures, augmented, with a convolutional teacher in the memory order of convolutions."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8, generator=generator)
    split = Split(images, torch.arange(40) % 4)
    own = Recipe(epochs=1, batch_size=8, learning_rate=0.1)
    dataset = Dataset("own", split, split, split, split, 4, torch.full((3,), 120.0), torch.full((3,), 70.0), True)
    teacher = seeded_model("resnet8", (3, 8, 8), 4, 1).to(memory_format=torch.channels_last)
    teacher = teacher.eval().requires_grad_(False)
    return Problem(Task("own", "resnet8", "resnet8", own, own), dataset, teacher, None, 0.5, {"a": "b"})


def test_a_problem_is_the_same_after_its_journey():
    problem = pictures()
    other = unpacked(packed(problem))
    assert problem_identity(other) == problem_identity(problem)
    assert (other.task, other.teacher_accuracy, other.teacher_mark) == (problem.task, 0.5, {"a": "b"})
    images = problem.dataset.batch(problem.dataset.test, torch.arange(8)).inputs
    assert torch.equal(other.teacher(images), problem.teacher(images))
    strides = [[value.stride() for value in one.teacher.parameters()] for one in (problem, other)]
    assert strides[0] == strides[1]
    assert not any(value.requires_grad for value in other.teacher.parameters())
    assert not other.teacher.training


SIZE = ("--epochs", "1", "--seeds", "4", "--selection-seeds", "2", "--stack", "2")
SHORT = ("compare", "--task", "toy", "--epochs", "1", "--rules", "none", "universal", "--seeds", "10", "--stack", "1")


@pytest.mark.parametrize(
    "words",
    [(*COMPARE, *SIZE), pytest.param((*STUDY, *STUDY_SIZE), marks=pytest.mark.faults)],
    ids=["compare", "study"],
)
def test_two_workers_give_the_same_bytes_as_none(words: tuple[str, ...], tmp_path: Path):
    out, whole = tmp_path / "run", tmp_path / "whole"
    assert code(*words, "--out", out) == 0
    out.rename(whole)
    assert code(*words, "--out", out, "--workers", "2") == 0
    assert contents(out) == contents(whole)


@pytest.mark.faults
def test_a_cluster_that_loses_a_node_gives_the_same_bytes(nodes: Any, tmp_path: Path, capsys):
    words = (*COMPARE, "--seeds", "24", "--selection-seeds", "6", "--stack", "1")
    out, whole = tmp_path / "run", tmp_path / "whole"
    assert code(*words, "--out", out) == 0
    out.rename(whole)
    total = len(cells_of(whole))
    killer = Thread(target=lambda: (until(lambda: len(cells_of(out)) > total // 2, 300), lose(nodes)))
    killer.start()
    assert code(*words, "--out", out, "--ray", nodes.address) == 0
    killer.join()
    assert contents(out) == contents(whole)
    assert "results were cached" not in capsys.readouterr().out, "all were trained by Ray"


@pytest.mark.parametrize("by", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.faults)])
def test_a_signal_stops_the_workers_and_the_printed_command_goes_on(by: signal.Signals, tmp_path: Path, capsys):
    out = tmp_path / "run"
    words = (*SHORT, "--out", out, "--workers", "2")
    process = start(*words)
    until(lambda: len(cells_of(out)) >= 3, 120)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send(by)
    status, _, said = process.finish(20)
    assert status == 128 + by
    assert len(workers) >= 2
    until(lambda: all(gone(int(worker)) for worker in workers), 20)
    assert re.fullmatch(rf"rltemp: stopped by {by.name}. Go on with: rltemp compare .* --workers 2\n", said), said
    done = cells_of(out)
    assert len(done) >= 3
    assert not (out / "result.json").exists()
    assert code(*words[:-2]) == 0
    assert done.items() <= cells_of(out).items()
    found, trained = shares(capsys.readouterr().out)
    assert (found, found + trained) == (len(done), len(cells_of(out)))


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
