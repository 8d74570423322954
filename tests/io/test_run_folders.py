import json
import os
import platform
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rltemp.errors import BadInputError
from rltemp.io.run_folders import finish_run, open_run, read_config, read_json

CONFIG = {"task": "digits", "rules": ["fixed:4", "dtkd"], "seed": 0, "optimizer": {"rate": 0.05}}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refused(call: Callable[[], object]) -> str:
    """The one line of the refusal."""
    with pytest.raises(BadInputError) as refusal:
        call()
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.fixture
def opened(tmp_path: Path) -> Path:
    """A run folder of `CONFIG`."""
    assert open_run(tmp_path, "compare", CONFIG) is None
    return tmp_path


def test_a_new_folder_is_made_with_its_parents_and_holds_the_configuration(tmp_path):
    folder = tmp_path / "runs" / "c"
    assert open_run(folder, "compare", CONFIG) is None
    text = (folder / "config.json").read_text()
    assert json.loads(text) == {"command": "compare", **CONFIG}
    assert text.startswith('{\n  "command": "compare",\n  "task": "digits",\n')
    assert text.endswith("}\n")


def test_a_configuration_comes_back_as_it_was_given(opened):
    assert read_config(opened, "compare") == CONFIG
    assert read_config(opened / "config.json", "compare") == CONFIG
    said = refused(lambda: read_config(opened, "distill"))
    assert "is the configuration of 'compare'; needed: one of 'distill'" in said


def test_a_configuration_written_by_hand_needs_no_command(tmp_path):
    (tmp_path / "mine.json").write_text('{"task": "digits"}')
    assert read_config(tmp_path / "mine.json", "distill") == {"task": "digits"}


def test_an_unfinished_run_with_the_same_settings_goes_on(opened):
    (opened / "checkpoint").write_bytes(b"half")
    before = contents(opened)
    assert open_run(opened, "compare", CONFIG) is None
    assert contents(opened) == before


def test_paths_tuples_and_numpy_numbers_are_the_same_when_they_come_back(tmp_path):
    config = {"policy": Path("p.safetensors"), "rules": ("a", "b"), "seed": np.int64(3), "rate": np.float64(0.5)}
    open_run(tmp_path, "compare", config)
    assert open_run(tmp_path, "compare", config) is None
    plain = {"policy": "p.safetensors", "rules": ["a", "b"], "seed": 3, "rate": 0.5}
    assert read_config(tmp_path, "compare") == plain


def test_a_finished_run_is_returned_and_neither_changed_nor_overwritten(opened):
    written = finish_run(opened, {"accuracy": 0.95}, seconds=1.5)
    before = contents(opened)
    assert sorted(before) == ["config.json", "result.json", "timing.json"]
    opened.chmod(0o500)  # it is shown where nobody may write, too
    try:
        assert open_run(opened, "compare", CONFIG) == written
    finally:
        opened.chmod(0o700)
    assert "nothing was overwritten" in refused(lambda: finish_run(opened, {"accuracy": 0.10}, seconds=1.0))
    assert contents(opened) == before


@pytest.mark.parametrize("state", ["a finished", "an unfinished"])
def test_a_run_with_other_settings_is_refused_and_says_what_differs(opened, state):
    if state == "a finished":
        finish_run(opened, {}, seconds=1.0)
    before = contents(opened)
    settings = f"{opened} holds {state} run with other settings (differs in: seed 0 -> 1). Choose another --out"
    assert refused(lambda: open_run(opened, "compare", {**CONFIG, "seed": 1})) == settings
    assert contents(opened) == before


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"optimizer": {"rate": 0.1}}, "differs in: optimizer.rate 0.05 -> 0.1)"),
        ({"rules": ["fixed:4"]}, 'differs in: rules[1] "dtkd" -> absent)'),
        ({"epochs": 10}, "differs in: epochs absent -> 10)"),
        ({"command": "distill"}, 'differs in: command "compare" -> "distill")'),
        ({"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "f": 6}, "d absent -> 4, 2 more)"),
        ({"task": "x" * 500}, 'task "digits" -> "' + "x" * 59 + ")"),
    ],
)
def test_every_kind_of_difference_is_named(opened, change, shown):
    config = {**CONFIG, **change}
    assert shown in refused(lambda: open_run(opened, config.pop("command", "compare"), config))


