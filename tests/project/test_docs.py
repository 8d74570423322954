"""What the docs say of the code is there: files, functions, tests, terms and features."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.hops import follow
from support.source import ROOT, definitions

DOCS = sorted([*ROOT.glob("docs/**/*.md"), ROOT / "README.md"])
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text("utf-8")
WAYS = ("batch", "action")


def section(page: str, title: str) -> str:
    """The text under a heading, up to the next of its kind."""
    (found,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    return found


def stops(way: str) -> list[tuple[str, str]]:
    """File and function of every stop on the way of one batch or one action."""
    lines = section(ARCHITECTURE, f"The way of one {way}")
    return re.findall(r"^\d+\. `([\w/]+\.py)` `([\w.]+)`: \w.*\.$", lines, re.MULTILINE)


@pytest.mark.parametrize("way", WAYS)
def test_every_stop_on_the_way_exists(way: str) -> None:
    lines = section(ARCHITECTURE, f"The way of one {way}")
    assert len(stops(way)) == len(re.findall(r"^\d+\.", lines, re.MULTILINE)) > 10
    missing = [stop for stop in stops(way) if stop[1] not in definitions((ROOT / stop[0]).resolve())]
    assert missing == []


@pytest.mark.parametrize("way", WAYS)
def test_a_run_passes_every_stop_and_no_more_files_than_the_page_says(
    way: str, tmp_path: Path, teacher_cache: Path
) -> None:
    found = follow(way, tmp_path / "run")
    calls = {(file, function.rpartition(".")[2]) for file, function in stops(way)}
    classes = {(file, function) for file, function in calls if function[0].isupper()}
    assert calls - classes <= found.calls
    assert {file for file, _ in classes} <= found.files
    (most,) = re.findall(rf"^\| one {way} \| \d+ \| (\d+) \|$", ARCHITECTURE, re.MULTILINE)
    assert len(found.files) <= int(most)


def test_the_page_counts_the_files_of_its_stops() -> None:
    said = re.search(r"the stops above pass (\d+) and (\d+)", ARCHITECTURE)
    assert said is not None
    assert [*map(int, said.groups())] == [len({file for file, _ in stops(way)}) for way in WAYS]
