"""One student, trained by two processes of `torchrun`: the student that one process trains."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.pictures import write_folder
from support.processes import code, finish, start, until

from rltemp.errors import BadInputError
from rltemp.io.run_folders import TIMING
from rltemp.training.ddp import Team

DIGITS = ("distill", "--task", "digits", "--epochs", "2", "--teacher-epochs", "2", "--log-every", "5")


def torchrun(*words: object, processes: int = 2) -> subprocess.Popen[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    how = ["--nproc-per-node", str(processes), "--master-addr", "127.0.0.1", "--master-port", str(port)]
    line = [sys.executable, "-m", "torch.distributed.run", *how, "-m", "rltemp", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )


def children(process: subprocess.Popen[str]) -> list[int]:
    """The processes that train."""
    return [int(child) for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def ended(process: subprocess.Popen[str], timeout: float = 240) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, out, err


def same(one: Path, two: Path, within: float) -> None:
    first, second = (load_file(folder / "student.safetensors") for folder in (one, two))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.allclose(value.float(), second[name].float(), rtol=0, atol=within), name


def compared(tmp_path: Path, words: tuple[str, ...], within: float = 1e-5) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert code(*words, "--out", alone) == 0
    status, out, err = ended(torchrun(*words, "--out", together))
    assert status == 0, err
    assert out.count("Training ") == 1, "the first process alone speaks"
    assert "in each of 2 processes" in out
    same(alone, together, within)
    files = [[re.sub("(tfevents|ckpt).*", "", path.name) for path in place.iterdir()] for place in (alone, together)]
    assert sorted(files[0]) == sorted(files[1])
    first, second = (json.loads((folder / "result.json").read_text()) for folder in (alone, together))
    assert second["test_accuracy"] == pytest.approx(first["test_accuracy"], abs=0.02)
    for name in ("student", "guarded_fraction", "skipped_steps", "fallback_steps"):
        assert first[name] == second[name]


# `universal` balances a batch, `idts` looks for its median; `ctkd` learns, and its own gradient must not count twice.
@pytest.mark.parametrize(
    "rule", ["universal", *(pytest.param(r, marks=pytest.mark.faults) for r in ("matched:idts", "ctkd", "dtkd"))]
)
def test_two_processes_train_the_student_of_one(rule: str, tmp_path: Path):
    compared(tmp_path, (*DIGITS, "--rule", rule))


@pytest.mark.faults
def test_clipping_accumulation_and_means_see_the_gradient_of_all(tmp_path: Path):
    own = ("--optimizer", "adamw", "--learning-rate", "0.01", "--clip", "0.3", "--accumulate", "3", "--ema", "0.8")
    compared(tmp_path, (*DIGITS, "--rule", "fixed:4", *own))


@pytest.mark.faults
def test_pictures_are_augmented_and_shared_as_one_process_does(tmp_path: Path):
    pictures = {"train": {"a": 80, "b": 80}, "test": {"a": 8, "b": 8}}
    task = f"imagefolder:{write_folder(tmp_path / 'pictures', pictures, size=(32, 32))}"
    words = ("distill", "--task", task, "--epochs", "2", "--teacher-epochs", "1", "--batch-size", "8")
    compared(tmp_path, (*words, "--student", "mlp:16", "--teacher", "mlp:16", "--rule", "fixed:4"))


@pytest.mark.faults
def test_a_training_that_is_stopped_goes_on_with_the_same_command(tmp_path: Path):
    words, out = (*DIGITS, "--epochs", "60", "--rule", "fixed:4"), tmp_path / "run"
    assert code(*words, "--out", tmp_path / "alone") == 0
    first = torchrun(*words, "--out", out)
    until(lambda: bool(list((out / "checkpoints").glob("*.ckpt"))), 120)
    first.send_signal(signal.SIGTERM)
    status, _, err = ended(first, 60)
    assert status != 0
    assert err.count("rltemp: stopped by SIGTERM: saved at step ") == 1
    assert not (out / "result.json").exists()
    assert finish(start(*words, "--out", out))[0] == 3, "one process would not go on exactly"
    status, said, err = ended(torchrun(*words, "--out", out))
    assert status == 0, err
    assert said.count("Resumed at step ") == 1
    assert json.loads((out / TIMING).read_text())["resumed_at"] > 0
    same(tmp_path / "alone", out, 1e-3)  # many more steps than above: rounding grows


@pytest.mark.slow
def test_pictures_from_files_go_on_within_an_epoch_with_the_same_bits(tmp_path: Path):
    counts = {"train": {"a": 330, "b": 330}, "val": {"a": 8, "b": 8}}
    task = f"imagefolder:{write_folder(tmp_path / 'pictures', counts, size=(40, 30))}"
    own = ("--student", "cnn:4", "--teacher", "mlp:8", "--epochs", "1", "--teacher-epochs", "1", "--batch-size", "2")
    recipe = ("--recipe", "imagenet", "--image-size", "16", "--resize", "18", "--rule", "fixed:4")
    words, whole, out = ("distill", "--task", task, *own, *recipe), tmp_path / "whole", tmp_path / "killed"
    status, _, err = ended(torchrun(*words, "--out", whole))
    assert status == 0, err
    first = torchrun(*words, "--out", out)
    until(lambda: bool(list((out / "checkpoints").glob("*.ckpt"))), 120)
    for child in children(first):
        os.kill(child, signal.SIGKILL)
    assert ended(first, 60)[0] != 0
    assert not (out / "result.json").exists()
    status, _, err = ended(torchrun(*words, "--out", out))
    assert status == 0, err
    assert 0 < json.loads((out / TIMING).read_text())["resumed_at"] < 300
    same(whole, out, 0.0)


@pytest.mark.faults
def test_where_a_process_is_killed_the_first_says_so_and_keeps_its_state(tmp_path: Path):
    out = tmp_path / "run"
    process = torchrun(*DIGITS, "--epochs", "500", "--out", out)
    until(lambda: bool(list((out / "checkpoints").glob("*.ckpt"))), 120)
    environments = {child: Path(f"/proc/{child}/environ").read_bytes() for child in children(process)}
    (second,) = [child for child, own in environments.items() if b"RANK=1\0" in own.replace(b"LOCAL_", b"_")]
    os.kill(second, signal.SIGKILL)
    status, _, err = ended(process, 60)
    assert status != 0
    assert "another process of this training is gone" in err or "stopped by SIGTERM" in err
    assert list((out / "checkpoints").glob("*.ckpt"))


@pytest.mark.faults
def test_other_commands_and_uneven_batches_are_refused_in_a_line(tmp_path: Path):
    status, _, err = ended(torchrun("compare", "--task", "toy", "--out", tmp_path / "a"))
    assert status != 0
    assert "rltemp: torchrun is for `distill`" in err
    status, _, err = ended(torchrun(*DIGITS, "--batch-size", "33", "--out", tmp_path / "b"))
    assert status != 0
    assert "a batch of 33 cannot be shared evenly by 2 processes" in err


def test_a_batch_is_shared_in_rows_that_follow_each_other():
    assert [Team(rank, 3).share(12) for rank in range(3)] == [slice(0, 4), slice(4, 8), slice(8, 12)]
    with pytest.raises(BadInputError, match="multiple of 3"):
        Team(0, 3).share(10)
