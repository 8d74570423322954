import json
import os
import platform
from pathlib import Path

import numpy as np
import pytest

from rltemp.errors import BadInputError
from rltemp.io.run_folders import finish_run, open_run, read_config, read_json

CONFIG = {"task": "digits", "rules": ["fixed:4", "dtkd"], "seed": 0, "optimizer": {"rate": 0.05}}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def one_line(refusal: pytest.ExceptionInfo[BadInputError]) -> str:
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_a_new_folder_is_made_with_its_parents_and_holds_the_configuration(tmp_path):
    folder = tmp_path / "runs" / "c"
    assert open_run(folder, "compare", CONFIG) is None
    text = (folder / "config.json").read_text()
    assert json.loads(text) == {"command": "compare", **CONFIG}
    assert text.startswith('{\n  "command": "compare",\n  "task": "digits",\n')
    assert text.endswith("}\n")


def test_an_empty_folder_becomes_a_run_folder(tmp_path):
    assert open_run(tmp_path, "compare", CONFIG) is None
    assert (tmp_path / "config.json").exists()


def test_a_configuration_comes_back_as_it_was_given(tmp_path):
    open_run(tmp_path, "compare", CONFIG)
    assert read_config(tmp_path, "compare") == CONFIG
    assert read_config(tmp_path / "config.json", "compare") == CONFIG


def test_a_configuration_written_by_hand_needs_no_command(tmp_path):
    (tmp_path / "mine.json").write_text('{"task": "digits"}')
    assert read_config(tmp_path / "mine.json", "distill") == {"task": "digits"}


def test_a_configuration_of_another_command_is_refused(tmp_path):
    open_run(tmp_path, "compare", CONFIG)
    with pytest.raises(BadInputError, match=r"is the configuration of 'compare'; needed: one of 'distill'"):
        read_config(tmp_path, "distill")


def test_an_unfinished_run_with_the_same_settings_goes_on(tmp_path):
    open_run(tmp_path, "compare", CONFIG)
    (tmp_path / "checkpoint").write_bytes(b"half")
    before = contents(tmp_path)
    assert open_run(tmp_path, "compare", CONFIG) is None
    assert contents(tmp_path) == before


def test_paths_tuples_and_numpy_numbers_are_the_same_settings_when_they_come_back(tmp_path):
    config = {
        "policy": Path("p.safetensors"),
        "rules": ("a", "b"),
        "seed": np.int64(3),
        "rate": np.float64(0.5),
    }
    open_run(tmp_path, "compare", config)
    assert open_run(tmp_path, "compare", config) is None
    assert read_config(tmp_path, "compare") == {
        "policy": "p.safetensors",
        "rules": ["a", "b"],
        "seed": 3,
        "rate": 0.5,
    }


def test_a_finished_run_with_the_same_settings_is_returned_and_nothing_is_written(tmp_path):
    open_run(tmp_path, "compare", CONFIG)
    written = finish_run(tmp_path, {"accuracy": 0.95}, seconds=1.5)
    before = contents(tmp_path)
    assert open_run(tmp_path, "compare", CONFIG) == written
    assert contents(tmp_path) == before


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_with_other_settings_is_refused_and_says_what_differs(tmp_path, finished):
    open_run(tmp_path, "compare", CONFIG)
    if finished:
        finish_run(tmp_path, {}, seconds=1.0)
    before = contents(tmp_path)
    with pytest.raises(BadInputError) as refusal:
        open_run(tmp_path, "compare", {**CONFIG, "seed": 1})
    state = "a finished" if finished else "an unfinished"
    settings = f"{tmp_path} holds {state} run with other settings (differs in: seed 0 -> 1). Choose another --out"
    assert one_line(refusal) == settings
    assert contents(tmp_path) == before


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
def test_every_kind_of_difference_is_named(tmp_path, change, shown):
    open_run(tmp_path, "compare", CONFIG)
    config = {**CONFIG, **change}
    with pytest.raises(BadInputError) as refusal:
        open_run(tmp_path, config.pop("command", "compare"), config)
    assert shown in one_line(refusal)


def test_a_folder_of_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(BadInputError, match="is not an rltemp run folder"):
        open_run(tmp_path, "compare", CONFIG)
    assert contents(tmp_path) == {"thesis.tex": b"mine"}


