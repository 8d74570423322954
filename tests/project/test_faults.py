"""Kills by the dozen: `make faults`. The quick part of each promise is in the tests beside this file."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import signal
import struct
import time
from pathlib import Path

import pytest
import torch
from support.processes import Process, curves, digests, finish, resumed_at, start
from torch import nn

from rltemp.io.files import atomic_write
from rltemp.models.weight_files import load_weights, save_weights
from rltemp.training.checkpoints import Checkpoints

pytestmark = pytest.mark.faults

RUNS = {
    "distill --task digits --rule ctkd_instance --epochs 30 --teacher-epochs 2 --log-every 11": (".", 14),
    "train-policy --task toy --epochs 1 --updates 8 --students-per-update 8 --validation-students 4": (
        "tensorboard",
        6,
    ),
}
"""Commands, where their log is, and how many of the twenty runs each takes."""


@pytest.mark.parametrize("command", RUNS)
def test_runs_killed_three_times_at_random_moments_end_bit_identical(tmp_path: Path, command: str) -> None:
    """Case 7, for 20 runs in all: while they train, twice, and once at any moment, while they load perhaps."""
    cache, (log, repeats), words = tmp_path / "cache", RUNS[command], command.split()
    assert finish(start(*words, "--out", tmp_path / "whole", cache=cache))[0] == 0
    steps = reached(tmp_path / "whole" / "checkpoints")
    wanted, curve = digests(tmp_path / "whole"), curves(tmp_path / "whole" / log)
    for repeat in range(repeats):
        folder, moments, went_on = tmp_path / f"run{repeat}", random.Random(repeat), []
        for low, high in ((0.1, 0.5), (0.5, 0.9)):
            (folder / "checkpoints" / "reached").unlink(missing_ok=True)  # an earlier run may have come further
            process = start(*words, "--out", folder, cache=cache)
            until = max(2, moments.uniform(low, high) * steps)  # the first is saved when the second is done
            while reached(folder / "checkpoints") < until and process.poll() is None:
                time.sleep(0.001)
            time.sleep(moments.uniform(0, 0.02))
            went_on.append(killed(process))
        process = start(*words, "--out", folder, cache=cache)
        time.sleep(moments.uniform(0, 0.3))
        killed(process)
        code, out, err = finish(start(*words, "--out", folder, cache=cache))
        assert (code, err) == (0, "")
        assert 0 == went_on[0] < went_on[1] <= resumed_at(out)
        assert digests(folder) == wanted
        assert curves(folder / log) == curve


def reached(checkpoints: Path) -> int:
    """How many steps a run has done."""
    with contextlib.suppress(OSError, struct.error):
        return int(struct.unpack("<q", (checkpoints / "reached").read_bytes())[0])
    return 0


def killed(process: Process) -> int:
    """Kill it, and say where it had gone on."""
    process.send(signal.SIGKILL)
    code, out, err = process.finish()
    assert code == -signal.SIGKILL, err
    return resumed_at(out)


def test_no_file_is_torn_by_a_hundred_kills_during_a_save(tmp_path: Path) -> None:
    network = nn.Linear(300, 300)

    def save_for_ever() -> None:
        checkpoints = Checkpoints(tmp_path / "checkpoints", share=0)
        state = checkpoints.resume()
        for step in itertools.count(state["step"] + 1 if state else 1):
            with torch.no_grad():
                network.weight.fill_(float(step))
            checkpoints.tick(step, lambda step=step: {"step": step, "weights": network.state_dict()})  # type: ignore[misc]
            save_weights(network, tmp_path / "student.safetensors", {"step": str(step)})
            atomic_write(tmp_path / "result.json", json.dumps({"step": step, "long": "x" * 100_000}).encode())

    moments, torn = random.Random(0), 0
    steps: list[int] = []
    for _ in range(100):
        process = Process(save_for_ever)
        time.sleep(moments.uniform(0.03, 0.2))
        process.send(signal.SIGKILL)
        assert process.finish()[0] == -signal.SIGKILL
        torn += len(list((tmp_path / "checkpoints").glob("*.damaged")))
        if (tmp_path / "result.json").exists():
            whole = json.loads((tmp_path / "result.json").read_text())
            step = int(load_weights(network, tmp_path / "student.safetensors")["step"])
            assert len(whole["long"]) == 100_000
            assert bool((network.weight == step).all())
            steps.append(step)
    assert torn == 0
    assert steps == sorted(steps)
    assert steps[-1] > 100
    assert len(list((tmp_path / "checkpoints").glob("*.ckpt"))) == 2
