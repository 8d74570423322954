"""The blocks of the documentation's pages, and the sessions that run them as a reader would.

The blocks under one heading `##` run in order, with the names that the earlier ones left, in an empty working folder.
`CONTRIBUTING.md` lists the comments by which a page asks for something else.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import page_names
from support.processes import code
from support.services import Served, serving
from support.source import PYPROJECT, ROOT

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])
WRITTEN_BY_PROGRAMS = ("experiments.md", "rules.md", "study.md", "tokens.md", "transfer.md")
"""The lab notebook, and pages that a script writes: how they look is not asked."""
RUN, SHOWN = ("python", "bash"), ("text", "json", "yaml", "nginx", "mermaid")
"""Languages of blocks that are run, and of those that are shown."""
ADDRESS = "127.0.0.1:8000"
"""Of the service, on every page; in a session it is the one that runs."""

_FENCE = re.compile(r"(?:^<!-- test: (?P<note>.*?) -->\n)?^```(?P<language>.*)\n(?P<code>(?s:.*?))^```$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Args:
        place: Its page and line, as in `docs/index.md:12`.
        language: Behind the fence.
        code: Its lines.
        note: Of the comment above it; empty without one.
    """

    place: str
    language: str
    code: str
    note: str

    @property
    def slow(self) -> bool:
        """Whether it takes too long for `make test`."""
        return self.note.startswith("slow")

    @property
    def names(self) -> list[str]:
        """What of `support.page_names` it begins with."""
        found = re.search(r"with ([\w ]+)", self.note)
        return found[1].split() if found else []

    @property
    def holder(self) -> str:
        """The test file that runs it in the session's place; empty where none does."""
        return self.note.removeprefix("held by ") if self.note.startswith("held by ") else ""

    @property
    def is_run(self) -> bool:
        """Whether a session runs it."""
        return self.language in RUN and not self.holder and not self.note.startswith("not run: ")


@dataclass(frozen=True)
class Section:
    """The text under one heading `##` of a page, or what stands before the first.

    Args:
        page: The file.
        title: The heading; the page's own before the first.
        blocks: In their order.
    """

    page: Path
    title: str
    blocks: tuple[Block, ...]

    @property
    def name(self) -> str:
        """As in `own-task: Tokens with padding`."""
        return f"{self.page.stem}: {self.title}"


def blocks(page: Path) -> Iterator[Block]:
    """Every block of a page."""
    text = page.read_text("utf-8")
    for found in _FENCE.finditer(text):
        line = text[: found.start()].count("\n") + 1
        yield Block(f"{page.relative_to(ROOT)}:{line}", found["language"], found["code"], found["note"] or "")


def sections(page: Path) -> Iterator[Section]:
    """The parts of a page that have blocks."""
    text = page.read_text("utf-8")
    bare = _FENCE.sub(lambda found: "\n" * found[0].count("\n"), text)
    heads = [(bare[: head.start()].count("\n") + 1, head[1]) for head in re.finditer(r"^##? (.+)$", bare, re.MULTILINE)]
    inside: dict[str, list[Block]] = {}
    for block in blocks(page):
        line = int(block.place.rpartition(":")[2])
        title = [title for start, title in heads if start < line][-1]
        inside.setdefault(title, []).append(block)
    yield from (Section(page, title, tuple(found)) for title, found in inside.items())


class Session:
    """Runs the blocks of one section.

    Attributes:
        names: What the Python blocks have left.
        printed: What the last Python block wrote on stdout.
    """

    def __init__(self, section: Section, folder: Path) -> None:
        self.section, self.folder = section, folder
        self.names: dict[str, Any] = {"__name__": "page"}
        self.printed = ""
        self._service: Served | None = None
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Session:
        before = set(sys.modules)
        self._open.callback(lambda: [sys.modules.pop(name) for name in {*sys.modules} - before if self._own(name)])
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def run(self) -> dict[str, Any]:
        """Run every block that is to be run; the names that they leave."""
        for block in filter(lambda block: block.is_run, self.section.blocks):
            for name in block.names:
                self.names |= self._given(name)
            (self._python if block.language == "python" else self._bash)(block)
        return self.names

    def _given(self, name: str) -> dict[str, Any]:
        if name == "service":
            self._serve([])
            return {}
        found: dict[str, Any] = getattr(page_names, name)(self.folder)
        return found

    def _python(self, block: Block) -> None:
        if file := re.match(r"# (\w+\.py)\b", block.code):
            (self.folder / file[1]).write_text(block.code, "utf-8")
        else:
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(self._here(block.code), block.place, "exec"), self.names)
            self.printed = printed.getvalue()

    def _bash(self, block: Block) -> None:
        for words in command_lines(block):
            line = [self._here(word) for word in words]
            assert line[0] in PROGRAMS, f"{block.place}: no reader of the tests knows {line[0]!r}"
            if line[:2] == ["rltemp", "serve"]:
                self._serve(line[2:])
            elif line[0] == "rltemp":
                assert code(*line[1:]) == 0, f"{block.place}: {shlex.join(line)}"
            else:
                PROGRAMS[line[0]](self.folder, line[1:])

    def _serve(self, words: list[str]) -> None:
        if "--port" in words:
            del words[words.index("--port") : words.index("--port") + 2]
        self._service = self._open.enter_context(serving(*words))

    def _here(self, text: str) -> str:
        return text.replace(ADDRESS, self._service.address) if self._service else text

    def _own(self, module: str) -> bool:
        return str(getattr(sys.modules[module], "__file__", "")).startswith(str(self.folder))


def command_lines(block: Block) -> Iterator[list[str]]:
    """The commands of a block, as words: a line goes on in the next after a backslash and within quotes."""
    command = ""
    for line in block.code.replace("\\\n", " ").splitlines():
        command += f"{line}\n"
        with contextlib.suppress(ValueError):  # a quotation is open
            if words := shlex.split(command, comments=True):
                yield words
            command = ""


def _pip(_: Path, words: list[str]) -> None:
    """What is installed by a page is known already; the extras that it names are the project's."""
    for extra in re.findall(r"\[([\w,]+)\]", " ".join(words)):
        assert {*extra.split(",")} <= {*PYPROJECT["project"]["optional-dependencies"]}, extra


def _make(_: Path, words: list[str]) -> None:
    """The target is there."""
    for target in words:
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE), target


def _tensorboard(folder: Path, words: list[str]) -> None:
    """There is something to see."""
    assert list((folder / words[words.index("--logdir") + 1]).rglob("events.out.tfevents.*"))


PROGRAMS: dict[str, Callable[[Path, list[str]], None]] = {
    "rltemp": lambda *_: None,
    "pip": _pip,
    "make": _make,
    "tensorboard": _tensorboard,
}
"""What a block may call, and what a session does then; `rltemp` runs."""