def test_a_folder_of_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    assert "is not an rltemp run folder" in refused(lambda: open_run(tmp_path, "compare", CONFIG))
    assert contents(tmp_path) == {"thesis.tex": b"mine"}


@pytest.mark.parametrize("out", ["out", "out/deeper"])
def test_a_file_in_place_of_the_folder_is_one_line(tmp_path, out):
    (tmp_path / "out").write_text("")
    said = refused(lambda: open_run(tmp_path / out, "compare", CONFIG))
    assert re.search("cannot use .*out.* as a run folder: .*Choose another --out", said)


def fails(error: OSError) -> Callable[..., None]:
    """Something that cannot be done."""

    def refuse(*_: object, **__: object) -> None:
        raise error

    return refuse


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "mkdir", fails(PermissionError(13, "Permission denied")))
    said = refused(lambda: open_run(tmp_path / "other", "compare", CONFIG))
    assert "as a run folder: Permission denied. Choose another --out" in said


def test_a_run_whose_result_cannot_be_written_stays_unfinished(opened, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails(OSError(28, "No space left on device")))
        assert "No space left on device" in refused(lambda: finish_run(opened, {}, seconds=1.0))
    assert sorted(contents(opened)) == ["config.json", "run.lock"]
    assert open_run(opened, "compare", CONFIG) is None


def test_a_run_killed_at_its_first_write_can_start_again(tmp_path):
    (tmp_path / ".0123.tmp").write_bytes(b"{")
    assert open_run(tmp_path, "compare", CONFIG) is None
    assert read_config(tmp_path, "compare") == CONFIG


def test_a_result_says_versions_and_machine_and_nothing_of_the_clock(opened):
    finish_run(opened, {"accuracy": 0.95}, seconds=1.23456, resumed_at=7)
    result = read_json(opened / "result.json")
    assert list(result) == ["accuracy", "versions", "platform"]
    assert read_json(opened / "timing.json") == {"seconds": 1.235, "resumed_at": 7}
    assert (result["versions"]["python"], result["versions"]["numpy"]) == (platform.python_version(), np.__version__)
    machine = {"system": platform.system(), "machine": platform.machine(), "processors": os.cpu_count()}
    assert result["platform"] == machine, "and no host"


def test_numbers_that_are_not_finite_become_null(opened):
    finish_run(opened, {"error": float("nan"), "bounds": np.array([np.inf, 0.5])}, seconds=0.0)
    result = read_json(opened / "result.json")  # which takes neither NaN nor Infinity
    assert (result["error"], result["bounds"]) == (None, [None, 0.5])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"seed": 1, "seed": 2}', "key 'seed' is given twice"),
        (b'{"a": {"b": 1, "b": 1}}', "key 'b' is given twice"),
        (b'{"rate": NaN}', "NaN is not a number of JSON; write null"),
        (b'{"rate": -Infinity}', "-Infinity is not a number of JSON"),
        (b'{"seed": 1', "is not readable as JSON"),
        (b"", "is not readable as JSON"),
        (b'{"seed": "\xff"}', "is not readable as JSON"),
        (b"[" * 100_000, "is not readable as JSON"),
        (b"[1]", "holds a JSON list; needed: one object"),
        (b'{"a": "' + b"x" * (1 << 20) + b'"}', "is larger than 1048576 bytes"),
    ],
)
def test_json_that_is_not_one_strict_small_object_is_refused_in_one_line(tmp_path, data, reason):
    path = tmp_path / "config.json"
    path.write_bytes(data)
    said = refused(lambda: read_json(path))
    assert reason in said
    assert str(path) in said


def test_a_file_of_exactly_one_mebibyte_is_read(tmp_path):
    path = tmp_path / "big.json"
    path.write_bytes(b'{"a": 1' + b" " * ((1 << 20) - 8) + b"}")
    assert read_json(path) == {"a": 1}


def test_a_missing_file_a_folder_and_a_pipe_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "nothing.json: No such file" in refused(lambda: read_json(tmp_path / "nothing.json"))
    for no_file in (tmp_path, tmp_path / "pipe"):
        assert "is not a file" in refused(lambda no_file=no_file: read_json(no_file))
