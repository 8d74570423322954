"""A policy's training over workers: the same bytes, through kills of workers and of all, and through signals."""

from __future__ import annotations

import os
import re
import shlex
import signal
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from support.clusters import lose
from support.processes import code, curves, digests, finish, gone, kill_after_a_checkpoint, start, until

from rltemp.agents.config import PolicyConfig
from rltemp.agents.train import POLICY_FILE, train_policy
from rltemp.data.problem import Problem
from rltemp.errors import BadInputError

QUICK = PolicyConfig(updates=2, students_per_update=32, replicas=2, validate_every=1, validation_students=32, looks=2)
STUDENTS = "--students-per-update 32 --validation-students 32"
POLICY = shlex.split(f"train-policy --task toy --epochs 1 --updates 6 {STUDENTS} --validate-every 2")
OWN = shlex.split(f"train-policy --task digits --epochs 1 --updates 1 {STUDENTS}")
"""Students of one's own cannot be stacked: 16 in each of two shares give the same bytes, as in `tests/envs`."""
NETS = """\
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.picture = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
        self.head = nn.Sequential(nn.Dropout(), nn.Linear(144, 10))
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        return self.head(self.picture(images))

class Failing(Small):
    def forward(self, images):
        if self.calls == 5:
            raise ZeroDivisionError("five is none of my numbers")
        return super().forward(images)

def make_student(seed):
    return Small()

def make_failing(seed):
    return Failing()
"""


def workers_of(process: int) -> list[int]:
    """The processes that one has started and that train."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, teacher_cache: Path) -> Path:
    """A training in one process that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert finish(start(*POLICY, "--out", folder))[0] == 0
    return folder


def test_two_workers_train_the_policy_that_one_process_trains(short: Problem, tmp_path: Path) -> None:
    files = []
    for workers in (1, 2):
        out = tmp_path / str(workers)
        train_policy(short, QUICK, out, workers=workers)
        files.append((out / POLICY_FILE).read_bytes())
    assert files[0] == files[1]
    assert curves(tmp_path / "1") == curves(tmp_path / "2")


@pytest.mark.faults
def test_killed_and_resumed_with_workers_it_ends_with_the_same_bytes(tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "run"
    words = (*POLICY, "--out", folder, "--workers", "2")
    process = start(*words)
    status, _, _ = kill_after_a_checkpoint(process, folder / "checkpoints", 0.1)
    assert status == -signal.SIGKILL
    assert finish(start(*words))[0] == 0
    assert digests(folder) == digests(whole)
    assert curves(folder) == curves(whole)


def test_with_a_worker_killed_it_ends_with_the_same_bytes(tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "run"
    process = start(*POLICY, "--out", folder, "--workers", "2")
    until(lambda: [*folder.glob("checkpoints/*.ckpt")], 120)
    first, second = workers_of(process.pid)
    os.kill(second, signal.SIGKILL)
    status, _, said = process.finish(120)
    assert (status, said) == (0, "")
    assert digests(folder) == digests(whole)
    assert curves(folder) == curves(whole)
    assert gone(first)


@pytest.mark.faults
def test_a_cluster_that_loses_a_node_trains_the_same_bytes(nodes: Any, tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "run"
    killer = Thread(target=lambda: (until(lambda: [*folder.glob("checkpoints/*.ckpt")], 300), lose(nodes)))
    killer.start()
    assert code(*POLICY, "--out", folder, "--workers", "2", "--ray", nodes.address) == 0
    killer.join()
    assert digests(folder) == digests(whole)
    assert curves(folder) == curves(whole)


@pytest.mark.faults
@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_stops_it_as_a_signal_to_one(by, tmp_path: Path, teacher_cache: Path) -> None:
    folder = tmp_path / "run"
    process = start(*POLICY, "--updates", "1000", "--out", folder, "--workers", "2")
    until(lambda: [*folder.glob("checkpoints/*.ckpt")], 120)
    workers = workers_of(process.pid)
    for number in (process.pid, *workers):
        os.kill(number, by)
    status, _, said = process.finish(30)
    assert status == 128 + by
    assert re.match(rf"rltemp: stopped by {by.name}.* Go on with: rltemp train-policy .* --workers 2\n", said), said
    assert all(gone(worker) for worker in workers)


def test_an_agent_that_is_stepped_takes_no_workers(tmp_path: Path, capsys) -> None:
    words = ("--agent", "sample", "--replicas", "1", "--workers", "2")
    assert code(*POLICY, *words, "--out", tmp_path / "run") == 2
    assert "agent sample acts step by step in one process: leave --workers and --ray out" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", ["0", "33"])
def test_workers_without_students_are_refused_and_nothing_is_left(workers: str, tmp_path: Path, capsys) -> None:
    assert code(*POLICY, "--out", tmp_path / "run", "--workers", workers) == 2
    assert f"--workers must be 1 to 32; got {workers}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_from_python_too(short: Problem, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="--workers must be 1 to 32; got 33"):
        train_policy(short, QUICK, tmp_path / "run", workers=33)
    assert not (tmp_path / "run").exists()


def test_students_of_ones_own_with_dropout_train_to_the_same_bytes(tmp_path: Path, teacher_cache: Path) -> None:
    (tmp_path / "my_nets.py").write_text(NETS)
    words = (*OWN, "--student", f"{tmp_path / 'my_nets.py'}:make_student")
    assert finish(start(*words, "--out", tmp_path / "one"))[0] == 0
    assert finish(start(*words, "--out", tmp_path / "two", "--workers", "2"))[0] == 0
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert curves(tmp_path / "one") == curves(tmp_path / "two")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_error_of_ones_own_network_is_one_line(workers: str, tmp_path: Path, teacher_cache: Path) -> None:
    (tmp_path / "my_nets.py").write_text(NETS)
    words = (*OWN, "--student", f"{tmp_path / 'my_nets.py'}:make_failing", "--out", tmp_path / "run")
    status, _, said = finish(start(*words, "--workers", workers))
    assert status == 2
    assert said == "rltemp: your code raised ZeroDivisionError: five is none of my numbers. --debug shows where\n"
