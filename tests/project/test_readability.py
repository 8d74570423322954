"""The pages are easy to read: Flesch's reading ease, by textstat; 60 is plain English, 30 is a paper."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import pytest
import textstat
from support.pages import PAGES, WRITTEN_BY_PROGRAMS
from support.prose import sentences, text
from support.source import ROOT

READ = [page for page in PAGES if page.name not in (*WRITTEN_BY_PROGRAMS, "changelog.md")]
EASE = {page: textstat.flesch_reading_ease(text(page.read_text("utf-8"))) for page in READ}


@pytest.mark.parametrize("page", READ, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_page_is_hard_to_read(page: Path) -> None:
    assert EASE[page] >= 40


def test_the_pages_are_easy_to_read_on_average() -> None:
    assert mean(EASE.values()) >= 50


def test_no_sentence_of_the_readme_is_long() -> None:
    found = sentences((ROOT / "README.md").read_text("utf-8"))
    assert len(found) > 30
    assert [one for one in found if len(one.split()) > 35] == []


def test_prose_is_what_is_left_without_code_tables_and_links() -> None:
    prose, rest = "One [link](there.md) is `here`. Two\nlines.", "```python\ncode()\n```\n\n| a | b |\n\n- A point\n"
    assert sentences(f"# A heading\n\n{prose}\n\n{rest}") == ["One link is here.", "Two lines.", "A point"]


def test_hard_words_and_long_sentences_are_found() -> None:
    easy = text("The cat sat on the mat. It was warm.")
    hard = text("Interdependent institutional considerations necessitate comprehensive reconceptualisation.")
    assert textstat.flesch_reading_ease(easy) > 90 > 0 > textstat.flesch_reading_ease(hard)
