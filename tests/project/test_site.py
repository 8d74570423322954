"""The documentation as a site: built strictly, with nothing from elsewhere, and searched where there is no server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.browsers import chromium
from support.source import ROOT

from rltemp.cli.commands import COMMANDS
from rltemp.rules import RULES

FOUND = ".md-search-result__item a"
"""Links to what a search found."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `make docs` builds it; a proxy that nobody answers on stands for the missing network."""
    folder = tmp_path_factory.mktemp("site")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    environment = {**os.environ, **nowhere, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = [page.read_text("utf-8") for page in site.rglob("*.html")]
    assert len(pages) > 35
    sources = r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"(?:https?:)?//"
    styles = r"<link\b[^>]*\bhref=\"(?:https?:)?//[^\"]*\.(?:css|js|woff)"
    assert [found for page in pages for found in re.findall(f"{sources}|{styles}", page)] == []


def test_the_pages_of_rules_and_commands_are_written_from_the_code(site: Path) -> None:
    rules = (site / "all-rules.html").read_text("utf-8")
    assert [name for name in RULES if f'id="{name}"' not in rules] == []
    commands = (site / "reference" / "command-line.html").read_text("utf-8")
    assert [name for name in COMMANDS if f"usage: rltemp {name}" not in commands] == []
    assert "<!-- generated" not in rules + commands


def test_the_index_of_the_search_has_every_page(site: Path) -> None:
    found = {entry["location"].partition("#")[0] for entry in json.loads(_index(site))["docs"]}
    assert {f"{page.relative_to(site)}" for page in site.rglob("*.html")} - {"404.html"} <= found


def _index(site: Path) -> str:
    return (site / "search" / "search_index.json").read_text("utf-8")


browser = pytest.fixture(scope="module")(chromium)


@pytest.mark.parametrize("width", [1280, 390])
def test_pages_open_from_their_folder_and_fit_the_screen(site: Path, browser: Any, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    problems: list[str] = []
    page.on("request", lambda asked: None if asked.url.startswith("file:") else problems.append(asked.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    for name in ("index", "all-rules", "compare", "reference/python", "integrations/index"):
        page.goto((site / f"{name}.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
    assert problems == []
    page.close()


def test_the_search_finds_a_word_without_a_server(site: Path, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto((site / "index.html").as_uri())
    page.fill(".md-search__input", "gradient matching")
    page.wait_for_selector(".md-search-result__item a", state="attached", timeout=120_000)
    assert "glossary.html" in " ".join(
        page.eval_on_selector_all(".md-search-result__item a", "all => all.map(a => a.href)")
    )
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_to_mend(site: Path, browser: Any, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is missing: rltemp[browser]").Axe()
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
    for name in ("index", "own-rule", "universal", "own-loop", "results", "reference/python"):
        page.goto((site / f"{name}.html").as_uri())
        found = axe.run(page).response["violations"]
        assert [(one["id"], one["nodes"][0]["html"]) for one in found] == [], name
    page.close()
