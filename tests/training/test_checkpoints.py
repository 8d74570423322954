"""Checkpoints: whole, verified, the last two kept, and never a silent start from zero (cases 9, 11 and 12)."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.processes import full_disk

import rltemp.training.checkpoints
from rltemp import ArtifactRefusedError
from rltemp.errors import InterruptedRunError, TrainingStoppedError
from rltemp.io.interruption import handled
from rltemp.training.checkpoints import Checkpoints, State, refuse_other_formats
from rltemp.training.identity import random_state, set_random_state

pytestmark = pytest.mark.usefixtures("console")


def saved(folder: Path, *steps: int, size: int = 3) -> Checkpoints:
    """A run that saved at these steps."""
    checkpoints = Checkpoints(folder, share=0)
    for step in steps:
        checkpoints.save(step, {"value": torch.full((size,), float(step))})
    return checkpoints


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def resumed(folder: Path, **options: bool) -> float:
    state = Checkpoints(folder, **options).resume()
    return float(state["value"][0])


def test_the_last_two_are_kept_and_the_last_is_used_with_what_was_lost(tmp_path, capsys):
    saved(tmp_path, 3, 20, 100)
    assert names(tmp_path) == ["step-000000020.ckpt", "step-000000100.ckpt"]
    assert resumed(tmp_path) == 100
    assert capsys.readouterr().out == "Resumed at step 100 (lost 0 steps).\n"
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints._due = float("inf")
        for step in range(101, 108):
            checkpoints.tick(step, dict)
    assert resumed(tmp_path) == 100
    assert "Resumed at step 100 (lost 7 steps)" in capsys.readouterr().out
    assert Checkpoints(tmp_path / "nothing").resume() is None
    assert not (tmp_path / "nothing").exists()


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "a flipped bit": flip,
    "cut in half": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "another format": lambda data: b"PK\3\4" + data,
    "its hash with other content": lambda data: data[:91] + b"x" * 20,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_used(tmp_path, capsys, damage):
    saved(tmp_path, 1, 2)
    last = tmp_path / "step-000000002.ckpt"
    last.write_bytes(DAMAGE[damage](last.read_bytes()))
    assert resumed(tmp_path) == 1
    assert f"warning: {last} is " in capsys.readouterr().err
    assert names(tmp_path) == ["step-000000001.ckpt", "step-000000002.damaged"]
    assert resumed(tmp_path) == 1


def test_with_no_checkpoint_that_can_be_used_it_stops_and_fresh_begins(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    for file in tmp_path.iterdir():
        file.write_bytes(flip(file.read_bytes()))
    with pytest.raises(ArtifactRefusedError, match=r"no checkpoint in .* can be used .* --fresh"):
        resumed(tmp_path)
    assert Checkpoints(tmp_path, fresh=True).resume() is None
    assert not tmp_path.exists()


@pytest.mark.parametrize(("number", "named"), [(1, "version 0.1.0"), (3, r"another version \(format 3, needed: 2\)")])
@pytest.mark.parametrize("inexact", [False, True])
def test_a_checkpoint_of_another_version_is_refused_in_one_line(tmp_path, capsys, number, named, inexact):
    saved(tmp_path, 1, 2)
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes().replace(b"checkpoint 2 ", b"checkpoint %d " % number, 1))
    before = names(tmp_path)
    with pytest.raises(ArtifactRefusedError, match=f"{named} of rltemp.*Finish the run with that .*--fresh") as error:
        resumed(tmp_path, inexact=inexact)
    assert "\n" not in str(error.value)
    assert (names(tmp_path), capsys.readouterr().err) == (before, "")
    with pytest.raises(ArtifactRefusedError, match=named):  # as a command does, before it compares options
        refuse_other_formats(tmp_path)
    assert Checkpoints(tmp_path, fresh=True).resume() is None


def test_a_hostile_checkpoint_with_the_right_hash_runs_nothing(tmp_path: Path) -> None:
    """The hash stops accidents; against a stranger stands that nothing is unpickled but tensors and numbers."""
    marker = tmp_path / "marker"

    class Payload:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, (f"touch {marker}",)

    saved(tmp_path / "run", 1).save(2, {"value": Payload()})
    assert resumed(tmp_path / "run") == 1
    assert not marker.exists()


def test_other_threads_are_refused_by_name_or_allowed_and_told(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        with pytest.raises(
            ArtifactRefusedError, match=rf'threads "{before}" -> "{before + 1}".*--allow-inexact.*--fresh'
        ):
            resumed(tmp_path)
        checkpoints = Checkpoints(tmp_path, inexact=True)
        assert checkpoints.resume() is not None
        assert checkpoints.mark() == {"inexact_resume": f'threads "{before}" -> "{before + 1}"'}
    finally:
        torch.set_num_threads(before)
    again = Checkpoints(tmp_path)
    assert again.resume() is not None
    assert again.mark() == {}


def test_every_global_generator_goes_on_where_it_was() -> None:
    def drawn() -> list[object]:
        return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(2).tolist()]  # noqa: NPY002

    drawn()
    state = random_state()
    first = drawn()
    assert drawn() != first
    set_random_state(state)
    assert drawn() == first


def test_on_a_full_disk_the_run_goes_on_twice_and_then_stops(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rltemp.training.checkpoints, "RETRY", 0.0)
    checkpoints = saved(tmp_path, 7)
    before = (tmp_path / "step-000000007.ckpt").read_bytes()
    big: State = {"value": torch.zeros(100_000)}
    with full_disk(100_000):
        for step in (8, 9):
            checkpoints.tick(step, lambda: big)
            said = capsys.readouterr().err
            assert f"could not write the checkpoint of step {step}" in said
            assert str(tmp_path) in said
            assert "the last good one is 7" in said
        with pytest.raises(TrainingStoppedError, match=r"step 10: cannot write .*last good one is 7.*after 3 tries"):
            checkpoints.tick(10, lambda: big)
    assert (tmp_path / "step-000000007.ckpt").read_bytes() == before
    assert names(tmp_path) == ["reached", "step-000000007.ckpt"]
    assert resumed(tmp_path) == 7


def test_a_disk_that_has_room_again_is_written_to_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rltemp.training.checkpoints, "RETRY", 0.0)
    checkpoints = Checkpoints(tmp_path)
    for round_of_two in range(3):
        with full_disk(10_000):
            checkpoints.tick(10 * round_of_two, lambda: {"value": torch.zeros(1000)})
            checkpoints.tick(10 * round_of_two + 1, lambda: {"value": torch.zeros(1000)})
        checkpoints.tick(10 * round_of_two + 2, lambda: {"value": torch.full((2,), 5.0)})
    assert resumed(tmp_path) == 5


def test_saving_takes_a_small_share_of_the_time(tmp_path: Path) -> None:
    checkpoints, asked, step = Checkpoints(tmp_path, share=50), [], 0

    def state() -> State:
        asked.append(time.monotonic())
        return {"value": torch.zeros(3)}

    started = time.monotonic()
    while time.monotonic() - started < 0.5:
        step += 1
        checkpoints.tick(step, state)
    assert step > 10 * len(asked) > 0


def test_a_signal_is_met_after_the_step_with_everything_saved(tmp_path: Path) -> None:
    def run() -> None:
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints._due = float("inf")
            checkpoints.tick(1, lambda: {"value": torch.full((2,), 1.0)})
            signal.raise_signal(signal.SIGTERM)  # noted, and the step goes on
            checkpoints.tick(2, lambda: {"value": torch.full((2,), 2.0)})
            checkpoints.tick(3, lambda: {"value": torch.full((2,), 3.0)})

    with handled(), pytest.raises(InterruptedRunError, match=r"stopped by SIGTERM: saved at step 2$"):
        run()
    assert resumed(tmp_path) == 2


@pytest.mark.parametrize(
    ("wait", "said"), [(0, r"stopped by SIGTERM$"), (5, r"did not come to the end of a step in 0\.1 s")]
)
def test_a_loop_that_ends_or_hangs_after_a_signal_is_left(tmp_path, monkeypatch, wait, said):
    def run() -> None:
        with Checkpoints(tmp_path):
            signal.raise_signal(signal.SIGTERM)
            time.sleep(wait)

    monkeypatch.setattr("rltemp.io.interruption.GRACE", 0.1)
    with handled(), pytest.raises(InterruptedRunError, match=said):
        run()
    with handled(), pytest.raises(InterruptedRunError, match=r"stopped by SIGINT$"):
        signal.raise_signal(signal.SIGINT)  # outside of a training loop: at once
