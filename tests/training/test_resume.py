"""A run that is killed and started again ends as if nothing had happened (cases 7, 8, 11 and 12)."""

from __future__ import annotations

import json
import re
import shlex
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support.policies import sloped_policy as policy
from support.processes import curves, digests, finish, kill_after_a_checkpoint, resumed_at, start, until

from rltemp.models.networks import build_model
from rltemp.models.weight_files import save_weights

DISTILL = shlex.split("distill --task digits --rule dtkd --epochs 20 --teacher-epochs 2 --log-every 23")
POLICY = shlex.split(
    "train-policy --task toy --epochs 1 --updates 6 --students-per-update 8 --validation-students 4 --validate-every 2"
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


def killed_twice(words: tuple[object, ...], cache: Path, checkpoints: Callable[[], Path], pattern: str) -> int:
    """Ends a run after two kills, each start further than the one before; the step of the last."""
    steps = []
    for wait in (0.1, 0.2):
        process = start(*words, cache=cache)
        code, out, _ = kill_after_a_checkpoint(process, checkpoints(), wait, pattern)
        assert code == -signal.SIGKILL
        steps.append(resumed_at(out))
    code, out, err = finish(start(*words, cache=cache))
    assert code == 0, err
    assert all("was guarded on" in line for line in err.splitlines())
    steps.append(resumed_at(out))
    assert 0 == steps[0] < steps[1] < steps[2]
    return steps[2]


def test_a_student_killed_twice_ends_bit_identical_with_the_same_curve(tmp_path, whole, cache):
    folder = tmp_path / "run"
    step = killed_twice((*DISTILL, "--out", folder), cache, lambda: folder / "checkpoints", "*.ckpt")
    assert digests(folder) == digests(whole)
    assert curves(folder) == curves(whole)
    assert json.loads((folder / "timing.json").read_text())["resumed_at"] == step


def test_a_rule_that_learns_goes_on_with_what_it_had_learned(tmp_path: Path, cache: Path) -> None:
    words = [word.replace("dtkd", "ctkd") for word in DISTILL]
    assert finish(start(*words, "--out", tmp_path / "whole", cache=cache))[0] == 0
    folder = tmp_path / "run"
    killed_twice((*words, "--out", folder), cache, lambda: folder / "checkpoints", "*.ckpt")
    assert digests(folder) == digests(tmp_path / "whole")


def test_optimizer_sums_and_means_go_on_within_an_accumulation(tmp_path: Path, cache: Path) -> None:
    own = shlex.split("--optimizer adamw --learning-rate 0.01 --accumulate 7 --ema 0.9 --clip 1 --warmup 0.1")
    assert finish(start(*DISTILL, *own, "--out", tmp_path / "whole", cache=cache))[0] == 0
    folder = tmp_path / "run"
    killed_twice((*DISTILL, *own, "--out", folder), cache, lambda: folder / "checkpoints", "*.ckpt")
    assert digests(folder) == digests(tmp_path / "whole")
    assert curves(folder) == curves(tmp_path / "whole")


AGENTS = {
    "run": (),
    "a reference that draws at random, and mix-up": ("--reference", "random", "--mixup", "1"),
    "sample": ("--agent", "sample", "--replicas", "1", "--calibration", "--reference", "fixed:4"),
}


@pytest.mark.parametrize(
    "agent", ["run", *(pytest.param(name, marks=pytest.mark.faults) for name in AGENTS if name != "run")]
)
def test_a_policy_killed_twice_ends_bit_identical_with_the_same_curve(tmp_path: Path, cache: Path, agent: str) -> None:
    words = (*POLICY, *AGENTS[agent])
    code, _, err = finish(start(*words, "--out", tmp_path / "whole", cache=cache))
    assert (code, err) == (0, "")
    folder = tmp_path / "run"
    killed_twice((*words, "--out", folder), cache, lambda: folder / "checkpoints", "update-*[2-9].ckpt")
    assert digests(folder) == digests(tmp_path / "whole")
    assert curves(folder / "tensorboard") == curves(tmp_path / "whole" / "tensorboard")


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.faults)])
def test_a_signal_saves_says_how_to_go_on_and_then_ends_bit_identical(tmp_path, whole, cache, number):
    """Case 8: within 10 s, with the conventional code; what is printed is the command that goes on."""
    folder = tmp_path / "run"
    process = start(*DISTILL, "--out", folder, cache=cache)
    code, _, err = kill_after_a_checkpoint(process, folder / "checkpoints", 0.2, by=number)
    assert code == 128 + number
    said = re.fullmatch(rf"rltemp: stopped by {number.name}: saved at step (\d+)\. Go on with: rltemp (.*)\n", err)
    assert said, err
    code, _, err = finish(start(*DISTILL, "--out", folder, "--threads", "2", cache=cache))
    assert code == 3
    assert 'made under other conditions (threads "1" -> "2")' in err
    assert "--allow-inexact" in err
    code, out, _ = finish(start(*shlex.split(said[2]), cache=cache))
    assert code == 0
    assert f"Resumed at step {said[1]} (lost 0 steps)" in out
    assert digests(folder) == digests(whole)
    assert curves(folder) == curves(whole)