def test_a_file_in_place_of_the_folder_is_one_line(tmp_path):
    (tmp_path / "out").write_text("")
    for out in (tmp_path / "out", tmp_path / "out" / "deeper"):
        with pytest.raises(
            BadInputError, match=r"cannot use .*out.* as a run folder: .*Choose another --out"
        ) as refusal:
            open_run(out, "compare", CONFIG)
        one_line(refusal)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(BadInputError, match=r"as a run folder: Permission denied\. Choose another --out") as refusal:
        open_run(tmp_path / "other", "compare", CONFIG)
    one_line(refusal)


def test_a_result_that_cannot_be_written_is_one_line_and_the_run_stays_unfinished(tmp_path, monkeypatch):
    def refuse(*args: object) -> None:
        raise OSError(28, "No space left on device")

    open_run(tmp_path, "compare", CONFIG)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(BadInputError, match="No space left on device") as refusal:
            finish_run(tmp_path, {}, seconds=1.0)
    one_line(refusal)
    assert sorted(contents(tmp_path)) == ["config.json", "run.lock"]
    assert open_run(tmp_path, "compare", CONFIG) is None


def test_a_run_killed_at_its_first_write_can_start_again(tmp_path):
    (tmp_path / ".0123.tmp").write_bytes(b"{")
    assert open_run(tmp_path, "compare", CONFIG) is None
    assert read_config(tmp_path, "compare") == CONFIG


def test_a_result_says_versions_and_machine_but_no_host_and_nothing_that_the_clock_says(tmp_path):
    open_run(tmp_path, "compare", CONFIG)
    finish_run(tmp_path, {"accuracy": 0.95}, seconds=1.23456, resumed_at=7)
    result = json.loads((tmp_path / "result.json").read_text())
    assert list(result) == ["accuracy", "versions", "platform"]
    assert read_json(tmp_path / "timing.json") == {"seconds": 1.235, "resumed_at": 7}
    assert result["versions"]["python"] == platform.python_version()
    assert result["versions"]["numpy"] == np.__version__
    assert result["platform"] == {
        "system": platform.system(),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
    }


def test_numbers_that_are_not_finite_become_null(tmp_path):
    open_run(tmp_path, "compare", CONFIG)
    finish_run(tmp_path, {"error": float("nan"), "bounds": np.array([np.inf, 0.5])}, seconds=0.0)
    text = (tmp_path / "result.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    result = read_json(tmp_path / "result.json")
    assert (result["error"], result["bounds"]) == (None, [None, 0.5])


def test_a_finished_result_is_never_overwritten(tmp_path):
    open_run(tmp_path, "compare", CONFIG)
    finish_run(tmp_path, {"accuracy": 0.95}, seconds=1.0)
    before = contents(tmp_path)
    with pytest.raises(BadInputError, match="nothing was overwritten"):
        finish_run(tmp_path, {"accuracy": 0.10}, seconds=1.0)
    assert contents(tmp_path) == before


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
    with pytest.raises(BadInputError) as refusal:
        read_json(path)
    assert reason in one_line(refusal)
    assert str(path) in str(refusal.value)


def test_a_file_of_exactly_one_mebibyte_is_read(tmp_path):
    path = tmp_path / "big.json"
    path.write_bytes(b'{"a": 1' + b" " * ((1 << 20) - 8) + b"}")
    assert read_json(path) == {"a": 1}


def test_a_missing_file_a_folder_and_a_pipe_are_refused(tmp_path):
    with pytest.raises(BadInputError, match=r"cannot read .*nothing.json: No such file"):
        read_json(tmp_path / "nothing.json")
    with pytest.raises(BadInputError, match="is not a file"):
        read_json(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInputError, match="is not a file"):
        read_json(tmp_path / "pipe")


def test_a_finished_run_leaves_no_lock_and_is_read_while_nobody_may_write(tmp_path):
    open_run(tmp_path, "compare", CONFIG)
    written = finish_run(tmp_path, {"accuracy": 0.95}, seconds=1.0)
    assert sorted(contents(tmp_path)) == ["config.json", "result.json", "timing.json"]
    tmp_path.chmod(0o500)
    try:
        assert open_run(tmp_path, "compare", CONFIG) == written
    finally:
        tmp_path.chmod(0o700)
