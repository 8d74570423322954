"""What the docs say of the code is there: files, functions, tests, terms and features."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from support.hops import follow
from support.source import ROOT, definitions, everything

from rltemp import Signals
from rltemp.cli.commands import COMMANDS
from rltemp.policy.features import FEATURES, featurize
from rltemp.rules.controls import WRAPPERS
from rltemp.rules.published_methods import METHODS

DOCS = sorted([*ROOT.glob("docs/**/*.md"), ROOT / "README.md"])
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text("utf-8")
WAYS = ("batch", "action")
WRITTEN_BY_THE_READER = {"tests/test_certainty.py"}
TESTS = {name.removeprefix("test_") for file in ROOT.glob("tests/*/test_*.py") for name in definitions(file)}


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
def test_a_run_passes_every_stop_and_no_more_files_than_it_says(way: str, tmp_path: Path, teacher_cache: Path) -> None:
    found = follow(way, tmp_path / "run")
    calls = {(file, function.rpartition(".")[2]) for file, function in stops(way)}
    classes = {(file, function) for file, function in calls if function[0].isupper()}
    assert calls - classes <= found.calls
    assert {file for file, _ in classes} <= found.files
    (most,) = re.findall(rf"^\| one {way} \| \d+ \| (\d+) \|$", ARCHITECTURE, re.MULTILINE)
    assert len(found.files) <= int(most)


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_every_column_of_a_table_has_a_name(page: Path) -> None:
    """A reader of the screen aloud hears it before every cell; axe asks for it on the site."""
    heads = re.findall(r"^(\|.*\|)\n\|[-:| ]+\|$", page.read_text("utf-8"), re.MULTILINE)
    assert [head for head in heads if re.search(r"\|\s*\|", head)] == []


def test_the_page_counts_the_files_of_its_stops() -> None:
    said = re.search(r"the stops above pass (\d+) and (\d+)", ARCHITECTURE)
    assert said is not None
    assert [*map(int, said.groups())] == [len({file for file, _ in stops(way)}) for way in WAYS]


GLOSSARY = (ROOT / "docs/glossary.md").read_text("utf-8")
TERMS = dict(re.findall(r"^- \*\*(.+?)\*\*: (.+)$", GLOSSARY, re.MULTILINE))
TABLE = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \| (-?\d+) to (-?\d+) \|$", GLOSSARY, re.MULTILINE)


def test_the_glossary_is_in_alphabetical_order_and_brief() -> None:
    assert [*TERMS] == sorted(TERMS, key=str.casefold)
    assert len(TERMS) == len(re.findall(r"^- ", GLOSSARY, re.MULTILINE))
    long = {term for term, text in TERMS.items() if len(re.findall(r"\. ", text.partition(" Formerly")[0])) > 1}
    assert long == set()


def test_what_the_glossary_calls_by_its_name_in_the_code_is_there() -> None:
    methods = {*METHODS, *WRAPPERS}
    for words in re.findall(r"`([^`]+)`", " ".join(TERMS.values())):
        if words.startswith("rltemp "):
            assert words.removeprefix("rltemp ") in COMMANDS
        else:
            assert words in everything() or set(words.split(":")) <= methods, words


def test_the_table_of_features_is_the_one_of_the_code() -> None:
    own = [(name, each.unit) for name, each in FEATURES.items() if each.over == "sample"]
    assert [(name, unit) for name, _, unit, _, _ in TABLE] == own


def test_every_feature_stays_in_the_range_that_the_table_gives() -> None:
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([0.0, 1e-6, 1e-2, 1.0, 30.0, 1e3, 1e30]).view(-1, 1, 1, 1)
    student, teacher = (scales * torch.randn(7, 2, 64, 5, generator=generator)).unbind(1)
    labels = torch.randint(0, 5, (7, 64), generator=generator)
    for progress in (0.0, 1.0):
        seen = featurize(Signals(student, teacher, labels, progress), [*FEATURES])
        crossed = featurize(Signals(student, teacher.flip(0), labels, progress), [*FEATURES])
        for column, (name, _, _, low, high) in enumerate(TABLE):
            values = torch.stack([seen[..., column], crossed[..., column]])
            assert values.min() >= int(low) - 1e-5, name
            assert values.max() <= int(high) + 1e-5, name


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_every_test_that_the_docs_name_is_there(page: Path) -> None:
    text = page.read_text("utf-8")
    for file in {*re.findall(r"`((?:tests/)?[\w/]*(?:test_\w+|support/\w+)\.py)`", text)} - WRITTEN_BY_THE_READER:
        assert [*ROOT.glob(file if file.startswith("tests/") else f"tests/*/{file}")], file
    for begun, whole in re.findall(r"`(?:test_)?([a-z]\w+)\.\.\.`|`test_(\w+)`", text):
        assert any(name == whole or (begun and name.startswith(begun)) for name in TESTS), begun or whole
