"""Mistakes that can be known at once are told before a teacher is trained, in one line, and leave nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.processes import code


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder without a teacher; the working folder is empty."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("RLTEMP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def refused(words: tuple[object, ...], capsys: pytest.CaptureFixture[str]) -> str:
    assert code(*words) == 2
    said = capsys.readouterr().err
    assert said.startswith("rltemp: ")
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize("command", ["train-teacher", "distill", "train-policy", "check", "compare"])
def test_a_folder_that_cannot_be_made(command: str, cache: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").touch()
    said = refused((command, "--task", "iris", "--out", tmp_path / "file" / "runs" / "x"), capsys)
    assert f"{tmp_path / 'file'} is no folder. Choose another --out" in said
    assert not cache.exists()


def test_a_folder_that_permissions_allow_and_the_system_does_not(cache: Path, capsys) -> None:
    if not Path("/proc/self").is_dir():
        pytest.skip("this system has no /proc, where nobody can write, though the superuser may")
    said = refused(("distill", "--task", "iris", "--out", "/proc/nowhere/x"), capsys)
    assert "/proc cannot be written to. Choose another --out" in said
    assert not cache.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train-policy", "--reference", "fixd:4"), "did you mean 'fixed'"),
        (("train-policy", "--workers", 1000), "--workers must be 1 to"),
        (("distill", "--batch-size", 1000000), "give --batch-size"),
        (("check", "--rule", "fixd:4"), "did you mean 'fixed'"),
        (("check", "--rule", "none"), "check judges one rule with a teacher, as in universal or dtkd; got 'none'"),
        (("check", "--rule", "dtkd:1|2"), "check judges one rule"),
        (("check", "--seeds", 1), "--seeds must be"),
        (("compare", "--against", "fixd:4"), "did you mean 'fixed:4'"),
        (("compare", "--rules", "universal:kd_weight=3"), "the policy universal takes no options"),
    ],
)
def test_an_option_that_cannot_be(words: tuple[object, ...], said: str, cache: Path, capsys) -> None:
    assert said in refused((*words, "--task", "iris"), capsys)
    assert not cache.exists()
    assert [*Path().iterdir()] == []


@pytest.mark.parametrize("command", ["train-policy", "compare", "study"])
def test_a_cluster_that_nobody_answers_for(command: str, cache: Path, capsys) -> None:
    rules = ("--rules", "dtkd") if command == "study" else ()
    said = refused((command, "--task", "iris", "--ray", "127.0.0.1:1", *rules), capsys)
    assert "no Ray cluster can be reached there" in said or "pip install 'rltemp[ray]'" in said
    assert not cache.exists()


@pytest.mark.parametrize("command", ["train-teacher", "distill", "train-policy", "check", "compare"])
def test_a_cache_that_cannot_be_made(command: str, cache: Path, capsys) -> None:
    cache.touch()
    assert "Set RLTEMP_CACHE to another folder" in refused((command, "--task", "iris"), capsys)
    assert [*Path().iterdir()] == []


def test_a_cache_in_a_home_that_nobody_has(cache: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("RLTEMP_CACHE", "~nobody-has-this-name/cache")
    assert "Set RLTEMP_CACHE to a folder" in refused(("distill", "--task", "iris"), capsys)
    assert [*Path().iterdir()] == []


def test_a_cache_under_the_home_folder(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RLTEMP_CACHE", "~/mine")
    assert code("train-teacher", "--task", "iris", "--teacher-epochs", 1, "--out", "t") == 0
    assert [*(tmp_path / "mine" / "teachers").glob("*.safetensors")]
    assert not Path("~").exists()