def test_a_second_signal_leaves_at_once_and_the_files_are_whole(tmp_path: Path, whole: Path, cache: Path) -> None:
    folder = tmp_path / "run"
    process = start(*DISTILL, "--out", folder, cache=cache)
    code, _, _ = kill_after_a_checkpoint(process, folder / "checkpoints", by=signal.SIGTERM, times=2)
    assert code in (143, -signal.SIGTERM)  # the second may come after the first has been dealt with
    assert finish(start(*DISTILL, "--out", folder, cache=cache))[0] == 0
    assert digests(folder) == digests(whole)


@pytest.mark.faults
def test_a_signal_in_the_middle_of_a_rollout_keeps_what_was_saved_before(tmp_path: Path, cache: Path) -> None:
    words = (*POLICY, "--epochs", "40", "--out", tmp_path / "run")
    process = start(*words, cache=cache)
    code, _, err = kill_after_a_checkpoint(process, tmp_path / "run" / "checkpoints", 0.1, by=signal.SIGTERM)
    assert code == 143
    assert "stopped by SIGTERM: saved at update 0. Go on with: rltemp train-policy" in err


def test_a_finished_policy_goes_on_to_more_updates_as_if_asked_at_once(tmp_path: Path, cache: Path) -> None:
    words, more = (*POLICY, "--learning-rate-end", 1), ("--updates", 4)
    assert finish(start(*words, "--out", tmp_path / "whole", cache=cache))[0] == 0
    assert finish(start(*words, *more, "--out", tmp_path / "run", cache=cache))[0] == 0
    assert digests(tmp_path / "run") != digests(tmp_path / "whole")
    code, out, err = finish(start(*words, "--out", tmp_path / "run", cache=cache))
    assert (code, err, resumed_at(out)) == (0, "", 4)
    assert digests(tmp_path / "run") == digests(tmp_path / "whole")
    code, _, err = finish(start(*words, *more, "--out", tmp_path / "run", cache=cache))  # what is trained is kept
    assert code == 2
    assert "differs in: updates 6 -> 4" in err


@pytest.mark.parametrize("agent", ["run", pytest.param("sample", marks=pytest.mark.faults)])
def test_a_training_that_ended_without_its_result_repeats_no_update(tmp_path, cache, agent):
    words, folder = (*POLICY, *AGENTS[agent], "--updates", 2), tmp_path / "run"
    assert finish(start(*words, "--out", folder, cache=cache))[0] == 0
    before = digests(folder), curves(folder / "tensorboard")
    for name in ("result.json", "policy.safetensors"):
        (folder / name).unlink()
    code, out, err = finish(start(*words, "--out", folder, cache=cache))
    assert (code, err, resumed_at(out)) == (0, "", 2)
    assert (digests(folder), curves(folder / "tensorboard")) == before


def test_a_teacher_that_is_killed_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    words = shlex.split("train-teacher --task digits --teacher-epochs 20")
    code, _, err = finish(start(*words, "--out", tmp_path / "whole", cache=tmp_path / "a"))
    assert (code, err) == (0, "")
    folder, teachers = tmp_path / "run", tmp_path / "b" / "teachers"

    def checkpoints() -> Path:
        until(lambda: bool(list(teachers.glob("*.checkpoints"))), 60)
        return next(teachers.glob("*.checkpoints"))

    killed_twice((*words, "--out", folder), tmp_path / "b", checkpoints, "*.ckpt")
    assert digests(folder) == digests(tmp_path / "whole")
    assert [file.suffix for file in (tmp_path / "b" / "teachers").iterdir()] == [".safetensors"]


def test_a_run_goes_on_with_the_same_data_teacher_and_rule_only(tmp_path: Path, cache: Path) -> None:
    """Case 12: the options are the same, and what they name is not."""
    file, folder = policy(tmp_path / "policy.safetensors", 0.1), tmp_path / "run"
    words = (*DISTILL, "--rule", file, "--out", folder)
    assert kill_after_a_checkpoint(start(*words, cache=cache), folder / "checkpoints", 0.1)[0] == -signal.SIGKILL
    teacher = next((cache / "teachers").glob("*.safetensors"))
    before = teacher.read_bytes()
    save_weights(build_model("mlp:128", (1, 8, 8), 10), teacher, {})
    code, _, err = finish(start(*words, cache=cache))
    assert code == 3
    assert "made under other conditions (teacher " in err
    teacher.write_bytes(before)
    policy(file, 0.2)
    code, _, err = finish(start(*words, cache=cache))
    assert code == 3
    assert f"made under other conditions ({file} " in err
    policy(file, 0.1)
    code, out, _ = finish(start(*words, cache=cache))
    assert code == 0
    assert resumed_at(out) > 0
