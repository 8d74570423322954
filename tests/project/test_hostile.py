"""Every door that takes a file, and every hostile file: nothing of it runs, nothing hangs, one line says why."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
from PIL import Image
from support import hostile
from support.data import table

import rltemp
from rltemp import BadInputError
from rltemp.cli.dispatch import parse
from rltemp.cli.main import main
from rltemp.data.sources import load_dataset
from rltemp.loading import SHIPPED
from rltemp.models.networks import build_model
from rltemp.models.weight_files import load_weights
from rltemp.training.options import configuration

TOY = ("--task", "toy", "--epochs", "1")
TRAINING = ("distill", "check", "compare", "study", "explain", "train-policy", "train-teacher")
SECONDS = 5
MEBIBYTES = 256  # torch and its friends are loaded on the way; the policy reader alone has a bound of its own

Door = Callable[[Path, Path], object]
"""Takes the file and the folder of a run."""
Give = Callable[[Door, Path], str]


def command(*words: str) -> Door:
    """A command line, where FILE and OUT stand for the file and the run's folder."""
    return lambda file, out: main([word.replace("FILE", str(file)).replace("OUT", str(out)) for word in words])


def run_folder(name: str, words: tuple[str, ...]) -> Door:
    """A command on a folder in which `name` is the hostile file, and the configuration is the command's own."""

    def call(file: Path, out: Path) -> None:
        out.mkdir()
        options = parse(words[0], [*words[1:], "--out", str(out)])
        settings = {"command": words[0], **configuration(options)}
        (out / "config.json").write_text(json.dumps(settings, default=str))
        (out / name).unlink(missing_ok=True)
        os.symlink(file, out / name) if file.exists() else (out / name).touch()
        main([*words, "--out", str(out)])

    return call


def as_weights(file: Path, out: Path) -> None:
    load_weights(build_model("mlp:8", (1, 8, 8), 10), file)


