"""Runs of the command line in processes of their own: started, killed, started again, and compared."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

UNTIMED = {"result.json", "config.json", "student.safetensors", "teacher.safetensors", "policy.safetensors"}
"""Files of a run that hold nothing the clock says."""


def start(*words: object, cache: Path | None = None, **environment: str) -> subprocess.Popen[str]:
    """Start `rltemp` with these words."""
    return subprocess.Popen(
        [sys.executable, "-m", "rltemp", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **({"RLTEMP_CACHE": str(cache)} if cache else {}), **environment},
    )


def finish(process: subprocess.Popen[str], timeout: float = 120) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def kill_after_a_checkpoint(
    process: subprocess.Popen[str],
    folder: Path,
    after: float = 0.0,
    names: str = "*.ckpt",
    by: signal.Signals = signal.SIGKILL,
    times: int = 1,
) -> tuple[int, str, str]:
    """Wait until there is a checkpoint that was not there, then `after` seconds more, and send the signal."""
    before = set(folder.glob(names))
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if set(folder.glob(names)) - before:
            time.sleep(after)
            for _ in range(times):
                process.send_signal(by)
                time.sleep(0.02)
            break
        time.sleep(0.002)
    return finish(process)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that must be the same whenever the same run is done."""
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir() if file.name in UNTIMED
    }


def curves(folder: Path) -> dict[str, list[tuple[int, object]]]:
    """Every number and histogram of a TensorBoard log by tag, but for what the clock says."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0}, purge_orphaned_data=False)
    events.Reload()
    tags = events.Tags()
    scalars = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags["scalars"]}
    histograms = {
        tag: [(event.step, repr(event.histogram_value)) for event in events.Histograms(tag)]
        for tag in tags["histograms"]
    }
    return {tag: found for tag, found in {**scalars, **histograms}.items() if not tag.startswith("time/")}


def resumed_at(out: str) -> int:
    """Where a run says that it went on."""
    found = re.search(r"Resumed at \w+ (\d+)", out)
    return int(found[1]) if found else 0
