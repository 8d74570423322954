"""The page of a comparison: one file that is whole, escaped, and looks right in a real browser."""

from __future__ import annotations

import base64
import math
import re
import shutil
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.browsers import chromium
from support.processes import code
from support.results import QUICK

from rltemp.data.task import Task
from rltemp.data.tasks import load_task
from rltemp.experiments.grid import Overall
from rltemp.experiments.method_results import Row
from rltemp.experiments.showcase import SAMPLED, Showcase
from rltemp.experiments.statistics import Paired
from rltemp.report.comparison import shown
from rltemp.report.html_page import leaves, write_index, write_page
from rltemp.report.markdown import Section
from rltemp.report.plots import arranged

DIGITS = load_task("digits")
HOSTILE = "<script>alert(1)</script>\"'&$x_$"
VOID = {"meta", "img", "br", "hr", "link", "input"}
RULES = ("fixed:4", "none", "dtkd", "universal")
COMPARE = ("compare", "--task", "digits", "--epochs", "2", "--rules", *RULES, "--seeds", "8")


class Page(HTMLParser):
    """What a page holds: tags with their attributes, headings, text; every tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], "every tag is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def pictures(self) -> list[ElementTree.Element]:
        sources = [str(image["src"]) for image in self.all("img")]
        assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
        return [ElementTree.fromstring(base64.b64decode(source.partition(",")[2])) for source in sources]


def showcase(temperature: float = 4.0, classes: int = 3, seed: int = 0) -> Showcase:
    drawn = np.random.default_rng(seed)
    samples = {name: drawn.uniform(1, 8, 500) for name in SAMPLED}
    samples |= {"progress": np.linspace(0, 0.99, 500), "teacher_temperature": np.full(500, temperature)}
    labels = np.arange(60) % classes
    return Showcase(samples, drawn.normal(labels[:, None], 0.1, (60, 4)), labels, seconds=0.01)


def rows(*names: str) -> list[Row]:
    """A baseline, a better method, one far below, and others that are not compared; each has its name as its note."""
    compared = [(0.0, 0.0, 0.0), (1.5, 1.0, 2.0), (-70.0, -71.0, -69.0)]
    pairs = [*(Paired(*pair, n=8) for pair in compared), *[Paired(*[math.nan] * 3, n=0)] * len(names)]
    return [
        Row(name, 90.0 + np.nan_to_num(pair.mean), 0.5, {names[0]: pair}, 8, name)
        for name, pair in zip(names, pairs, strict=False)
    ]


def compare(out: Path, *words: str) -> Path:
    """Run the command into a folder, and return the folder."""
    assert code(*words, "--out", out) == 0
    return out


def page(path: Path, methods: list[Row], shown: dict[str, Showcase], task: Task = DIGITS, **more: Any) -> str:
    given = {"configuration": {"rules": [row.rule for row in methods], "out": None}, "command": "rltemp compare"}
    section = Section(task, 0.9849, methods, verdict=more.pop("verdict", ()))
    write_page(path, section, shown, **{**given, **more})
    return path.read_text("utf-8")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, teacher_cache: Path) -> Path:
    """The folder of a small comparison, made by the command."""
    return compare(tmp_path_factory.mktemp("page") / "run", *COMPARE)


def test_the_command_writes_a_page_with_every_section_of_every_rule(compared: Path):
    found = Page((compared / "report.html").read_text("utf-8"))
    headings = [name for name, _ in found.tags if re.fullmatch("h[1-6]", name)]
    assert headings == ["h1", *["h2"] * 7, "h3", "h3"]
    captions = [str(image["alt"]) for image in found.all("img")]
    assert len(captions) == 1 + 1 + 6 + 2 + 4
    for rule in RULES:
        assert f"{rule}: 300 test samples of 10 classes in the plane." in captions
        assert re.search(rf"{re.escape(rule)} \d+\.\d+ % at [\d.e+]+ ms", captions[1])
    over_the_run = next(text for text in captions if text.startswith("The teacher's temperature over the run"))
    assert "fixed:4 from 4 to 4" in over_the_run
    assert "none" not in over_the_run
    report = (compared / "report.md").read_text()
    numbers = re.findall(r"[+-]\d+\.\d+ \[[^]]*\]", report)
    assert len(numbers) == 3
    assert all(number in found.text for number in numbers)
    assert re.search("```\n(.*)\n```", report).group(1) in found.text  # type: ignore[union-attr]
    assert "selection_seeds" in found.text


def test_the_page_needs_no_other_file_and_runs_nothing(compared: Path):
    text = (compared / "report.html").read_text("utf-8")
    found = Page(text)
    assert {name for name, _ in found.tags}.isdisjoint({"script", "link", "iframe", "object", "embed", "base", "form"})
    for _, attributes in found.tags:
        assert all(str(attributes.get(name, "data:")).startswith(("data:", "#")) for name in ("src", "href", "srcset"))
        assert not [name for name in attributes if name.startswith("on")]
    assert "://" not in text
    assert "@import" not in text
    assert "url(" not in text
    for drawing in found.pictures():
        used = [value for element in drawing.iter() for name, value in element.attrib.items() if name.endswith("href")]
        assert all(value.startswith("#") for value in used)


def test_pictures_say_in_words_what_they_show_and_columns_what_they_are(compared: Path):
    found = Page((compared / "report.html").read_text("utf-8"))
    assert all(len(str(image["alt"])) > 30 for image in found.all("img"))
    assert found.all("html")[0]["lang"] == "en"
    assert all(cell.get("scope") in ("col", "row") for cell in found.all("th"))
    identifiers = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    assert {f"#{name}" for name in identifiers} == {link["href"] for link in found.all("a")}


def test_made_again_the_page_is_the_same_but_for_the_clock(compared: Path, tmp_path: Path):
    again = tmp_path / "run"
    shutil.copytree(compared, again)
    for name in ("result.json", "report.html"):
        (again / name).unlink()
    for clock in again.rglob("*.clock"):
        clock.unlink()
    compare(again, *COMPARE)

    def without(path: Path) -> str:
        text = (path / "report.html").read_text("utf-8").replace(str(path), "OUT")
        return re.sub(r'(?s)<section[^>]*"time">.*?</section>|<li><a href="#time.*?</li>\n', "", text)

    first, second = without(compared).split(), without(again).split()
    assert first == second
    assert 'id="time"' in (compared / "report.html").read_text()
    assert 'id="time"' not in (again / "report.html").read_text(), "no clock, no section"


def test_without_html_nothing_is_watched_or_drawn(tmp_path: Path, teacher_cache: Path):
    out = compare(tmp_path / "run", *QUICK, "--rules", "fixed:4", "--seeds", "2")
    assert (out / "report.md").exists()
    assert not (out / "report.html").exists()
    assert not [*out.rglob("*.showcase"), *out.rglob("*.clock")]


def test_baselines_the_best_constant_and_policies_are_shown_first():
    names = ["none", *(f"fixed:{number}" for number in range(1, 10)), "universal", "dtkd"]
    pair = {"none": Paired(0.0, 0.0, 0.0, 8)}
    methods = [Row(name, 80.0 + place, 0.5, pair, 8) for place, name in enumerate(names)]
    found = shown(Section(DIGITS, 0.9, methods), ["universal"])
    assert found == ["none", "fixed:9", "universal", "dtkd", "fixed:8", "fixed:7", "fixed:6", "fixed:5"]


def test_names_are_shown_as_they_are_and_do_nothing(tmp_path: Path):
    methods = rows(HOSTILE, f"b{HOSTILE}", f"c{HOSTILE}")
    given: dict[str, Any] = {"command": HOSTILE, "verdict": [HOSTILE], "configuration": {HOSTILE: [HOSTILE]}}
    given["task"] = replace(DIGITS, name=HOSTILE, student=HOSTILE, teacher=HOSTILE)
    shown = {methods[0].rule: showcase(), methods[1].rule: showcase(2.0, seed=1)}
    text = page(tmp_path / "p.html", methods, shown, **given)
    found = Page(text)
    assert found.all("script") == []
    assert "<script" not in text
    assert found.text.count(HOSTILE) >= 3 * 2 + 3 + 3 + 1
    assert found.text.startswith(
        f"{HOSTILE}: {HOSTILE} teaches {HOSTILE} {HOSTILE}: {HOSTILE} teaches {HOSTILE} {HOSTILE}"
    )
    for drawing in found.pictures():
        assert not [element for element in drawing.iter() if element.tag.endswith("script")]
    assert any("script>alert" in "".join(drawing.itertext()) for drawing in found.pictures())


def test_names_that_no_file_can_hold_do_not_stop_the_page(tmp_path: Path):
    methods = rows("a\udc80\x00\x1b[31m", "温度 \N{GREEK SMALL LETTER TAU}", "x" * 300)
    found = Page(page(tmp_path / "p.html", methods, {row.rule: showcase() for row in methods}))
    assert len(found.pictures()) == 1 + 1 + 6 + 2 + 3
    assert "温度" in found.text


def test_a_page_of_numbers_alone_has_no_empty_section(tmp_path: Path):
    found = Page(page(tmp_path / "p.html", rows("fixed:4"), {}))
    assert len(found.pictures()) == 1
    assert [section["aria-labelledby"] for section in found.all("section")] == ["table", "differences", "again"]
    assert dict(leaves({"a": {"b": 1, "c": None}, "d": [], "e": False})) == {"a.b": 1, "e": False}, "no default"
    assert "Shown are 1 of 3 methods." in page(tmp_path / "p.html", rows("a", "b", "c"), {"b": showcase()})


def test_what_cannot_be_drawn_is_left_out_and_the_rest_is_there(tmp_path: Path):
    methods = rows("fixed:4", "diverged", "dead", "none")
    nothing = {name: np.full(500, math.nan) for name in SAMPLED}
    broken = replace(showcase(), features=np.full((60, 4), math.nan), samples={**nothing, "progress": np.zeros(500)})
    dead = replace(showcase(), features=np.zeros((60, 4)), seconds=math.nan)
    narrow = replace(showcase(), features=np.arange(60.0)[:, None])
    shown = {"fixed:4": showcase(), "diverged": broken, "dead": dead, "none": narrow}
    found = Page(page(tmp_path / "p.html", methods, shown))
    captions = [str(image["alt"]) for image in found.all("img")]
    assert [text.split(":")[0] for text in captions if "in the plane" in text] == ["fixed", "none"]
    assert "dead" not in next(text for text in captions if " ms" in text)
    assert not [text for text in captions if "nan" in text]


def test_the_arrangement_keeps_groups_apart_and_is_the_same_again():
    one = showcase()
    positions, again = arranged(one.features), arranged(one.features)
    assert np.array_equal(positions, np.asarray(again))
    centres = np.stack([positions[one.labels == label].mean(0) for label in range(3)])
    nearest = np.linalg.norm(positions[:, None] - centres, axis=-1).argmin(1)
    assert (nearest == one.labels).mean() > 0.95


# A real browser. The container's own user may be root, which Chromium's sandbox refuses.
browser = pytest.fixture(scope="module")(chromium)


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with long names, many rules, two baselines and a long verdict."""
    long = "dtkd:reference=2,kd_weight=0.9,plain_kd_weight=0,ce_weight=0.1,warmup=0"
    names = ["fixed:4", long, "x" * 120, HOSTILE, *"abcdef"]
    path = tmp_path_factory.mktemp("crowded") / "report.html"
    shown = {name: showcase(2.0 + place, seed=place) for place, name in enumerate(names[:8])}
    methods = [replace(row, differences={**row.differences, long: row.differences["fixed:4"]}) for row in rows(*names)]
    page(path, methods, shown, verdict=["fixed:4 has 90 %.", "  minus " + "y" * 200])
    return path


