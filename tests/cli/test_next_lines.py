"""What a command says to type next works as it stands, one line after the other, and what they say in turn too."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path

import pytest
from support import hostile
from support.processes import code

from rltemp.cli.dispatch import parse

TOY = ("--task", "toy", "--epochs", 1)


def following(said: str) -> list[list[str]]:
    """The words of every line to type next, in their order."""
    return [shlex.split(line.removeprefix("Next:  ")) for line in said.splitlines() if line.startswith("Next:  ")]


def typed(lines: list[list[str]], capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """Type every line; what they say to type next."""
    said: list[list[str]] = []
    for program, *words in lines:
        if program == "tensorboard":
            option, folder = words
            assert option == "--logdir"
            assert [*Path(folder).rglob("*tfevents*")]
        else:
            assert program == "rltemp"
            assert code(*words) == 0, words
            said += following(capsys.readouterr().out)
    return said


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """The working folder, whose name has to be quoted."""
    folder = tmp_path / "my runs"
    folder.mkdir()
    monkeypatch.chdir(folder)
    capsys.readouterr()
    return folder


def test_the_demo_compares_a_policy_and_every_line_of_it_works(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert code("demo", *TOY, "--updates", 1, "--seeds", 2, "--out", here / "demo") == 0
    rows = csv.DictReader((here / "demo" / "compare" / "results.csv").read_text().splitlines())
    assert {"none", "fixed:16", str(here / "demo" / "policy" / "policy.safetensors")} < {row["rule"] for row in rows}
    assert (here / "demo" / "student" / "student.safetensors").is_file()
    saved = parse("train-policy", ["--config", str(here / "demo" / "policy")])
    assert (saved.task, saved.policy.updates) == ("toy", 1)
    lines = following(capsys.readouterr().out)
    assert [line[:2] for line in lines] == [
        *(["rltemp", "distill"], ["tensorboard", "--logdir"], ["rltemp", "distill"], ["rltemp", "compare"]),
        *(["tensorboard", "--logdir"], ["rltemp", "compare"], ["tensorboard", "--logdir"], ["rltemp", "distill"]),
        ["rltemp", "compare"],
    ]
    then = typed(lines, capsys)
    assert len(then) > 4
    assert typed(then, capsys) == []


@pytest.mark.parametrize("where", [(), pytest.param(("--out", "p/"), marks=pytest.mark.slow)])
def test_the_lines_of_a_policys_training_work(
    where: tuple[str, ...], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("--updates", 1, "--students-per-update", 2, "--replicas", 2, "--validation-students", 1)
    assert code("train-policy", *TOY, *small, *where) == 0
    first = following(capsys.readouterr().out)
    assert typed(typed(first, capsys), capsys) == []
    assert typed(first, capsys)  # once more: what is finished is shown


@pytest.mark.parametrize(
    ("verdict", "line"),
    [
        ({"use": "fixed:1", "seeds_needed": None}, ["distill", "--rule", "fixed:1"]),
        ({"use": None, "seeds_needed": 3}, ["check", "--rule", "fixed:2", "--seeds", "3"]),
        ({"use": "none", "seeds_needed": None}, []),
    ],
)
def test_the_line_of_a_check_does_what_its_verdict_says(
    verdict: dict[str, object], line: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("check", *TOY, "--rule", "fixed:2", "--seeds", 2, "--out", here / "c")
    assert code(*words) == 0
    stored = here / "c" / "result.json"
    stored.write_text(json.dumps({**json.loads(stored.read_text()), **verdict}))
    capsys.readouterr()
    assert code(*words) == 0
    found = following(capsys.readouterr().out)
    assert [[one for one in words if one in line] for words in found] == [line] * bool(line)
    typed(found, capsys)


def test_an_imported_policys_line_is_quoted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = here / "model.zip"
    archive.write_bytes(hostile.sb3_archive(here / "MARKER", hostile.sb3_weights(8, 2)))
    assert code("policy", "import", "--arch", "none", "--out", here / "a policy.safetensors", archive) == 0
    (line,) = following(capsys.readouterr().out)
    assert line == ["rltemp", "policy", "show", str(here / "a policy.safetensors")]
    assert typed([line], capsys) == []