def as_picture(file: Path, out: Path) -> None:
    pictures = file.parent / "pictures"
    for place in (f"{split}/{kind}/{index}.png" for split in ("train", "test") for kind in "ab" for index in range(3)):
        (pictures / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(pictures / place)
    planted = pictures / "train/a/1.png"
    planted.unlink()
    os.symlink(file, planted)
    try:
        load_dataset(f"imagefolder:{pictures}")
    finally:
        planted.unlink()


POLICY_DOORS: dict[str, Door] = {
    "load_rule": lambda file, out: rltemp.load_rule(str(file)),
    "load_method": lambda file, out: rltemp.load_method(f"matched:{file}"),
    "a pinned rule": lambda file, out: rltemp.load_rule(f"{file}@sha256:{64 * '0'}"),
    "distill --rule": command("distill", *TOY, "--rule", "FILE", "--out", "OUT"),
    "check --rule": command("check", *TOY, "--rule", "FILE", "--out", "OUT"),
    "compare --rules": command("compare", *TOY, "--rules", "fixed:4", "FILE", "--out", "OUT"),
    "study --rules": command("study", *TOY, "--rules", "FILE", "--out", "OUT"),
    "explain --rules": command("explain", *TOY, "--rules", "FILE", "--out", "OUT"),
    "policy show": command("policy", "show", "FILE"),
    "policy export": command("policy", "export", "FILE", "--out", "OUT"),
    "policy import": command("policy", "import", "--arch", "64,64", "FILE", "--out", "OUT"),
}
OTHER_DOORS: dict[str, Door] = {
    "load_weights": as_weights,
    "distill --teacher-weights": command("distill", "--task", "iris", "--teacher-weights", "FILE", "--out", "OUT"),
    **{f"{name} --config": command(name, "--config", "FILE", "--out", "OUT") for name in (*TRAINING, "demo")},
    "distill with this configuration there": run_folder("config.json", ("distill", "--task", "toy")),
    **{f"{name} with this result there": run_folder("result.json", (name, "--task", "toy")) for name in TRAINING[:5]},
    "imagefolder": as_picture,
}
DOORS = {**POLICY_DOORS, **OTHER_DOORS}

RESULTS = table("project/strange_runs", "results")
CONFIGURATIONS = table("project/strange_runs", "configurations")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for all of it; the payloads' marker would appear in it."""
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def contents(place: Path) -> dict[str, bytes]:
    return hostile.contents(place / "MARKER")


@pytest.fixture
def give(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Give:
    """Give a file to a door, and check what happens; see `opened`."""
    monkeypatch.chdir(place)
    return lambda door, file: opened(door, file, place, capsys)


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """A door that waits for ever fails its test."""

    def ring(*_: object) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, ring)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def opened(door: Door, file: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which the door refuses the file, by an exit code or an error; it has done nothing else."""
    out, marker = place / "out", place / "MARKER"
    shutil.rmtree(out, ignore_errors=True)
    capsys.readouterr()
    signal.alarm(4 * SECONDS)
    started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        door(file, out)
    except SystemExit as end:
        code, line = end.code, capsys.readouterr().err.removesuffix("\n")
    except BadInputError as error:
        code, line = 2, f"rltemp: {error}"
    else:
        pytest.fail("it was taken for good")
    signal.alarm(0)
    assert code in (2, 3)
    assert line.startswith("rltemp: ")
    assert line.isprintable(), "one line, and nothing that a terminal would obey"
    assert not marker.exists(), "it ran"
    assert time.process_time() - started < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MEBIBYTES
    assert not out.exists() or {entry.name for entry in out.iterdir()} <= {"config.json", "result.json", "run.lock"}
    return line


def give_all(give: Give, door: str, suffixes: Sequence[str], contents: dict[str, bytes], place: Path) -> int:
    """Give every file under every suffix to the door; return how many there were."""
    made = {name: partial(Path.write_bytes, data=data) for name, data in contents.items()}
    count = 0
    for name, make in {**made, **hostile.special_files(place)}.items():
        for suffix in suffixes:
            file = place / f"file{suffix}"
            make(file)
            try:
                give(DOORS[door], file)
            except (AssertionError, TimeoutError, pytest.fail.Exception) as error:
                raise AssertionError(f"{name}{suffix}: {error}") from error
            finally:
                file.rmdir() if file.is_dir() and not file.is_symlink() else file.unlink()
            count += 1
    return count


@pytest.mark.parametrize("door", DOORS)
def test_no_door_runs_or_believes_a_hostile_file(door, give, contents, place) -> None:
    suffix = ".safetensors" if door in POLICY_DOORS else ".pth" if "weights" in door else ".json"
    assert give_all(give, door, [suffix], contents, place) > 60


@pytest.mark.faults
@pytest.mark.parametrize("door", [door for door in DOORS if door in POLICY_DOORS or "weights" in door])
def test_no_door_that_looks_at_suffixes_runs_a_hostile_file_under_another(door, give, contents, place) -> None:
    assert give_all(give, door, hostile.SUFFIXES, contents, place) > 200


def test_the_payloads_would_run_where_they_are_followed(place: Path, contents: dict[str, bytes]) -> None:
    for protocol in (0, 5):
        pickle.loads(contents[f"pickle of protocol {protocol}"])
        (place / "MARKER").rmdir()


@pytest.mark.parametrize("result", RESULTS)
@pytest.mark.parametrize("command", [name for name in TRAINING if name != "train-policy"])  # which shows no numbers
def test_a_stored_result_that_no_command_wrote_is_refused(command, result, give, place, capsys) -> None:
    (place / "stored.json").write_text(json.dumps(RESULTS[result]))
    line = give(run_folder("result.json", (command, "--task", "toy")), place / "stored.json")
    assert "is not a result of this command" in line


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_neither_imports_nor_starts_what_has_no_end(name, give, place, monkeypatch) -> None:
    (place / "evil.py").write_text(f"import os\nos.mkdir({str(place / 'MARKER')!r})\npayload = None\n")
    monkeypatch.syspath_prepend(place)
    command, values = CONFIGURATIONS[name]
    (place / "c.json").write_text(json.dumps({"task": "toy", **values}))
    give(lambda file, out: main([command, "--config", str(file), "--out", str(out)]), place / "c.json")


def test_a_rule_that_the_user_typed_may_be_a_module_beside_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps({"task": "toy", "rule": "my_rules:softer"}))
    words = ["--config", str(tmp_path / "c.json")]
    with pytest.raises(BadInputError, match=r"'my_rules:softer' would import and run a module.*--rule my_rules:softer"):
        parse("distill", words)
    for typed in (["--rule", "my_rules:softer"], ["--rule=my_rules:softer"], ["--rule", "fixed:4"]):
        assert typed[-1].endswith(parse("distill", [*words, *typed]).rule)


def test_a_loop_of_links_in_a_folder_of_images_is_refused(give: Give, place: Path) -> None:
    folder = place / "round" / "train" / "cat"
    folder.mkdir(parents=True)
    for name in ("one", "two"):
        (folder / name).symlink_to(folder, target_is_directory=True)
    (place / "round" / "test").mkdir()
    assert "Remove the link" in give(lambda file, out: load_dataset(f"imagefolder:{file}"), place / "round")


def test_pictures_that_are_too_many_for_the_machine_are_refused(place: Path, give: Give, monkeypatch) -> None:
    monkeypatch.setattr("rltemp.data.image_folder._memory_bytes", lambda: 1000)
    (place / "small.png").write_bytes(b"")
    Image.new("RGB", (8, 8)).save(place / "small.png")
    assert "this machine has 1,000" in give(as_picture, place / "small.png")


def test_a_data_set_of_somebody_else_is_not_unpickled(give, place, contents, monkeypatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    folder = place / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("batches.meta", "test_batch", *(f"data_batch_{number}" for number in range(1, 6))):
        (folder / name).write_bytes(contents["pickle of protocol 4"])
    assert "no usable copy" in give(lambda file, out: load_dataset("cifar10", root=file), place)


SCRIPT = """
import json, resource, sys, time
from pathlib import Path
from rltemp.errors import ArtifactRefusedError
from rltemp.policy.rule import Policy

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

Policy.load(Path(sys.argv[1]))
before, slowest = peak(), 0.0
for file in sys.argv[2:]:
    seconds = []
    for _ in range(3):  # the machine may be busy with something else
        started = time.perf_counter()
        try:
            Policy.load(Path(file))
        except ArtifactRefusedError:
            seconds.append(time.perf_counter() - started)
    slowest = max(slowest, min(seconds))
print(json.dumps({"mebibytes": peak() - before, "slowest": slowest}))
"""


def test_what_is_no_policy_is_refused_in_little_time_and_memory(place: Path, contents: dict[str, bytes]) -> None:
    files = [place / f"policy{number}.safetensors" for number in range(len(contents))]
    for file, data in zip(files, contents.values(), strict=True):
        file.write_bytes(data)
    words = [sys.executable, "-c", SCRIPT, SHIPPED["universal"], *files]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["slowest"] < 0.1
    assert found["mebibytes"] < 64