OVERFLOWING = """[...document.querySelectorAll('*')]
    .filter(one => one.clientWidth > 0 && one.scrollWidth > one.clientWidth + 1)
    .map(one => `${one.tagName}.${one.className}: ${one.innerText}`)"""


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The index of a grid with a hostile and a long name."""
    path = tmp_path_factory.mktemp("index") / "report.html"
    section = Section(DIGITS, 0.9, rows("fixed:4", HOSTILE), verdict=[f"{HOSTILE} is best.", "2 seeds are too few."])
    middle = (90.0, 89.0, 91.0)
    overall = [Overall(name, middle, {"fixed:4": middle}, "a note") for name in ("fixed:4", HOSTILE, "x" * 120)]
    write_index(path, {"report-1.html": section, "report-2.html": section}, overall, HOSTILE, "rltemp compare")
    return path


def test_the_index_leads_to_the_page_of_every_point(index: Path):
    found = Page(index.read_text("utf-8"))
    assert [link["href"] for link in found.all("a")] == ["report-1.html", "report-2.html"]
    assert found.text.count("2 seeds are too few.") == 2
    assert found.all("script") == []
    assert f"A grid of comparisons {HOSTILE}" in found.text.split(" The points")[0]


@pytest.mark.parametrize("width", [390, 800, 1280])
@pytest.mark.parametrize("which", ["compared", "crowded", "index"])
def test_nothing_is_cut_off_and_axe_finds_no_fault(
    which: str, width: int, browser: Any, request: pytest.FixtureRequest
):
    path: Path = request.getfixturevalue(which)
    view = browser.new_page(viewport={"width": width, "height": 800})
    view.goto((path / "report.html" if path.is_dir() else path).as_uri())
    assert view.evaluate(OVERFLOWING) == []
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install 'rltemp[browser]'")
    found = axe.Axe().run(view)
    assert [one["id"] for one in found.response["violations"]] == []
    assert len(found.response["passes"]) > 10
    view.close()


@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("which", ["compared", "crowded"])
def test_a_browser_shows_the_page_whole(which: str, width: int, browser: Any, request: pytest.FixtureRequest):
    path: Path = request.getfixturevalue(which)
    path = path / "report.html" if path.is_dir() else path
    said: list[str] = []
    requests: list[str] = []
    view = browser.new_page(viewport={"width": width, "height": 800})
    view.on("console", lambda message: said.append(message.text))
    view.on("pageerror", lambda error: said.append(str(error)))
    view.on("dialog", lambda dialog: said.append(dialog.message))
    view.on("request", lambda sent: requests.append(sent.url))
    view.goto(path.as_uri())
    assert said == []
    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
    assert view.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing scrolls sideways"
    headings = view.eval_on_selector_all("h1, h2", "all => all.map(one => one.innerText)")
    assert headings[1:3] == ["Table", "Differences"]
    assert headings[-1] == "Make it again"
    sizes = view.eval_on_selector_all(
        "img", "all => all.map(one => [one.naturalWidth, one.clientWidth, one.clientHeight])"
    )
    assert len(sizes) > 10
    assert all(natural > 100 and shown > 0.7 * min(width, 400) and height > 100 for natural, shown, height in sizes)
    view.close()


def test_the_page_prints_on_light_ground_with_no_picture_cut(browser: Any, crowded: Path):
    view = browser.new_page(color_scheme="dark")
    view.goto(crowded.as_uri())
    ground = "getComputedStyle(document.body).backgroundColor"
    assert view.evaluate(ground) != "rgb(255, 255, 255)", "on a dark screen the page is dark"
    view.emulate_media(media="print")
    assert view.evaluate(ground) == "rgb(255, 255, 255)"
    assert set(view.eval_on_selector_all("figure", "all => all.map(one => getComputedStyle(one).breakInside)")) == {
        "avoid"
    }
    assert not view.is_visible("nav")
    assert view.pdf(format="A4").startswith(b"%PDF")
    view.close()
