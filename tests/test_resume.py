"""A run that is killed and started again ends as if nothing had happened (cases 7, 8, 11 and 12)."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from processes import curves, digests, finish, kill_after_a_checkpoint, resumed_at, start

DISTILL = (
    "distill",
    "--task",
    "digits",
    "--rule",
    "dtkd",
    "--epochs",
    "120",
    "--teacher-epochs",
    "2",
    "--log-every",
    "7",
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    code, _, err = finish(start(*DISTILL, "--out", folder, cache=cache))
    assert (code, err) == (0, "")
    return folder


def test_a_student_killed_twice_ends_bit_identical_with_the_same_curve(
    tmp_path: Path, whole: Path, cache: Path
) -> None:
    folder, steps = tmp_path / "run", []
    for wait in (0.3, 0.6):
        code, out, _ = kill_after_a_checkpoint(
            start(*DISTILL, "--out", folder, cache=cache), folder / "checkpoints", wait
        )
        assert code == -signal.SIGKILL
        steps.append(resumed_at(out))
    code, out, err = finish(start(*DISTILL, "--out", folder, cache=cache))
    assert (code, err) == (0, "")
    steps.append(resumed_at(out))
    assert 0 == steps[0] < steps[1] < steps[2]
    assert digests(folder) == digests(whole)
    assert curves(folder) == curves(whole)
    assert json.loads((folder / "timing.json").read_text())["resumed_at"] == steps[2]


POLICY = (
    *(
        "train-policy",
        "--task",
        "digits",
        "--teacher-epochs",
        "2",
        "--epochs",
        "2",
        "--updates",
        "6",
        "--students",
        "8",
    ),
    *("--validation-students", "4", "--validate-every", "2"),
)
AGENTS = {
    "run": (),
    "a reference that draws at random, and mix-up": ("--reference", "random", "--mixup", "1"),
    "sample": ("--agent", "sample", "--replicas", "1", "--calibration", "--reference", "fixed:4"),
}


@pytest.mark.parametrize("agent", AGENTS)
def test_a_policy_killed_twice_ends_bit_identical_with_the_same_curve(tmp_path: Path, cache: Path, agent: str) -> None:
    words = (*POLICY, *AGENTS[agent])
    code, _, err = finish(start(*words, "--out", tmp_path / "whole", cache=cache))
    assert (code, err) == (0, "")
    folder, updates = tmp_path / "run", []
    for wait in (0.1, 0.0):
        process = start(*words, "--out", folder, cache=cache)
        code, out, _ = kill_after_a_checkpoint(process, folder / "checkpoints", wait, "update-*[2-9].ckpt")
        assert code == -signal.SIGKILL
        updates.append(resumed_at(out))
    code, out, err = finish(start(*words, "--out", folder, cache=cache))
    assert (code, err) == (0, "")
    updates.append(resumed_at(out))
    assert 0 == updates[0] < updates[1] < updates[2]
    assert digests(folder) == digests(tmp_path / "whole")
    assert curves(folder / "tensorboard") == curves(tmp_path / "whole" / "tensorboard")
